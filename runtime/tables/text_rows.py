"""Rows of CSV and JSON lines as text, with the reason of every row that cannot be read.

Nothing is guessed: every cell is text here, and conform.py makes of it what is declared. A block of lines without any
difficulty is read by Arrow; every other block by Python's csv or json, row by row. Both give the same rows.
"""

import csv
import io
import json
import re
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.json

from runtime.tables.encoding import ROW_BYTES, TextFile
from runtime.tables.schema import (
    IMAGE_TYPE,
    ROW_CELLS,
    ROW_DETAIL,
    ROW_FAULT,
    ROW_NOT_JSON,
    ROW_NOT_UTF8,
    ROW_QUOTES,
    BrokenFile,
    Schema,
    missing_column,
)

# Line of the file that a row begins in.
LINE = "__row_line__"
DELIMITERS = ",\t;|"
LINE_END = re.compile(r"[^\r\n]*(?:\r\n|\n|\r|$)")
NUMBER = re.compile(r"\s*([+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?)?\s*", re.ASCII)
VALUE_SHOWN = 60


@dataclass(frozen=True)
class Header:
    """Names of the cells of a CSV file; those that stand twice or are blank are None and are not read."""

    names: tuple[str | None, ...]
    delimiter: str
    lines: int

    @property
    def columns(self) -> list[str]:
        return [name for name in self.names if name is not None]


def shown(value: Any) -> str:
    """A value in a message, cut to a readable length."""
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return repr(text if len(text) <= VALUE_SHOWN else text[:VALUE_SHOWN] + "...")


class _Lines:
    """Lines of a file in blocks; a reader that needs more than its block takes the next one too."""

    def __init__(self, file: TextFile) -> None:
        self._blocks = file.blocks()
        self._waiting: deque[str] = deque()
        self.taken: list[str] = []

    def block(self) -> bytes | None:
        return next(self._blocks, None)

    def put(self, block: bytes) -> None:
        text = block.decode("utf-8", "surrogateescape")
        self._waiting.extend(line for line in LINE_END.findall(text) if line)

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        if not self._waiting:
            block = self.block()
            if block is None:
                raise StopIteration
            self.put(block)
        line = self._waiting.popleft()
        self.taken.append(line)
        return line


def csv_header(file: TextFile, schema: Schema) -> Header:
    """Read the header and detect the separator: the one that gives most of the declared columns.

    Raises:
        BrokenFile: the file is empty. ValueError: a declared column stands twice or a needed one is missing.
    """
    lines = _Lines(file)
    csv.field_size_limit(ROW_BYTES)  # of this process; the default of 128 kB is one long text
    first, number = "", 0
    wanted = None
    for line in lines:
        number += 1
        if match := re.fullmatch(r"sep=(.)\s*", line):  # written by Excel
            wanted = match[1]
        elif line.strip():
            first = line
            break
    if not first.strip():
        raise BrokenFile(f"{schema.name}: {file.name} is empty. Give it a header and rows.")
    best: tuple[int, tuple[str, ...], str, int] | None = None
    for delimiter in wanted or DELIMITERS:
        tried = _Lines(file)
        for _ in range(number - 1):
            next(tried)
        tried.taken.clear()
        try:
            names = tuple(name.strip() for name in next(csv.reader(tried, delimiter=delimiter, strict=True)))
        except (csv.Error, StopIteration):
            continue
        known = len(set(names) & schema.types.keys())
        if best is None or known > best[0]:
            best = (known, names, delimiter, number - 1 + len(tried.taken))
    if best is None:
        raise BrokenFile(f"{schema.name}: {file.name} line {number}: the header has an open quote. Close it.")
    _, names, delimiter, used = best
    for name in schema.types:
        if names.count(name) > 1:
            raise ValueError(f"{schema.name}: {file.name}: column {name!r} stands twice in the header. Rename one.")
    for name in schema.types:
        if name not in names and name not in schema.optional:
            raise ValueError(missing_column(schema, name, [name for name in names if name], file=file.label))
    once = tuple(name if name and names.count(name) == 1 else None for name in names)
    return Header(once, delimiter, used)


def csv_rows(file: TextFile, schema: Schema) -> Iterator[pa.Table]:
    """Tables of text with `LINE` and the marks, in the order of the file.

    Raises:
        BrokenFile: an open quote swallows rows.
    """
    header = csv_header(file, schema)
    kept = [name for name in header.columns if name in schema.types or schema.keep_others]
    yield _Collected(kept).table()  # the columns, should there be no row
    lines, line = _Lines(file), 1
    block = lines.block()
    skip = header.lines
    while block is not None:
        while skip and block:
            end = LINE_END.match(block.decode("utf-8", "surrogateescape"))
            assert end is not None
            block = block[len(end[0].encode("utf-8", "surrogateescape")) :]
            skip, line = skip - 1, line + 1
        found = _quick_csv(block, header, kept, line) if block else None
        if found is not None:
            yield found
            line += found.num_rows
        elif block:
            lines.put(block)
            found, line = _slow_csv(lines, file, header, kept, schema, line)
            if found.num_rows:
                yield found
        block = lines.block()


