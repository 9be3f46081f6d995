"""Features of everything that a world asks and answers, by content: each picture and each text is embedded once.

Why by content: the tasks of a world (unseen, seen and validation queries, styles never trained on, documents made
worse in five ways) share most of their pictures. All distinct pictures go through the frozen part of the image encoder
once and all distinct texts through the text encoder, by the very function that training uses; a task is then rows of
these arrays. The arithmetic is float32, as in the published folder, not the bfloat16 of training's cache.


Letters: N rows, P cells, T tokens, H width.
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

Row = tuple[str, str, bytes | None, str]  # sample_id, side, picture, text
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
    """Cached features of pictures and texts, and where each stands.

    Attributes:
        cache: its documents are the pictures (inputs, cells) and, by themselves, the texts (tokens, mask).
        image_row: row of a picture by the digest of its bytes. text_row: row of a text.
    """

    cache: FeatureCache
    image_row: dict[str, int]
    text_row: dict[str, int]

    def images(self, table: pa.Table) -> np.ndarray:
        """(N,) row of every picture of a table of queries or documents; MISSING where there is none."""
        rows = [MISSING if data is None else self.image_row[_digest(data)] for data in _pictures(table)]
        return np.asarray(rows, dtype=np.int64)

    def texts(self, table: pa.Table) -> np.ndarray:
        """(N,) row of every text; MISSING where it is blank."""
        return np.asarray([self.text_row.get(text, MISSING) for text in _texts(table)], dtype=np.int64)

    def documents(self, table: pa.Table) -> FeatureCache:
        """What `cache_features` would hold for these documents (queries and pages are left empty)."""
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


def embedded(rows: Sequence[Row], *, model: Any, processor: Any, recipe: Recipe, folder: Path) -> FeatureCache:
    """Features of any pictures and texts, by training's own function: the rows are written as a governed folder.

    Documents are of one category and queries of another, so that no pages are made of them.

    Args:
        rows: at least one query and one document with a picture. folder: parent of the cache folders.
    """
    digest = hashlib.sha256()
    for name, side, data, text in rows:
        digest.update(f"{name}/{side}/{text}/{'' if data is None else _digest(data)}\n".encode())
    home = folder / "tables" / digest.hexdigest()[:16]
    if not (home / "categories.parquet").is_file():
        _write_governed(home, rows)
    return features_of(model, processor, read_samples(home), recipe=recipe, folder=folder, seed=0)


def _write_governed(home: Path, rows: Sequence[Row]) -> None:
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


def features_of_tasks(
    model: Any, processor: Any, tasks: Sequence[Task], *, recipe: Recipe, folder: Path
) -> TaskFeatures:
    """Compute, or find again, the features of all pictures and texts of some tasks.

    Args:
        model, processor: of `build_model(recipe, seed=0)`; the frozen part alone is run.
        folder: parent of the keyed cache folders.

    Raises:
        ValueError: a picture is a path or cannot be decoded.
    """
    pictures: dict[str, bytes] = {}
    texts: dict[str, None] = {}
    for task in tasks:
        for table in (task.queries, task.documents):
            pictures |= {_digest(data): data for data in _pictures(table) if data is not None}
        texts |= dict.fromkeys(text for text in _texts(task.documents) if text)
    images, words = list(pictures.values()), list(texts)
    # A row holds a picture and a text that have nothing to do with each other: both are cached row by row.
    rows: list[Row] = [
        (f"row {k:06d}", "document", images[k] if k < len(images) else None, words[k] if k < len(words) else "")
        for k in range(max(len(images), len(words)))
    ]
    rows.append(("one query", "query", images[0], ""))
    recipe = recipe.with_changes({"image.query_views": 0, "image.document_views": 0, "model.feature_dtype": "float32"})
    cache = embedded(rows, model=model, processor=processor, recipe=recipe, folder=folder)
    cache = dataclasses.replace(cache, document_inputs=cache.document_inputs[:, 0])
    return TaskFeatures(cache, {name: k for k, name in enumerate(pictures)}, {text: k for k, text in enumerate(words)})


def pooled_features(model: Any, inputs: np.ndarray, *, recipe: Recipe, home: Path, name: str) -> np.ndarray:
    """Hidden maps (..., C, H, W) through the rest of the pretrained backbone: (..., H') fp16, kept in `home`.

    Args:
        model: the untrained model. inputs: of the recipe's `frozen_stages`; returned as they are when it is None.
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


def _pictures(table: pa.Table) -> list[bytes | None]:
    found = []
    for cell in table.column("image").to_pylist():
        data = cell["bytes"] if isinstance(cell, dict) else cell
        if data is not None and not isinstance(data, bytes):
            raise ValueError(f"the picture {data!r} is a path; read pictures into bytes first")
        found.append(data)
    return found
