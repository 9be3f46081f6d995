"""Files as people have them: no row is lost, and none is read otherwise than it was written."""

import bz2
import csv
import gzip
import io
import json
import lzma
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Features, Value

from runtime.tables import IMAGE, ROW_DETAIL, ROW_FAULT, BrokenFile, Schema, locate, open_table

CATALOGUE = Schema(
    "catalogue",
    Features({"doc_id": Value("string"), "image": IMAGE, "text": Value("string"), "leaf": Value("string")}),
    ids=frozenset({"doc_id"}),
    optional=frozenset({"leaf"}),
)
LOG = Schema(
    "behaviour",
    Features({"query_id": Value("string"), "doc_id": Value("string"), "clicks": Value("float64")}),
    ids=frozenset({"query_id", "doc_id"}),
)


def rows_of(path: Path, schema: Schema = LOG) -> list[dict[str, Any]]:
    """All rows, with marks, read whole and in batches alike."""
    found = open_table(path, schema, mark=True)
    rows = found.read().to_pylist()
    assert [row for batch in found.batches(3) for row in batch.to_pylist()] == rows
    streamed = open_table(path, schema, mark=True, stream_text=True)
    assert [row for batch in streamed.batches(3) for row in batch.to_pylist()] == rows
    assert found.num_rows == len(rows)
    return rows


def log_lines(rows: int = 6, delimiter: str = ",") -> str:
    lines = [delimiter.join(("query_id", "doc_id", "clicks"))]
    return "\n".join([*lines, *(delimiter.join((f"q{i}", f"{i:06d}", f"{i}")) for i in range(rows))]) + "\n"


def catalogue_lines(texts: list[str]) -> str:
    return "doc_id,image,text\n" + "".join(f"d{i},{i}.png,{text}\n" for i, text in enumerate(texts))


@pytest.mark.parametrize("last", ["30 inch screen", 'screen 30"', 'a "30 inch" screen', '"30 inch screen"'])
def test_an_open_quote_that_swallows_rows_is_an_error_with_its_line(tmp_path: Path, last: str) -> None:
    texts = [f"text {i}" for i in range(200)]
    texts[9], texts[49] = '"24 inch screen', last
    (tmp_path / "c.csv").write_text(catalogue_lines(texts))
    with pytest.raises(ValueError, match="catalogue: c.csv line 11: a quote opens here"):
        open_table(tmp_path / "c.csv", CATALOGUE, mark=True)
    streamed = open_table(tmp_path / "c.csv", CATALOGUE, mark=True, stream_text=True)
    with pytest.raises(BrokenFile, match="line 11"):
        list(streamed.batches(10))


def test_an_open_quote_over_a_single_row_is_found_too(tmp_path: Path) -> None:
    (tmp_path / "c.csv").write_text(catalogue_lines(["one", '"24 inch', 'screen 24"', "four"]))
    with pytest.raises(ValueError, match="line 3: a quote opens here and the cell goes on to line 4"):
        open_table(tmp_path / "c.csv", CATALOGUE, mark=True)


def test_a_quote_left_open_in_the_last_row_costs_that_row(tmp_path: Path) -> None:
    (tmp_path / "c.csv").write_text(catalogue_lines(["one", "two", '"three']))
    rows = rows_of(tmp_path / "c.csv", CATALOGUE)
    assert [row[ROW_FAULT] for row in rows] == [None, None, "row_quotes"]
    assert rows[2][ROW_DETAIL] == "c.csv: line 4: 'd2,2.png,\"three'"


