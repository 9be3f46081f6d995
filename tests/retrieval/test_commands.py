"""index -> search -> evaluate through the commands, on a tiny random model."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from retrieval.encoder import load_encoder, load_query_encoder
from retrieval.evaluation.metrics import METRICS
from retrieval.index.embed import Changes, shuffled_texts
from retrieval.index.folder import load_index
from retrieval.index.store import build_index
from retrieval.tables import CATALOGUE, read_table
from tests.support.tiny_retrieval import Evaluated, TinyTask, call, drawing, retrieval


def test_the_index_folder_records_its_documents_and_the_skipped_ones(built: Path) -> None:
    index = load_index(built)
    info, documents = index.info, index.documents
    ids = documents.column("doc_id").to_pylist()
    files = [file.name for file in built.iterdir() if file.name != ".lock"]
    assert sorted(files) == ["base-0001", "current.json", "version-0001.json"]
    assert ids == sorted(ids)
    assert info["documents"] == len(ids) == 57
    assert (info["kind"], info["width"]) == ("Flat", 25)
    assert info["calibration"] == {"method": "csls", "neighbours": 5, "queries": 31}
    assert info["imputed"] == sum(documents.column("imputed").to_pylist()) > 0
    reasons = {row["doc_id"]: row["reason"] for row in info["skipped"]}
    assert reasons["x-empty"] == "neither image nor text"
    assert "cannot be decoded" in reasons["x-damaged"]
    assert "x-text" in ids


def test_index_vectors_equal_the_embeddings_of_single_documents(task: TinyTask) -> None:
    encoder = load_encoder(str(task.model))
    catalogue = read_table(task.table("catalogue"), CATALOGUE)
    index = build_index(encoder, catalogue, changes=Changes(), batch_size=5, imputation=False)
    row = index.doc_ids.index("d037-1")
    text = index.documents.column("text")[row].as_py()
    assert text == "a red box"
    output, _ = encoder.documents([drawing("red", "box", shift=1)], [text])
    np.testing.assert_allclose(index.searcher.vectors()[row, :24], output.embeds[0].numpy(), atol=1e-5)


def test_imputation_changes_only_documents_without_text(task: TinyTask) -> None:
    encoder = load_encoder(str(task.model))
    catalogue = read_table(task.table("catalogue"), CATALOGUE)
    plain = build_index(encoder, catalogue, changes=Changes(), imputation=False)
    filled = build_index(encoder, catalogue, changes=Changes())
    # The length of a document without image follows the others (calibration.py); where it points does not.
    before, after = (
        rows / np.linalg.norm(rows, axis=1, keepdims=True)
        for rows in (index.searcher.vectors()[:, :24] for index in (plain, filled))
    )
    moved = np.abs(before - after).max(axis=1) > 1e-6
    assert moved.tolist() == filled.documents.column("imputed").to_pylist()
    assert plain.info["imputed"] == 0


def test_attention_maps_are_stored_for_documents_with_image_and_text_only(built: Path) -> None:
    index = load_index(built)
    rows, columns = index.info["grid"]
    for document in index.documents.to_pylist():
        both = document["has_image"] and document["has_text"]
        assert (document["attention"] is not None) == both
        assert document["attention"] is None or len(document["attention"]) == rows * columns
        assert (document["thumbnail"] is not None) == document["has_image"]


def test_search_prints_one_json_line_per_answer(task: TinyTask, built: Path, tmp_path: Path) -> None:
    drawing("teal", "wedge").save(tmp_path / "one.png")
    drawing("red", "box").save(tmp_path / "two.png")
    images = ["--image", tmp_path / "one.png", "--image", tmp_path / "two.png"]
    page = tmp_path / "answers.html"
    done = retrieval("search", "--model", task.model, "--index", built, *images, "--k", 3, "--html", page)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(lines) == 6
    assert [line["rank"] for line in lines] == [1, 2, 3, 1, 2, 3]
    assert list(lines[0]) == ["query", "rank", "doc_id", "score", "text", "leaf"]
    assert lines[0]["score"] >= lines[1]["score"] >= lines[2]["score"]
    assert page.read_text().count('class="query"') == 2


def test_more_answers_than_documents_gives_all_documents(
    task: TinyTask, built: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    drawing("teal", "wedge").save(tmp_path / "one.png")
    assert call("search", "--model", task.model, "--index", built, "--image", tmp_path / "one.png", "--k", 999) == 0
    assert len(capsys.readouterr().out.splitlines()) == 57


def test_search_needs_only_the_query_side_of_the_folder(
    task: TinyTask, built: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import shutil

    shutil.copytree(task.model, tmp_path / "hub", ignore=shutil.ignore_patterns("tokenizer*"))
    (tmp_path / "hub" / "model.safetensors").unlink()
    drawing("teal", "wedge").save(tmp_path / "one.png")
    assert call("search", "--model", tmp_path / "hub", "--index", built, "--image", tmp_path / "one.png") == 0
    assert len(capsys.readouterr().out.splitlines()) == 10


def test_metrics_contain_all_keys_that_cards_and_page_read(evaluated: Evaluated) -> None:
    metrics, table = evaluated
    assert set(METRICS) < set(metrics)
    assert set(metrics["intervals"]) == set(METRICS)
    assert (metrics["queries"], metrics["documents"], metrics["skipped"]) == (28, 59, 0)
    assert metrics["not_indexed"] == 2
    assert set(metrics["slices"]["warmth"]) == {"warm", "cold"}
    assert metrics["slices"]["warmth"]["warm"]["queries"] == 8
    rows = pa.parquet.read_table(table).to_pylist()
    assert len(rows) == 28
    for name in METRICS:
        assert np.mean([row[name] for row in rows]) == pytest.approx(metrics[name], abs=1e-6)
    assert all(len(row["doc_ids"]) == 10 for row in rows)


def test_results_do_not_identify_the_machine_or_the_user(evaluated: Evaluated, task: TinyTask) -> None:
    import getpass
    import platform

    metrics, _ = evaluated
    words = json.dumps(metrics)
    assert metrics["command"].startswith("python -m retrieval evaluate --model hub")
    assert str(task.folder) not in words
    assert platform.node() not in words
    assert f"/{getpass.getuser()}/" not in words


def test_metrics_equal_a_plain_ranking_of_all_documents(evaluated: Evaluated, task: TinyTask, built: Path) -> None:
    index = load_index(built)
    encoder = load_query_encoder(str(task.model))
    vectors, ids = index.searcher.vectors(), index.doc_ids
    found = []
    for place in range(28):
        colour, shape = index_of(place)
        query = np.append(encoder.queries([drawing(colour, shape)])[0][0], 1.0)
        scores = np.round((vectors @ query).astype(float), 6)
        order = sorted(range(len(ids)), key=lambda row: (-scores[row], ids[row]))
        right = {f"d{(place * 37) % 101:03d}-{copy}" for copy in (1, 2)}
        found.append(next(rank for rank, row in enumerate(order, start=1) if ids[row] in right))
    rows = pa.parquet.read_table(evaluated[1]).to_pylist()
    # Scores that agree to 1e-6 may swap by rounding: no rank may move by more than one place.
    assert np.abs(np.asarray(found) - [row["first_relevant_rank"] for row in rows]).max() <= 1
    assert np.mean(np.asarray(found) == [row["first_relevant_rank"] for row in rows]) > 0.9


def index_of(place: int) -> tuple[str, str]:
    from tests.support.tiny_retrieval import COLOURS, SHAPES

    return COLOURS[place // len(SHAPES)], SHAPES[place % len(SHAPES)]


def test_a_gallery_restricts_what_is_searched(task: TinyTask, built: Path, tmp_path: Path) -> None:
    ids = [f"d{(place * 37) % 101:03d}-1" for place in range(5)]
    pa.parquet.write_table(pa.table({"doc_id": ids}), tmp_path / "gallery.parquet")
    out, table = tmp_path / "m.json", tmp_path / "p.parquet"
    gallery = ["--gallery", tmp_path / "gallery.parquet", "--index", built]
    assert call("evaluate", *task.flags, *gallery, "--out", out, "--per-query", table) == 0
    metrics = json.loads(out.read_text())
    assert (metrics["documents"], metrics["queries"], metrics["skipped"]) == (5, 5, 23)
    assert metrics["qrels"]["outside_gallery"] == 51
    assert metrics["recall_at_5"] == 1.0
    for row in pa.parquet.read_table(table).to_pylist():
        assert set(row["doc_ids"]) == set(ids)


def test_merging_also_reports_unmerged_metrics(task: TinyTask, built: Path, tmp_path: Path) -> None:
    pairs = {"doc_id": ["d000-1", "d037-1"], "same_as": ["d000-2", "d037-2"]}
    pa.parquet.write_table(pa.table(pairs), tmp_path / "merged.parquet")
    out = tmp_path / "m.json"
    flags = ["--merge", tmp_path / "merged.parquet", "--index", built, "--out", out]
    assert call("evaluate", *task.flags, *flags) == 0
    metrics = json.loads(out.read_text())
    assert metrics["documents"] == 57
    assert metrics["unmerged"]["documents"] == 59
    # Over the whole ranking, where two documents that have become one cannot stand in two places.
    assert metrics["map"] != metrics["unmerged"]["map"]


def test_no_calibration_ranks_by_the_plain_product(task: TinyTask, built: Path, tmp_path: Path) -> None:
    table = tmp_path / "p.parquet"
    flags = ["--no-calibration", "--index", built, "--out", tmp_path / "m.json", "--per-query", table]
    assert call("evaluate", *task.flags, *flags) == 0
    assert json.loads((tmp_path / "m.json").read_text())["index"]["calibration"] is None
    index, encoder = load_index(built), load_query_encoder(str(task.model))
    row = pa.parquet.read_table(table).to_pylist()[0]
    query = encoder.queries([drawing("red", "ring")])[0][0]
    best = index.searcher.vectors()[index.doc_ids.index(row["doc_ids"][0]), :24] @ query
    assert row["scores"][0] == pytest.approx(float(best), abs=1e-5)


def test_text_or_images_can_be_removed(task: TinyTask, tmp_path: Path) -> None:
    for flags in (["--text", "remove"], ["--images", "remove"]):
        out = tmp_path / "".join(flags)
        assert call("index", *task.flags[:4], *flags, "--out", out) == 0
        documents = load_index(out).documents
        column = "has_text" if "--text" in flags else "has_image"
        assert not any(documents.column(column).to_pylist())
    info = load_index(tmp_path / "--imagesremove").info
    assert info["images"] == "remove"
    assert {row["reason"] for row in info["skipped"]} == {"neither image nor text"}


def test_shuffled_text_comes_from_another_leaf_and_empty_stays_empty(task: TinyTask) -> None:
    catalogue = read_table(task.table("catalogue"), CATALOGUE)
    column = catalogue.read(["text", "leaf"])
    shuffled = shuffled_texts(catalogue, seed=3)
    assert sorted(shuffled) == sorted(column["text"])
    assert shuffled == shuffled_texts(catalogue, seed=3) != shuffled_texts(catalogue, seed=4)
    for new, old, leaf in zip(shuffled, column["text"], column["leaf"], strict=True):
        assert bool(new) == bool(old)
        assert not new or leaf not in new.split()  # the texts name their leaf


def test_an_approximate_index_can_be_evaluated(task: TinyTask, tmp_path: Path) -> None:
    import shutil

    catalogue = pa.parquet.read_table(task.table("catalogue")).slice(0, 56)
    copies = [catalogue]
    for turn in range(18):
        ids = [f"{name}~{turn:02d}" for name in catalogue.column("doc_id").to_pylist()]
        copies.append(catalogue.set_column(0, "doc_id", pa.array(ids)))
    pa.parquet.write_table(pa.concat_tables(copies), tmp_path / "catalogue.parquet")
    names = ["--model", task.model, "--catalogue", tmp_path / "catalogue.parquet"]
    assert call("index", *names, "--exact-below", 1000, "--out", tmp_path / "index") == 0
    info = load_index(tmp_path / "index").info
    assert info["kind"].startswith("IVF")
    assert info["recall_at_10_against_exact"] >= 0.95
    shutil.copy(task.table("queries"), tmp_path)
    tables = ["--queries", task.table("queries"), "--qrels", task.table("qrels"), "--index", tmp_path / "index"]
    assert call("evaluate", *names, *tables, "--out", tmp_path / "m.json") == 0
    assert json.loads((tmp_path / "m.json").read_text())["index"]["ranking_depth"] == 1000


def test_bf16_changes_embeddings_only_a_little(task: TinyTask) -> None:
    exact, fast = (load_query_encoder(str(task.model), bf16=flag) for flag in (False, True))
    difference = exact.queries([drawing("red", "box")])[0] - fast.queries([drawing("red", "box")])[0]
    assert 0 < np.abs(difference).max() < 0.05


def test_a_second_index_into_one_folder_is_refused(
    task: TinyTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["index", "--model", task.model, "--catalogue", task.table("catalogue"), "--out", tmp_path / "index"]
    second = []

    def build(*given: Any, **named: Any) -> Any:
        second.append(retrieval(*words))
        return build_index(*given, **named)

    monkeypatch.setattr("retrieval.commands.build_index", build)
    assert call(*words) == 0
    [done] = second
    assert done.returncode == 2
    assert f"error: --out {tmp_path / 'index'}: another run uses this folder. Wait until it has ended" in done.stderr
    assert load_index(tmp_path / "index").doc_ids
    assert retrieval(*words).returncode == 0
