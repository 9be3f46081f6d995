"""Export to mteb: round trip through `datasets`, and equal scores where mteb is installed."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from datasets import get_dataset_config_names, load_dataset

from benchmarks.immr.protocol.evaluation import evaluate
from benchmarks.immr.protocol.mteb_task import VectorSearch, mteb_task, qrels_rows, write_mteb
from benchmarks.immr.protocol.task import Task
from tests.support.images import plain_png


def synthetic_task(folder: Path) -> Task:
    """Six documents with Image structs, the fourth without image, the fifth without text; queries are paths."""
    for name in ("red", "blue", "green"):
        (folder / f"{name}.png").write_bytes(plain_png(name))
    colours = ["red", "blue", "green", "red", "blue", "green"]
    images = [{"bytes": plain_png(name), "path": None} for name in colours]
    ids = [f"d{number}" for number in range(6)]
    texts = [f"about {one}" for one in ids]
    return Task(
        "synthetic/tiny_set",
        pa.table({"doc_id": ids, "image": [*images[:3], None, *images[4:]], "text": [*texts[:4], "", texts[5]]}),
        pa.table(
            {"query_id": ["q0", "q1", "q2"], "image": [str(folder / f"{n}.png") for n in ("red", "blue", "green")]}
        ),
        {"q0": {"d0": 1, "d3": 1}, "q1": {"d1": 2}},
        {"q0": "red", "q1": "blue"},
        merged=[("d3", "d0")],
    )


def test_datasets_reads_the_written_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    write_mteb(synthetic_task(tmp_path), tmp_path / "out")
    for path in tmp_path.glob("*.png"):
        path.unlink()  # the folder must be self-contained
    folder = str(tmp_path / "out")
    assert set(get_dataset_config_names(folder)) == {"corpus", "queries", "qrels"}
    read = {
        name: load_dataset(folder, name, split="test", cache_dir=tmp_path / "cache") for name in ("corpus", "queries")
    }
    corpus, queries = read["corpus"], read["queries"]
    assert corpus["id"][:] == [f"d{number}" for number in range(6)]
    assert corpus["modality"][:] == ["image,text", "image,text", "image,text", "text", "image", "image,text"]
    assert corpus["text"][4] == ""
    assert corpus[3]["image"] is None
    assert corpus[1]["image"].getpixel((5, 5)) == (0, 0, 255)
    assert queries["id"][:] == ["q0", "q1"], "queries without a relevant document are left out"
    assert queries[0]["image"].getpixel((5, 5)) == (255, 0, 0)
    qrels = load_dataset(folder, "qrels", split="test", cache_dir=tmp_path / "cache")
    assert [tuple(row.values()) for row in qrels] == [("q0", "d0", 1), ("q0", "d3", 1), ("q1", "d1", 2)]


def test_a_folder_that_is_not_empty_is_not_overwritten(tmp_path: Path) -> None:
    task = synthetic_task(tmp_path)
    with pytest.raises(ValueError, match="is not empty"):
        write_mteb(task, tmp_path)
    assert len(list(qrels_rows(task))) == 3


def test_search_uses_inner_products_and_never_finds_documents_without_embedding(tmp_path: Path) -> None:
    task = synthetic_task(tmp_path)
    document_ND = np.eye(6)
    document_ND[5] = np.nan
    search = VectorSearch(task, np.arange(18.0).reshape(3, 6), document_ND)
    search.index({"id": task.doc_ids})
    found = search.search({"id": ["q1"]}, top_k=2)
    assert found == {"q1": {"d4": 10.0, "d3": 9.0}}


def test_mteb_gives_the_scores_of_the_benchmark_with_identical_documents_counted_separately(tmp_path: Path) -> None:
    pytest.importorskip("mteb", reason="mteb is optional: pip install mteb")
    task = synthetic_task(tmp_path)
    draw = np.random.default_rng(0)
    for _ in range(5):
        query_QD, document_ND = draw.normal(size=(3, 4)), draw.normal(size=(6, 4))
        scores = evaluate(task, query_QD, document_ND)
        found = mteb_task(task).evaluate(VectorSearch(task, query_QD, document_ND), encode_kwargs={})["default"]
        assert found["hit_rate_at_1"] == pytest.approx((scores.unmerged <= 1).mean())
        assert found["hit_rate_at_3"] == pytest.approx((scores.unmerged <= 3).mean())
        assert found["mrr_at_10"] == pytest.approx((1 / scores.unmerged).mean(), abs=1e-4)
    assert mteb_task(task).metadata.category == "i2it"
