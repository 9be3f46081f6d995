"""Convert the columns of a table to their declared types; a value that does not fit makes its row a bad one.

A type that can hold no value of the declared kind is an error about the column. Text is kept exactly as it is written.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from runtime.tables.schema import (
    IMAGE_TYPE,
    MARKS,
    ROW_DETAIL,
    ROW_FAULT,
    Schema,
    is_bytes,
    is_text,
    missing_column,
    remedy,
)
from runtime.tables.text_rows import LINE, shown

OTHER_TYPES = (
    (r"^(0|-?[1-9]\d{0,17})$", pa.int64()),
    (r"^-?(0|[1-9]\d{0,14})(\.\d+)?([eE][+-]?\d{1,2})?$", pa.float64()),
    (r"^\d{4}-\d{2}-\d{2}$", pa.date32()),
)
DIGITS = r"^[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?$"
NOT_FINITE = r"(?i)^[+-]?(nan|inf|infinity)$"
NULL_NUMBERS = ("", "null", "NULL", "NA", "N/A", "n/a", "None", "<NA>", "#N/A", "\\N")


@dataclass
class Faults:
    """Reasons of bad rows: the first of each row is kept."""

    rows: int
    reasons: dict[int, tuple[str, str]] = field(default_factory=dict)

    def add(self, wrong: np.ndarray, reason: str, values: pa.ChunkedArray, column: str) -> None:
        """Mark the rows where `wrong`, with the column and its value."""
        for row in np.flatnonzero(wrong).tolist():
            self.reasons.setdefault(row, (reason, f"{column!r} is {shown(_printable(values[row].as_py()))}"))


def _printable(value: Any) -> Any:
    return repr(value) if isinstance(value, bytes) else value


def conform(
    table: pa.Table,
    schema: Schema,
    columns: Sequence[str] | None = None,
    *,
    file: str = "",
    mark: bool = False,
    first_row: int = 0,
) -> pa.Table:
    """Convert columns to their declared types; missing optional columns become null.

    Args:
        columns: the columns wanted; None takes all that are declared, and the others where the schema keeps them.
        file: name of the file in messages.
        mark: add the columns `ROW_FAULT` and `ROW_DETAIL` instead of raising on a bad row.
        first_row: number of the first row in the file, in messages about files without lines.

    Raises:
        ValueError: a declared column is missing or has a type that does not fit; without `mark`, a bad row.
    """
    found: dict[str, Any] = {}
    faults = Faults(table.num_rows)
    if ROW_FAULT in table.column_names:
        given = table.column(ROW_FAULT).to_pylist() if table.column(ROW_FAULT).null_count < table.num_rows else []
        details = table.column(ROW_DETAIL).to_pylist() if given else []
        faults.reasons |= {row: (one, details[row]) for row, one in enumerate(given) if one is not None}
    for column, wanted in schema.types.items():
        if columns is not None and column not in columns:
            continue
        if table.column_names.count(column) > 1:
            raise ValueError(f"{schema.name}: {_in(file)}column {column!r} stands twice. Rename one of them.")
        if column in table.column_names:
            found[column] = _cast(table.column(column), wanted, faults, schema=schema, column=column, file=file)
        elif column in schema.optional:
            found[column] = pa.nulls(table.num_rows, wanted)
        else:
            have = [name for name in table.column_names if name not in (LINE, *MARKS)]
            raise ValueError(missing_column(schema, column, have, file=file))
    if schema.keep_others:
        besides = {*schema.columns, LINE, *MARKS}
        others = [name for name in table.column_names if name not in besides and table.column_names.count(name) == 1]
        found |= {name: table.column(name) for name in others if columns is None or name in columns}
    places = _places(table, faults, first_row=first_row)
    if faults.reasons and not mark:
        row = min(faults.reasons)
        reason, detail = faults.reasons[row]
        raise ValueError(f"{schema.name}: {_in(file)}{places[row]}{detail} ({reason}). Correct it: {remedy(reason)}.")
    if mark:
        found |= _marks(faults, places, file)
    return pa.table(found) if found else table.select([])


def _in(file: str) -> str:
    return f"{file}: " if file else ""


def _places(table: pa.Table, faults: Faults, *, first_row: int) -> dict[int, str]:
    """Where each bad row stands, to be put before its detail; the details of text files may name it already."""
    found = {}
    for row, (_, detail) in faults.reasons.items():
        line = table.column(LINE)[row].as_py() if LINE in table.column_names else None
        has_place = detail.startswith(("line ", "object "))
        found[row] = "" if has_place else f"row {first_row + row}: " if line is None else f"line {line}: "
    return found


def _marks(faults: Faults, places: dict[int, str], file: str) -> dict[str, Any]:
    if not faults.reasons:
        return {name: pa.nulls(faults.rows, kind) for name, kind in MARKS.items()}
    reasons: list[str | None] = [None] * faults.rows
    details: list[str | None] = [None] * faults.rows
    for row, (reason, detail) in faults.reasons.items():
        reasons[row], details[row] = reason, f"{_in(file)}{places[row]}{detail}"
    return {ROW_FAULT: pa.array(reasons, pa.string()), ROW_DETAIL: pa.array(details, pa.string())}


def _cast(
    values: pa.ChunkedArray, wanted: pa.DataType, faults: Faults, *, schema: Schema, column: str, file: str
) -> Any:
    values = _plain(values)
    have = values.type
    if pa.types.is_null(have):
        return pa.nulls(len(values), wanted)
    if wanted == IMAGE_TYPE:
        return _image_column(values, faults, schema=schema, column=column, file=file)
    convert = _converter(have, wanted)
    if convert is None:
        needs = "text" if wanted == pa.string() else "a whole number" if pa.types.is_integer(wanted) else "a number"
        how = "Convert it."
        if column in schema.ids and pa.types.is_floating(have):
            how = "pandas makes decimals of whole numbers beside missing ones: read or write the column as text."
        raise ValueError(f"{schema.name}: {_in(file)}column {column!r} has type {have}, {needs} is needed. {how}")
    found, wrong = convert(values)
    if wrong is not None and wrong.any():
        ending = "not_text" if wanted == pa.string() else "not_whole" if pa.types.is_integer(wanted) else "not_a_number"
        faults.add(wrong, f"{column}_{ending}", values, column)
    return found


def _plain(values: pa.ChunkedArray) -> pa.ChunkedArray:
    """The values without dictionary, run-end encoding or extension type, and not as views."""
    kind = values.type
    if isinstance(kind, pa.BaseExtensionType):
        values = values.cast(kind.storage_type)
        kind = values.type
    if pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind):
        values = values.cast(kind.value_type)
        kind = values.type
    if pa.types.is_string_view(kind):
        return values.cast(pa.large_string())
    if pa.types.is_binary_view(kind):
        return values.cast(pa.large_binary())
    return values


Converted = tuple[Any, np.ndarray | None]


def _converter(have: pa.DataType, wanted: pa.DataType) -> Callable[[pa.ChunkedArray], Converted] | None:
    """How to convert values of one type to another: (values, which rows are wrong); None if it cannot be done."""
    if wanted == pa.string():
        if is_text(have) or pa.types.is_integer(have) or pa.types.is_decimal(have):
            return lambda values: (values.cast(pa.string()), None)
        return _decoded if is_bytes(have) else None
    if is_text(have):
        return _whole_numbers if pa.types.is_integer(wanted) else _numbers
    if pa.types.is_integer(wanted):
        return _fitting if pa.types.is_integer(have) else None
    if pa.types.is_integer(have) or pa.types.is_floating(have) or pa.types.is_decimal(have):
        return lambda values: (values.cast(wanted, safe=False), None)
    return None


def _decoded(values: pa.ChunkedArray) -> Converted:
    """Bytes that hold text: files of writers that do not mark text as UTF-8."""
    try:
        return values.cast(pa.string()), None
    except pa.ArrowInvalid:
        found: list[str | None] = []
        for value in values.to_pylist():
            try:
                found.append(None if value is None else value.decode())
            except UnicodeDecodeError:
                found.append(None)
        text = pa.chunked_array([pa.array(found, pa.string())])
        return text, pc.and_(pc.is_valid(values), pc.is_null(text)).to_numpy()


def _numbers(values: pa.ChunkedArray) -> Converted:
    """Decimal numbers as float64; nan and inf are numbers, empty cells and NULL are missing."""
    text, is_missing = _trimmed(values)
    is_number = pc.or_(pc.match_substring_regex(text, DIGITS), pc.match_substring_regex(text, NOT_FINITE))
    digits = pc.if_else(is_number, text, pa.scalar(None, pa.string()))
    try:
        found = digits.cast(pa.float64())
    except pa.ArrowInvalid:  # Arrow reads no leading plus and no lone point
        listed = [None if value is None else float(value) for value in digits.to_pylist()]
        found = pa.chunked_array([pa.array(listed, pa.float64())])
    return found, pc.invert(pc.or_(is_number, is_missing)).to_numpy()


def _whole_numbers(values: pa.ChunkedArray) -> Converted:
    text, is_missing = _trimmed(values)
    found: list[int | None] = []
    wrong = np.zeros(len(text), dtype=bool)
    for row, (value, missing) in enumerate(zip(text.to_pylist(), is_missing.to_pylist(), strict=True)):
        number = None if missing else _whole(value)
        wrong[row] = number is None and not missing
        found.append(number)
    return pa.chunked_array([pa.array(found, pa.int64())]), wrong


def _whole(text: str) -> int | None:
    try:
        number = int(text) if text.lstrip("+-").isdecimal() else float(text)
    except ValueError:
        return None
    return int(number) if number == number and abs(number) < 2**63 and number == int(number) else None


def _trimmed(values: pa.ChunkedArray) -> tuple[pa.ChunkedArray, pa.ChunkedArray]:
    """(text without spaces at its ends and without nulls, which rows are missing)."""
    text = pc.fill_null(pc.utf8_trim_whitespace(values.cast(pa.string())), "")
    return text, pc.is_in(text, pa.array(NULL_NUMBERS))


def _fitting(values: pa.ChunkedArray) -> Converted:
    """Integers as int64."""
    if not pa.types.is_uint64(values.type):
        return values.cast(pa.int64()), None
    wrong = pc.fill_null(pc.greater(values, 2**63 - 1), False)
    return pc.if_else(wrong, pa.scalar(None, values.type), values).cast(pa.int64()), wrong.to_numpy()


def _image_column(
    values: pa.ChunkedArray, faults: Faults, *, schema: Schema, column: str, file: str
) -> pa.ChunkedArray:
    chunks, first = [], 0
    for chunk in values.chunks or [pa.array([], values.type)]:
        image, wrong = _images(chunk, schema, column, file)
        if wrong.any():
            faults.add(np.pad(wrong, (first, 0)), f"{column}_not_text", values, column)
        chunks.append(image)
        first += len(chunk)
    return pa.chunked_array(chunks, type=IMAGE_TYPE)


def _images(cells: pa.Array, schema: Schema, column: str, file: str) -> tuple[pa.StructArray, np.ndarray]:
    """(struct {bytes, path}, rows with an unreadable path) of cells that are bytes, paths, structs or lists of those.

    The first of a list counts. Empty bytes beside a path are no image: the path is read.
    """
    cells = pa.chunked_array([cells])
    cells = _plain(cells).combine_chunks() if not pa.types.is_struct(cells.type) else cells.chunk(0)
    kind = cells.type
    no_faults = np.zeros(len(cells), dtype=bool)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        firsts = [cell[0] if cell else None for cell in cells.to_pylist()]
        return _images(pa.array(firsts, kind.value_type), schema, column, file)
    if pa.types.is_null(kind):
        return pa.nulls(len(cells), IMAGE_TYPE), no_faults
    data, path = pa.nulls(len(cells), pa.binary()), pa.nulls(len(cells), pa.string())
    names = {one.name for one in kind} if pa.types.is_struct(kind) else set()
    if names & {"bytes", "path"}:
        data = _part(cells, "bytes", pa.binary()) if "bytes" in names else data
        path = _part(cells, "path", pa.string()) if "path" in names else path
        has_path = pc.fill_null(pc.not_equal(path, ""), False)
        is_empty = pc.and_(pc.fill_null(pc.equal(pc.binary_length(data), 0), False), has_path)
        data = pc.if_else(is_empty, pa.scalar(None, pa.binary()), data)
    elif is_bytes(kind):
        data = cells.cast(pa.binary())
    elif is_text(kind):
        path = cells.cast(pa.string())
    else:
        needs = "bytes, a path or a struct of both is needed."
        raise ValueError(f"{schema.name}: {_in(file)}column {column!r} has type {kind}; {needs}")
    return pa.StructArray.from_arrays([data, path], ["bytes", "path"], mask=pc.is_null(cells)), no_faults


def _part(cells: pa.StructArray, name: str, kind: pa.DataType) -> pa.Array:
    values = pc.struct_field(cells, name)
    return pa.nulls(len(cells), kind) if pa.types.is_null(values.type) else values.cast(kind)


def joined(tables: Sequence[pa.Table]) -> pa.Table:
    """The rows of all tables; a column whose types do not agree becomes text."""
    names = list(dict.fromkeys(name for table in tables for name in table.column_names))
    for name in names:
        kinds = {table.schema.field(name).type for table in tables if name in table.column_names}
        kinds.discard(pa.null())
        if len(kinds) > 1 and not _merge(kinds):
            tables = [_with_text(table, name) for table in tables]
    return pa.concat_tables(tables, promote_options="permissive")


def _merge(kinds: set[pa.DataType]) -> bool:
    try:
        pa.unify_schemas([pa.schema([("value", kind)]) for kind in kinds], promote_options="permissive")
    except pa.ArrowException:
        return False
    return True


def _with_text(table: pa.Table, name: str) -> pa.Table:
    if name not in table.column_names:
        return table
    values = table.column(name).to_pylist()
    text = [value if value is None or isinstance(value, str) else json.dumps(value, default=str) for value in values]
    return table.set_column(table.column_names.index(name), name, pa.array(text, pa.string()))


def typed_others(table: pa.Table, schema: Schema) -> pa.Table:
    """Undeclared text columns of a text file as whole numbers, numbers or dates where all their values are such.

    `007` and a number of more digits than a float holds are text: as numbers they would not be what was written.
    """
    for place, name in enumerate(table.column_names):
        if name in schema.types or name in (LINE, *MARKS) or not pa.types.is_string(table.schema.field(name).type):
            continue
        text = pc.if_else(pc.equal(table.column(name), ""), pa.scalar(None, pa.string()), table.column(name))
        for pattern, kind in OTHER_TYPES:
            if text.null_count < len(text) and pc.all(pc.match_substring_regex(text, pattern)).as_py():
                try:
                    table = table.set_column(place, name, text.cast(kind))
                except pa.ArrowInvalid:
                    continue
                break
    return table
