"""Open a table and read its rows, whole or in batches of bounded size."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from runtime.tables.conform import conform, joined, typed_others
from runtime.tables.encoding import open_text
from runtime.tables.files import Location, TableFile, format_of, locate
from runtime.tables.schema import IMAGE_TYPE, MARKS, ROW_DETAIL, ROW_FAULT, BrokenFile, Schema, none_usable, unreadable
from runtime.tables.text_rows import LINE, csv_rows, json_rows

# Bytes of a batch of pictures, as far as the footers of a Parquet file tell.
BATCH_BYTES = 64 * 2**20
# Parquet columns are read in pieces of this many bytes: a row group may be as large as its file.
BUFFER_BYTES = 2**20
ALL_ROWS = 2**31
ROWS_AT_ONCE = 100_000
# (most rows, columns or None) -> tables as they are on disk
Stream = Callable[[int, Sequence[str] | None], Iterator[pa.Table]]


@dataclass(frozen=True)
class Part:
    """One file or data set of a table; each call of `stream` reads it from the start.

    Attributes:
        found: types of its columns as they are on disk.
        form: "parquet", "csv", "json" or "datasets".
        num_rows: as the footer says; None for a text file, whose rows are counted by reading it.
    """

    name: str
    found: pa.Schema
    stream: Stream
    form: str = "datasets"
    num_rows: int | None = None

    def tables(
        self, schema: Schema, *, rows: int, columns: Sequence[str] | None = None, mark: bool = False
    ) -> Iterator[pa.Table]:
        """Tables of at most `rows` rows in the declared types.

        Raises:
            BrokenFile: the file turns out to be damaged.
            ValueError: without `mark`, a bad row.
        """
        first = 0
        with _broken(self.name, self.form, schema.name):
            for table in self.stream(rows, self._present(schema, columns)):
                yield conform(table, schema, columns, file=self.name, mark=mark, first_row=first)
                first += table.num_rows
            if self.num_rows is not None and first != self.num_rows:
                raise BrokenFile(f"{schema.name}: {self.name} holds {self.num_rows} rows, but {first} could be read.")

    def is_clean(self, schema: Schema) -> bool:
        """Whether the types of the columns alone exclude a bad row."""
        if self.form in ("csv", "json"):
            return False
        for name, kind in schema.types.items():
            have = self.found.field(name).type if self.found.names.count(name) == 1 else kind
            if kind != IMAGE_TYPE and not have.equals(kind) and not pa.types.is_integer(have):
                return False
        return True

    def _present(self, schema: Schema, columns: Sequence[str] | None) -> list[str]:
        """Columns to read: those asked for (default: all that are declared or kept) as far as the file has them."""
        default = self.found.names if schema.keep_others else list(schema.columns)
        wanted = default if columns is None else columns
        names = [name for name in dict.fromkeys(wanted) if name not in (LINE, *MARKS)]
        return [name for name in names if self.found.names.count(name) == 1]


@contextmanager
def _broken(file: str, form: str, name: str) -> Iterator[None]:
    try:
        yield
    # EOFError, zlib and lzma errors: a packed file that is cut off. UnicodeError: half a letter of UTF-16.
    except (pa.ArrowException, OSError, EOFError, UnicodeError) as error:
        raise unreadable(file, error, form=form, name=name) from error
    except Exception as error:
        if type(error).__module__ in ("zlib", "lzma", "_lzma"):
            raise unreadable(file, error, form=form, name=name) from error
        raise


def open_part(file: TableFile, schema: Schema, *, stream_text: bool = False) -> Part:
    """Open a file and check its columns. Of Parquet only the footer is read.

    Args:
        stream_text: read CSV and JSON lines anew at each call, instead of once and now. They hold no pictures.

    Raises:
        ValueError: the file cannot be read, or a declared column is missing or has a wrong type.
    """
    form = format_of(file.path, name=schema.name)
    if form == "parquet":
        with _broken(file.name, form, schema.name):
            part = _parquet(file)
    else:
        with _broken(file.name, form, schema.name):
            part = _text(file, schema, form, stream=stream_text)
    part = _with_keys(part, file, schema)
    if part.found.names or form == "parquet":
        conform(part.found.empty_table(), schema, file=file.label)
    return part


def _parquet(file: TableFile) -> Part:
    with pq.ParquetFile(file.path) as opened:
        found, count = opened.schema_arrow, opened.metadata.num_rows
        size = sum(opened.metadata.row_group(i).total_byte_size for i in range(opened.num_row_groups))

    def stream(rows: int, columns: Sequence[str] | None) -> Iterator[pa.Table]:
        # Whole files are read in batches too: Arrow cannot put 2 GiB of pictures into one struct column.
        few = min(rows, max(1, BATCH_BYTES * max(count, 1) // max(size, 1)), max(count, 1))
        with pq.ParquetFile(file.path, buffer_size=BUFFER_BYTES) as opened:
            if columns is not None and not columns:
                for first in range(0, count, few):
                    yield pa.table({LINE: pa.nulls(min(few, count - first), pa.int64())})
                return
            for batch in opened.iter_batches(few, columns=columns):
                yield pa.Table.from_batches([batch])

    return Part(file.name, found, stream, "parquet", count)


def _text(file: TableFile, schema: Schema, form: str, *, stream: bool) -> Part:
    opened = open_text(file, table=schema.name)
    read = csv_rows if form == "csv" else json_rows
    if stream:
        # The first table tells whether the columns are there.
        first = next(read(opened, schema))

        def streamed(rows: int, columns: Sequence[str] | None) -> Iterator[pa.Table]:
            for table in read(opened, schema):
                for start in range(0, table.num_rows, rows):
                    yield table.slice(start, rows)

        return Part(file.name, first.schema, streamed, form)
    rows = typed_others(joined(list(read(opened, schema))), schema)
    return replace(_in_memory(file.name, rows), form=form)


def _in_memory(name: str, table: pa.Table) -> Part:
    def stream(rows: int, columns: Sequence[str] | None) -> Iterator[pa.Table]:
        kept = table if columns is None else table.select([*columns, *_marks_of(table)])
        for start in range(0, table.num_rows, rows):
            yield kept.slice(start, rows)

    return Part(name, table.schema, stream, num_rows=table.num_rows)


def _marks_of(table: pa.Table) -> list[str]:
    return [name for name in (LINE, *MARKS) if name in table.column_names]


def _with_keys(part: Part, file: TableFile, schema: Schema) -> Part:
    """The part with its partition keys as text columns, where they are declared or kept and it has none itself."""
    keys = {
        name: value
        for name, value in file.keys
        if name not in part.found.names and (name in schema.types or schema.keep_others)
    }
    if not keys:
        return part

    def stream(rows: int, columns: Sequence[str] | None) -> Iterator[pa.Table]:
        stored = None if columns is None else [name for name in columns if name not in keys]
        for table in part.stream(rows, stored):
            for name, value in keys.items():
                if columns is None or name in columns:
                    table = table.append_column(name, pa.array([value] * table.num_rows, pa.string()))
            yield table

    found = part.found
    for name in keys:
        found = found.append(pa.field(name, pa.string()))
    return replace(part, found=found, stream=stream)


@dataclass(frozen=True)
class Table:
    """An opened table whose columns have been checked; its values are read when they are asked for.

    Attributes:
        folder: below which its image paths must lie; None for a Hub data set.
        files: number of files that it comes in; 0 for a Hub data set.
        lost: (file name, reason) of the files of a folder that were left out.
        marked: whether bad rows are marked (`ROW_FAULT`) instead of an error.
        warnings: sentences about what was read and is probably not what was meant.
    """

    schema: Schema
    parts: tuple[Part, ...]
    folder: Path | None = None
    files: int = 0
    lost: tuple[tuple[str, str], ...] = ()
    marked: bool = False
    warnings: tuple[str, ...] = ()

    @property
    def arrow_schema(self) -> pa.Schema:
        """Types of all columns: the declared ones, then the others that are kept."""
        return joined([conform(part.found.empty_table(), self.schema) for part in self.parts]).schema

    @property
    def num_rows(self) -> int:
        """Number of rows; of Parquet files as their footers say."""
        return sum(part.num_rows or 0 for part in self.parts)

    def read(self, columns: Sequence[str] | None = None) -> pa.Table:
        """All rows of some columns (default: all), in the declared types.

        Raises:
            ValueError: a file turns out to be damaged, or has a bad row and rows are not marked.
        """
        return joined([self._read_part(part, columns) for part in self.parts])

    def _read_part(self, part: Part, columns: Sequence[str] | None) -> pa.Table:
        read = part.tables(self.schema, rows=ALL_ROWS, columns=columns, mark=self.marked)
        empty = conform(part.found.empty_table(), self.schema, columns, mark=self.marked)
        return joined([empty, *read])

    def bad_rows(self) -> dict[int, tuple[str, str]]:
        """Row -> (reason, place and value), for every row that cannot be read; images are not looked at."""
        columns = [name for name, kind in self.schema.types.items() if kind != IMAGE_TYPE]
        found, first = dict[int, tuple[str, str]](), 0
        for part in self.parts:
            if not part.is_clean(self.schema):
                start = first
                for table in part.tables(self.schema, rows=ROWS_AT_ONCE, columns=columns, mark=True):
                    reasons = table.column(ROW_FAULT)
                    if reasons.null_count < len(reasons):
                        rows = zip(reasons.to_pylist(), table.column(ROW_DETAIL).to_pylist(), strict=True)
                        found |= {start + row: (why, at) for row, (why, at) in enumerate(rows) if why is not None}
                    start += table.num_rows
            first += part.num_rows or 0
        return found

    def batches(self, rows: int) -> Iterator[pa.Table]:
        """All columns in order, at most `rows` rows at a time; batches end where a file or a row group ends."""
        for part in self.parts:
            for table in part.tables(self.schema, rows=rows, mark=self.marked):
                if table.num_rows:
                    yield table

    def loaded(self) -> tuple[pa.Table, tuple[tuple[str, str], ...]]:
        """(rows, lost files): all rows in memory, without the files that turn out to be damaged.

        Raises:
            ValueError: no file can be used.
        """
        tables, lost = [], list(self.lost)
        for part in self.parts:
            try:
                tables.append(self._read_part(part, None))
            except BrokenFile as error:
                lost.append((part.name, str(error)))
        if not tables:
            raise none_usable(sorted(lost), files=self.files, folder=self.folder or Path())
        return joined(tables), tuple(sorted(lost))


def open_table(
    location: str | Path, schema: Schema, *, skip_bad_files: bool = False, mark: bool = False, stream_text: bool = False
) -> Table:
    """Open a table and check its columns; see `locate` for what it may be.

    Args:
        skip_bad_files: leave out the files of a folder that cannot be used, as long as one can.
        mark: mark bad rows (`ROW_FAULT`) instead of an error.
        stream_text: see `open_part`; `num_rows` then does not count the rows of text files.

    Raises:
        ValueError: nothing there, an unknown format, a missing column or a wrong type. An empty table is no error.
    """
    place = locate(location, name=schema.name)
    if place.data is not None:
        part = _dataset(place, location)
        conform(part.found.empty_table(), schema)
        return Table(schema, (part,), place.folder, place.num_files, marked=mark)
    parts, lost = [], list(place.unread)
    for file in place.files:
        try:
            parts.append(open_part(file, schema, stream_text=stream_text))
        except ValueError as error:
            if place.num_files > 1 and not skip_bad_files:
                raise
            lost.append((file.name, str(error)))
    lost.sort()
    if not parts:
        raise none_usable(lost, files=place.num_files, folder=Path(location))
    _check_alike(parts, schema)
    warnings = tuple(_mixed_ids(parts, schema))
    return Table(schema, tuple(parts), place.folder, place.num_files, tuple(lost), mark, warnings)


def _dataset(place: Location, location: str | Path) -> Part:
    assert place.data is not None
    return _in_memory(str(location), place.data.flatten_indices().data.table)


def _check_alike(parts: Sequence[Part], schema: Schema) -> None:
    """An optional column that only some files have is an error: its values would vanish without a word.

    JSON lines have no columns: what an object lacks is null.
    """
    fixed = [part for part in parts if part.form != "json"]
    for column in schema.types:
        has = [part.name for part in fixed if column in part.found.names]
        lacks = [part.name for part in fixed if column not in part.found.names]
        if has and lacks:
            raise ValueError(
                f"{schema.name}: {lacks[0]}: column {column!r} is missing, but {has[0]} has it. Add it to "
                f"{lacks[0]}, empty where it is not known, or remove it everywhere."
            )


def _mixed_ids(parts: Sequence[Part], schema: Schema) -> Iterator[str]:
    """Id columns that are numbers in one file and text with leading zeros in another: the numbers have lost theirs."""
    for column in [name for name in schema.types if name in schema.ids]:
        has = [part for part in parts if part.found.names.count(column) == 1]
        numbers = [part for part in has if pa.types.is_integer(part.found.field(column).type)]
        for part in has if numbers else []:
            if part in numbers:
                continue
            padded = _padded_number(part, column, schema)
            if padded is not None:
                yield (
                    f"{schema.name}: {numbers[0].name}: column {column!r} holds numbers, but text with leading zeros "
                    f"in {part.name}, such as {padded!r}: 31 and 000031 are different ids. Write the column as text in "
                    f"{numbers[0].name} too."
                )
                break


def _padded_number(part: Part, column: str, schema: Schema) -> str | None:
    """The first id of a file that is a number with leading zeros; damage is reported by whoever reads the rows."""
    with suppress(BrokenFile):
        for table in part.tables(schema, rows=ROWS_AT_ONCE, columns=[column], mark=True):
            found = table.column(column).filter(pc.match_substring_regex(table.column(column), r"^0[0-9]+$"))
            if len(found):
                return str(found[0])
    return None


def rows_in_files(location: str | Path, *, name: str) -> int:
    """Rows of a table as an independent count: footers of Parquet, filled lines of text files without their header.

    A cell of several lines counts as several rows, and a file that cannot be read as none.
    """
    place = locate(location, name=name)
    if place.data is not None:
        return len(place.data)
    found = 0
    for file in place.files:
        with suppress(ValueError, OSError, EOFError, pa.ArrowException):
            form = format_of(file.path, name=name)
            if form == "parquet":
                found += pq.read_metadata(file.path).num_rows
            else:
                blocks = open_text(file, table=name).blocks()
                lines = sum(bool(line.strip()) for block in blocks for line in block.splitlines())
                found += max(lines - (form == "csv"), 0)
    return found
