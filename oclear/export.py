"""Export a published model to ONNX: `oclear export --model hub`.

Writes `onnx/query.onnx`, `onnx/document.onnx` and `onnx/oclear.json` into the folder, compares both with torch, and
leaves nothing when they differ. `oclear.load(folder, backend="onnx")` reads them.
"""

import argparse
import json
import logging
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from oclear.onnx_model import FACTS, FILES, FORMAT, LEAST_TOKENS, ONNX_FOLDER, OnnxModel, file_digest
from retrieval.encoder import RetrievalEncoder, load_encoder
from runtime.files import atomic_folder

OPSET = 18
MOST_ROWS = 4096
MOST_DIFFERENCE = 1e-5  # of any value of a unit row, against torch
EXAMPLES = """examples:
  oclear export --model runs/mine/hub
  python -c "import oclear; print(oclear.load('runs/mine/hub', backend='onnx').encode_query('photo.png').shape)"
"""


class _Query(torch.nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.model.get_query_embeds(pixel_values)


class _Document(torch.nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        pixel_values: torch.Tensor,
        has_image: torch.Tensor,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        has_text: torch.Tensor | None = None,
    ) -> torch.Tensor:
        return self.model.get_document_embeds(pixel_values, input_ids, attention_mask, has_image, has_text).embeds


def export(model: str | Path) -> Path:
    """Write the ONNX files of a published folder into it; files of an earlier export are replaced.

    Args:
        model: a folder.

    Returns:
        The folder `onnx`.

    Raises:
        ValueError: no such folder, one of another kind, or numbers that differ from torch.
    """
    folder = Path(model)
    if not folder.is_dir():
        raise ValueError(f"model {model}: there is no such folder; download a repository first: hf download {model}")
    encoder = _for_tracing(load_encoder(str(folder), device="cpu"))
    facts = _facts(encoder)
    with atomic_folder(folder / ONNX_FOLDER) as partial:
        for side, inputs in tqdm(_examples(encoder).items(), desc="export, about a minute", unit="file"):
            _write(
                _Query(encoder.model) if side == "query" else _Document(encoder.model), inputs, partial / f"{side}.onnx"
            )
        facts["sha256"] = {name: file_digest(partial / Path(name).name) for name in FILES.values()}
        if encoder.reads_text:
            facts["sha256"]["tokenizer.json"] = file_digest(folder / "tokenizer.json")
        (partial / Path(FACTS).name).write_text(json.dumps(facts, indent=1, sort_keys=True) + "\n")
        _compare(encoder, partial, facts)
    return folder / ONNX_FOLDER


def _for_tracing(encoder: RetrievalEncoder) -> RetrievalEncoder:
    """The model without the fused kernels of `load_encoder`, which cannot be traced."""
    from modeling_oclear import OclearModel

    model = OclearModel.from_pretrained(encoder.folder, dtype=torch.float32).eval()
    return RetrievalEncoder(model, encoder.processor, encoder.folder)


def _facts(encoder: RetrievalEncoder) -> dict[str, Any]:
    """What `OnnxModel` needs to know beside the files."""
    image_processor = getattr(encoder.processor, "image_processor", encoder.processor)
    text = None
    if encoder.reads_text:
        tokenizer = encoder.processor.tokenizer
        text = {
            "max_length": encoder.processor.max_length,
            "pad_id": tokenizer.pad_token_id,
            "pad_token": tokenizer.pad_token,
        }
    return {
        "format": FORMAT,
        "width": encoder.width,
        "decoding": encoder.decoding,
        "geometry": image_processor.geometry,
        "mean": image_processor.image_mean,
        "std": image_processor.image_std,
        "text": text,
    }


def _examples(encoder: RetrievalEncoder) -> dict[str, dict[str, torch.Tensor]]:
    """Inputs to trace each side with; row 1 has no image, row 2 no text."""
    size = getattr(encoder.processor, "image_processor", encoder.processor).size
    pixels = torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(0))
    document = {"pixel_values": pixels, "has_image": torch.tensor([True, not encoder.reads_text, True])}
    if encoder.reads_text:
        document |= {
            "input_ids": torch.ones(3, 5, dtype=torch.int64),
            "attention_mask": torch.ones(3, 5, dtype=torch.int64),
            "has_text": torch.tensor([True, True, False]),
        }
    return {"query": {"pixel_values": pixels}, "document": document}


def _write(module: torch.nn.Module, inputs: dict[str, torch.Tensor], path: Path) -> None:
    rows = torch.export.Dim("rows", min=1, max=MOST_ROWS)
    tokens = torch.export.Dim("tokens", min=LEAST_TOKENS, max=MOST_ROWS)
    shapes = {name: {0: rows, 1: tokens} if value.dtype == torch.int64 else {0: rows} for name, value in inputs.items()}
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)  # the exporter names every library that it does not find
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                module.eval(),
                kwargs=inputs,
                f=str(path),
                input_names=list(inputs),
                output_names=["embeds"],
                dynamic_shapes=shapes,
                opset_version=OPSET,
                external_data=False,
                dynamo=True,
                verbose=False,
            )
    finally:
        logging.disable(level)


def _compare(encoder: RetrievalEncoder, partial: Path, facts: dict[str, Any]) -> None:
    """Raise ValueError where the files give other numbers than torch, in batches of other sizes than the traced one."""
    generator = np.random.default_rng(0)
    noise = [Image.fromarray(generator.integers(0, 255, (40, 60, 3), np.uint8)) for _ in range(5)]
    texts = ["a red ball on the grass", "", "a cup", "b", ""] if encoder.reads_text else [""] * 5
    pictures = [image if row != 3 or not encoder.reads_text else None for row, image in enumerate(noise)]
    tried = _Exported(encoder.folder, partial, facts)
    for rows in (slice(0, 5), slice(1, 2)):
        wanted = encoder.queries(noise[rows])[0]
        documents = encoder.documents(pictures[rows], texts[rows])[0].embeds.numpy()
        found = tried.embed_queries(noise[rows]), tried.embed_documents(pictures[rows], texts[rows])
        gap = max(float(np.abs(found[0] - wanted).max()), float(np.abs(found[1] - documents).max()))
        if not gap <= MOST_DIFFERENCE:
            raise ValueError(
                f"the exported files differ from torch by {gap:.2g}, over {MOST_DIFFERENCE:g}: not written"
            )


class _Exported(OnnxModel):
    """An export that is not in its folder yet."""

    def __init__(self, folder: Path, partial: Path, facts: dict[str, Any]) -> None:
        super().__init__(folder, facts, threads=1)
        self._partial = partial

    def path(self, side: str) -> Path:
        return self._partial / f"{side}.onnx"


def argument_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="oclear export",
        description="Write a published model as ONNX, for ONNX Runtime on CPUs: queries and documents, in float32.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", required=True, help="published folder; the files are written into it")
    return parser


def main(words: Sequence[str] | None = None) -> int:
    """Exit code of `oclear export`."""
    arguments = argument_parser().parse_args(words)
    try:
        folder = export(arguments.model)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for path in sorted(folder.iterdir()):
        print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
