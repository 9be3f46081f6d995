"""Reading the input tables: Parquet, CSV, JSON lines, a folder of those, a `datasets` folder or a Hub id.

Every table is declared once, as `datasets.Features`; what a user brings is brought to these types here or refused with
the table, the column and the remedy. Images stay bytes or paths: nothing is decoded here.

The tables of entities are read whole; the log of behaviour, which grows without bound, by behaviour_log.py in batches.
"""

from collections.abc import Sequence
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
    "overrides": Features({name: Value("string") for name in ("side", "id", "action", "category_key", "why")}),
}
OPTIONAL = {
    "behaviour": {"impressions", "position"},
    "queries": set(),
    "catalogue": {"leaf"},
    "overrides": {"category_key", "why"},
}
KINDS_OF_FILE = (".csv", ".json", ".jsonl", ".parquet")
# The longest row of a CSV or JSON file that can be read: a text of 10 MB is quarantined, not an unreadable file.
BLOCK_BYTES = 64 * 2**20


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
    """Open one input table and bring it to its declared columns.

    Raises:
        ValueError: naming table, column and remedy.
    """
    path = Path(location)
    if not path.exists():
        table = hub_dataset(location, name).with_format("arrow")[:]
        source = Source(name, declared(table, name), None)
    elif path.is_dir() and (path / "state.json").exists():
        table = datasets.load_from_disk(str(path)).with_format("arrow")[:]
        source = Source(name, declared(table, name), path, files=1)
    else:
        source = _read_files(path, name)
    if source.table.num_rows == 0:
        raise ValueError(f"{name}: {location} has no rows. Give a table with at least one.")
    return source


def _read_files(path: Path, name: str) -> Source:
    """One file, or all of a folder: there a bad file is set aside as long as another one is sound."""
    files = files_of(path, name)
    parts, lost = [], []
    for file in files:
        try:
            parts.append(declared(_read_file(file, name), name))
        except ValueError as error:
            lost.append((file.name, str(error)))
    if not parts:
        raise none_usable(lost, files=len(files), folder=path)
    return Source(name, pa.concat_tables(parts), path if path.is_dir() else path.parent, len(files), tuple(lost))


def files_of(path: Path, name: str) -> list[Path]:
    """The file, or the files of a folder in the order of their names."""
    files = sorted(f for f in path.iterdir() if f.suffix in KINDS_OF_FILE) if path.is_dir() else [path]
    if not files:
        raise ValueError(f"{name}: {path} holds no .parquet, .csv, .json or .jsonl file.")
    return files


def none_usable(lost: Sequence[tuple[str, str]], *, files: int, folder: Path) -> ValueError:
    """The error of a table whose files are all lost: why the first is, and how many there are."""
    more = f" None of the {files} files of {folder.name} can be used." if files > 1 else ""
    return ValueError(lost[0][1] + more)


def _read_file(file: Path, name: str) -> pa.Table:
    try:
        if file.suffix == ".parquet":
            return pq.read_table(file)
        if file.suffix == ".csv":
            return pyarrow.csv.read_csv(file, **csv_options(name))
        if file.suffix in KINDS_OF_FILE:
            return pyarrow.json.read_json(file, read_options=pyarrow.json.ReadOptions(block_size=BLOCK_BYTES))
    except (pa.ArrowException, OSError) as error:
        raise ValueError(unreadable(file, name, error)) from error
    raise ValueError(f"{name}: {file.name} is none of {', '.join(KINDS_OF_FILE)}.")


def csv_options(name: str) -> dict[str, Any]:
    """Texts stay text: left to guess, the reader would make the number 7 of the id 007."""
    as_text = {field: kind for field, kind in fields(name) if kind == pa.string()}
    return {
        "read_options": pyarrow.csv.ReadOptions(block_size=BLOCK_BYTES),
        "parse_options": pyarrow.csv.ParseOptions(newlines_in_values=True),
        "convert_options": pyarrow.csv.ConvertOptions(column_types=as_text),
    }


def unreadable(file: Path, name: str, error: BaseException) -> str:
    return f"{name}: {file.name} cannot be read as {file.suffix.removeprefix('.')} ({_one_line(error)})."


def hub_dataset(location: str, name: str) -> Dataset:
    """The train split of a Hub id; its rows lie in Arrow files of the local cache and are mapped, not loaded.

    Raises:
        ValueError: for what is no id, and when the Hub has no such data set.
    """
    if location.count("/") != 1 or location.startswith((".", "/")) or Path(location).suffix in KINDS_OF_FILE:
        raise ValueError(f"{name}: {location} does not exist. Give a file, a folder or a Hub data set id.")
    try:
        return datasets.load_dataset(location, split="train")
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{name}: neither a path nor a readable Hub data set: {location} ({_one_line(error)})"
        ) from error


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]


def declared(table: pa.Table, name: str) -> pa.Table:
    """The declared columns in the declared types; further columns are left where they are."""
    columns: dict[str, Any] = {}
    for column, wanted in fields(name):
        if column not in table.column_names:
            if column not in OPTIONAL[name]:
                have = ", ".join(table.column_names)
                raise ValueError(f"{name}: column {column!r} is missing (it has {have}). Add or rename it.")
            columns[column] = pa.nulls(table.num_rows, wanted)
        else:
            columns[column] = _cast(table.column(column), wanted, name, column)
    return pa.table(columns)


def fields(name: str) -> list[tuple[str, pa.DataType]]:
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
    fits = (is_text or (pa.types.is_integer(have) and column.endswith("id"))) if wanted == pa.string() else is_number
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
