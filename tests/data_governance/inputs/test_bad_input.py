"""Bad input gives a clear error, or a dropped row with its reason."""

import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from PIL import Image

from data_governance.__main__ import main
from data_governance.inputs import images, rules, tables
from data_governance.inputs.behaviour_log import open_log
from data_governance.inputs.mapping import reasons
from data_governance.policy import Policy, load_policy
from data_governance.stage import StageResult
from data_governance.stages.admit import record_lost_files
from runtime.tables import MARKS, ROW_FAULT
from tests.support.images import encode
from tests.support.synthetic_shop import IMAGE, SyntheticShop, edit_table, with_column

NAN = float("nan")


def header_only_png(width: int, height: int) -> bytes:
    """A PNG that says width x height and holds no pixels: decoding it must not even be tried."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def put(table: pa.Table, column: str, row: int, value: Any) -> pa.Table:
    values = table.column(column).to_pylist()
    values[row] = value
    kind = table.schema.field(column).type
    return with_column(table, column, values, pa.float64() if isinstance(value, float) else kind)


ROWS: list[tuple[str, str, Callable[[pa.Table], pa.Table]]] = [
    ("behaviour", "clicks_missing", lambda t: put(t, "clicks", 0, NAN)),
    ("behaviour", "clicks_negative", lambda t: put(t, "clicks", 0, -1)),
    ("behaviour", "clicks_not_whole", lambda t: put(t, "clicks", 0, 0.5)),
    ("behaviour", "clicks_too_large", lambda t: put(t, "clicks", 0, 1e15)),
    ("behaviour", "missing_id", lambda t: put(t, "query_id", 0, None)),
    ("behaviour", "unknown_query", lambda t: put(t, "query_id", 0, "nobody")),
    ("behaviour", "unknown_document", lambda t: put(t, "doc_id", 0, "nothing")),
    ("queries", "duplicate_id", lambda t: put(t, "query_id", 1, t.column("query_id")[0].as_py())),
    ("queries", "image_missing", lambda t: put(t, "image", 0, None)),
    ("queries", "image_undecodable", lambda t: put(t, "image", 0, {"bytes": b"no image", "path": None})),
    ("queries", "image_path_escapes_folder", lambda t: put(t, "image", 0, {"bytes": None, "path": "../x.png"})),
    ("queries", "image_file_missing", lambda t: put(t, "image", 0, {"bytes": None, "path": "x.png"})),
    (
        "catalogue",
        "image_too_many_pixels",
        lambda t: put(t, "image", 0, {"bytes": header_only_png(50_000, 50_000), "path": None}),
    ),
    ("catalogue", "image_format_refused", lambda t: put(t, "image", 0, {"bytes": b"8BPS\0\1", "path": None})),
    ("catalogue", "text_too_long", lambda t: put(t, "text", 0, "x" * 10_000_000)),
    ("catalogue", "neither_image_nor_text", lambda t: put(put(t, "image", 0, None), "text", 0, "")),
    ("catalogue", "missing_id", lambda t: put(t, "doc_id", 0, "")),
]


@pytest.mark.parametrize(("table", "reason", "change"), ROWS, ids=[f"{t}-{r}" for t, r, _ in ROWS])
def test_check_names_table_row_and_remedy_of_a_bad_row(
    small: SyntheticShop,
    capsys: pytest.CaptureFixture[str],
    table: str,
    reason: str,
    change: Callable[[pa.Table], pa.Table],
) -> None:
    edit_table(small.folder, table, change)
    before = sorted(small.folder.iterdir())
    assert main(["check", *small.arguments]) == 0
    text = capsys.readouterr().out
    line = next(line for line in text.splitlines() if line.startswith(f"warning: {table}: {reason} in 1 of "))
    assert line.count(": ") >= 3, line
    assert "a run would go through" in text
    assert sorted(small.folder.iterdir()) == before


def test_many_bad_rows_are_dropped_with_reasons_and_the_run_succeeds(small: SyntheticShop) -> None:
    edit_table(small.folder, "behaviour", lambda t: put(put(t, "clicks", 0, NAN), "clicks", 1, -2.0))
    edit_table(small.folder, "queries", lambda t: put(t, "image", 0, {"bytes": b"no image", "path": None}))
    giant = {"bytes": header_only_png(50_000, 50_000), "path": None}
    edit_table(small.folder, "catalogue", lambda t: put(put(t, "image", 0, giant), "text", 1, "x" * 200_000))
    out = small.folder / "out"
    assert main(["run", *small.arguments, "--out", str(out)]) == 0
    ledger = pq.read_table(out / "ledger.parquet").to_pylist()
    dropped = {(row["table"], row["reason"]) for row in ledger if row["decision"] == "dropped"}
    assert dropped >= {
        ("behaviour", "clicks_missing"),
        ("behaviour", "clicks_negative"),
        ("queries", "image_undecodable"),
        ("catalogue", "image_too_many_pixels"),
        ("catalogue", "text_too_long"),
    }
    rejected = pq.read_table(out / "dropped" / "queries.parquet")
    assert b"no image" in [cell["bytes"] for cell in rejected.column("image").to_pylist() if cell]
    assert main(["report", "--governed", str(out), "--html", str(small.folder / "r.html")]) == 0


ERRORS: list[tuple[str, Callable[[Path], object], str]] = [
    (
        "missing column",
        lambda f: edit_table(f, "behaviour", lambda t: t.drop_columns(["doc_id"])),
        "behaviour: column 'doc_id'",
    ),
    (
        "wrong type",
        lambda f: edit_table(f, "behaviour", lambda t: with_column(t, "clicks", [True] * t.num_rows)),
        "behaviour: column 'clicks' has type bool, a number is needed",
    ),
    (
        "wrong image type",
        lambda f: edit_table(f, "queries", lambda t: with_column(t, "image", [1] * t.num_rows)),
        "queries: column 'image' has type int64",
    ),
    ("empty table", lambda f: edit_table(f, "catalogue", lambda t: t.slice(0, 0)), "has no rows"),
    (
        "not a parquet file",
        lambda f: (f / "queries.parquet").write_bytes(b"nonsense") and None,
        "queries.parquet cannot be read",
    ),
    ("missing file", lambda f: (f / "queries.parquet").unlink(), "does not exist"),
    (
        "no usable row",
        lambda f: edit_table(f, "behaviour", lambda t: with_column(t, "clicks", [-1] * t.num_rows)),
        "behaviour: no row is usable (clicks_negative)",
    ),
]


@pytest.mark.parametrize(("change", "message"), [e[1:] for e in ERRORS], ids=[e[0] for e in ERRORS])
def test_unusable_input_is_one_error_line_without_traceback(
    small: SyntheticShop, capsys: pytest.CaptureFixture[str], change: Callable[[Path], None], message: str
) -> None:
    change(small.folder)
    assert main(["run", *small.arguments, "--out", str(small.folder / "out")]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert any(line.startswith("error: ") and message in line for line in lines), lines
    assert not (small.folder / "out" / "ledger.json").exists()
    assert main(["check", *small.arguments]) == 1


def test_a_giant_image_is_rejected_by_its_header(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(Image.Image, "load", never)
    data = header_only_png(50_000, 50_000)
    assert images.decode_square(data, size=8, max_pixels=40_000_000) == (None, "image_too_many_pixels")


@pytest.mark.parametrize("kind", ["parquet", "csv", "jsonl", "folder", "datasets"])
def test_a_table_is_equal_from_every_file_format(tmp_path: Path, kind: str) -> None:
    table = pa.table({"query_id": ["a", "b"], "doc_id": ["x", "y"], "clicks": [1, 2], "more": ["kept", "out"]})
    path = tmp_path / f"t.{kind}"
    if kind == "parquet":
        pq.write_table(table, path)
    elif kind == "csv":
        pyarrow.csv.write_csv(table, path)
    elif kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in table.to_pylist()))
    elif kind == "folder":
        path.mkdir()
        pq.write_table(table.slice(0, 1), path / "0.parquet")
        pq.write_table(table.slice(1, 1), path / "1.parquet")
    else:
        tables.as_dataset(table).save_to_disk(str(path))
    rows = tables.open_source(str(path), name="behaviour").table
    parts = [pa.concat_tables(part.batches()) for part in open_log(str(path)).parts]
    assert pa.concat_tables(parts).equals(rows)
    assert rows.column_names == ["query_id", "doc_id", "clicks", "impressions", "position", *MARKS]
    assert rows.column(ROW_FAULT).null_count == 2
    assert rows.column("clicks").to_pylist() == [1.0, 2.0]
    assert rows.column("position").to_pylist() == [None, None]


def test_one_bad_file_of_a_folder_does_not_affect_the_others(
    small: SyntheticShop, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = pq.read_table(small.folder / "behaviour.parquet")
    folder = small.folder / "behaviour"
    folder.mkdir()
    pq.write_table(rows.slice(0, 9), folder / "0.parquet")
    (folder / "1.parquet").write_bytes(b"PAR1 cut off")
    pq.write_table(rows.slice(9).drop_columns(["doc_id"]), folder / "2.parquet")
    pq.write_table(rows.slice(9), folder / "3.parquet")
    words = [str(folder) if word.endswith("behaviour.parquet") else word for word in small.arguments]
    assert main(["check", *words]) == 0
    text = capsys.readouterr().out
    assert "warning: files: file_unusable in 2 of 6 rows (behaviour/1.parquet, behaviour/2.parquet)" in text
    assert f"behaviour: {rows.num_rows} of {rows.num_rows} rows are usable" in text
    source = open_log(str(folder))
    whole = tables.open_source(str(folder), name="behaviour")
    assert [file for file, _ in source.lost] == [file for file, _ in whole.lost]
    result = StageResult()
    record_lost_files(result, [source])
    assert result.counts == {"files": (4, 2)}
    assert "cannot be read as parquet" in result.decisions[0]["figures"]
    assert "column 'doc_id' is missing" in result.decisions[1]["figures"]
    for good in ("0.parquet", "3.parquet"):
        (folder / good).unlink()
    assert main(["check", *words]) == 1
    assert "None of the 2 files of behaviour can be used" in capsys.readouterr().out


def test_ids_of_a_csv_stay_text_and_texts_may_have_several_lines(tmp_path: Path) -> None:
    (tmp_path / "c.csv").write_text('doc_id,image,text,leaf\n007,a.png,"two\nlines",1\n')
    row = tables.open_source(str(tmp_path / "c.csv"), name="catalogue").table.to_pylist()[0]
    assert (row["doc_id"], row["text"], row["leaf"]) == ("007", "two\nlines", "1")


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_text_of_ten_megabytes_is_read_in_every_file_format(tmp_path: Path, kind: str) -> None:
    row = {"doc_id": "d", "image": "a.png", "text": "x" * 10_000_000}
    path = tmp_path / f"c.{kind}"
    path.write_text(json.dumps(row) + "\n" if kind == "jsonl" else f"doc_id,image,text\nd,a.png,{row['text']}\n")
    rows = tables.open_source(str(path), name="catalogue").table
    assert reasons(rows, [rules.document_text], policy=Policy()) == ["text_too_long"]


def test_images_are_read_from_bytes_paths_and_structs(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"picture")
    cells = [
        pa.array([b"picture"]),
        pa.array(["a.png"]),
        pa.array([{"bytes": b"picture", "path": None}], IMAGE),
    ]
    for column in cells:
        pq.write_table(pa.table({"query_id": ["q"], "image": column}), tmp_path / "t.parquet")
        source = tables.open_source(str(tmp_path / "t.parquet"), name="queries")
        cell = source.images[0]
        assert tables.image_bytes(cell, source.folder, max_bytes=100) == (b"picture", None)
        assert tables.image_bytes(cell, source.folder, max_bytes=3) == (None, "image_file_too_large")


def test_a_link_out_of_the_folder_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "secret.png").write_bytes(b"secret")
    (tmp_path / "in" / "a.png").symlink_to(tmp_path / "secret.png")
    cell = {"bytes": None, "path": "a.png"}
    assert tables.image_bytes(cell, tmp_path / "in", max_bytes=100) == (None, "image_path_escapes_folder")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no_such_key = 1", "unknown key 'no_such_key'"),
        ("rounds = 'two'", "must be of type int"),
        ("rounds = true", "must be of type int"),
        ("min_query_margin = 1.5", "must lie between 0 and 1"),
        ("rounds = 0", "is below 1"),
        ("merge_cosine = 1.2", "merge_cosine = 1.2 must lie between 0 and 1"),
        ("max_queries_per_category = 0", "max_queries_per_category = 0 is below 1"),
        ("click_prior = inf", "click_prior = inf is not a finite number"),
        ("split_gap = nan", "split_gap = nan is not a finite number"),
        ("min_queries_body = 60", "min_queries_body = 60 is above min_queries_head = 50"),
        ("weight_low = 6.0", "weight_low = 6.0 is above weight_high = 5.0"),
        ("rounds = ", "not valid TOML"),
        ("duplicate_radius = 17", "at most 16 of 64 bits"),
        ("max_image_pixels = 178956971", "max_image_pixels = 178956971: at most 178956970"),
        ("image_size = 4097", "image_size = 4097: at most 4096"),
    ],
)
def test_an_invalid_policy_is_an_error_that_names_the_field(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "p.toml").write_text(text)
    with pytest.raises(ValueError, match=message):
        load_policy(tmp_path / "p.toml")


def test_the_printed_policy_is_read_as_the_defaults(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--print-policy"]) == 0
    (tmp_path / "p.toml").write_text(capsys.readouterr().out)
    assert load_policy(tmp_path / "p.toml") == Policy()


def test_an_encoder_folder_without_a_model_is_rejected(
    small: SyntheticShop, capsys: pytest.CaptureFixture[str]
) -> None:
    (small.folder / "empty").mkdir()
    words = ["run", *small.arguments, "--out", str(small.folder / "out"), "--encoder", str(small.folder / "empty")]
    assert main(words) == 2
    assert "no config.json there" in capsys.readouterr().err


def test_a_broken_png_is_undecodable_not_a_traceback() -> None:
    data = encode(Image.new("RGB", (32, 32), (9, 9, 9)))
    for cut in (10, 40, 60):
        square, reason = images.decode_square(data[:cut], size=8, max_pixels=10_000)
        assert (square, reason) == (None, "image_undecodable")
