"""The catalogue's own columns: kept in the index, returned with the answers, and what a search may be filtered by.

A filter is a condition in SQL (`price < 50 and brand = 'x'`). sqlglot parses it, every node must be on a short list,
and DuckDB evaluates the SQL that is written back from those nodes: no statement, subquery, file or setting can be
reached.
"""

import difflib
import threading
from collections.abc import Sequence
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import sqlglot
from numpy.typing import NDArray
from sqlglot import expressions as sql

from retrieval.tables import CATALOGUE, Table

# Columns of documents.arrow that a filter may use, beside the catalogue's own.
OWN_COLUMNS = ("doc_id", "text", "leaf", "has_image", "has_text")
MOST_CHARACTERS = 2_000
MOST_KEPT = 32  # conditions whose rows are kept: a byte for each document
ALLOWED = (
    *(sql.And, sql.Or, sql.Not, sql.Paren, sql.Neg),
    *(sql.EQ, sql.NEQ, sql.GT, sql.GTE, sql.LT, sql.LTE, sql.Between, sql.In, sql.Is, sql.Like, sql.ILike),
    *(sql.Add, sql.Sub, sql.Mul, sql.Div, sql.Mod),
    *(sql.Column, sql.Identifier, sql.Literal, sql.Boolean, sql.Null),
    *(sql.Lower, sql.Upper, sql.Length, sql.Abs, sql.Coalesce, sql.StartsWith, sql.Contains, sql.ArrayContains),
    *(sql.Cast, sql.DataType),
)
# date '2026-01-31' is a cast of a literal.
CAST_TO = {"DATE", "TIMESTAMP", "DOUBLE", "BIGINT", "INT", "VARCHAR", "TEXT", "BOOLEAN"}
EXAMPLE = "price < 50 and brand = 'x'"


def field_names(catalogue: Table) -> list[str]:
    """Columns of a catalogue that an index keeps as they are: all but the declared ones and those that hold bytes."""
    return [name for name, kind in catalogue.types.items() if name not in CATALOGUE.columns and not _holds_bytes(kind)]


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind):
        return True
    return any(_holds_bytes(kind.field(place).type) for place in range(kind.num_fields))


def read_fields(catalogue: Table, doc_ids: Sequence[str]) -> pa.Table:
    """The kept columns of some documents, in their order; a table without columns if the catalogue has none."""
    names = field_names(catalogue)
    if not names:
        return pa.table({})
    found = catalogue.arrow(["doc_id", *names])
    rows = pa.compute.index_in(pa.array(doc_ids, pa.string()), value_set=found.column("doc_id"))
    return found.select(names).take(rows)


class FieldFilter:
    """Evaluates conditions over the fields of an index.

    Args:
        documents: of the index. fields: the catalogue's own columns, row by row; a name of both means the field.
    """

    def __init__(self, documents: pa.Table, fields: pa.Table | None) -> None:
        columns = {name: documents.column(name) for name in OWN_COLUMNS if name in documents.column_names}
        for name in fields.column_names if fields is not None else ():
            assert fields is not None
            columns[name] = fields.column(name)
        self.columns = columns
        self.lock = threading.Lock()
        self.kept = dict[str, NDArray[np.bool_]]()  # filters come again and again
        self.connection = duckdb.connect(
            ":memory:", config={"enable_external_access": "false", "autoload_known_extensions": "false"}
        )
        self.connection.execute("SET lock_configuration = true")

    def matching(self, where: str) -> NDArray[np.bool_]:
        """(N,) the rows for which a condition is true; where it is unknown, a value being missing, they do not match.

        Raises:
            ValueError: no condition, one that is not allowed, an unknown column, or values of another type.
        """
        condition, names = checked_condition(where, list(self.columns))
        with self.lock:
            found = self.kept.get(condition)
        if found is None:
            found = self._matching(condition, names, where)
            with self.lock:
                self.kept[condition] = found
                while len(self.kept) > MOST_KEPT:
                    del self.kept[next(iter(self.kept))]
        return found

    def _matching(self, condition: str, names: Sequence[str], where: str) -> NDArray[np.bool_]:
        mask_N = np.zeros(len(self.columns["doc_id"]), dtype=np.bool_)
        table = pa.table([self.columns[name] for name in names], names=list(names))
        row = "_row" + "_" * max((len(name) for name in names), default=0)  # longer than any column's name
        cursor = self.connection.cursor()
        try:
            cursor.register("documents", table.append_column(row, pa.array(np.arange(len(mask_N)))))
            # Rows are faster to fetch than one truth value for each document.
            query = f"SELECT {row} FROM documents WHERE ({condition})::BOOLEAN"
            mask_N[cursor.execute(query).fetchnumpy()[row]] = True
        except duckdb.Error as error:
            reason = str(error).strip().split("\n")[0]
            raise ValueError(f"{_named(where)}: {reason}") from error
        finally:
            cursor.close()
        mask_N.setflags(write=False)  # it is given out again
        return mask_N

    def group_codes(self, name: str) -> NDArray[np.int64]:
        """(N,) equal numbers for rows with the same value of a column; a row without a value has its own.

        Raises:
            ValueError: there is no such column, or its values cannot be compared.
        """
        if name not in self.columns:
            raise ValueError(f"group_by {name!r}: there is no such column; the index has {', '.join(self.columns)}")
        try:
            codes = self.columns[name].combine_chunks().dictionary_encode().indices
        except pa.ArrowException as error:
            raise ValueError(
                f"group_by {name!r}: values of type {self.columns[name].type} cannot be grouped"
            ) from error
        filled = np.asarray(pa.compute.fill_null(codes, -1), dtype=np.int64)
        return np.where(filled < 0, -1 - np.arange(len(filled)), filled)


