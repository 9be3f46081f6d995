"""The documented commands on inputs as people have them."""

import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from data_governance.__main__ import main
from data_governance.inputs import tables
from data_governance.policy import Policy
from data_governance.stages.overrides import open_overrides
from modeling_oclear import OclearImageProcessor
from modeling_oclear.image_decoding_oclear import MAX_IMAGE_PIXELS, MOST_IMAGE_PIXELS
from runtime.files import only_user
from tests.support.synthetic_shop import SyntheticShop, edit_table, png, with_column


def as_csv(shop: SyntheticShop) -> list[str]:
    """The tables as CSV with picture files in a folder; returns the arguments of the command line."""
    words = []
    (shop.folder / "pictures").mkdir()
    for name, key in (("behaviour", None), ("queries", "query_id"), ("catalogue", "doc_id")):
        rows = pq.read_table(shop.folder / f"{name}.parquet").to_pylist()
        for row in rows:
            if key is not None:
                path = shop.folder / "pictures" / f"{row[key]}.png"
                path.write_bytes(row["image"]["bytes"])
                row["image"] = f"pictures/{path.name}"
        lines = [",".join(rows[0]), *(",".join(f"{value}" for value in row.values()) for row in rows)]
        (shop.folder / f"{name}.csv").write_text("\n".join(lines) + "\n")
        words += [f"--{name}", str(shop.folder / f"{name}.csv")]
    return words


def samples(out: Path) -> dict[tuple[str, str], dict[str, Any]]:
    return {(row["side"], row["sample_id"]): row for row in pq.read_table(out / "samples").to_pylist()}


def test_bad_rows_of_a_csv_are_rejected_with_their_place(
    small: SyntheticShop, capsys: pytest.CaptureFixture[str]
) -> None:
    words = as_csv(small)
    log = small.folder / "behaviour.csv"
    rows = len(log.read_text().splitlines()) - 1
    log.write_text(log.read_text() + "q,d,many\nq,d\nq,d,1.7e18\nq\0,d,1\n")
    page = small.folder / "page" / "check.html"
    assert main(["check", *words, "--html", str(page)]) == 0
    text = capsys.readouterr().out
    assert f"behaviour: {rows} of {rows + 4} rows are usable" in text
    assert f"behaviour: {rows + 4} rows by the footers and lines of its files, {rows + 4} read" in text
    assert f"[behaviour.csv: line {rows + 2}: 'clicks' is 'many']" in text
    assert "clicks_not_a_number" in page.read_text()
    assert "line" in page.read_text()
    out = small.folder / "out"
    assert main(["run", *words, "--out", str(out)]) == 0
    counts = json.loads((out / "ledger.json").read_text())["rows"]["behaviour"]
    assert counts["in"] == rows + 4 == counts["kept"] + counts["dropped"]
    dropped = pq.read_table(out / "dropped" / "behaviour.parquet").to_pylist()
    why = {row["reason"]: json.loads(row["figures"]).get("why") for row in dropped}
    assert why["row_cells"] == f"behaviour.csv: line {rows + 3} has 2 cells, the header has 3: 'q,d'"
    assert {"clicks_not_a_number", "clicks_too_large", "unknown_query"} <= why.keys()


def test_picture_files_that_change_between_runs_are_noticed(small: SyntheticShop) -> None:
    words = as_csv(small)
    out = small.folder / "out"
    assert main(["run", *words, "--out", str(out)]) == 0
    before = samples(out)
    pictures = sorted((small.folder / "pictures").glob("*.png"))
    contents = [path.read_bytes() for path in pictures]
    for path, data in zip(pictures, [*contents[1:], contents[0]], strict=True):
        times = path.stat()
        path.write_bytes(data.ljust(times.st_size, b"\0") if len(data) < times.st_size else data)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert main(["run", *words, "--out", str(out)]) == 0
    alone = small.folder / "alone"
    assert main(["run", *words, "--out", str(alone)]) == 0
    assert samples(out) == samples(alone)
    assert samples(out) != before


def test_a_picture_that_changes_during_a_run_is_an_error(small: SyntheticShop, monkeypatch: pytest.MonkeyPatch) -> None:
    words = as_csv(small)
    assert main(["run", *words, "--out", str(small.folder / "out")]) == 0
    monkeypatch.setattr(tables, "picture_files", lambda source: iter(()))
    monkeypatch.setattr("data_governance.pipeline.tables.picture_files", lambda source: iter(()))
    assert main(["run", *words, "--out", str(small.folder / "out")]) == 0
    for path in (small.folder / "pictures").glob("*.png"):
        path.write_bytes(png(99, style="filled"))
    assert main(["run", *words, "--out", str(small.folder / "out")]) == 2


