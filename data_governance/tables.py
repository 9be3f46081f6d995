"""Reading the input tables: Parquet, CSV, JSON lines, a folder of those, a `datasets` folder or a Hub id.

Every table is declared once, as `datasets.Features`; what a user brings is brought to these types here or refused with
the table, the column and the remedy. Images stay bytes or paths: nothing is decoded here.

In: the user's files. Out: one `datasets.Dataset` per table with exactly the declared columns. Next: admit.py.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet as pq
from datasets import Dataset, Features, Value

IMAGE = {"bytes": Value("binary"), "path": Value("string")}
TABLES = {
    "behaviour": Features(
        {
            "query_id": Value("string"),
            "doc_id": Value("string"),
            "clicks": Value("float64"),
            "impressions": Value("float64"),
            "position": Value("float64"),
        }
    ),
    "queries": Features({"query_id": Value("string"), "image": IMAGE}),
    "catalogue": Features(
        {"doc_id": Value("string"), "image": IMAGE, "text": Value("string"), "leaf": Value("string")}
    ),
}
OPTIONAL = {"behaviour": {"impressions", "position"}, "queries": set(), "catalogue": {"leaf"}}
READERS = {".parquet": pq.read_table, ".csv": pyarrow.csv.read_csv, ".jsonl": pyarrow.json.read_json}
READERS[".json"] = READERS[".jsonl"]


@dataclass(frozen=True)
class Source:
    """An opened input: its rows, and the folder below which its image paths must lie (None: paths are refused)."""

    name: str
    table: pa.Table
    folder: Path | None


def open_source(location: str, *, name: str) -> Source:
    """Open one input table and bring it to its declared columns.

    Raises:
        ValueError: naming table, column and remedy.
    """
    path = Path(location)
    if path.exists():
        table, folder = _read_path(path, name), path if path.is_dir() else path.parent
    else:
        table, folder = _read_hub(location, name), None
    if table.num_rows == 0:
        raise ValueError(f"{name}: {location} has no rows. Give a table with at least one.")
    return Source(name, _declared(table, name), folder)


def _read_path(path: Path, name: str) -> pa.Table:
    if path.is_dir() and (path / "state.json").exists():
        return datasets.load_from_disk(str(path)).with_format("arrow")[:]
    files = sorted(f for f in path.iterdir() if f.suffix in READERS) if path.is_dir() else [path]
    if not files:
        raise ValueError(f"{name}: {path} holds no .parquet, .csv, .json or .jsonl file.")
    parts = []
    for file in files:
        if file.suffix not in READERS:
            raise ValueError(f"{name}: {file.name} is none of {', '.join(sorted(READERS))}.")
        try:
            parts.append(READERS[file.suffix](file))
        except (pa.ArrowException, OSError) as error:
            kind = file.suffix.removeprefix(".")
            raise ValueError(f"{name}: {file.name} cannot be read as {kind} ({_one_line(error)}).") from error
    try:
        return pa.concat_tables(parts, promote_options="permissive")
    except pa.ArrowException as error:
        raise ValueError(f"{name}: the files in {path.name} disagree on a column ({_one_line(error)}).") from error


def _read_hub(location: str, name: str) -> pa.Table:
    if location.count("/") != 1 or location.startswith((".", "/")) or Path(location).suffix in READERS:
        raise ValueError(f"{name}: {location} does not exist. Give a file, a folder or a Hub data set id.")
    try:
        return datasets.load_dataset(location, split="train").with_format("arrow")[:]
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{name}: neither a path nor a readable Hub data set: {location} ({_one_line(error)})"
        ) from error


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]


def _declared(table: pa.Table, name: str) -> pa.Table:
    """The declared columns in the declared types; further columns are left where they are."""
    columns: dict[str, Any] = {}
    for column, wanted in _fields(name):
        if column not in table.column_names:
            if column not in OPTIONAL[name]:
                have = ", ".join(table.column_names)
                raise ValueError(f"{name}: column {column!r} is missing (it has {have}). Add or rename it.")
            columns[column] = pa.nulls(table.num_rows, wanted)
        else:
            columns[column] = _cast(table.column(column), wanted, name, column)
    return pa.table(columns)


def _fields(name: str) -> list[tuple[str, pa.DataType]]:
    schema = TABLES[name].arrow_schema
    return [(field.name, field.type) for field in schema]


def _cast(values: pa.ChunkedArray, wanted: pa.DataType, name: str, column: str) -> Any:
    have = values.type
    if column == "image":
        return _image_cells(values, name)
    if pa.types.is_null(have):
        return pa.nulls(len(values), wanted)
    if pa.types.is_dictionary(have):
        values, have = values.cast(have.value_type), have.value_type
    is_text = pa.types.is_string(have) or pa.types.is_large_string(have)
    is_number = pa.types.is_integer(have) or pa.types.is_floating(have) or pa.types.is_decimal(have)
    fits = (is_text or (pa.types.is_integer(have) and column.endswith("_id"))) if wanted == pa.string() else is_number
    if not fits:
        kind = "text" if wanted == pa.string() else "a number"
        raise ValueError(f"{name}: column {column!r} has type {have}, {kind} is needed. Convert it.")
    return values.cast(wanted)


def _image_cells(values: pa.ChunkedArray, name: str) -> Any:
    """Image columns of all three kinds as struct {bytes, path}."""
    kind = values.type
    wanted = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    if pa.types.is_null(kind):
        return pa.nulls(len(values), wanted)
    if pa.types.is_struct(kind) and {f.name for f in kind} >= {"bytes", "path"}:
        flat = values.combine_chunks()
        parts = [pc.struct_field(flat, "bytes").cast(pa.binary()), pc.struct_field(flat, "path").cast(pa.string())]
        return pa.StructArray.from_arrays(parts, ["bytes", "path"], mask=pc.is_null(flat))
    flat = values.combine_chunks()
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        parts = [flat.cast(pa.binary()), pa.nulls(len(flat), pa.string())]
    elif pa.types.is_string(kind) or pa.types.is_large_string(kind):
        parts = [pa.nulls(len(flat), pa.binary()), flat.cast(pa.string())]
    else:
        raise ValueError(f"{name}: column 'image' has type {kind}; bytes, a path or a struct of both is needed.")
    return pa.StructArray.from_arrays(parts, ["bytes", "path"], mask=pc.is_null(flat))


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