def test_cells_of_several_lines_and_quotes_inside_cells_are_read(tmp_path: Path) -> None:
    texts = ["two\nlines, with a comma", 'a 24" screen', 'a ""quoted""', "\r\n\r\n", "x\n" * 500]
    with (tmp_path / "c.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["doc_id", "image", "text"])
        writer.writerows([f"d{i}", f"{i}.png", text] for i, text in enumerate(texts))
        file.write('d9,9.png,an unquoted 24" screen\n')
    rows = rows_of(tmp_path / "c.csv", CATALOGUE)
    assert [row["text"] for row in rows] == [*texts, 'an unquoted 24" screen']
    assert not any(row[ROW_FAULT] for row in rows)


@pytest.mark.parametrize("line", ["q9,d9,1,more", "q9,d9", "q9", ",,,,x"])
def test_a_row_with_more_or_fewer_cells_is_rejected_alone(tmp_path: Path, line: str) -> None:
    (tmp_path / "log.csv").write_text(log_lines(3) + line + "\n" + "q4,d4,1\n")
    rows = rows_of(tmp_path / "log.csv")
    assert [row[ROW_FAULT] for row in rows] == [None, None, None, "row_cells", None]
    assert f"line 5 has {line.count(',') + 1} cells, the header has 3" in rows[3][ROW_DETAIL]


def test_every_file_of_a_folder_is_read_or_named(tmp_path: Path) -> None:
    text = log_lines(51)
    hidden = {".hidden.csv", "_SUCCESS", ".0.csv.crc", "_temporary/0.csv", "readme.md"}
    contents: dict[str, bytes] = {
        "0.csv": text.encode(),
        "1.CSV": text.encode(),
        "2.csv.gz": gzip.compress(text.encode()),
        "3.tsv": text.replace(",", "\t").encode(),
        "d=2024/5.csv": text.encode(),
        "6.csv.bz2": bz2.compress(text.encode()),
        "7.Csv.XZ": lzma.compress(text.encode()),
        "d=2024/m=1/8.csv": text.encode(),
        "9.csv": gzip.compress(text.encode()),  # packed, though its name does not say so
        **dict.fromkeys(hidden, b"nothing"),
    }
    rows = [dict(zip(("query_id", "doc_id", "clicks"), line.split(","), strict=True)) for line in text.split()[1:]]
    contents["4.ndjson"] = "".join(json.dumps(row) + "\n" for row in rows).encode()
    contents["4.json.gz"] = gzip.compress(json.dumps(rows).encode())
    for name, data in contents.items():
        (tmp_path / "log" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "log" / name).write_bytes(data)
    table = pa.Table.from_pylist(rows)
    pq.write_table(table, tmp_path / "log" / "part.PARQUET")
    pq.write_table(table, tmp_path / "log" / "d=2024" / "named.csv")  # Parquet, though its name says otherwise
    with pa.CompressedOutputStream(str(tmp_path / "log" / "a.csv.zst"), "zstd") as stream:
        stream.write(text.encode())
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "linked.csv").write_text(text)
    (tmp_path / "log" / "link.csv").symlink_to(tmp_path / "elsewhere" / "linked.csv")
    (tmp_path / "log" / "folder").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "circle").symlink_to(tmp_path / "log")
    for name in ("b.xlsx", "part-00000", "notes.txt"):
        (tmp_path / "log" / name).write_bytes(b"nothing")
    found = open_table(tmp_path / "log", LOG, skip_bad_files=True, mark=True)
    files = len(contents) - len(hidden) + 5
    assert found.num_rows == 51 * files
    assert [name for name, _ in found.lost] == ["b.xlsx", "notes.txt", "part-00000"]
    assert found.files == files + 3
    by_id = [row["doc_id"] for row in found.read().to_pylist()]
    assert sorted(by_id) == sorted([f"{i:06d}" for i in range(51)] * files)


def test_partition_keys_are_columns_where_they_are_declared(tmp_path: Path) -> None:
    for leaf in ("leaf=shoes", "leaf=a%20b", "leaf=__HIVE_DEFAULT_PARTITION__"):
        (tmp_path / leaf).mkdir()
        pq.write_table(pa.table({"doc_id": [leaf], "image": ["a.png"], "text": ["x"]}), tmp_path / leaf / "0.parquet")
    rows = open_table(tmp_path, CATALOGUE).read().to_pylist()
    assert {row["doc_id"]: row["leaf"] for row in rows} == {
        "leaf=shoes": "shoes",
        "leaf=a%20b": "a b",
        "leaf=__HIVE_DEFAULT_PARTITION__": None,
    }


def test_broken_links_and_cut_off_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "0.csv").write_text(log_lines())
    (tmp_path / "1.csv").symlink_to(tmp_path / "gone.csv")
    (tmp_path / "2.csv.gz").write_bytes(gzip.compress(log_lines(500).encode())[:-20])
    (tmp_path / "3.csv").write_bytes(b"")
    (tmp_path / "4.csv.zst").write_bytes(b"\x28\xb5\x2f\xfd cut")
    (tmp_path / "5.parquet").write_bytes(b"query_id,doc_id,clicks\n")
    found = open_table(tmp_path, LOG, skip_bad_files=True, mark=True)
    assert [name for name, _ in found.lost] == ["1.csv", "2.csv.gz", "3.csv", "4.csv.zst", "5.parquet"]
    assert found.num_rows == 6
    assert len(locate(tmp_path, name="behaviour").files) == 6