def test_a_second_run_in_one_folder_is_refused(small: SyntheticShop, capsys: pytest.CaptureFixture[str]) -> None:
    out = small.folder / "out"
    with only_user(out):
        assert main(["run", *small.arguments, "--out", str(out)]) == 2
    assert "another run uses this folder" in capsys.readouterr().err


def test_queries_and_documents_may_share_ids(small: SyntheticShop) -> None:
    names: dict[str, str] = {}
    for name, key in (("queries", "query_id"), ("catalogue", "doc_id")):
        table = pq.read_table(small.folder / f"{name}.parquet")
        ids = table.column(key).to_pylist()
        names |= {row_id: f"{i:03d}" for i, row_id in enumerate(ids)}
        pq.write_table(with_column(table, key, [names[row_id] for row_id in ids]), small.folder / f"{name}.parquet")
    log = pq.read_table(small.folder / "behaviour.parquet").to_pylist()
    rows = [row | {key: names[row[key]] for key in ("query_id", "doc_id")} for row in log]
    pq.write_table(pa.Table.from_pylist(rows), small.folder / "behaviour.parquet")
    assert main(["run", *small.arguments, "--out", str(small.folder / "out")]) == 0
    found = samples(small.folder / "out")
    assert ("query", "003") in found
    assert ("document", "003") in found
    assert main(["explain", "--governed", str(small.folder / "out"), "003"]) == 0


def test_an_open_quote_in_the_overrides_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "o.csv"
    rows = [f"query,q{i},drop,,shows {i}" for i in range(6)]
    rows[1], rows[4] = 'query,q1,drop,,"24 inch', 'query,q4,drop,,screen 24"'
    path.write_text("side,id,action,category_key,why\n" + "\n".join(rows) + "\n")
    with pytest.raises(ValueError, match="overrides: o.csv line 3: a quote opens here"):
        open_overrides(path)
    path.write_text("side,id,action,category_key,why\nquery,q1,drop\n")
    with pytest.raises(ValueError, match=r"overrides: o.csv: line 2 has 3 cells, the header has 5.*row_cells"):
        open_overrides(path)


def only_clicks(shop: SyntheticShop, clicks: int) -> None:
    edit_table(shop.folder, "behaviour", lambda t: with_column(t, "clicks", [clicks] * t.num_rows))


def one_of_each(shop: SyntheticShop) -> None:
    edit_table(shop.folder, "behaviour", lambda t: t.slice(0, 1))
    log = pq.read_table(shop.folder / "behaviour.parquet")
    query, document = log.column("query_id")[0], log.column("doc_id")[0]
    edit_table(shop.folder, "queries", lambda t: t.filter(pc.equal(t.column("query_id"), query)))
    edit_table(shop.folder, "catalogue", lambda t: t.filter(pc.equal(t.column("doc_id"), document)))


def no_pictures(shop: SyntheticShop) -> None:
    table = pq.read_table(shop.folder / "catalogue.parquet").drop_columns(["image"])
    texts = pa.array([f"thing {i}" for i in range(table.num_rows)])
    table = table.append_column("image", pa.nulls(table.num_rows)).set_column(1, "text", texts)
    pq.write_table(table, shop.folder / "catalogue.parquet")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda shop: only_clicks(shop, 0), "no usable row has a click above 0"),
        (one_of_each, "two categories are the least"),
        (no_pictures, "no usable document has a picture"),
    ],
)
def test_check_promises_only_what_run_and_training_can_keep(
    small: SyntheticShop, capsys: pytest.CaptureFixture[str], change: Any, message: str
) -> None:
    change(small)
    assert main(["check", *small.arguments]) == 1
    assert message in capsys.readouterr().out
    assert main(["run", *small.arguments, "--out", str(small.folder / "out")]) == 2
    assert message in capsys.readouterr().err


def test_the_limit_of_pixels_is_that_of_training_and_index() -> None:
    assert OclearImageProcessor().max_image_pixels == MAX_IMAGE_PIXELS == Policy().max_image_pixels
    with pytest.raises(ValueError, match="max_image_pixels = 178956971: at most 178956970"):
        Policy(max_image_pixels=MOST_IMAGE_PIXELS + 1)


