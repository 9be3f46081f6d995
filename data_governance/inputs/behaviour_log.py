"""Read the behaviour log in batches of bounded size, however many rows it has.

Opening reads only footers and first rows: a file with missing columns or wrong types is rejected at once. A truncated
file is found while it is read, and then all of its rows are rejected, but no other file's.

Parquet, CSV and JSON lines are streamed; a `datasets` folder and a Hub id are memory-mapped Arrow files.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet as pq
from datasets import Dataset

from data_governance.inputs.shards import gathered
from data_governance.inputs.tables import TABLES
from runtime.tables import (
    Location,
    Schema,
    conform,
    csv_options,
    format_of,
    json_options,
    locate,
    none_usable,
    unreadable,
)

# Rows in memory at once, some 50 MB with their ids; also the rows of a shard.
ROWS_PER_BATCH = 250_000
# Parquet columns are read in pieces of this many bytes: a row group may be as large as its file.
BUFFER_BYTES = 2**20
Stream = Callable[[], Iterator[pa.Table]]


class BrokenFile(ValueError):
    """A file of the log that cannot be read to the end."""


@dataclass(frozen=True)
class Part:
    """One file of the log; each call of `stream` reads it from the start."""

    name: str
    stream: Stream

    def batches(self) -> Iterator[pa.Table]:
        """Tables of `ROWS_PER_BATCH` rows; the last one may be shorter.

        Raises:
            BrokenFile: when the file is truncated or holds a value of another type.
        """
        return gathered(self.stream(), rows=ROWS_PER_BATCH)


@dataclass(frozen=True)
class Log:
    """An opened log.

    Attributes:
        folder: of its files; None without files.
        files: number of files; 0 for a table of the Hub or in memory.
        lost: (file name, reason) of the files of a folder that could not be used.
    """

    name: str
    parts: tuple[Part, ...]
    folder: Path | None = None
    files: int = 0
    lost: tuple[tuple[str, str], ...] = ()


def open_log(location: str, *, name: str = "behaviour") -> Log:
    """Open a log in any format that `runtime.tables.locate` finds, and check its columns.

    Raises:
        ValueError: naming table, column and remedy.
    """
    place, schema = locate(location, name=name), TABLES[name]
    if place.data is not None:
        log = Log(name, (_mapped(place.data, schema),), place.folder, place.num_files)
    else:
        log = _open_files(place, Path(location), schema)
    if not any(_has_rows(part) for part in log.parts):
        raise ValueError(f"{name}: {location} has no rows. Give a table with at least one.")
    return log


def _has_rows(part: Part) -> bool:
    try:
        return any(table.num_rows for table in part.stream())
    except BrokenFile:
        return True  # it has rows by its footer; admit_log.py reports why they cannot be read


def log_of(table: pa.Table, *, name: str = "behaviour") -> Log:
    """A log from a table in memory."""
    return Log(name, (Part("memory", lambda: iter([conform(table, TABLES[name])])),))


def _open_files(place: Location, path: Path, schema: Schema) -> Log:
    parts, lost = [], []
    for file in place.files:
        try:
            parts.append(_open_file(file, schema))
        except ValueError as error:
            lost.append((file.name, str(error)))
    if not parts:
        raise none_usable(lost, files=len(place.files), folder=path)
    return Log(schema.name, tuple(parts), place.folder, len(place.files), tuple(lost))


def _open_file(file: Path, schema: Schema) -> Part:
    kinds = {"parquet": _parquet, "csv": _csv, "json": _json}
    reader = kinds[format_of(file, name=schema.name)]
    with _broken(file, schema.name):
        stream = reader(file, schema)

    def guarded() -> Iterator[pa.Table]:
        with _broken(file, schema.name):
            for table in stream():
                yield conform(table, schema)

    return Part(file.name, guarded)


@contextmanager
def _broken(file: Path, name: str) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise BrokenFile(unreadable(file, error, name=name)) from error


def _parquet(file: Path, schema: Schema) -> Stream:
    found = pq.read_schema(file)
    conform(found.empty_table(), schema)
    present = [column for column in schema.types if column in found.names]

    def stream() -> Iterator[pa.Table]:
        with pq.ParquetFile(file, buffer_size=BUFFER_BYTES) as opened:
            for batch in opened.iter_batches(ROWS_PER_BATCH, columns=present):
                yield pa.Table.from_batches([batch])

    return stream


def _csv(file: Path, schema: Schema) -> Stream:
    """Check types on the first block; then read all numbers as float, so that a later fraction is no error."""
    options = csv_options(schema)
    with pyarrow.csv.open_csv(file, **options) as opened:
        found = opened.schema
    conform(found.empty_table(), schema)
    kinds = {column: kind for column, kind in schema.types.items() if column in found.names}
    options["convert_options"] = pyarrow.csv.ConvertOptions(column_types=kinds, include_columns=list(kinds))

    def stream() -> Iterator[pa.Table]:
        with pyarrow.csv.open_csv(file, **options) as opened:
            for batch in opened:
                yield pa.Table.from_batches([batch])

    return stream


def _json(file: Path, schema: Schema) -> Stream:
    """Like `_csv`; ids may be integers, and an optional column may first appear after the first block."""
    options = json_options()
    found = pyarrow.json.open_json(file, read_options=options).schema
    conform(found.empty_table(), schema)
    kinds = schema.types
    for field in found:
        if pa.types.is_integer(field.type) and kinds.get(field.name) == pa.string():
            kinds[field.name] = field.type
    parsed = pyarrow.json.ParseOptions(explicit_schema=pa.schema(kinds), unexpected_field_behavior="ignore")

    def stream() -> Iterator[pa.Table]:
        for batch in pyarrow.json.open_json(file, read_options=options, parse_options=parsed):
            yield pa.Table.from_batches([batch])

    return stream


def _mapped(rows: Dataset, schema: Schema) -> Part:
    present = [column for column in schema.types if column in rows.column_names]
    conform(rows.with_format("arrow")[:0], schema)
    picked = rows.select_columns(present).with_format("arrow")

    def stream() -> Iterator[pa.Table]:
        for start in range(0, len(picked), ROWS_PER_BATCH):
            yield conform(picked[start : start + ROWS_PER_BATCH], schema)

    return Part("datasets", stream)