def test_ids_of_all_parts_are_text(tmp_path: Path) -> None:
    pq.write_table(pa.table({"query_id": ["q"], "doc_id": [31], "clicks": [1]}), tmp_path / "0.parquet")
    pq.write_table(pa.table({"query_id": ["q"], "doc_id": ["000031"], "clicks": [1.0]}), tmp_path / "1.parquet")
    pq.write_table(pa.table({"query_id": ["q"], "doc_id": pa.nulls(1), "clicks": pa.nulls(1)}), tmp_path / "2.parquet")
    assert [row["doc_id"] for row in rows_of(tmp_path)] == ["31", "000031", None]


def test_a_column_that_only_some_parts_have_is_an_error_that_names_part_and_column(tmp_path: Path) -> None:
    whole = pa.table({"doc_id": ["a"], "image": ["a.png"], "text": ["x"], "leaf": ["y"]})
    pq.write_table(whole, tmp_path / "0.parquet")
    pq.write_table(whole.drop_columns(["leaf"]), tmp_path / "1.parquet")
    for skip in (False, True):
        with pytest.raises(ValueError, match=r"catalogue: 1.parquet: column 'leaf' is missing, but 0.parquet has it"):
            open_table(tmp_path, CATALOGUE, skip_bad_files=skip)
    pq.write_table(whole.drop_columns(["text"]), tmp_path / "1.parquet")
    with pytest.raises(ValueError, match="catalogue: 1.parquet: column 'text' is missing"):
        open_table(tmp_path, CATALOGUE)


IDS = ["007", "1e5", "1.0", "True", "NaN", "None", "null", "2024-01-01", " x", "x ", "e\u0301", "\u00e9", "a\0b"]
KINDS = {
    "string": pa.string(),
    "large_string": pa.large_string(),
    "string_view": pa.string_view(),
    "binary": pa.binary(),
    "large_binary": pa.large_binary(),
    "binary_view": pa.binary_view(),
    "dictionary": pa.dictionary(pa.int8(), pa.large_string()),
}


@pytest.mark.parametrize("kind", KINDS)
def test_ids_are_read_exactly_as_they_are_written(tmp_path: Path, kind: str) -> None:
    text = pa.array(IDS)
    column = text.cast(pa.large_string()).dictionary_encode() if kind == "dictionary" else text.cast(KINDS[kind])
    pq.write_table(pa.table({"query_id": column, "doc_id": column, "clicks": range(len(IDS))}), tmp_path / "t.parquet")
    assert [row["doc_id"] for row in rows_of(tmp_path / "t.parquet")] == IDS


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_ids_of_text_files_are_read_exactly_as_they_are_written(tmp_path: Path, form: str) -> None:
    path = tmp_path / f"t.{form}"
    if form == "csv":
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([("query_id", "doc_id", "clicks"), *((one, one, 1) for one in IDS)])
        wanted = IDS
    else:
        path.write_text("".join(json.dumps({"query_id": one, "doc_id": one, "clicks": 1}) + "\n" for one in IDS))
        with path.open("a") as file:
            file.write('{"query_id": "q", "doc_id": 1e5, "clicks": 1}\n{"query_id": "q", "doc_id": 1.0, "clicks": 1}\n')
        wanted = [*IDS, "1e5", "1.0"]
    assert [row["doc_id"] for row in rows_of(path)] == wanted


@pytest.mark.parametrize(
    "column", [pa.array([1.0, None]), pa.array([True, False]), pa.array([1, 2], pa.date32()), pa.array([[1], [2]])]
)
def test_ids_of_a_type_that_is_no_text_are_an_error(tmp_path: Path, column: pa.Array) -> None:
    pq.write_table(pa.table({"query_id": ["a", "b"], "doc_id": column, "clicks": [1, 1]}), tmp_path / "t.parquet")
    with pytest.raises(ValueError, match="behaviour: column 'doc_id' has type .*, text is needed"):
        open_table(tmp_path / "t.parquet", LOG, mark=True)


