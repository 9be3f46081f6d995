"""A mistake of the user ends in one `error:` line and exit code 2, or in a skipped row with its reason."""

import json
import shutil
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from PIL import Image

from retrieval.index.folder import load_index
from retrieval.pictures import PictureError, decode, read_picture
from retrieval.tables import CATALOGUE, GALLERY, QRELS, QUERIES, read_table
from tests.support.images import encode
from tests.support.tiny_retrieval import TinyTask, call, drawing, image_column, retrieval


def giant_png() -> bytes:
    """The header of a picture of 50,000 x 50,000, a few bytes long."""
    header = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk)) + png_end()


def size_of(cell: Any, folder: Path | None) -> tuple[int, int]:
    """Width and height of an image cell that must not be missing."""
    picture = decode(cell, folder=folder)
    assert picture is not None
    return picture.size


def png_end() -> bytes:
    return struct.pack(">I", 0) + b"IEND" + struct.pack(">I", zlib.crc32(b"IEND"))


def rejected(capsys: pytest.CaptureFixture[str], *words: Any) -> str:
    """The error line of a command that must fail."""
    assert call(*words) == 2
    error = capsys.readouterr().err
    lines = [line for line in error.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, error
    assert "Traceback" not in error
    return lines[0]


def parquet(folder: Path, name: str, **columns: Any) -> Path:
    pa.parquet.write_table(pa.table(columns), folder / name)
    return folder / name


@pytest.mark.parametrize(
    ("columns", "declared", "message"),
    [
        ({"doc_id": ["a"], "image": [b"x"]}, CATALOGUE, "column 'text' is missing"),
        ({"doc_id": [1.5], "image": [b"x"], "text": [""]}, CATALOGUE, "'doc_id' has type double.*beside missing ones"),
        ({"doc_id": ["a"], "image": [b"x"], "text": [1.5]}, CATALOGUE, "'text' has type double"),
        ({"doc_id": ["a"], "image": [7], "text": [""]}, CATALOGUE, "'image' has type int64"),
        ({"query_id": [None, ""], "image": [b"x", b"x"]}, QUERIES, "no row .* can be used: missing_id: row 0 has no"),
        ({"doc_id": ["a", "b", "a"]}, GALLERY, "doc_id 'a' comes twice, in rows 0 and 2; keep one"),
        ({"doc_id": ["a", None]}, GALLERY, "row 1 has no doc_id"),
        ({"query_id": ["q"], "doc_id": ["a"], "relevance": [0.5]}, QRELS, "'relevance' has type double"),
        ({"doc_id": pa.array([], pa.string())}, GALLERY, "no rows"),
    ],
)
def test_a_wrong_table_is_rejected_with_column_and_row(
    tmp_path: Path, columns: Any, declared: Any, message: str
) -> None:
    path = parquet(tmp_path, "table.parquet", **columns)
    with pytest.raises(ValueError, match=message):
        read_table(path, declared)


def test_ids_may_be_integers_and_a_qrels_table_may_repeat_them(tmp_path: Path) -> None:
    path = parquet(tmp_path, "qrels.parquet", query_id=[1, 1], doc_id=[2, 3], relevance=[1, 1])
    assert read_table(path, QRELS).read(["query_id"]) == {"query_id": ["1", "1"]}


@pytest.mark.parametrize("form", ["csv", "jsonl", "folder", "datasets"])
def test_every_table_format_gives_the_same_rows(tmp_path: Path, form: str) -> None:
    (tmp_path / "pictures").mkdir()
    drawing("red", "box").save(tmp_path / "pictures" / "1.png")
    rows = [{"doc_id": "007", "image": "pictures/1.png", "text": "a, b"}, {"doc_id": "8", "image": "", "text": "nan"}]
    if form == "csv":
        path = tmp_path / "t.csv"
        path.write_text('doc_id,image,text\n007,pictures/1.png,"a, b"\n8,,nan\n')
    elif form == "jsonl":
        path = tmp_path / "t.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif form == "folder":
        path = tmp_path
        for place, row in enumerate(rows):
            parquet(tmp_path, f"part{place}.parquet", **{name: [value] for name, value in row.items()})
    else:
        import datasets

        path = tmp_path / "saved"
        datasets.Dataset.from_list(rows).save_to_disk(str(path))
        shutil.move(tmp_path / "pictures", path / "pictures")
    table = read_table(path, CATALOGUE)
    assert table.read(["doc_id", "text"]) == {"doc_id": ["007", "8"], "text": ["a, b", "nan"]}
    cells = table.read(["image"])["image"]
    assert size_of(cells[0], table.folder) == (37, 33)
    assert decode(cells[1], folder=table.folder) is None


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.parquet", b"PAR1 no", "cannot be read as parquet"),
        ("t.jsonl", b"{", "cannot be read"),
        ("t.xls", b"", ".csv"),
    ],
)
def test_a_damaged_table_is_rejected_with_a_clear_message(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_table(tmp_path / name, GALLERY)


def test_a_missing_file_is_not_looked_up_on_the_hub(tmp_path: Path) -> None:
    for name in (tmp_path / "none.parquet", tmp_path / "none", "data_governance/none"):
        with pytest.raises(ValueError, match="no such file or folder"):
            read_table(name, GALLERY)


@pytest.mark.parametrize(
    ("cell", "reason"),
    [
        (b"not a picture", "cannot be decoded"),
        (encode(drawing("red", "box"))[:90], "cannot be decoded"),
        (giant_png(), "over 50000000 pixels"),
        ("../secret.png", "leaves the folder"),
        ("/etc/hostname", "leaves the folder"),
        ("link.png", "leaves the folder"),
        ("none.png", "cannot be read"),
        ("a\0b.png", "cannot be read"),
        ({"bytes": None, "path": "../secret.png"}, "leaves the folder"),
        (3, "type int"),
    ],
)
def test_an_image_that_cannot_be_used_gives_its_reason(tmp_path: Path, cell: Any, reason: str) -> None:
    folder = tmp_path / "table"
    folder.mkdir()
    drawing("red", "box").save(tmp_path / "secret.png")
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(PictureError, match=reason):
        decode(cell, folder=folder)


def test_common_picture_modes_are_decoded_and_the_first_of_a_list_counts(tmp_path: Path) -> None:
    for mode in ("1", "L", "P", "RGBA", "LA", "I;16", "CMYK"):
        path = tmp_path / ("x.tif" if mode == "CMYK" else "x.png")
        Image.new(mode, (5, 4)).save(path)
        assert size_of(path.read_bytes(), None) == (5, 4)
        assert read_picture(path).size == (5, 4)
    assert size_of([encode(drawing("red", "box")), b"no"], None) == (37, 33)
    assert decode([], folder=None) is None


def test_bad_documents_are_skipped_with_reasons_and_the_rest_is_indexed(
    task: TinyTask, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "t").mkdir()
    contents = [encode(drawing("red", "box")), giant_png(), b"no", None]
    columns = {"image": image_column(contents), "text": ["a red box" * 1_200_000, "x", "x", " "]}
    path = parquet(tmp_path / "t", "c.parquet", doc_id=["good", "giant", "damaged", "empty"], **columns)
    assert call("index", "--model", task.model, "--catalogue", path, "--out", tmp_path / "index") == 0
    info = load_index(tmp_path / "index").info
    assert sorted(row["doc_id"] for row in info["skipped"]) == ["damaged", "empty", "giant"]
    assert info["texts_cut"] == 1
    error = capsys.readouterr().err
    assert "skipped document giant: image is over 50000000 pixels" in error


def test_a_catalogue_of_bad_documents_only_is_rejected(
    task: TinyTask, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = parquet(tmp_path, "c.parquet", doc_id=["a"], image=image_column([None]), text=[""])
    words = ["index", "--model", task.model, "--catalogue", path, "--out", tmp_path / "index"]
    assert "all 1 documents were skipped" in rejected(capsys, *words)
    assert not (tmp_path / "index").exists()


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors", "modeling_oclear.py", "fusion_oclear.py"])
def test_a_model_folder_without_a_file_is_rejected_with_its_name(
    task: TinyTask, tmp_path: Path, capsys: pytest.CaptureFixture[str], missing: str
) -> None:
    shutil.copytree(task.model, tmp_path / "hub")
    (tmp_path / "hub" / missing).unlink()
    words = ["index", "--model", tmp_path / "hub", "--catalogue", task.table("catalogue"), "--out", tmp_path / "index"]
    assert missing in rejected(capsys, *words)


def test_damaged_weights_are_rejected(task: TinyTask, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(task.model, tmp_path / "hub")
    (tmp_path / "hub" / "model.safetensors").write_bytes(b"no")
    words = ["index", "--model", tmp_path / "hub", "--catalogue", task.table("catalogue"), "--out", tmp_path / "index"]
    assert "does not load" in rejected(capsys, *words)


def test_a_missing_or_undecodable_query_picture_is_rejected(
    task: TinyTask, built: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["search", "--model", task.model, "--index", built, "--image"]
    assert "none.png: No such file" in rejected(capsys, *words, tmp_path / "none.png")
    (tmp_path / "x.png").write_bytes(b"no")
    assert "x.png: image cannot be decoded" in rejected(capsys, *words, tmp_path / "x.png")
    (tmp_path / "e.png").write_bytes(b"")
    assert "e.png: the file is empty" in rejected(capsys, *words, tmp_path / "e.png")


def test_an_index_of_another_model_or_an_incomplete_index_is_rejected(
    task: TinyTask, built: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import modeling_oclear
    from tests.support.tiny_retrieval import tiny_model

    drawing("red", "box").save(tmp_path / "x.png")
    model, processor = tiny_model()
    model.image_head.projection.weight.data.neg_()
    modeling_oclear.publish(model, processor, tmp_path / "other")
    words = ["--image", tmp_path / "x.png", "--model"]
    assert "another model" in rejected(capsys, "search", "--index", built, *words, tmp_path / "other")
    shutil.copytree(built, tmp_path / "index")
    (tmp_path / "index" / "base-0001" / "documents.arrow").write_bytes(b"no")
    assert "damaged" in rejected(capsys, "search", "--index", tmp_path / "index", *words, task.model)
    (tmp_path / "index" / "current.json").unlink()
    assert "no current.json" in rejected(capsys, "search", "--index", tmp_path / "index", *words, task.model)
    (tmp_path / "index" / "index.faiss").touch()  # as in the first format
    assert "of an earlier version" in rejected(capsys, "search", "--index", tmp_path / "index", *words, task.model)


def test_a_folder_that_is_no_index_is_never_replaced(
    task: TinyTask, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("do not lose")
    words = ["index", "--model", task.model, "--catalogue", task.table("catalogue"), "--out", tmp_path / "mine"]
    assert "not an index" in rejected(capsys, *words)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "do not lose"


def test_unknown_ids_in_the_qrels_are_counted_and_warned_about(
    task: TinyTask, built: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    qrels = pa.parquet.read_table(task.table("qrels"))
    extra = pa.table({"query_id": ["q00", "gone"], "doc_id": ["lost", "d000-1"], "relevance": [1, 1]})
    pa.parquet.write_table(pa.concat_tables([qrels, extra]), tmp_path / "qrels.parquet")
    words = [
        *task.flags[:6],
        "--qrels",
        tmp_path / "qrels.parquet",
        "--index",
        built,
        "--out",
        tmp_path / "m.json",
    ]
    assert call("evaluate", *words) == 0
    metrics = json.loads((tmp_path / "m.json").read_text())
    assert metrics["qrels"] == {"unknown_queries": 1, "unknown_documents": 1, "outside_gallery": 0}
    assert "1 rows name a document that the catalogue lacks" in capsys.readouterr().err


def test_qrels_without_any_known_document_are_rejected(
    task: TinyTask, built: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = parquet(tmp_path, "qrels.parquet", query_id=["q00"], doc_id=["lost"], relevance=[1])
    words = [*task.flags[:6], "--qrels", path, "--index", built, "--out", tmp_path / "m.json"]
    assert "no readable query has a relevant document" in rejected(capsys, "evaluate", *words)


def test_unreadable_queries_are_left_out_and_listed(task: TinyTask, built: Path, tmp_path: Path) -> None:
    queries = pa.parquet.read_table(task.table("queries")).to_pylist()
    queries[0]["image"], queries[1]["image"] = {"bytes": b"no", "path": None}, None
    pa.parquet.write_table(pa.Table.from_pylist(queries), tmp_path / "queries.parquet")
    words = [*task.flags[:4], "--queries", tmp_path / "queries.parquet", "--qrels", task.table("qrels")]
    assert call("evaluate", *words, "--index", built, "--out", tmp_path / "m.json") == 0
    metrics = json.loads((tmp_path / "m.json").read_text())
    assert metrics["queries"] == 26
    assert [row["query_id"] for row in metrics["unreadable_queries"]] == ["q00", "q01"]


def test_rows_without_an_id_or_with_an_earlier_one_are_left_out_and_listed(
    task: TinyTask, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    catalogue = pa.parquet.read_table(task.table("catalogue")).select(["doc_id", "image", "text"])
    box = {"bytes": encode(drawing("red", "box")), "path": None}
    twice = [{"doc_id": name, "image": box, "text": "another"} for name in ("d037-1", None, "d037-1", "")]
    more = pa.Table.from_pylist(twice, catalogue.schema)
    pa.parquet.write_table(pa.concat_tables([catalogue, more]), tmp_path / "c.parquet")
    rows = catalogue.num_rows
    out = tmp_path / "index"
    assert call("index", "--model", task.model, "--catalogue", tmp_path / "c.parquet", "--out", out) == 0
    info = load_index(out).info
    skipped = [(row["doc_id"], row["reason"]) for row in info["skipped"] if "_id: " in row["reason"]]
    first = catalogue.column("doc_id").to_pylist().index("d037-1")
    assert skipped == [
        ("d037-1", f"duplicate_id: row {rows} has the doc_id of row {first}, which is used"),
        (f"row {rows + 1}", f"missing_id: row {rows + 1} has no doc_id"),
        ("d037-1", f"duplicate_id: row {rows + 2} has the doc_id of row {first}, which is used"),
        (f"row {rows + 3}", f"missing_id: row {rows + 3} has no doc_id"),
    ]
    documents = load_index(out).documents.to_pylist()
    assert [row["text"] for row in documents if row["doc_id"] == "d037-1"] == ["a red box"]
    assert len(documents) + len(info["skipped"]) == rows + 4
    queries = pa.parquet.read_table(task.table("queries"))
    pa.parquet.write_table(pa.concat_tables([queries, queries.slice(0, 2)]), tmp_path / "q.parquet")
    words = ["--model", task.model, "--catalogue", tmp_path / "c.parquet", "--queries", tmp_path / "q.parquet"]
    words += ["--qrels", task.table("qrels"), "--index", out, "--out", tmp_path / "m.json"]
    assert call("evaluate", *words) == 0
    metrics = json.loads((tmp_path / "m.json").read_text())
    assert metrics["queries"] == queries.num_rows
    assert [row["query_id"] for row in metrics["unreadable_queries"]] == ["q00", "q01"]
    assert all("duplicate_id" in row["reason"] for row in metrics["unreadable_queries"])
    assert metrics["skipped_documents"] == info["skipped"]
    assert "skipped document d037-1: duplicate_id" in capsys.readouterr().err


def test_search_skips_a_picture_that_cannot_be_used_and_says_so_in_its_output(
    task: TinyTask, built: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    drawing("red", "box").save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes(b"no")
    images = ["--image", tmp_path / "bad.png", "--image", tmp_path / "none.png", "--image", tmp_path / "good.png"]
    assert call("search", "--model", task.model, "--index", built, *images, "--k", 2) == 0
    out, err = capsys.readouterr()
    lines = [json.loads(line) for line in out.splitlines()]
    assert [Path(line["query"]).name for line in lines] == ["bad.png", "none.png", "good.png", "good.png"]
    assert "image cannot be decoded" in lines[0]["skipped"]
    assert "No such file" in lines[1]["skipped"]
    assert "skipped image" in err


def test_ablations_cannot_be_combined_with_a_saved_index(
    task: TinyTask, built: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*task.flags, "--index", built, "--text", "remove", "--out", tmp_path / "m.json"]
    assert "leave --index out" in rejected(capsys, "evaluate", *words)


def test_a_wrong_flag_is_one_error_and_exit_code_two(tmp_path: Path) -> None:
    done = retrieval("search", "--model", tmp_path, "--index", tmp_path, "--image", "x.png", "--k", "0")
    assert done.returncode == 2
    assert "must be at least 1" in done.stderr
    assert "Traceback" not in done.stderr


def test_weights_that_are_not_finite_are_rejected(
    task: TinyTask, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import modeling_oclear
    from tests.support.tiny_retrieval import tiny_model

    model, processor = tiny_model()
    model.image_head.projection.weight.data.fill_(np.nan)
    modeling_oclear.publish(model, processor, tmp_path / "hub")
    words = ["index", "--model", tmp_path / "hub", "--catalogue", task.table("catalogue"), "--out", tmp_path / "index"]
    assert "not finite" in rejected(capsys, *words)
