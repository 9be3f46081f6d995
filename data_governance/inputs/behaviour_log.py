"""The behaviour log as batches of bounded size: it is never held whole, however many rows it has.

Opening looks at footers and first rows alone: a file whose columns are missing or of a wrong type is lost at once. One
that breaks off in the middle is found out while it is read, and then loses all of its rows and nothing else.

Parquet, CSV and JSON lines are read piece by piece; a `datasets` folder and a Hub id are memory-mapped Arrow files; a
table that is in memory already is cut into slices.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet as pq
from datasets import Dataset

from data_governance.inputs import tables
from data_governance.inputs.shards import gathered
from data_governance.inputs.tables import BLOCK_BYTES, KINDS_OF_FILE, declared, fields

# Of the log that are in memory at once: some 50 MB with their ids. Also the rows of a shard.
ROWS_PER_BATCH = 250_000
# Parquet columns are read in pieces of this many bytes: a row group may be as large as its file.
BUFFER_BYTES = 2**20
Stream = Callable[[], Iterator[pa.Table]]


class BrokenFile(ValueError):
    """A file of the log that cannot be read to its end."""


@dataclass(frozen=True)
class Part:
    """One file of the log; `stream` starts to read it anew at every call."""

    name: str
    stream: Stream

    def batches(self) -> Iterator[pa.Table]:
        """Tables of `ROWS_PER_BATCH` rows, the last one apart.

        Raises:
            BrokenFile: where the file ends too early or holds a value of another type.
        """
        return gathered(self.stream(), rows=ROWS_PER_BATCH)


@dataclass(frozen=True)
class Log:
    """An opened log.

    Attributes:
        folder: where its files lie; None for a table that comes in none.
        files: number of files that it came in; 0 for a table of the Hub or of the memory.
        lost: (file name, why) of the files of a folder that could not be used.
    """

    name: str
    parts: tuple[Part, ...]
    folder: Path | None = None
    files: int = 0
    lost: tuple[tuple[str, str], ...] = ()


def open_log(location: str, *, name: str = "behaviour") -> Log:
    """Open a log of any kind that `tables.open_source` reads, and check its columns.

    Raises:
        ValueError: naming table, column and remedy.
    """
    path = Path(location)
    if not path.exists():
        log = Log(name, (_mapped(tables.hub_dataset(location, name), name),))
    elif path.is_dir() and (path / "state.json").exists():
        log = Log(name, (_mapped(datasets.load_from_disk(str(path)), name),), path, files=1)
    else:
        log = _open_files(path, name)
    if not any(_has_rows(part) for part in log.parts):
        raise ValueError(f"{name}: {location} has no rows. Give a table with at least one.")
    return log


def _has_rows(part: Part) -> bool:
    try:
        return any(table.num_rows for table in part.stream())
    except BrokenFile:
        return True  # as far as a footer says; admit_log.py finds out, and says why


def log_of(table: pa.Table, *, name: str = "behaviour") -> Log:
    """A log that is in memory already."""
    return Log(name, (Part("memory", lambda: iter([declared(table, name)])),))


def _open_files(path: Path, name: str) -> Log:
    files = tables.files_of(path, name)
    parts, lost = [], []
    for file in files:
        try:
            parts.append(_open_file(file, name))
        except ValueError as error:
            lost.append((file.name, str(error)))
    if not parts:
        raise tables.none_usable(lost, files=len(files), folder=path)
    return Log(name, tuple(parts), path if path.is_dir() else path.parent, len(files), tuple(lost))


def _open_file(file: Path, name: str) -> Part:
    if file.suffix not in KINDS_OF_FILE:
        raise ValueError(f"{name}: {file.name} is none of {', '.join(KINDS_OF_FILE)}.")
    kinds = {".parquet": _parquet, ".csv": _csv}
    with _broken(file, name):
        stream = kinds.get(file.suffix, _json)(file, name)

    def guarded() -> Iterator[pa.Table]:
        with _broken(file, name):
            for table in stream():
                yield declared(table, name)

    return Part(file.name, guarded)


@contextmanager
def _broken(file: Path, name: str) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise BrokenFile(tables.unreadable(file, name, error)) from error


def _parquet(file: Path, name: str) -> Stream:
    schema = pq.read_schema(file)
    declared(schema.empty_table(), name)
    present = [field for field, _ in fields(name) if field in schema.names]

    def stream() -> Iterator[pa.Table]:
        with pq.ParquetFile(file, buffer_size=BUFFER_BYTES) as opened:
            for batch in opened.iter_batches(ROWS_PER_BATCH, columns=present):
                yield pa.Table.from_batches([batch])

    return stream


def _csv(file: Path, name: str) -> Stream:
    """The types of the first block are judged; from then on numbers are numbers, whole or not."""
    options = tables.csv_options(name)
    with pyarrow.csv.open_csv(file, **options) as opened:
        schema = opened.schema
    declared(schema.empty_table(), name)
    kinds = {field: kind for field, kind in fields(name) if field in schema.names}
    options["convert_options"] = pyarrow.csv.ConvertOptions(column_types=kinds, include_columns=list(kinds))

    def stream() -> Iterator[pa.Table]:
        with pyarrow.csv.open_csv(file, **options) as opened:
            for batch in opened:
                yield pa.Table.from_batches([batch])

    return stream


def _json(file: Path, name: str) -> Stream:
    """As of CSV; ids may be whole numbers, and a column that may be missing may come later than the first block."""
    options = pyarrow.json.ReadOptions(block_size=BLOCK_BYTES)
    schema = pyarrow.json.open_json(file, read_options=options).schema
    declared(schema.empty_table(), name)
    kinds = dict(fields(name))
    for field in schema:
        if pa.types.is_integer(field.type) and kinds.get(field.name) == pa.string():
            kinds[field.name] = field.type
    parsed = pyarrow.json.ParseOptions(explicit_schema=pa.schema(kinds), unexpected_field_behavior="ignore")

    def stream() -> Iterator[pa.Table]:
        for batch in pyarrow.json.open_json(file, read_options=options, parse_options=parsed):
            yield pa.Table.from_batches([batch])

    return stream


def _mapped(rows: Dataset, name: str) -> Part:
    present = [field for field, _ in fields(name) if field in rows.column_names]
    declared(rows.with_format("arrow")[:0], name)
    picked = rows.select_columns(present).with_format("arrow")

    def stream() -> Iterator[pa.Table]:
        for start in range(0, len(picked), ROWS_PER_BATCH):
            yield declared(picked[start : start + ROWS_PER_BATCH], name)

    return Part("datasets", stream)