def checked_condition(where: str, columns: Sequence[str]) -> tuple[str, list[str]]:
    """(the condition as it will be run, the columns that it reads).

    Raises:
        ValueError: see `FieldFilter.matching`.
    """
    if len(where) > MOST_CHARACTERS:
        raise ValueError(f"where has {len(where)} characters; at most {MOST_CHARACTERS:,} are read")
    try:
        tree = sqlglot.parse_one(where, read="duckdb", into=sql.Condition)
        nodes = list(tree.walk())
    except (sqlglot.errors.SqlglotError, RecursionError) as error:
        reason = str(error).split("\n")[0].split(". Line")[0]
        raise ValueError(f"{_named(where)} is no condition ({reason[:80]}); write one like {EXAMPLE}") from error
    by_name = {name.lower(): name for name in columns}  # DuckDB ignores case
    used = []
    for node in nodes:
        _check_node(node, where)
        if isinstance(node, sql.Column):
            used.append(_known_column(node, by_name, where))
            node.set("this", sql.to_identifier(used[-1], quoted=True))
    try:
        return tree.sql("duckdb", comments=False), list(dict.fromkeys(used))
    except RecursionError as error:
        raise ValueError(f"where has too many nested parts; write it shorter, like {EXAMPLE}") from error


def _check_node(node: Any, where: str) -> None:
    allowed = type(node) in ALLOWED
    if isinstance(node, sql.In) and (node.args.get("query") or node.args.get("unnest")):
        allowed = False
    if isinstance(node, sql.DataType) and node.this.value not in CAST_TO:
        allowed = False
    if not allowed:
        raise ValueError(
            f"{_named(where)}: {node.sql('duckdb')[:80]!r} is not allowed. Use columns, values, comparisons, and, or, "
            "not, in (...), between, like, is null, arithmetic, lower, upper, length, abs, coalesce, starts_with, "
            "contains."
        )


def _known_column(node: Any, by_name: dict[str, str], where: str) -> str:
    name = node.name
    if node.table:
        raise ValueError(f"{_named(where)}: write the column {name!r} without {node.table!r} before it")
    if name.lower() not in by_name:
        near = difflib.get_close_matches(name.lower(), by_name, n=1)
        hint = f" Did you mean {by_name[near[0]]!r}?" if near else ""
        raise ValueError(
            f"{_named(where)}: there is no column {name!r}; the index has {', '.join(by_name.values())}.{hint} "
            "Text stands in single quotes."
        )
    return by_name[name.lower()]


def _named(where: str) -> str:
    """A condition as a message shows it."""
    return f"where {(where if len(where) <= 80 else where[:77] + '...')!r}"
