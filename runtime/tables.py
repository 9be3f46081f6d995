"""Reading of input tables: Parquet, CSV, JSON lines, folders of those, `datasets` folders, Hub data sets.

A table is declared once, as a `Schema`. What a user gives is converted to the declared types or rejected with the name
of the table, the column and the remedy. Images stay bytes or paths: nothing is decoded here.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.dataset
import pyarrow.json
from datasets import Dataset, Features, Value

# The only list of file formats, by suffix.
FORMATS = {".parquet": "parquet", ".csv": "csv", ".json": "json", ".jsonl": "json", ".ndjson": "json"}
# Longest row of a CSV or JSON file that can be read: a text of 10 MB is one bad row, not an unreadable file.
BLOCK_BYTES = 64 * 2**20
HUB_ID = re.compile(r"(?P<repo>[\w-][\w.-]*/[\w-][\w.-]*)(?::(?P<split>[\w.-]+))?")
IMAGE = {"bytes": Value("binary"), "path": Value("string")}
_IMAGE_TYPE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


@dataclass(frozen=True)
class Schema:
    """Declared columns of one table.

    Attributes:
        name: of the table, in messages.
        columns: type of each column; images are declared as `IMAGE` or `datasets.Image(decode=False)`.
        ids: text columns that may also hold integers.
        optional: columns that may be missing; they are read as null.
        keep_others: whether columns that are not declared are kept, as they are.
    """

    name: str
    columns: Features
    ids: frozenset[str] = frozenset()
    optional: frozenset[str] = frozenset()
    keep_others: bool = False

    @property
    def types(self) -> dict[str, pa.DataType]:
        """Arrow type of each declared column."""
        return {field.name: field.type for field in self.columns.arrow_schema}


@dataclass(frozen=True)
class Location:
    """Where the rows of a table are: files, or one data set.

    Attributes:
        folder: below which image paths must lie; None for a Hub data set, which has no paths.
    """

    files: tuple[Path, ...] = ()
    data: Dataset | None = None
    folder: Path | None = None

    @property
    def num_files(self) -> int:
        """Files that the table comes in: one for a `datasets` folder, none for a Hub data set."""
        return len(self.files) or int(self.folder is not None)


def locate(location: str | Path, *, name: str) -> Location:
    """Find a table: a file, a folder of files, a `datasets` folder, or a Hub id (`org/name` or `org/name:split`).

    Args:
        name: of the table, in messages.

    Raises:
        ValueError: there is no such file, folder or data set, or the folder holds no table.
    """
    path = Path(location)
    if not path.exists():
        return Location(data=_hub_dataset(str(location), name))
    if not path.is_dir():
        return Location(files=(path,), folder=path.parent)
    if (path / "dataset_dict.json").is_file():
        raise ValueError(f"{name}: {path} holds several splits. Give the folder of one of them.")
    if (path / "state.json").is_file():
        return Location(data=datasets.load_from_disk(str(path)), folder=path)
    files = sorted(file for file in path.iterdir() if file.suffix in FORMATS and file.is_file())
    if not files:
        raise ValueError(f"{name}: {path} holds no {', '.join(FORMATS)} file.")
    return Location(files=tuple(files), folder=path)


def _hub_dataset(location: str, name: str) -> Dataset:
    match = HUB_ID.fullmatch(location)
    path = Path(location)
    # A path below an existing folder is a wrong path, not the id of a data set.
    if match is None or path.suffix in FORMATS or path.parent.is_dir():
        raise ValueError(
            f"{name}: {location} does not exist: there is no such file or folder. Give a file, a folder or a Hub data "
            "set id (org/name or org/name:split)."
        )
    try:
        return datasets.load_dataset(match["repo"], split=match["split"] or "train")
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{name}: neither a path nor a readable Hub data set: {location} ({one_line(error)})"
        ) from error


def format_of(file: Path, *, name: str) -> str:
    """Format of a file by its suffix: "parquet", "csv" or "json".

    Raises:
        ValueError: another suffix.
    """
    if file.suffix not in FORMATS:
        raise ValueError(f"{name}: {file.name} is none of {', '.join(FORMATS)}.")
    return FORMATS[file.suffix]


def unreadable(file: Path, error: BaseException, *, name: str) -> str:
    """Message about a file that a reader rejects."""
    return f"{name}: {file.name} cannot be read as {file.suffix.removeprefix('.')} ({one_line(error)})."


def none_usable(lost: Sequence[tuple[str, str]], *, files: int, folder: Path) -> ValueError:
    """Error for a table none of whose files can be used: why the first one cannot, and how many there are."""
    more = f" None of the {files} files of {folder.name} can be used." if files > 1 else ""
    return ValueError(lost[0][1] + more)


def one_line(error: BaseException) -> str:
    """The first 200 characters of an error's message, in one line."""
    return " ".join(str(error).split())[:200]


