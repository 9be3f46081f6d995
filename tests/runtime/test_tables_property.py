"""Any table that common tools write is read back equal, or refused by name; no row is lost."""

import csv
import importlib.util
import io
import json
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from datasets import Features, Value
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from runtime.tables import ROW_DETAIL, ROW_FAULT, Schema, open_table

SCHEMA = Schema(
    "behaviour",
    Features({"query_id": Value("string"), "doc_id": Value("string"), "clicks": Value("float64")}),
    ids=frozenset({"query_id", "doc_id"}),
)
# A lone carriage return ends a line for some writers and is text for others; half a surrogate pair is no text.
LETTERS = st.characters(exclude_categories=["Cs"], exclude_characters="\r")
AWKWARD = st.sampled_from(
    ['"', '""', ",", ";", "\t", "|", "\n", "\\", " ", "\u2028", "\x85", "\x0b", "\x0c", "'", "007"]
)
TEXT = st.lists(st.one_of(AWKWARD, st.text(LETTERS, max_size=3)), min_size=1, max_size=4).map("".join)
# Empty text and missing text are one in a CSV file.
IDS = TEXT.filter(lambda text: bool(text))
ROWS = st.lists(st.tuples(IDS, IDS, st.one_of(st.none(), st.integers(-(10**6), 10**6))), min_size=1, max_size=6)
Row = tuple[str, str, int | None]
quick = settings(
    max_examples=25, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
)


def read(path: Path) -> list[dict[str, Any]] | str:
    """The rows, or the error that refuses the file."""
    try:
        found: list[dict[str, Any]] = open_table(path, SCHEMA, mark=True).read().to_pylist()
    except ValueError as error:
        return str(error)
    return found


def arrow(rows: list[Row]) -> pa.Table:
    query, document, clicks = zip(*rows, strict=True)
    return pa.table({"query_id": query, "doc_id": document, "clicks": pa.array(clicks, pa.int64())})


def by_csv(rows: list[Row], path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("query_id", "doc_id", "clicks"), *rows])


def by_arrow(rows: list[Row], path: Path) -> None:
    pyarrow.csv.write_csv(arrow(rows), path)


def by_pandas(rows: list[Row], path: Path) -> None:
    frame = pd.DataFrame(rows, columns=["query_id", "doc_id", "clicks"])
    frame.to_csv(path, index=False)


def by_duckdb(rows: list[Row], path: Path) -> None:
    table = arrow(rows)
    with duckdb.connect() as connection:
        connection.register("given", table)
        connection.sql("from given").write_csv(str(path))


def by_json(rows: list[Row], path: Path) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in arrow(rows).to_pylist()))


def by_pandas_json(rows: list[Row], path: Path) -> None:
    pd.DataFrame(rows, columns=["query_id", "doc_id", "clicks"]).to_json(path, orient="records", lines=True)


def by_parquet(rows: list[Row], path: Path) -> None:
    pq.write_table(arrow(rows), path)


def by_pandas_parquet(rows: list[Row], path: Path) -> None:
    pd.DataFrame(rows, columns=["query_id", "doc_id", "clicks"]).to_parquet(path)


def by_polars(rows: list[Row], path: Path) -> None:
    import polars

    frame = polars.DataFrame(rows, schema=["query_id", "doc_id", "clicks"], orient="row")
    frame.write_csv(path) if path.suffix == ".csv" else frame.write_parquet(path)


WRITERS: list[tuple[str, Callable[[list[Row], Path], None]]] = [
    (".csv", by_csv),
    (".csv", by_arrow),
    (".csv", by_pandas),
    (".csv", by_duckdb),
    (".jsonl", by_json),
    (".jsonl", by_pandas_json),
    (".parquet", by_parquet),
    (".parquet", by_pandas_parquet),
]
if importlib.util.find_spec("polars") is not None:
    WRITERS += [(".csv", by_polars), (".parquet", by_polars)]