def _quick_csv(block: bytes, header: Header, kept: Sequence[str], line: int) -> pa.Table | None:
    """The rows of a block without quotes, blank lines and rows of another length; None for any other block."""
    if b'"' in block or b"\0" in block or block.count(b"\r") != block.count(b"\r\n"):
        return None
    places = [f"{place}" for place in range(len(header.names))]
    wanted = [f"{header.names.index(name)}" for name in kept]
    try:
        table = pyarrow.csv.read_csv(
            io.BytesIO(block),
            read_options=pyarrow.csv.ReadOptions(column_names=places, block_size=len(block) + 1, use_threads=False),
            parse_options=pyarrow.csv.ParseOptions(delimiter=header.delimiter, quote_char=False),
            convert_options=pyarrow.csv.ConvertOptions(
                column_types={place: pa.string() for place in places}, include_columns=wanted
            ),
        )
    except pa.ArrowException:
        return None
    if table.num_rows != block.count(b"\n") + (not block.endswith(b"\n")):
        return None
    return _marked(dict(zip(kept, table.columns, strict=True)), table.num_rows, first_line=line)


def _marked(columns: dict[str, Any], rows: int, *, first_line: int) -> pa.Table:
    lines = pa.array(range(first_line, first_line + rows), pa.int64())
    marks = {ROW_FAULT: pa.nulls(rows, pa.string()), ROW_DETAIL: pa.nulls(rows, pa.string())}
    return pa.table({**columns, LINE: lines, **marks})


def _slow_csv(
    lines: _Lines, file: TextFile, header: Header, kept: Sequence[str], schema: Schema, line: int
) -> tuple[pa.Table, int]:
    """(rows, line after them): row by row, up to the end of the lines that wait."""
    reader = csv.reader(lines, delimiter=header.delimiter, strict=True)
    places = [header.names.index(name) for name in kept]
    found = _Collected(kept)
    while lines:
        lines.taken.clear()
        fault = detail = None
        try:
            cells = next(reader)
        except csv.Error as error:
            if len(lines.taken) > 1:
                raise BrokenFile(_swallowed(file, line, line + len(lines.taken) - 1)) from error
            fault, detail, cells = ROW_QUOTES, f"line {line}: {shown(lines.taken[0].rstrip())}", []
        if len(lines.taken) > 1 and _swallows_rows(lines.taken, header, schema):
            raise BrokenFile(_swallowed(file, line, line + len(lines.taken) - 1))
        if fault is None and not _fits(cells, len(header.names)):
            if not cells:  # a blank line
                line += len(lines.taken)
                continue
            many = f"{len(cells)} cells, the header has {len(header.names)}"
            fault, detail = ROW_CELLS, f"line {line} has {many}: {shown(header.delimiter.join(cells))}"
        row = [cells[place] if place < len(cells) else None for place in places]
        found.add(row, line, fault, detail)
        line += len(lines.taken)
    return found.table(), line


def _fits(cells: list[str], wanted: int) -> bool:
    """Whether a row has as many cells as the header; empty ones at its end do not count."""
    return len(cells) == wanted or (len(cells) > wanted and not any(cells[wanted:]))


def _swallowed(file: TextFile, first: int, last: int) -> str:
    return (
        f"{file.table}: {file.name} line {first}: a quote opens here and the cell goes on to line {last}, over other "
        'rows. Close the quote, or double it inside a quoted cell ("").'
    )


def _swallows_rows(taken: Sequence[str], header: Header, schema: Schema) -> bool:
    """Whether most further lines of a cell look like rows of this table, which an open quote has swallowed."""
    further = taken[1:]
    return 2 * sum(_looks_like_row(line, header, schema) for line in further) >= len(further)


def _looks_like_row(line: str, header: Header, schema: Schema) -> bool:
    cells = line.rstrip("\r\n").split(header.delimiter)
    if len(cells) != len(header.names) or len(cells) < 2:
        return False
    for name, cell in zip(header.names, cells, strict=True):
        kind = schema.types.get(name or "")
        if name in schema.ids and (not cell.strip() or len(cell) > 200):
            return False
        if kind == IMAGE_TYPE and cell and not ("." in cell or "/" in cell):
            return False
        if (
            kind is not None
            and (pa.types.is_integer(kind) or pa.types.is_floating(kind))
            and not NUMBER.fullmatch(cell)
        ):
            return False
    # In prose a space follows a comma.
    return not any(cell.startswith(" ") for cell in cells[1:])


