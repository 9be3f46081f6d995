"""Frozen-encoder features of all images and texts of a dataset split's tasks.

The tasks of a dataset split (unseen, seen and validation queries, other styles, degraded documents) share most of their
images. Every distinct image passes the frozen part of the image encoder once and every distinct text the text encoder,
through the function that training uses; a task then selects rows of these arrays. The arithmetic is float32, as in the
published folder, not the bfloat16 of the training cache.

Legend: N rows, H width.
"""

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from benchmarks.immr.protocol.task import Task
from runtime.files import atomic_file
from train.encoders.pair import ROWS_PER_CHUNK, EncoderPair
from train.inputs.cache import FeatureCache
from train.inputs.features import features_of
from train.inputs.samples import read_samples
from train.recipes.recipe import Recipe

SampleRow = tuple[str, str, bytes | None, str]  # sample_id, side, image, text
MISSING = -1
SAMPLES = pa.schema(
    [
        ("sample_id", pa.string()),
        ("side", pa.string()),
        ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        ("text", pa.string()),
        ("category_id", pa.int64()),
        ("weight", pa.float64()),
        ("split", pa.string()),
    ]
)


@dataclass(frozen=True)
class TaskFeatures:
    """Cached features of images and texts, with the row of each.

    Attributes:
        cache: its document rows hold the images and, independently of them, the texts (tokens, mask).
        image_row: row of an image by the digest of its bytes. text_row: row of a text.
    """

    cache: FeatureCache
    image_row: dict[str, int]
    text_row: dict[str, int]

    def images(self, table: pa.Table) -> np.ndarray:
        """(N,) row of every image of a table of queries or documents; MISSING where there is none."""
        rows = [MISSING if data is None else self.image_row[_digest(data)] for data in _images(table)]
        return np.asarray(rows, dtype=np.int64)

    def texts(self, table: pa.Table) -> np.ndarray:
        """(N,) row of every text; MISSING where it is blank."""
        return np.asarray([self.text_row.get(text, MISSING) for text in _texts(table)], dtype=np.int64)

    def documents(self, table: pa.Table) -> FeatureCache:
        """Feature cache of these documents, without queries and composite images."""
        image_N, text_N = self.images(table), self.texts(table)
        has_image, has_text = image_N != MISSING, text_N != MISSING
        inputs = np.array(self.cache.document_inputs[np.maximum(image_N, 0)])
        cells = np.array(self.cache.document_cells[np.maximum(image_N, 0)])
        inputs[~has_image], cells[~has_image] = 0, 0
        return dataclasses.replace(
            self.cache,
            query_inputs=self.cache.query_inputs[:0],
            document_inputs=inputs,
            document_has_image=has_image,
            document_cells=cells,
            document_tokens=np.array(self.cache.document_tokens[np.maximum(text_N, 0)]),
            document_mask=np.array(self.cache.document_mask[np.maximum(text_N, 0)]) & has_text[:, None],
        )


def embed_samples(
    rows: Sequence[SampleRow], *, model: Any, processor: Any, recipe: Recipe, folder: Path
) -> FeatureCache:
    """Features of any images and texts, by training's own function on a governed folder written from the rows.

    Documents get one category and queries another, so that training builds no composite images from them.

    Args:
        rows: at least one query and one document with an image. folder: parent of the cache folders.
    """
    digest = hashlib.sha256()
    for name, side, data, text in rows:
        digest.update(f"{name}/{side}/{text}/{'' if data is None else _digest(data)}\n".encode())
    home = folder / "tables" / digest.hexdigest()[:16]
    if not (home / "categories.parquet").is_file():
        _write_governed(home, rows)
    return features_of(model, processor, read_samples(home), recipe=recipe, folder=folder, seed=0)


