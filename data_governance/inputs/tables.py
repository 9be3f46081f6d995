"""Input tables of governance: their declared columns, and how they are read.

The tables of entities are read whole; the click log, which grows without bound, is read by behaviour_log.py in batches.
Images stay bytes or paths: nothing is decoded here.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset, Features, Value

from runtime.tables import IMAGE, Schema, open_table

TABLES = {
    "behaviour": Schema(
        "behaviour",
        Features(
            {
                "query_id": Value("string"),
                "doc_id": Value("string"),
                "clicks": Value("float64"),
                "impressions": Value("float64"),
                "position": Value("float64"),
            }
        ),
        ids=frozenset({"query_id", "doc_id"}),
        optional=frozenset({"impressions", "position"}),
    ),
    "queries": Schema("queries", Features({"query_id": Value("string"), "image": IMAGE}), ids=frozenset({"query_id"})),
    "catalogue": Schema(
        "catalogue",
        Features({"doc_id": Value("string"), "image": IMAGE, "text": Value("string"), "leaf": Value("string")}),
        ids=frozenset({"doc_id"}),
        optional=frozenset({"leaf"}),
    ),
    "overrides": Schema(
        "overrides",
        Features({name: Value("string") for name in ("side", "id", "action", "category_key", "why")}),
        ids=frozenset({"id"}),
        optional=frozenset({"category_key", "why"}),
    ),
}


@dataclass(frozen=True)
class Source:
    """An opened input.

    Attributes:
        table: its rows, in the declared columns.
        folder: below which its image paths must lie; None: paths are refused.
        files: number of files that it came in; 0 for a table of the Hub.
        lost: (file name, why) of the files of a folder that could not be used; the others were.
    """

    name: str
    table: pa.Table
    folder: Path | None
    files: int = 0
    lost: tuple[tuple[str, str], ...] = ()


def open_source(location: str, *, name: str) -> Source:
    """Read one input table in its declared columns; damaged files of a folder are left out and listed.

    Raises:
        ValueError: naming table, column and remedy.
    """
    opened = open_table(location, TABLES[name], skip_bad_files=True)
    table, lost = opened.loaded()
    if table.num_rows == 0:
        raise ValueError(f"{name}: {location} has no rows. Give a table with at least one.")
    return Source(name, table, opened.folder, opened.files, lost)


def image_bytes(cell: dict[str, Any] | None, folder: Path | None, *, max_bytes: int) -> tuple[bytes | None, str | None]:
    """(bytes, reason): the encoded image of a cell, or why it cannot be had; (None, None) where it is missing.

    A path is read only below the table's folder: `../x.png`, an absolute path or a link that leads out is refused.
    """
    if cell is None or (cell["bytes"] is None and not cell["path"]):
        return None, None
    if cell["bytes"] is not None:
        return (cell["bytes"], None) if len(cell["bytes"]) <= max_bytes else (None, "image_file_too_large")
    if folder is None:
        return None, "image_path_without_folder"
    path = (folder / cell["path"]).resolve()
    if not path.is_relative_to(folder.resolve()):
        return None, "image_path_escapes_folder"
    try:
        if path.stat().st_size > max_bytes:
            return None, "image_file_too_large"
        return path.read_bytes(), None
    except OSError:
        return None, "image_file_missing"


def as_dataset(table: pa.Table) -> Dataset:
    """An Arrow table as an in-memory `datasets.Dataset`."""
    return Dataset(table)


def feature_column(values_NW: np.ndarray) -> pa.Array:
    """Rows of a float16 matrix as a fixed-size list column, which Parquet and `datasets` both keep."""
    flat = pa.array(np.ascontiguousarray(values_NW, dtype=np.float16).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, values_NW.shape[1])


def feature_matrix(column: pa.ChunkedArray) -> np.ndarray:
    """Inverse of `feature_column`, as float32 (N, W)."""
    flat = column.combine_chunks()
    width = flat.type.list_size
    return flat.flatten().to_numpy(zero_copy_only=False).astype(np.float32).reshape(-1, width)