def csv_options(schema: Schema) -> dict[str, Any]:
    """Options of the CSV readers; text and image columns are text: an id 007 must not become the number 7."""
    as_text = {column: pa.string() for column, kind in schema.types.items() if kind in (pa.string(), _IMAGE_TYPE)}
    return {
        "read_options": pyarrow.csv.ReadOptions(block_size=BLOCK_BYTES),
        "parse_options": pyarrow.csv.ParseOptions(newlines_in_values=True),
        "convert_options": pyarrow.csv.ConvertOptions(column_types=as_text),
    }


def json_options() -> pyarrow.json.ReadOptions:
    """Options of the JSON lines readers."""
    return pyarrow.json.ReadOptions(block_size=BLOCK_BYTES)


@dataclass(frozen=True)
class Part:
    """One file or data set of a table, as it is on disk."""

    name: str
    rows: pyarrow.dataset.Dataset

    @classmethod
    def of_file(cls, file: Path, schema: Schema) -> "Part":
        """Open a file. Parquet is only mapped; CSV and JSON lines hold no pictures and are read whole, now.

        Raises:
            ValueError: the file cannot be read.
        """
        form = format_of(file, name=schema.name)
        try:
            if form == "parquet":
                return cls(file.name, pyarrow.dataset.dataset(str(file), format="parquet"))
            if form == "csv":
                table = pyarrow.csv.read_csv(file, **csv_options(schema))
            else:
                table = pyarrow.json.read_json(file, read_options=json_options())
        except (pa.ArrowException, OSError) as error:
            raise ValueError(unreadable(file, error, name=schema.name)) from error
        return cls(file.name, pyarrow.dataset.dataset(table))


@dataclass(frozen=True)
class Table:
    """An opened table whose columns have been checked; its values are read when they are asked for.

    Attributes:
        folder: below which its image paths must lie; None for a Hub data set.
        files: number of files that it comes in; 0 for a Hub data set.
        lost: (file name, reason) of the files of a folder that were left out.
    """

    schema: Schema
    parts: tuple[Part, ...]
    folder: Path | None = None
    files: int = 0
    lost: tuple[tuple[str, str], ...] = ()

    @property
    def arrow_schema(self) -> pa.Schema:
        """Types of all columns: the declared ones, then the others that are kept."""
        empty = [conform(part.rows.schema.empty_table(), self.schema) for part in self.parts]
        return pa.concat_tables(empty, promote_options="permissive").schema

    @property
    def num_rows(self) -> int:
        """Number of rows; of Parquet files as their footers say."""
        return sum(part.rows.count_rows() for part in self.parts)

    def read(self, columns: Sequence[str] | None = None) -> pa.Table:
        """All rows of some columns (default: all), in the declared types.

        Raises:
            ValueError: a file turns out to be damaged.
        """
        tables = [self._read_part(part, columns) for part in self.parts]
        return pa.concat_tables(tables, promote_options="permissive")

    def _read_part(self, part: Part, columns: Sequence[str] | None) -> pa.Table:
        try:
            found = conform(part.rows.to_table(columns=_present(part, self.schema, columns)), self.schema, columns)
        except (pa.ArrowException, OSError) as error:
            raise ValueError(unreadable(Path(part.name), error, name=self.schema.name)) from error
        return found

    def batches(self, rows: int) -> Iterator[pa.Table]:
        """All columns in order, at most `rows` rows at a time; batches end where a file or a row group ends."""
        for part in self.parts:
            # Without these limits Arrow reads ahead 16 batches of every file: gigabytes of pictures.
            batches = part.rows.to_batches(batch_size=rows, batch_readahead=1, fragment_readahead=1)
            try:
                for batch in batches:
                    if batch.num_rows:
                        yield conform(pa.Table.from_batches([batch]), self.schema)
            except (pa.ArrowException, OSError) as error:
                raise ValueError(unreadable(Path(part.name), error, name=self.schema.name)) from error

    def loaded(self) -> tuple[pa.Table, tuple[tuple[str, str], ...]]:
        """(rows, lost files): all rows in memory, without the files that turn out to be damaged.

        Raises:
            ValueError: no file can be used.
        """
        tables, lost = [], list(self.lost)
        for part in self.parts:
            try:
                tables.append(self._read_part(part, None))
            except ValueError as error:
                lost.append((part.name, str(error)))
        if not tables:
            raise none_usable(sorted(lost), files=self.files, folder=self.folder or Path())
        return pa.concat_tables(tables, promote_options="permissive"), tuple(sorted(lost))


