"""Tables of documents, queries and judgements: declared once, read from any usual form, checked at the border.

A table is a Parquet, CSV or JSON lines file, a folder of those, a folder written by `datasets.Dataset.save_to_disk`, or
the id of a data set on the Hub (`org/name` or `org/name:split`). Parquet and `datasets` folders are streamed: a
catalogue need not fit into memory. Ids may be strings or integers and are strings from here on.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.csv
import pyarrow.dataset
import pyarrow.json
import pyarrow.parquet
from datasets import Features, Image, Value

QUERIES = Features({"query_id": Value("string"), "image": Image(decode=False)})
CATALOGUE = Features(
    {"doc_id": Value("string"), "image": Image(decode=False), "text": Value("string"), "leaf": Value("string")}
)
QRELS = Features({"query_id": Value("string"), "doc_id": Value("string"), "relevance": Value("int64")})
GALLERY = Features({"doc_id": Value("string")})
MERGE = Features({"doc_id": Value("string"), "same_as": Value("string")})
OPTIONAL = frozenset({"leaf"})
UNIQUE = {"query_id": QUERIES, "doc_id": CATALOGUE}

SUFFIXES = {".parquet": "parquet", ".csv": "csv", ".jsonl": "json", ".json": "json", ".ndjson": "json"}
HUB_ID = re.compile(r"(?P<repo>[\w-][\w.-]*/[\w-][\w.-]*)(?::(?P<split>[\w.-]+))?")
BATCH_ROWS = 256


@dataclass(frozen=True)
class Table:
    """A checked table: its name for messages, its rows (streamed) and the folder that its image paths live in."""

    name: str
    rows: pyarrow.dataset.Dataset
    folder: Path | None

    @property
    def columns(self) -> list[str]:
        return list(self.rows.schema.names)

    def read(self, columns: list[str] | None = None) -> dict[str, list[Any]]:
        """All values of some columns, as Python lists; ids as strings."""
        wanted = [name for name in (columns or self.columns) if name in self.columns]
        found = self.rows.to_table(columns=wanted)
        return {name: _plain(name, found.column(name).to_pylist()) for name in wanted}

    def batches(self, rows: int = BATCH_ROWS) -> Iterator[dict[str, list[Any]]]:
        """The rows in order, at most `rows` at a time, as Python lists; ids as strings."""
        # Without these limits Arrow reads ahead 16 batches of every fragment: gigabytes of pictures.
        for batch in self.rows.to_batches(batch_size=rows, batch_readahead=1, fragment_readahead=1):
            if batch.num_rows:
                yield {name: _plain(name, batch.column(name).to_pylist()) for name in batch.schema.names}


def _plain(name: str, values: list[Any]) -> list[Any]:
    return [None if value is None else str(value) for value in values] if _is_id(name) else values


def _is_id(name: str) -> bool:
    return name in ("query_id", "doc_id", "same_as")


def read_table(path: str | Path, declared: Features, *, name: str, may_be_empty: bool = False) -> Table:
    """Opens a table and checks its columns, types and ids.

    Args:
        path: file, folder or Hub id (see the top of this file).
        declared: one of the Features above; further columns are kept.
        name: what messages call the table, e.g. "catalogue".
        may_be_empty: no rows are an answer too (nothing to merge), not a mistake.

    Returns:
        The table. Duplicate or missing ids are found here, before any costly work.

    Raises:
        ValueError: nothing there, an unknown form, a missing column, a wrong type, no rows, an id that is missing or
            comes twice. The message names table, column and row.
    """
    rows, folder = _open(str(path), name)
    table = Table(name, rows, folder)
    missing = [column for column in declared if column not in table.columns and column not in OPTIONAL]
    if missing:
        raise ValueError(f"{name} {path}: no column {missing[0]!r}; it needs {list(declared)} and has {table.columns}")
    for column in declared:
        if column in table.columns:
            _check_type(table, column, declared[column])
    if table.rows.count_rows() == 0 and not may_be_empty:
        raise ValueError(f"{name} {path}: the table has no rows")
    for column in declared:
        if _is_id(column):
            _check_ids(table, column, unique=declared is UNIQUE.get(column) or declared is GALLERY)
    return table


def _open(path: str, name: str) -> tuple[pyarrow.dataset.Dataset, Path | None]:
    place = Path(path)
    if place.is_file():
        return _open_files([place], name), place.parent
    if (place / "dataset_dict.json").is_file():
        raise ValueError(f"{name} {path}: holds several splits: name the folder of one of them")
    if (place / "dataset_info.json").is_file() and (place / "state.json").is_file():
        return _rows_of(datasets.load_from_disk(path)), place
    if place.is_dir():
        files = sorted(file for file in place.iterdir() if file.suffix in SUFFIXES and file.is_file())
        return _open_files(files, name, folder=place), place
    return _open_hub(path, name), None


def _open_files(files: list[Path], name: str, folder: Path | None = None) -> pyarrow.dataset.Dataset:
    forms = {SUFFIXES.get(file.suffix, file.suffix) for file in files}
    if len(forms) != 1 or not forms <= set(SUFFIXES.values()):
        where = folder or (files[0] if files else "")
        raise ValueError(f"{name} {where}: found {sorted(forms) or 'no files'}, need {sorted(SUFFIXES)} of one kind")
    try:
        if forms == {"parquet"}:
            return pyarrow.dataset.dataset([str(file) for file in files], format="parquet")
        # CSV and JSON lines hold paths, not pictures: small enough to read whole, so that a bad line is found now.
        tables = [_read_csv(file) if forms == {"csv"} else pyarrow.json.read_json(file) for file in files]
        return pyarrow.dataset.dataset(pa.concat_tables(tables, promote_options="permissive"))
    except (pa.ArrowException, OSError) as error:
        raise ValueError(
            f"{name} {folder or files[0]}: cannot be read as {forms.pop()}: {_first_line(error)}"
        ) from error


def _read_csv(file: Path) -> pa.Table:
    # Ids and text stay as written: "007" is an id, not the number 7, and the text "nan" is a word.
    as_text = dict.fromkeys(("query_id", "doc_id", "same_as", "text", "image", "leaf"), pa.string())
    options = pyarrow.csv.ConvertOptions(column_types=as_text, strings_can_be_null=False)
    newlines = pyarrow.csv.ParseOptions(newlines_in_values=True)
    return pyarrow.csv.read_csv(file, convert_options=options, parse_options=newlines)


def _open_hub(path: str, name: str) -> pyarrow.dataset.Dataset:
    match = HUB_ID.fullmatch(path)
    if match is None or Path(path).suffix in SUFFIXES or Path(path).parent.is_dir():
        raise ValueError(f"{name} {path}: there is no such file or folder")
    try:
        return _rows_of(datasets.load_dataset(match["repo"], split=match["split"] or "train"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{name} {path}: no such file here, and the Hub says: {_first_line(error)}") from error


def _rows_of(data: datasets.Dataset) -> pyarrow.dataset.Dataset:
    return pyarrow.dataset.dataset(data.flatten_indices().data.table)


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]


def _check_type(table: Table, column: str, feature: Any) -> None:
    found = table.rows.schema.field(column).type
    if isinstance(feature, Image):
        fits, needs = _is_image(found), "bytes, a path, or {bytes, path}"
    elif _is_id(column):
        fits, needs = _is_text(found) or pa.types.is_integer(found), "strings or integers"
    elif feature.dtype == "int64":
        fits, needs = pa.types.is_integer(found), "integers"
    else:
        fits, needs = _is_text(found) or pa.types.is_null(found), "strings"
    if not fits:
        raise ValueError(f"{table.name}: column {column!r} is {found}, it must hold {needs}")


def _is_text(found: pa.DataType) -> bool:
    if pa.types.is_dictionary(found):
        return _is_text(found.value_type)
    return pa.types.is_string(found) or pa.types.is_large_string(found) or pa.types.is_string_view(found)


def _is_image(found: pa.DataType) -> bool:
    if pa.types.is_list(found) or pa.types.is_large_list(found):
        return _is_image(found.value_type)
    if pa.types.is_struct(found):
        return {found.field(place).name for place in range(found.num_fields)} & {"bytes", "path"} != set()
    binary = pa.types.is_binary(found) or pa.types.is_large_binary(found)
    return binary or _is_text(found) or pa.types.is_null(found)


def _check_ids(table: Table, column: str, *, unique: bool) -> None:
    ids = table.read([column])[column]
    seen: dict[str, int] = {}
    for row, value in enumerate(ids):
        if value is None or value == "":
            raise ValueError(f"{table.name}: row {row} has no {column}; give every row an id")
        if unique and value in seen:
            raise ValueError(
                f"{table.name}: {column} {value!r} comes twice, in rows {seen[value]} and {row}; keep one of them"
            )
        seen[value] = row