class _Collected:
    """Rows of text, column by column."""

    def __init__(self, kept: Sequence[str], kinds: dict[str, pa.DataType] | None = None) -> None:
        self.kinds = {name: (kinds or {}).get(name, pa.string()) for name in kept}
        self._values: dict[str, list[Any]] = {name: [] for name in kept}
        self._lines: list[int] = []
        self._faults: list[str | None] = []
        self._details: list[str | None] = []

    def add(self, row: Sequence[Any], line: int, fault: str | None, detail: str | None) -> None:
        """Add a row; text that is not UTF-8 makes it a bad one."""
        if fault is None:
            for name, value in zip(self._values, row, strict=True):
                if isinstance(value, str) and not value.isascii() and not _is_unicode(value):
                    fault, detail = ROW_NOT_UTF8, f"line {line}: {name!r} is {shown(_readable(value))}"
        for values, value in zip(self._values.values(), row, strict=True):
            values.append(
                None if fault == ROW_NOT_UTF8 and isinstance(value, str) and not _is_unicode(value) else value
            )
        self._lines.append(line)
        self._faults.append(fault)
        self._details.append(None if detail is None else _readable(detail))

    def table(self) -> pa.Table:
        columns = {name: pa.array(self._values[name], kind) for name, kind in self.kinds.items()}
        marks = {ROW_FAULT: self._faults, ROW_DETAIL: self._details}
        return pa.table(
            {**columns, LINE: pa.array(self._lines, pa.int64())}
            | {name: pa.array(values, pa.string()) for name, values in marks.items()}
        )


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _readable(text: str) -> str:
    """The text with bytes that are no UTF-8, and halves of surrogate pairs, as they are escaped in Python."""
    return text.encode("utf-8", "backslashreplace").decode()


class _Written(str):
    """A number of a JSON file as it was written."""


def json_rows(file: TextFile, schema: Schema) -> Iterator[pa.Table]:
    """Like `csv_rows`, for JSON lines and for one JSON list of objects; columns that the first block lacks are missing.

    Raises:
        BrokenFile: the file is no JSON at all. ValueError: a needed column is missing.
    """
    lines, line, seen = _Lines(file), 1, set[str]()
    block = lines.block()
    is_first = True
    if block is not None and block.lstrip()[:1] == b"[":
        yield _json_list(lines, block, file, schema)
        return
    while block is not None:
        found = None if schema.keep_others else _quick_json(block, schema, line)
        if found is not None:
            seen |= schema.types.keys() - schema.optional
            line += found.num_rows
        else:
            lines.put(block)
            found, line, names = _slow_json(lines, schema, line)
            seen |= names
        if is_first and found.num_rows:
            _check_json(found, seen, file, schema)
            is_first = False
        if found.num_rows:
            yield found
        block = lines.block()
    if is_first:
        yield _empty_json(schema)


def _empty_json(schema: Schema) -> pa.Table:
    return _Collected(list(schema.types), _json_kinds(schema)).table()


def _json_kinds(schema: Schema) -> dict[str, pa.DataType]:
    return {name: IMAGE_TYPE if kind == IMAGE_TYPE else pa.string() for name, kind in schema.types.items()}


def _check_json(found: pa.Table, seen: set[str], file: TextFile, schema: Schema) -> None:
    faults = found.column(ROW_FAULT)
    if not seen and faults.null_count == 0:
        detail = found.column(ROW_DETAIL)[0].as_py()
        raise BrokenFile(f"{schema.name}: {file.name} cannot be read as JSON lines ({detail}). One object per line.")
    for name in schema.types:
        if name not in seen and name not in schema.optional:
            raise ValueError(missing_column(schema, name, sorted(seen), file=file.label))