@pytest.mark.parametrize(("suffix", "write"), WRITERS, ids=[f"{write.__name__}{suffix}" for suffix, write in WRITERS])
@quick
@given(rows=ROWS)
@example(rows=[("q", '24" screen', 1), ("q", 'screen 24"', None)])
@example(rows=[("q", "two\nlines", 1), ("007", "1e5", 2), ("NaN", "None", 0), ("true", "2024-01-01", 0)])
@example(rows=[("q", 'a\n"b",c,1\n', 1)])
def test_a_written_table_is_read_back_equal_or_refused_by_name(
    suffix: str, write: Callable[[list[Row], Path], None], rows: list[Row]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"log{suffix}"
        write(rows, path)
        found = read(path)
        if isinstance(found, str):
            # A cell of several lines that look like rows of the table cannot be told from an open quote.
            assert re.match(r"behaviour: log.csv line \d+: a quote opens here", found)
            assert any("\n" in text for query, document, _ in rows for text in (query, document))
            return
        assert [row[ROW_FAULT] for row in found] == [None] * len(rows), found
        assert [(row["query_id"], row["doc_id"], row["clicks"]) for row in found] == [tuple(row) for row in rows]


@quick
@given(
    lines=st.lists(
        st.one_of(
            st.just("q,d,1"),
            st.text(st.sampled_from('qd1,";\n\t\\ .'), max_size=12),
            st.sampled_from(
                ["q,d", "q,d,1,2", "q,d,many", '"q""x",d,1', '"q"x,d,1', 'q,"two\nlines",1', "", '"open,d,1']
            ),
        ),
        max_size=8,
    ),
    block=st.sampled_from([1, 5, 8 * 2**20]),
)
def test_rows_of_any_text_are_kept_or_rejected_as_an_independent_reader_counts_them(
    lines: list[str], block: int
) -> None:
    text = "query_id,doc_id,clicks\n" + "".join(f"{line}\n" for line in lines)
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patched:
        patched.setattr("runtime.tables.encoding.BLOCK_BYTES", block)
        path = Path(folder) / "log.csv"
        path.write_text(text)
        found = read(path)
    if isinstance(found, str):
        assert re.match(r"behaviour: log.csv line \d+: a quote opens here", found)
        return
    # Python's reader, forgiving instead of strict, sees the same records; blank lines are no rows.
    records = [cells for cells in csv.reader(io.StringIO(text)) if cells][1:]
    assert len(found) == len(records)
    for row, cells in zip(found, records, strict=True):
        assert (row[ROW_FAULT] is None) == (row[ROW_DETAIL] is None)
        if row[ROW_FAULT] is None:
            assert [row["query_id"], row["doc_id"]] == cells[:2]
            assert not any(cells[3:])


@quick
@given(
    values=st.lists(
        st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=4), st.just([1])), max_size=6
    )
)
def test_any_value_of_a_json_file_is_read_or_its_row_is_rejected(values: list[object]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "log.jsonl"
        lines = [{"query_id": value, "doc_id": "d", "clicks": value, "note": value} for value in values]
        first = {"query_id": "q", "doc_id": "d", "clicks": 1}
        path.write_text("".join(json.dumps(line) + "\n" for line in [first, *lines]))
        found = open_table(path, SCHEMA, mark=True).read().to_pylist()[1:]
    assert len(found) == len(values)
    for row, value in zip(found, values, strict=True):
        if isinstance(value, (bool, list)):
            assert row[ROW_FAULT] == "query_id_not_text"
        elif isinstance(value, (int, float)):
            assert row[ROW_FAULT] is None
            assert row["query_id"] == json.dumps(value)
            assert row["clicks"] == float(value) or value != value
        elif value is None:
            assert (row["query_id"], row["clicks"], row[ROW_FAULT]) == (None, None, None)
        elif row[ROW_FAULT] is None:
            assert row["query_id"] == value