def _write_governed(home: Path, rows: Sequence[SampleRow]) -> None:
    (home / "samples").mkdir(parents=True, exist_ok=True)
    table = [
        {
            "sample_id": name,
            "side": side,
            "image": None if data is None else {"bytes": data, "path": None},
            "text": text,
            "category_id": int(side == "query"),
            "weight": 1.0,
            "split": "train",
        }
        for name, side, data, text in rows
    ]
    pq.write_table(pa.Table.from_pylist(table, schema=SAMPLES), home / "samples" / "part-0.parquet", row_group_size=256)
    pq.write_table(
        pa.table({"category_id": [0, 1], "category_key": ["documents", "queries"]}), home / "categories.parquet"
    )


def compute_task_features(
    model: Any, processor: Any, tasks: Sequence[Task], *, recipe: Recipe, folder: Path
) -> TaskFeatures:
    """Features of all images and texts of some tasks, computed or read from the cache.

    Args:
        model, processor: from `build_model(recipe, seed=0)`; only the frozen part is run.
        folder: parent of the keyed cache folders.

    Raises:
        ValueError: an image is a path or cannot be decoded.
    """
    image_of: dict[str, bytes] = {}
    texts: dict[str, None] = {}
    for task in tasks:
        for table in (task.queries, task.documents):
            image_of |= {_digest(data): data for data in _images(table) if data is not None}
        texts |= dict.fromkeys(text for text in _texts(task.documents) if text)
    images, contents = list(image_of.values()), list(texts)
    # A row pairs an unrelated image and text: the cache keeps the two in separate arrays.
    rows: list[SampleRow] = [
        (f"row {k:06d}", "document", images[k] if k < len(images) else None, contents[k] if k < len(contents) else "")
        for k in range(max(len(images), len(contents)))
    ]
    rows.append(("one query", "query", images[0], ""))
    recipe = recipe.with_changes({"image.query_views": 0, "image.document_views": 0, "model.feature_dtype": "float32"})
    cache = embed_samples(rows, model=model, processor=processor, recipe=recipe, folder=folder)
    cache = dataclasses.replace(cache, document_inputs=cache.document_inputs[:, 0])
    return TaskFeatures(
        cache, {name: k for k, name in enumerate(image_of)}, {text: k for k, text in enumerate(contents)}
    )


def pooled_features(model: Any, inputs: np.ndarray, *, recipe: Recipe, home: Path, name: str) -> np.ndarray:
    """Run hidden maps (..., C, H, W) through the rest of the pretrained backbone: (..., H') fp16, cached in `home`.

    Args:
        model: the untrained model.
        inputs: at the recipe's `frozen_stages`; returned unchanged when it is None.
        home, name: folder and key of the cache file.
    """
    if recipe.model.frozen_stages is None:
        return inputs
    path = home / f"pooled-{name}.npy"
    if not path.is_file():
        encoders = EncoderPair(model, frozen_stages=recipe.model.frozen_stages)
        leading = inputs.shape[: inputs.ndim - 3]
        flat = inputs.reshape(-1, *inputs.shape[-3:])
        parts = []
        for start in range(0, len(flat), ROWS_PER_CHUNK):
            with torch.inference_mode():
                chunk = torch.from_numpy(np.array(flat[start : start + ROWS_PER_CHUNK])).float()
                parts.append(encoders.pooled(chunk).to(torch.float16).numpy())
        with atomic_file(path) as partial, partial.open("wb") as file:
            np.save(file, np.concatenate(parts).reshape(*leading, -1))
    found: np.ndarray = np.load(path)
    return found


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _texts(table: pa.Table) -> list[str]:
    return [(text or "").strip() for text in table.column("text").to_pylist()]


def _images(table: pa.Table) -> list[bytes | None]:
    images = []
    for image in table.column("image").to_pylist():
        data = image["bytes"] if isinstance(image, dict) else image
        if data is not None and not isinstance(data, bytes):
            raise ValueError(f"the image {data!r} is a path; read images into bytes first")
        images.append(data)
    return images