CLICKS: dict[str, tuple[float | None, str | None]] = {
    "3": (3.0, None),
    "3.0": (3.0, None),
    " 3 ": (3.0, None),
    "+3": (3.0, None),
    "1e2": (100.0, None),
    "-2": (-2.0, None),
    "1.7e18": (1.7e18, None),
    "inf": (float("inf"), None),
    "": (None, None),
    "NULL": (None, None),
    "True": (None, "clicks_not_a_number"),
    "1,000": (None, "clicks_not_a_number"),
    "1_000": (None, "clicks_not_a_number"),
    "\u0663": (None, "clicks_not_a_number"),
    "many": (None, "clicks_not_a_number"),
    "0x10": (None, "clicks_not_a_number"),
}


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
def test_a_number_is_read_or_its_row_is_rejected(tmp_path: Path, form: str) -> None:
    path = tmp_path / f"t.{form}"
    rows = [{"query_id": "q", "doc_id": f"d{i}", "clicks": value} for i, value in enumerate(CLICKS)]
    if form == "csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, ["query_id", "doc_id", "clicks"])
            writer.writeheader()
            writer.writerows(rows)
    elif form == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    found = rows_of(path)
    assert [(row["clicks"], row[ROW_FAULT]) for row in found] == list(CLICKS.values())
    assert "'clicks' is 'many'" in found[-2][ROW_DETAIL]
    with pytest.raises(ValueError, match=r"'clicks' is 'True' \(clicks_not_a_number\). Correct it: write digits"):
        open_table(path, LOG).read()


def test_whole_numbers_too_large_for_a_float_keep_their_file(tmp_path: Path) -> None:
    rows = {"query_id": ["q", "q"], "doc_id": ["a", "b"], "clicks": [1_700_000_000_000_000_001, 1]}
    pq.write_table(pa.table(rows), tmp_path / "t.parquet")
    assert [row["clicks"] for row in rows_of(tmp_path / "t.parquet")] == [1.7e18, 1.0]


def test_undeclared_columns_never_break_a_file(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(
        '{"query_id": "q", "doc_id": "d", "clicks": 1, "size": 38}\n'
        '{"query_id": "q", "doc_id": "d", "clicks": 1, "size": "M"}\n'
        '{"query_id": "q", "doc_id": "d", "clicks": 1, "size": {"a": [1]}}\n'
    )
    (tmp_path / "b.csv").write_text("query_id,doc_id,clicks,note,note,,\nq,d,1,x,y,,\n")
    assert len(rows_of(tmp_path)) == 4
    keeping = Schema(LOG.name, LOG.columns, LOG.ids, keep_others=True)
    found = open_table(tmp_path, keeping)
    assert found.read().to_pydict()["size"] == ["38", "M", '{"a": ["1"]}', None]
    assert found.arrow_schema.names == ["query_id", "doc_id", "clicks", "size"]


def test_a_declared_column_that_stands_twice_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "c.csv").write_text("doc_id,image,text,text\nd,a.png,x,y\n")
    with pytest.raises(ValueError, match=r"catalogue: c.csv: column 'text' stands twice"):
        open_table(tmp_path / "c.csv", CATALOGUE)
    twice = pa.Table.from_arrays([pa.array(["d"])] * 4, names=["doc_id", "image", "text", "text"])
    pq.write_table(twice, tmp_path / "c.parquet")
    with pytest.raises(ValueError, match="column 'text' stands twice"):
        open_table(tmp_path / "c.parquet", CATALOGUE)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_encodings_line_ends_and_separators_are_detected(
    tmp_path: Path, encoding: str, end: str, delimiter: str
) -> None:
    text = log_lines(5, delimiter) + delimiter.join(("caf\u00e9", "\u0416", "7")) + "\n"
    (tmp_path / "log.csv").write_bytes(text.replace("\n", end).encode(encoding))
    rows = rows_of(tmp_path / "log.csv")
    assert [row["query_id"] for row in rows] == [*(f"q{i}" for i in range(5)), "caf\u00e9"]
    assert [row[ROW_FAULT] for row in rows] == [None] * 6


