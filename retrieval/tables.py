"""Tables of documents, queries and judgements: their declared columns, and checks of their ids.

Parquet and `datasets` folders are streamed: a catalogue need not fit into memory. Ids are strings after
reading. Columns that are not declared are kept: evaluation reports metrics by their values. A document or query whose
row cannot be read, has no id, or has the id of an earlier row is left out with its reason; in the other tables, which
somebody wrote to judge by, such a row is an error.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Features, Image, Value

import runtime.tables
from runtime.tables import MARKS, Schema, open_table

IDS = frozenset({"query_id", "doc_id", "same_as"})


def _schema(name: str, columns: dict[str, Any], *, optional: frozenset[str] = frozenset()) -> Schema:
    return Schema(name, Features(columns), ids=IDS & columns.keys(), optional=optional, keep_others=True)


QUERIES = _schema("queries", {"query_id": Value("string"), "image": Image(decode=False)})
CATALOGUE = _schema(
    "catalogue",
    {"doc_id": Value("string"), "image": Image(decode=False), "text": Value("string"), "leaf": Value("string")},
    optional=frozenset({"leaf"}),
)
QRELS = _schema("qrels", {"query_id": Value("string"), "doc_id": Value("string"), "relevance": Value("int64")})
GALLERY = _schema("gallery", {"doc_id": Value("string")})
FIELDS = _schema("fields", {"doc_id": Value("string")})
MERGE = _schema("merge", {"doc_id": Value("string"), "same_as": Value("string")})
# Tables with one row for each id.
UNIQUE = {"queries": "query_id", "catalogue": "doc_id", "gallery": "doc_id", "fields": "doc_id"}
# Tables whose bad rows are left out with a reason; in the others they are errors.
SKIPS = ("queries", "catalogue")
BATCH_ROWS = 256

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Table:
    """A checked table; its rows are read when they are asked for, as Python lists.

    Attributes:
        bad: number of each row that is left out, and why; the other rows alone are given.
        names: ids of those rows, as far as they have one.
    """

    rows: runtime.tables.Table
    bad: Mapping[int, str] = field(default_factory=dict)
    names: Mapping[int, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Name of the table in messages."""
        return self.rows.schema.name

    @property
    def folder(self) -> Path | None:
        """Folder below which image paths must lie; None for a Hub data set."""
        return self.rows.folder

    @property
    def num_rows(self) -> int:
        """Number of rows."""
        return self.rows.num_rows - len(self.bad)

    @property
    def types(self) -> dict[str, pa.DataType]:
        """Arrow type of each column, declared or not."""
        return {field.name: field.type for field in self.rows.arrow_schema}

    def read(self, columns: Sequence[str] | None = None) -> dict[str, list[Any]]:
        """All values of some columns (default: all) as Python lists; columns that the table lacks are left out."""
        found: dict[str, list[Any]] = self.arrow(columns).to_pydict()
        return found

    def arrow(self, columns: Sequence[str] | None = None) -> pa.Table:
        """As `read`, as an Arrow table."""
        return self._good(self.rows.read(columns), first=0)

    def batches(self, rows: int = BATCH_ROWS) -> Iterator[dict[str, list[Any]]]:
        """The rows in order, at most `rows` at a time, as Python lists."""
        first = 0
        for batch in self.rows.batches(rows):
            good = self._good(batch, first=first)
            first += batch.num_rows
            if good.num_rows:
                yield good.to_pydict()

    def skipped(self, key: str) -> list[dict[str, str]]:
        """The rows that are left out, each by its id, or its number without one, with its reason."""
        return [{key: self.names.get(row, f"row {row}"), "reason": why} for row, why in sorted(self.bad.items())]

    def _good(self, table: pa.Table, *, first: int) -> pa.Table:
        """The rows of a table that starts at row `first`, without the bad ones and without marks."""
        table = table.drop_columns([name for name in MARKS if name in table.column_names])
        bad = [row - first for row in self.bad if first <= row < first + table.num_rows]
        if bad:
            keep = np.ones(table.num_rows, dtype=bool)
            keep[bad] = False
            table = table.filter(pa.array(keep))
        return table


def read_table(path: str | Path, schema: Schema, *, may_be_empty: bool = False) -> Table:
    """Open a table and check its columns, types and ids, before any costly work.

    Args:
        path: file, folder or Hub id, see `runtime.tables.locate`.
        schema: one of the schemas above.
        may_be_empty: a table without rows is valid, for example when nothing is to be merged.

    Raises:
        ValueError: nothing there, an unknown format, a missing column, a wrong type, no row that can be used; in a
            table whose rows are not left out, an id that is missing or comes twice. The message names table, column
            and row.
    """
    opened = open_table(path, schema, mark=schema.name in SKIPS)
    bad = {row: f"{reason}: {detail}" for row, (reason, detail) in opened.bad_rows().items()} if opened.marked else {}
    names = dict[int, str]()
    if opened.marked:
        _reject_ids(opened, bad, names)
    table = Table(opened, bad, names)
    for reason in [*(reason for _, reason in opened.lost), *opened.warnings]:
        logger.warning("warning: %s", reason)
    if bad and table.num_rows == 0:
        raise ValueError(f"{table.name}: no row of {path} can be used: {bad[min(bad)]}.")
    if table.num_rows == 0 and not may_be_empty:
        raise ValueError(f"{table.name}: {path} has no rows. Give a table with at least one.")
    for column in schema.columns:
        if column in schema.ids and not opened.marked:
            _check_ids(table, column, unique=UNIQUE.get(schema.name) == column)
    return table


def _reject_ids(opened: runtime.tables.Table, bad: dict[int, str], names: dict[int, str]) -> None:
    """Add the rows without an id, and all rows of one id but the first, as governance does."""
    column = UNIQUE[opened.schema.name]
    first: dict[str, int] = {}
    for row, value in enumerate(opened.read([column]).column(column).to_pylist()):
        if value and row in bad:
            names[row] = value
        elif row not in bad and not value:
            bad[row] = f"missing_id: row {row} has no {column}"
        elif row not in bad and first.setdefault(value, row) != row:
            names[row] = value
            bad[row] = f"duplicate_id: row {row} has the {column} of row {first[value]}, which is used"


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
