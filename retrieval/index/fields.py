"""The catalogue's own columns: kept in the index, returned with the answers, and what a search may be filtered by.

A filter is a condition in SQL (`price < 50 and brand = 'x'`). sqlglot parses it, every node must be on a short list,
and DuckDB evaluates the SQL that is written back from those nodes: no statement, subquery, file or setting can be
reached.
"""

import difflib
import logging
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
CAST_TO = {"DATE", "TIMESTAMP", "TIMESTAMPNTZ", "DOUBLE", "BIGINT", "INT", "TEXT", "BOOLEAN", "FLOAT"}
EXAMPLE = "price < 50 and brand = 'x'"

logger = logging.getLogger(__name__)


def field_names(catalogue: Table) -> list[str]:
    """Columns of a catalogue that an index keeps as they are: all but the declared ones and those that hold bytes."""
    kept = []
    for name, kind in catalogue.types.items():
        if name in CATALOGUE.columns:
            continue
        if name.strip() and is_kept(kind):
            kept.append(name)
        else:
            logger.warning("catalogue: column %r of type %s is not kept in the index", name, kind)
    return kept


def is_kept(kind: pa.DataType) -> bool:
    """Whether an index keeps values of a type: what can be compared in a condition and written as JSON."""
    types = pa.types
    if types.is_dictionary(kind) or types.is_list(kind) or types.is_large_list(kind):
        return is_kept(kind.value_type)
    if types.is_struct(kind):
        return kind.num_fields > 0 and all(is_kept(kind.field(place).type) for place in range(kind.num_fields))
    scalar = (types.is_boolean, types.is_integer, types.is_floating, types.is_decimal, types.is_string, types.is_null)
    return any(test(kind) for test in (*scalar, types.is_large_string, types.is_temporal))


def check_names(names: Sequence[str], schema: pa.Schema, *, name: str) -> None:
    """Raise ValueError for a column that an index cannot keep."""
    for column in names:
        if not column.strip():
            raise ValueError(f"{name}: a column has no name: give it one, or leave it out")
        kind = schema.field(column).type
        if not is_kept(kind):
            raise ValueError(f"{name}: column {column!r} is {kind}; give numbers, text, dates, or lists of them")


def fitted_fields(fields: pa.Table, schema: pa.Schema) -> pa.Table:
    """Columns in the types that an index has, so that an empty price or a day as text fits.

    Raises:
        ValueError: a value that does not; it is named.
    """
    for place, column in enumerate(fields.column_names):
        kind = schema.field(column).type if column in schema.names else None
        values = fields.column(column)
        if kind is None or kind == values.type or pa.types.is_null(kind):
            continue
        if pa.types.is_string(values.type):
            values = pa.compute.if_else(pa.compute.equal(values, ""), pa.scalar(None, pa.string()), values)
        try:
            fields = fields.set_column(place, column, values.cast(kind))
        except pa.ArrowException as error:
            if pa.types.is_integer(kind) and pa.types.is_floating(values.type):
                continue  # the index's column becomes one of fractions too
            wrong = next((value for value in values if not _fits(value, kind)), None)
            raise ValueError(f"column {column!r}: {wrong} is no {kind}, which the index has there") from error
    return fields


def _fits(value: pa.Scalar, kind: pa.DataType) -> bool:
    try:
        value.cast(kind)
    except pa.ArrowException:
        return False
    return True


def read_fields(catalogue: Table, doc_ids: Sequence[str]) -> pa.Table:
    """The kept columns of some documents, in their order; a table without columns if the catalogue has none."""
    names = field_names(catalogue)
    if not names:
        return pa.table({})
    found = catalogue.arrow(["doc_id", *names])
    rows = pa.compute.index_in(pa.array(doc_ids, pa.string()), value_set=found.column("doc_id"))
    return found.select(names).take(rows)


def fields_of_rows(fields: pa.Table, rows: NDArray[np.int64]) -> pa.Table:
    """The fields of some rows; a table without columns has none of any."""
    return fields.take(rows) if fields.num_columns else fields


class FieldFilter:
    """Evaluates conditions over the fields of an index.

    Args:
        documents: of the index. fields: the catalogue's own columns, row by row; a name of both means the field.
    """

    def __init__(self, documents: pa.Table, fields: pa.Table) -> None:
        own = {name: documents.column(name) for name in OWN_COLUMNS if name in documents.column_names}
        self.columns = own | {name: fields.column(name) for name in fields.column_names}
        self.lock = threading.Lock()
        self.kept = dict[tuple[str, ...], NDArray[np.bool_]]()  # filters come again and again
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
            found = self.kept.get((condition, *names))
        if found is None:
            found = self._matching(condition, names, where)
            with self.lock:
                self.kept[(condition, *names)] = found
                while len(self.kept) > MOST_KEPT:
                    del self.kept[next(iter(self.kept))]
        return found

    def _matching(self, condition: str, names: Sequence[str], where: str) -> NDArray[np.bool_]:
        mask_N = np.zeros(len(self.columns["doc_id"]), dtype=np.bool_)
        columns = {"row": pa.array(np.arange(len(mask_N)))}
        columns |= {f"c{place}": self.columns[name] for place, name in enumerate(names)}
        cursor = self.connection.cursor()
        try:
            cursor.register("documents", pa.table(columns))
            # Rows are faster to fetch than one truth value for each document.
            found = cursor.execute(f"SELECT row FROM documents WHERE ({condition})::BOOLEAN").fetchnumpy()
            mask_N[found["row"]] = True
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
    """(the condition as it will be run, over columns c0, c1 ...; the columns that these are).

    Names are compared as they are, then without regard to case, as in SQL.

    Raises:
        ValueError: see `FieldFilter.matching`.
    """
    if not isinstance(where, str):
        raise ValueError(f"where is {type(where).__name__}; give a condition as text, like {EXAMPLE}")
    if len(where) > MOST_CHARACTERS:
        raise ValueError(f"where has {len(where)} characters; at most {MOST_CHARACTERS:,} are read")
    try:
        tree = sqlglot.parse_one(where, read="duckdb", into=sql.Condition)
        nodes = list(tree.walk())
    except (sqlglot.errors.SqlglotError, RecursionError) as error:
        reason = str(error).split("\n")[0].split(". Line")[0]
        raise ValueError(f"{_named(where)} is no condition ({reason[:80]}); write one like {EXAMPLE}") from error
    used = list[str]()
    for node in nodes:
        _check_node(node, where)
        if isinstance(node, sql.Column):
            name = _known_column(node, columns, where)
            if name not in used:
                used.append(name)
            # Columns are renamed: DuckDB would not tell apart names that differ in case.
            node.set("this", sql.to_identifier(f"c{used.index(name)}"))
    try:
        return tree.sql("duckdb", comments=False), used
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


def _known_column(node: Any, columns: Sequence[str], where: str) -> str:
    name = node.name
    if node.table:
        raise ValueError(f"{_named(where)}: write the column {name!r} without {node.table!r} before it")
    if name in columns:
        return name
    alike = [column for column in columns if column.lower() == name.lower()]
    if len(alike) == 1:
        return alike[0]
    if alike:
        raise ValueError(f"{_named(where)}: {name!r} may be {' or '.join(alike)}: write one of them in double quotes")
    near = difflib.get_close_matches(name.lower(), [column.lower() for column in columns], n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ValueError(
        f"{_named(where)}: there is no column {name!r}; the index has {', '.join(columns)}.{hint} "
        "Text stands in single quotes."
    )


def _named(where: str) -> str:
    """A condition as a message shows it."""
    return f"where {(where if len(where) <= 80 else where[:77] + '...')!r}"