def test_a_separator_line_of_a_spreadsheet_is_understood(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("sep=;\n" + log_lines(2, ";"))
    assert [row["query_id"] for row in rows_of(tmp_path / "log.csv")] == ["q0", "q1"]


def test_another_encoding_is_an_error_with_line_and_remedy(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_bytes((log_lines(2) + "caf\u00e9,d,1\n" * 3).encode("latin-1"))
    with pytest.raises(ValueError, match=r"log.csv is not UTF-8: line 4 \('caf\u00e9,d,1' .* and 2 more.*iconv"):
        open_table(tmp_path / "log.csv", LOG)


def test_a_single_row_with_broken_bytes_is_rejected_alone(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_bytes(log_lines(3).encode() + b"caf\xe9,d,1\nq,\xc3\xa9,1\n")
    rows = rows_of(tmp_path / "log.csv")
    assert [row[ROW_FAULT] for row in rows] == [None, None, None, "row_not_utf8", None]
    (tmp_path / "log.jsonl").write_text('{"query_id": "\\ud800", "doc_id": "d", "clicks": 1}\n' * 2)
    assert [row[ROW_FAULT] for row in rows_of(tmp_path / "log.jsonl")] == ["row_not_utf8"] * 2


def test_lines_that_are_no_json_objects_are_rejected_one_by_one(tmp_path: Path) -> None:
    good = '{"query_id": "q", "doc_id": "d", "clicks": 1}\n'
    (tmp_path / "log.jsonl").write_text(good + "\n{cut\n[1]\n" + good + '{"query_id": true, "doc_id": "d"}\n')
    rows = rows_of(tmp_path / "log.jsonl")
    faults = [None, "row_not_json", "row_not_json", None, "query_id_not_text"]
    assert [row[ROW_FAULT] for row in rows] == faults
    assert rows[1][ROW_DETAIL] == "log.jsonl: line 3: '{cut'"


def test_empty_bytes_beside_a_path_are_no_image(tmp_path: Path) -> None:
    cell = {"bytes": "", "path": "a.png"}
    (tmp_path / "c.jsonl").write_text(json.dumps({"doc_id": "d", "image": cell, "text": "2024-01-01T00:00:00Z"}) + "\n")
    pq.write_table(
        pa.table({"doc_id": ["d"], "image": [{"bytes": b"", "path": "a.png"}], "text": ["x"]}), tmp_path / "c.parquet"
    )
    for name in ("c.jsonl", "c.parquet"):
        row = rows_of(tmp_path / name, CATALOGUE)[0]
        assert row["image"] == {"bytes": None, "path": "a.png"}
    assert rows_of(tmp_path / "c.jsonl", CATALOGUE)[0]["text"] == "2024-01-01T00:00:00Z"


def test_a_header_without_rows_is_an_empty_table(tmp_path: Path) -> None:
    for text in ("query_id,doc_id,clicks", "query_id, doc_id ,clicks\r\n", "\n\nquery_id,doc_id,clicks\n\n"):
        (tmp_path / "log.csv").write_text(text)
        assert rows_of(tmp_path / "log.csv") == []


def test_blocks_of_any_size_give_the_same_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(["query_id", "doc_id", "clicks"])
    for i in range(60):
        writer.writerow([f"q{i}", 'two\r\nlines, "quoted"' if i % 7 == 0 else f"d{i}", i])
        if i % 13 == 0:
            out.write("\r\nshort,row\r\n")
    (tmp_path / "log.csv").write_text(out.getvalue(), newline="")
    whole = rows_of(tmp_path / "log.csv")
    assert len(whole) == 65
    for size in (1, 7, 64, 333):
        monkeypatch.setattr("runtime.tables.encoding.BLOCK_BYTES", size)
        assert rows_of(tmp_path / "log.csv") == whole, size


def test_large_pictures_are_read_in_batches_of_bounded_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = [bytes([i]) * 10_000 for i in range(40)]
    table = pa.table({"doc_id": [f"d{i}" for i in range(40)], "image": pictures, "text": ["x"] * 40})
    pq.write_table(table, tmp_path / "c.parquet", use_dictionary=False)
    monkeypatch.setattr("runtime.tables.table.BATCH_BYTES", 100_000)
    batches = list(open_table(tmp_path / "c.parquet", CATALOGUE).batches(1000))
    assert max(batch.num_rows for batch in batches) <= 10
    assert [cell["bytes"] for batch in batches for cell in batch.column("image").to_pylist()] == pictures
