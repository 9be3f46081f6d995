"""What a table must hold: declared columns, and the words of its error messages."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
from datasets import Features, Value

IMAGE = {"bytes": Value("binary"), "path": Value("string")}
IMAGE_TYPE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
# Columns that a reader adds where rows are marked: the reason why a row cannot be used (null: none), and where it
# stands with the value that is wrong.
ROW_FAULT, ROW_DETAIL = "__row_fault__", "__row_detail__"
MARKS = {ROW_FAULT: pa.string(), ROW_DETAIL: pa.string()}
# Reasons of rows that no column can be read of; others are COLUMN_not_text, COLUMN_not_a_number, COLUMN_not_whole.
ROW_CELLS, ROW_QUOTES, ROW_NOT_JSON, ROW_NOT_UTF8 = "row_cells", "row_quotes", "row_not_json", "row_not_utf8"
REMEDIES = {
    ROW_CELLS: "give the row as many cells as the header has; quote a cell that holds the separator",
    ROW_QUOTES: 'close the quote at the end of the cell, and double a quote inside a quoted cell ("")',
    ROW_NOT_JSON: "write one JSON object per line",
    ROW_NOT_UTF8: "save the file as UTF-8",
    "not_text": "write text, in quotes where the format has them",
    "not_a_number": "write digits, with a point for decimals and no separators",
    "not_whole": "write a whole number",
}


def remedy(reason: str) -> str:
    """What to do about a row with a reason of this reader; "" for another reason."""
    return REMEDIES.get(reason) or next((text for end, text in REMEDIES.items() if reason.endswith(f"_{end}")), "")


@dataclass(frozen=True)
class Schema:
    """Declared columns of one table.

    Attributes:
        name: of the table, in messages.
        columns: type of each column; images are declared as `IMAGE` or `datasets.Image(decode=False)`.
        ids: text columns that identify rows.
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


class BrokenFile(ValueError):
    """A file that cannot be read to its end."""


def one_line(error: BaseException) -> str:
    """The first 200 characters of an error's message, in one line."""
    return " ".join(str(error).split())[:200]


def unreadable(file: str, error: BaseException, *, form: str, name: str) -> BrokenFile:
    """Error about a file that a reader rejects."""
    return BrokenFile(f"{name}: {file} cannot be read as {form} ({one_line(error)}).")


def none_usable(lost: Sequence[tuple[str, str]], *, files: int, folder: Path) -> ValueError:
    """Error for a table none of whose files can be used: why the first one cannot, and how many there are."""
    more = f" None of the {files} files of {folder.name} can be used." if files > 1 else ""
    return ValueError(lost[0][1] + more)


def missing_column(schema: Schema, column: str, have: Sequence[str], *, file: str = "") -> str:
    """Message about a declared column that a file lacks."""
    where = f"{schema.name}: {file}: " if file else f"{schema.name}: "
    return f"{where}column {column!r} is missing (it has {', '.join(have)}). Add or rename it."


def is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def is_bytes(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))
