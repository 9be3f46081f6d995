"""Tiny images, a tiny model and the retrieval command line, for tests."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
from PIL import Image, ImageDraw

ROOT = Path(__file__).resolve().parents[2]
COLOURS = ("red", "green", "blue", "orange", "purple", "teal", "black")
SHAPES = ("ring", "box", "wedge", "bar")


def drawing(colour: str, shape: str, *, shift: int = 0) -> Image.Image:
    """A coloured shape on white, 37 pixels wide and 33 high."""
    picture = Image.new("RGB", (37, 33), "white")
    draw = ImageDraw.Draw(picture)
    box = (5 + shift, 6, 26 + shift, 26)
    if shape == "ring":
        draw.ellipse(box, outline=colour, width=4)
    elif shape == "box":
        draw.rectangle(box, fill=colour)
    elif shape == "wedge":
        draw.polygon([(box[0], box[3]), (box[2], box[3]), (box[0], box[1])], fill=colour)
    else:
        draw.rectangle((box[0], 13, box[2], 18), fill=colour)
    return picture


def image_column(contents: Any) -> Any:
    return [None if content is None else {"bytes": content, "path": None} for content in contents]


def tiny_model(*, text_strength: float = 1.0) -> Any:
    """A random model of odd widths and its processor: two stages deep, a vocabulary of single words."""
    import torch
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import BertConfig, PreTrainedTokenizerFast, ViTConfig

    import modeling_oclear

    torch.manual_seed(0)
    words = ["[PAD]", "[UNK]", *COLOURS, *SHAPES, "a", "thing"]
    backend = Tokenizer(WordLevel({word: place for place, word in enumerate(words)}, unk_token="[UNK]"))
    backend.pre_tokenizer = Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]")
    shape: dict[str, Any] = {
        "hidden_size": 36,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 37,
    }
    vision = ViTConfig(**shape, image_size=32, patch_size=8)
    text = BertConfig(**shape, vocab_size=len(words), max_position_embeddings=40)
    config = modeling_oclear.OclearConfig(
        vision_config=vision.to_dict(),
        text_config=text.to_dict(),
        hidden_size=24,
        num_attention_heads=4,
        num_memory_slots=7,
        text_strength=text_strength,
    )
    model = modeling_oclear.OclearModel(config).eval()
    # An untrained text side adds almost nothing to an embedding: scale it up.
    with torch.no_grad():
        for linear in (model.fusion.evidence_projection, model.fusion.concept_projection):
            linear.weight.mul_(2e3)
    processor = modeling_oclear.OclearProcessor(modeling_oclear.OclearImageProcessor(size=32), tokenizer, max_length=16)
    return model, processor


Evaluated = tuple[dict[str, Any], Path]  # metrics, path of the per-query table


@dataclass(frozen=True)
class TinyTask:
    """Folders and tables of a small task: 28 categories, two documents each, one query each."""

    folder: Path
    model: Path

    def table(self, name: str) -> Path:
        return self.folder / f"{name}.parquet"

    @property
    def flags(self) -> list[str]:
        """Flags of evaluate that all calls share."""
        names = {"--model": self.model, "--catalogue": self.table("catalogue")}
        names |= {"--queries": self.table("queries"), "--qrels": self.table("qrels")}
        return [str(word) for pair in names.items() for word in pair]


def write(folder: Path, name: str, **columns: Any) -> None:
    pa.parquet.write_table(pa.table(columns), folder / f"{name}.parquet")


def retrieval(*words: Any, cwd: Any = ROOT) -> subprocess.CompletedProcess[str]:
    """Run `python -m retrieval` in a subprocess."""
    command = [sys.executable, "-m", "retrieval", *map(str, words)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment, check=False)


def call(*words: Any) -> int:
    """Run the command in this process, which is faster; return its exit code."""
    from retrieval.__main__ import main

    return main([str(word) for word in words])
