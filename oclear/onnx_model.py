"""A model that `oclear export` has written, computed by ONNX Runtime; without torch and transformers."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image
from tokenizers import Tokenizer

from modeling_oclear.image_decoding_oclear import ImageRefused, upright_picture
from modeling_oclear.image_squares_oclear import normalised, square_of
from modeling_oclear.visible_text_oclear import readable
from oclear.encoding import Array, EncodingModel
from runtime.threads import num_threads

ONNX_FOLDER, FACTS = "onnx", "onnx/oclear.json"
FILES = {"query": "onnx/query.onnx", "document": "onnx/document.onnx"}
FORMAT = 1
LEAST_TOKENS = 2  # of a text, by padding


class OnnxModel(EncodingModel):
    """An exported model; `oclear.load(name, backend="onnx")` makes it.

    Attributes:
        folder: the published folder. facts: what `oclear export` has recorded.
    """

    def __init__(self, folder: Path, facts: dict[str, Any], *, threads: int) -> None:
        self.folder, self.facts = folder, facts
        self.decoding = facts["decoding"]
        self._threads = threads
        self._sessions: dict[str, onnxruntime.InferenceSession] = {}
        self._tokenizer: Tokenizer | None = None

    @property
    def width(self) -> int:
        """D, the width of an embedding."""
        return int(self.facts["width"])

    @property
    def reads_text(self) -> bool:
        """Whether documents may have text."""
        return bool(self.facts["text"])

    def embed_queries(self, pictures: Sequence[Image.Image]) -> Array:
        """(B, D) unit rows of one batch."""
        return self.query_embeds(self.pixels(pictures)[0])

    def query_embeds(self, pixel_values: np.ndarray) -> Array:
        """Pixel values (B, 3, S, S) float32 -> (B, D) unit rows of queries."""
        return self._run("query", {"pixel_values": pixel_values})

    def embed_documents(self, pictures: Sequence[Image.Image | None], texts: Sequence[str]) -> Array:
        """(B, D) unit rows of one batch; each document has a picture, a text or both."""
        pixel_values, has_image = self.pixels(pictures)
        inputs = {"pixel_values": pixel_values, "has_image": has_image}
        return self._run("document", inputs | (self.tokens(texts) if self.reads_text else {}))

    def pixels(self, pictures: Sequence[Image.Image | None]) -> tuple[np.ndarray, np.ndarray]:
        """(pixel values (B, 3, S, S) float32, has_image (B,) bool), bit for bit as of the image processor.

        Raises:
            ValueError: a picture that cannot be decoded or is too large.
        """
        geometry = self.facts["geometry"]
        squares = np.zeros((len(pictures), geometry["size"], geometry["size"], 3), np.uint8)
        for row, picture in enumerate(pictures):
            if picture is not None:
                try:
                    squares[row] = square_of(upright_picture(picture, **self.decoding), **geometry)
                except ImageRefused as error:
                    raise ValueError(f"picture {row} of the batch: {error}") from error
        has_image = np.array([picture is not None for picture in pictures])
        return normalised(squares, has_image, mean=self.facts["mean"], std=self.facts["std"]), has_image

    def tokens(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        """input_ids and attention_mask (B, T) int64, has_text (B,) bool, as of the processor."""
        if self._tokenizer is None:
            self._tokenizer = Tokenizer.from_file(str(self.folder / "tokenizer.json"))
            self._tokenizer.enable_truncation(self.facts["text"]["max_length"])
            self._tokenizer.enable_padding(
                pad_id=self.facts["text"]["pad_id"], pad_token=self.facts["text"]["pad_token"]
            )
        cut = [readable(text, max_length=self.facts["text"]["max_length"]) for text in texts]
        found = self._tokenizer.encode_batch(cut)
        has_text = np.array([bool(text) for text in cut])
        ids = np.array([one.ids for one in found], np.int64).reshape(len(found), -1)
        mask = np.array([one.attention_mask for one in found], np.int64).reshape(ids.shape) * has_text[:, None]
        # Without special tokens an empty text has none; the graph takes no fewer than it was traced with.
        more = ((0, 0), (0, max(0, LEAST_TOKENS - ids.shape[1])))
        ids = np.pad(ids, more, constant_values=self.facts["text"]["pad_id"])
        return {"input_ids": ids, "attention_mask": np.pad(mask, more), "has_text": has_text}

    def path(self, side: str) -> Path:
        """The file of one side, "query" or "document"."""
        return self.folder / FILES[side]

    def _run(self, side: str, inputs: dict[str, np.ndarray]) -> Array:
        if side not in self._sessions:
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = self._threads
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # idle threads would burn a core
            self._sessions[side] = onnxruntime.InferenceSession(
                str(self.path(side)), options, providers=["CPUExecutionProvider"]
            )
        found: Array = self._sessions[side].run(["embeds"], inputs)[0]
        return found

    def __repr__(self) -> str:
        kind = "image + text" if self.reads_text else "image"
        return f"OnnxModel({str(self.folder)!r}: documents of {kind}, width {self.width})"


def load_onnx(name: str | Path) -> OnnxModel:
    """Load the exported files of a published folder or Hub repository, and check them.

    Raises:
        ValueError: no such folder, no export in it, or files that are not those of the export.
    """
    folder = Path(name) if Path(name).exists() else _downloaded(str(name))
    path = folder / FACTS
    if not path.is_file():
        raise ValueError(f"{name}: there is no {FACTS}; write it with: oclear export --model {name}")
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        if facts.get("format") != FORMAT:
            raise ValueError(f"format {facts.get('format')!r} is not {FORMAT}")
        for file, digest in facts["sha256"].items():
            if file_digest(folder / file) != digest:
                raise ValueError(f"{file} is not the file of this export")
    except (OSError, KeyError, AttributeError, ValueError) as error:
        raise ValueError(f"{name}: {error}; export again: oclear export --model {name}") from error
    return OnnxModel(folder, facts, threads=num_threads())


def file_digest(path: Path) -> str:
    """sha256 of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _downloaded(name: str) -> Path:
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    patterns = [f"{ONNX_FOLDER}/*", "tokenizer.json"]
    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=patterns))
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(f"model {name}: no such folder here, and the Hub says: {reason}") from error