def _present(part: Part, schema: Schema, columns: Sequence[str] | None) -> list[str]:
    """Columns to read of a part: those asked for (default: all that are declared or kept) as far as it has them."""
    default = part.rows.schema.names if schema.keep_others else list(schema.columns)
    return [column for column in (default if columns is None else columns) if column in part.rows.schema.names]


def open_table(location: str | Path, schema: Schema, *, skip_bad_files: bool = False) -> Table:
    """Open a table and check its columns; see `locate` for what it may be.

    Args:
        skip_bad_files: leave out the files of a folder that cannot be used, as long as one can.

    Raises:
        ValueError: nothing there, an unknown format, a missing column or a wrong type. An empty table is no error.
    """
    place = locate(location, name=schema.name)
    if place.data is not None:
        part = Part(str(location), pyarrow.dataset.dataset(place.data.flatten_indices().data.table))
        conform(part.rows.schema.empty_table(), schema)
        return Table(schema, (part,), place.folder, place.num_files)
    parts, lost = [], []
    for file in place.files:
        try:
            part = Part.of_file(file, schema)
            conform(part.rows.schema.empty_table(), schema)
            parts.append(part)
        except ValueError as error:
            if len(place.files) > 1 and not skip_bad_files:
                raise
            lost.append((file.name, str(error)))
    if not parts:
        raise none_usable(lost, files=len(place.files), folder=Path(location))
    return Table(schema, tuple(parts), place.folder, place.num_files, tuple(lost))


def conform(table: pa.Table, schema: Schema, columns: Sequence[str] | None = None) -> pa.Table:
    """Convert columns to their declared types; missing optional columns become null.

    Args:
        columns: the columns wanted; None takes all that are declared, and the others where the schema keeps them.

    Raises:
        ValueError: a declared column is missing or has a type that does not fit.
    """
    found: dict[str, Any] = {}
    for column, wanted in schema.types.items():
        if columns is not None and column not in columns:
            continue
        if column in table.column_names:
            found[column] = _cast(table.column(column), wanted, schema, column)
        elif column in schema.optional:
            found[column] = pa.nulls(table.num_rows, wanted)
        else:
            have = ", ".join(table.column_names)
            raise ValueError(f"{schema.name}: column {column!r} is missing (it has {have}). Add or rename it.")
    if schema.keep_others:
        others = [name for name in table.column_names if name not in schema.columns]
        found |= {name: table.column(name) for name in others if columns is None or name in columns}
    return pa.table(found)


def _cast(values: pa.ChunkedArray, wanted: pa.DataType, schema: Schema, column: str) -> Any:
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    have = values.type
    if pa.types.is_null(have):
        return pa.nulls(len(values), wanted)
    if wanted == _IMAGE_TYPE:
        return pa.chunked_array(
            [_images(chunk, schema, column) for chunk in values.chunks or [pa.array([], have)]], type=wanted
        )
    if not _fits(have, wanted, is_id=column in schema.ids):
        needs = "text" if wanted == pa.string() else "a whole number" if pa.types.is_integer(wanted) else "a number"
        raise ValueError(f"{schema.name}: column {column!r} has type {have}, {needs} is needed. Convert it.")
    return values.cast(wanted)


def _fits(have: pa.DataType, wanted: pa.DataType, *, is_id: bool) -> bool:
    if wanted == pa.string():
        return _is_text(have) or (is_id and pa.types.is_integer(have))
    if pa.types.is_integer(wanted):
        return bool(pa.types.is_integer(have))
    return bool(pa.types.is_integer(have) or pa.types.is_floating(have) or pa.types.is_decimal(have))


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _is_bytes(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def _images(cells: pa.Array, schema: Schema, column: str) -> pa.StructArray:
    """Image cells as struct {bytes, path}; they come as bytes, paths, structs, or lists of those (the first counts)."""
    kind = cells.type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        firsts = [cell[0] if cell else None for cell in cells.to_pylist()]
        return _images(pa.array(firsts, kind.value_type), schema, column)
    names = {field.name for field in kind} if pa.types.is_struct(kind) else set()
    if names & {"bytes", "path"}:
        parts = [
            pc.struct_field(cells, name).cast(part) if name in names else pa.nulls(len(cells), part)
            for name, part in (("bytes", pa.binary()), ("path", pa.string()))
        ]
    elif _is_bytes(kind):
        parts = [cells.cast(pa.binary()), pa.nulls(len(cells), pa.string())]
    elif _is_text(kind):
        parts = [pa.nulls(len(cells), pa.binary()), cells.cast(pa.string())]
    elif pa.types.is_null(kind):
        return pa.nulls(len(cells), _IMAGE_TYPE)
    else:
        raise ValueError(
            f"{schema.name}: column {column!r} has type {kind}; bytes, a path or a struct of both is needed."
        )
    return pa.StructArray.from_arrays(parts, ["bytes", "path"], mask=pc.is_null(cells))