def test_ids_that_look_alike_are_warned_about(small: SyntheticShop, capsys: pytest.CaptureFixture[str]) -> None:
    table = pq.read_table(small.folder / "catalogue.parquet")
    ids = [*table.column("doc_id").to_pylist()[:-2], "caf\u00e9", "cafe\u0301"]
    pq.write_table(with_column(table, "doc_id", ids), small.folder / "catalogue.parquet")
    main(["check", *small.arguments])
    assert "warning: catalogue: 1 ids look like another one ('caf\\xe9' and 'cafe\\u0301')" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("known", "written", "rows"),
    [
        ("caf\u00e9", "cafe\u0301", 1),
        ("000031", "31", 2),
        ("31", "000031", 1),
        ("31", "31.0", 1),
        ("SKU-7", "sku-7", 3),
        ("d7", " d7 ", 1),
        ("d7", "d\u200b7", 1),
    ],
)
def test_clicks_on_ids_that_nearly_are_known_ones_are_warned_about(
    small: SyntheticShop, capsys: pytest.CaptureFixture[str], known: str, written: str, rows: int
) -> None:
    catalogue = pq.read_table(small.folder / "catalogue.parquet")
    ids = [known, *catalogue.column("doc_id").to_pylist()[1:]]
    pq.write_table(with_column(catalogue, "doc_id", ids), small.folder / "catalogue.parquet")
    log = pq.read_table(small.folder / "behaviour.parquet")
    clicks = [{"query_id": log.column("query_id")[0].as_py(), "doc_id": written, "clicks": 1}] * rows
    more = pa.Table.from_pylist([*clicks, {"query_id": "q", "doc_id": "elsewhere", "clicks": 1}], log.schema)
    pq.write_table(pa.concat_tables([log, more]), small.folder / "behaviour.parquet")
    said = f"{rows} rows name an unknown doc_id that nearly is a known one, such as {written!a} for {known!a}"
    assert main(["check", *small.arguments]) == 0
    assert f"warning: behaviour: {said}" in capsys.readouterr().out


def test_a_run_warns_about_ids_that_nearly_are_known_ones(
    small: SyntheticShop, caplog: pytest.LogCaptureFixture
) -> None:
    for name, ending in (("queries", "\u00e9"), ("behaviour", "e\u0301")):
        table = pq.read_table(small.folder / f"{name}.parquet")
        ids = [f"{row_id}{ending}" for row_id in table.column("query_id").to_pylist()]
        pq.write_table(with_column(table, "query_id", ids), small.folder / f"{name}.parquet")
    assert main(["run", *small.arguments, "--out", str(small.folder / "out")]) == 2
    rows = pq.read_table(small.folder / "behaviour.parquet").num_rows
    assert f"{rows} rows name an unknown query_id that nearly is a known one" in caplog.text


def test_numbers_beside_text_with_leading_zeros_are_warned_about(
    small: SyntheticShop, capsys: pytest.CaptureFixture[str]
) -> None:
    catalogue = pq.read_table(small.folder / "catalogue.parquet")
    folder = small.folder / "parts"
    folder.mkdir()
    half = catalogue.num_rows // 2
    numbers = pa.array(range(half), pa.int64())
    padded = pa.array([f"{number:06d}" for number in range(half, catalogue.num_rows)])
    pq.write_table(catalogue.slice(0, half).set_column(0, "doc_id", numbers), folder / "0.parquet")
    pq.write_table(catalogue.slice(half).set_column(0, "doc_id", padded), folder / "1.parquet")
    words = [str(folder) if word.endswith("catalogue.parquet") else word for word in small.arguments]
    main(["check", *words])
    found = capsys.readouterr().out
    assert "warning: catalogue: 0.parquet: column 'doc_id' holds numbers, but text with leading zeros in" in found
    assert f"1.parquet, such as '{half:06d}': 31 and 000031 are different ids. Write the column as text" in found
    plain = pa.array([f"{number}" for number in range(half, catalogue.num_rows)])
    pq.write_table(catalogue.slice(half).set_column(0, "doc_id", plain), folder / "1.parquet")
    main(["check", *words])
    assert "leading zeros" not in capsys.readouterr().out


def test_images_over_the_limit_of_memory_lie_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "IMAGE_MEMORY", 1000)
    monkeypatch.setattr(tables, "BATCH_BYTES", 500)
    pictures = [bytes([i]) * 300 for i in range(20)]
    pq.write_table(pa.table({"query_id": [f"{i}" for i in range(20)], "image": pictures}), tmp_path / "q.parquet")
    source = tables.open_source(str(tmp_path / "q.parquet"), name="queries")
    assert [cell["bytes"] for batch in source.image_batches() for cell in batch if cell] == pictures
    assert max(len(batch) for batch in source.image_batches()) == 1
    assert source.images[7] == {"bytes": pictures[7], "path": None}