def _quick_json(block: bytes, schema: Schema, line: int) -> pa.Table | None:
    """The rows of a block whose values all have their declared type, by Arrow; None for any other block."""
    if any(kind == IMAGE_TYPE for kind in schema.types.values()) or b"\0" in block:
        return None
    end = block.find(b"\n")
    try:
        first = json.loads(block[: end if end >= 0 else None])
    except ValueError:
        return None
    if not isinstance(first, dict) or any(name not in first for name in schema.types if name not in schema.optional):
        return None
    kinds = {
        name: pa.int64() if type(first.get(name)) is int and kind == pa.string() else kind
        for name, kind in schema.types.items()
    }
    try:
        table = pyarrow.json.read_json(
            io.BytesIO(block),
            read_options=pyarrow.json.ReadOptions(block_size=len(block) + 1, use_threads=False),
            parse_options=pyarrow.json.ParseOptions(
                explicit_schema=pa.schema(kinds), unexpected_field_behavior="ignore"
            ),
        )
    except pa.ArrowException:
        return None
    if table.num_rows != block.count(b"\n") + (not block.endswith(b"\n")):
        return None
    texts = {name: table.column(name) for name in schema.types}
    texts = {name: one.cast(pa.string()) if schema.types[name] == pa.string() else one for name, one in texts.items()}
    return _marked(texts, table.num_rows, first_line=line)


def _slow_json(lines: _Lines, schema: Schema, line: int) -> tuple[pa.Table, int, set[str]]:
    """(rows, line after them, names of all columns found)."""
    rows: list[tuple[dict[str, Any], int, str | None, str | None]] = []
    names = set[str]()
    while lines:
        lines.taken.clear()
        text = next(lines)
        if text.strip():
            row, fault, detail = _json_object(text, line)
            names |= row.keys()
            rows.append((row, line, fault, detail))
        line += 1
    return _json_table(rows, names, schema), line, names


def _json_list(lines: _Lines, block: bytes, file: TextFile, schema: Schema) -> pa.Table:
    """A file that is one list of objects; the number of an object stands for its line."""
    data = block
    while (more := lines.block()) is not None:
        data += more
    try:
        found = json.loads(data.decode("utf-8", "surrogateescape"), **_AS_WRITTEN)
    except (ValueError, RecursionError) as error:
        raise BrokenFile(f"{schema.name}: {file.name} cannot be read as json ({error}).") from error
    rows: list[tuple[dict[str, Any], int, str | None, str | None]] = []
    names = set[str]()
    for number, row in enumerate(found, start=1):
        is_row = isinstance(row, dict)
        names |= row.keys() if is_row else set()
        fault = None if is_row else ROW_NOT_JSON
        rows.append((row if is_row else {}, number, fault, None if is_row else f"object {number}: {shown(row)}"))
    table = _json_table(rows, names, schema)
    _check_json(table, names, file, schema)
    return table


_AS_WRITTEN: dict[str, Any] = {"parse_int": _Written, "parse_float": _Written, "parse_constant": _Written}


def _json_object(text: str, line: int) -> tuple[dict[str, Any], str | None, str | None]:
    try:
        row = json.loads(text, **_AS_WRITTEN)
    except (ValueError, RecursionError):
        row = None
    if isinstance(row, dict):
        return row, None, None
    return {}, ROW_NOT_JSON, f"line {line}: {shown(text.strip())}"


def _json_table(
    rows: Sequence[tuple[dict[str, Any], int, str | None, str | None]], names: set[str], schema: Schema
) -> pa.Table:
    others = sorted(names - schema.types.keys()) if schema.keep_others else []
    found = _Collected([*schema.types, *others], _json_kinds(schema))
    for row, line, fault, detail in rows:
        values: list[Any] = []
        for name, kind in schema.types.items():
            value, wrong = _json_value(row.get(name), kind)
            if wrong and fault is None:
                fault, detail = f"{name}_{wrong}", f"line {line}: {name!r} is {shown(row[name])}"
            values.append(value)
        values += [None if row.get(name) is None else _as_text(row[name]) for name in others]
        found.add(values, line, fault, detail)
    return found.table()


def _as_text(value: Any) -> str:
    return str(value) if isinstance(value, str) else json.dumps(value)


def _json_value(value: Any, kind: pa.DataType) -> tuple[Any, str | None]:
    """(value as text or image, what is wrong)."""
    if kind == IMAGE_TYPE:
        return _json_image(value)
    if value is None or isinstance(value, str):
        return value, None
    return None, "not_text" if kind == pa.string() else "not_a_number"


def _json_image(value: Any) -> tuple[dict[str, Any] | None, str | None]:
    if isinstance(value, list):
        value = value[0] if value else None
    if value is None:
        return None, None
    if isinstance(value, str) and not isinstance(value, _Written):
        return ({"bytes": None, "path": value}, None) if _is_unicode(value) else (None, "not_text")
    if not isinstance(value, dict):
        return None, "not_text"
    parts = [value.get("bytes"), value.get("path")]
    if any(part is not None and (type(part) is not str or not _is_unicode(part)) for part in parts):
        return None, "not_text"
    data = None if not parts[0] else parts[0].encode()
    return {"bytes": data, "path": parts[1]}, None
