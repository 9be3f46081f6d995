"""Evaluation protocol: ranks, slices, emoji tasks and degraded documents."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from benchmarks.immr.protocol.degrade import CHANGES, VARIANTS, degraded, degraded_image
from benchmarks.immr.protocol.emoji import bands, emoji_task, training_tables
from benchmarks.immr.protocol.evaluation import evaluate, slices
from benchmarks.immr.protocol.scores import METRICS, Scores
from benchmarks.immr.protocol.task import Task
from retrieval.evaluation.judgements import build_gallery
from retrieval.evaluation.scoring import Tally
from tests.support.images import pixels_png, plain_png


def documents(ids: list[str], **columns: Any) -> pa.Table:
    image = columns.get("image", [b"x"] * len(ids))
    return pa.table({"doc_id": ids, "image": image, "text": columns.get("text", [f"text {one}" for one in ids])})


def queries(ids: list[str]) -> pa.Table:
    return pa.table({"query_id": ids, "image": [b"x"] * len(ids)})


def by_hand() -> tuple[Task, np.ndarray, np.ndarray]:
    """Two queries, five documents on a line; d and e are identical. q0 ranks a, b, c, d, e; q1 in reverse."""
    task = Task(
        name="by hand",
        documents=documents(["e", "a", "b", "c", "d"]),
        queries=queries(["q0", "q1"]),
        qrels={"q0": {"c": 1, "e": 1}, "q1": {"b": 1}},
        category_of_query={"q0": "first", "q1": "second"},
        merged=[("e", "d")],
        document_facts={"a": {"text": "own"}, "b": {"text": "own"}, "c": {"text": "empty"}, "e": {"text": "own"}},
        query_facts={"q0": {"style": "round"}, "q1": {"style": "square"}},
    )
    return task, np.asarray([[1.0], [-1.0]]), np.asarray([[1.0], [5.0], [4.0], [3.0], [2.0]])


def test_ranks_and_metrics_agree_with_a_case_computed_by_hand() -> None:
    task, query_QD, document_ND = by_hand()
    scores = evaluate(task, query_QD, document_ND)
    assert scores.query_ids == ("q0", "q1")
    assert scores.rank.tolist() == [3, 3], "q1 ranks e = d first, then c, then b"
    assert scores.unmerged.tolist() == [3, 4]
    assert scores.documents == 4
    assert scores.recall_at_1.tolist() == [0.0, 0.0]
    assert scores.recall_at_10.tolist() == [1.0, 1.0]
    assert scores.mrr_at_10.tolist() == pytest.approx([1 / 3, 1 / 3])
    found = scores.metrics(draws=20)
    assert found["mrr_at_10"] == pytest.approx(1 / 3, abs=1e-6)
    assert found["unmerged"]["mrr_at_10"] == pytest.approx((1 / 3 + 1 / 4) / 2, abs=1e-6)
    assert found["intervals"]["recall_at_1"] == [0.0, 0.0]


def test_a_document_slice_removes_other_relevant_documents_from_the_ranking() -> None:
    task, query_QD, document_ND = by_hand()
    parts = slices(task, evaluate(task, query_QD, document_ND))
    own, empty = parts["document.text=own"], parts["document.text=empty"]
    assert own.query_ids == ("q0", "q1")
    assert own.rank.tolist() == [3, 3], "c is removed from the ranking of q0: a, b, then e = d"
    assert empty.query_ids == ("q0",)
    assert empty.rank.tolist() == [3]
    assert parts["query.style=square"].query_ids == ("q1",)


def test_queries_without_relevant_documents_in_the_gallery_are_skipped() -> None:
    task, query_QD, document_ND = by_hand()
    scores = evaluate(task, query_QD, document_ND, gallery={"a", "b"})
    assert (scores.query_ids, scores.skipped, scores.documents) == (("q1",), 1, 2)
    assert scores.rank.tolist() == [1]
    with pytest.raises(ValueError, match="no query has a relevant document"):
        evaluate(task, query_QD, document_ND, gallery={"a"})


def test_ties_go_by_doc_id_and_documents_that_are_not_indexed_are_never_found() -> None:
    task, query_QD, document_ND = by_hand()
    assert evaluate(task, query_QD, np.zeros((5, 1))).rank.tolist() == [3, 2], "all equal: a, b, c, d"
    document_ND[[0, 3]] = np.nan
    scores = evaluate(task, query_QD, document_ND)
    assert scores.rank.tolist() == [3, 2], "c and e are not indexed, d is identical to e: a, b, d; in reverse: d, b"
    assert scores.unmerged.tolist() == [6, 2], "never found has rank 6 of five documents"


def test_ranks_agree_with_the_scoring_of_retrieval_on_random_tasks() -> None:
    draw = np.random.default_rng(0)
    for _ in range(5):
        ids = [f"d{number:02d}" for number in draw.permutation(23)]
        query_ids = [f"q{number}" for number in range(7)]
        qrels = {query: {ids[int(row)]: 1 for row in draw.choice(23, size=4, replace=False)} for query in query_ids}
        facts = {one: {"kind": str(draw.choice(["x", "y", "z"]))} for one in ids}
        merged = [(ids[0], ids[1]), (ids[1], ids[2]), (ids[5], ids[9])]
        task = Task(
            "random",
            documents(ids),
            queries(query_ids),
            qrels,
            dict.fromkeys(query_ids, "all"),
            merged=merged,
            document_facts=facts,
        )
        query_QD, document_ND = draw.integers(-2, 3, (7, 3)), draw.integers(-2, 3, (23, 3))  # many ties
        scores = evaluate(task, query_QD, document_ND)
        gallery = build_gallery(ids, None, merged)
        kind_y = {query: {one: 1 for one in judged if facts[one]["kind"] == "y"} for query, judged in qrels.items()}
        tallies = {
            "all": Tally(gallery, qrels),
            "unmerged": Tally(gallery.unmerged(), qrels),
            "y": Tally(gallery, kind_y, hidden=qrels),
        }
        for row, query in enumerate(query_ids):
            score_N = (document_ND @ query_QD[row])[[ids.index(one) for one in gallery.doc_ids]]
            order = np.lexsort((np.arange(23), -score_N))
            for tally in tallies.values():
                tally.add(query, order, score_N[order].astype(np.float64))
        assert [one["first_relevant_rank"] for one in tallies["all"].rows] == scores.rank.tolist()
        assert [one["first_relevant_rank"] for one in tallies["unmerged"].rows] == scores.unmerged.tolist()
        part = slices(task, scores)["document.kind=y"]
        assert [one["query_id"] for one in tallies["y"].rows] == list(part.query_ids)
        assert [one["first_relevant_rank"] for one in tallies["y"].rows] == part.rank.tolist()
        for name in METRICS:
            assert [one[name] for one in tallies["all"].rows] == pytest.approx(getattr(scores, name).tolist())


def test_scores_survive_a_round_trip_through_parquet(tmp_path: Path) -> None:
    task, query_QD, document_ND = by_hand()
    scores = evaluate(task, query_QD, document_ND, split=2)
    pq.write_table(scores.table(), tmp_path / "scores.parquet")
    back = Scores.from_table(pq.read_table(tmp_path / "scores.parquet"))
    assert back.metrics(draws=20) == scores.metrics(draws=20)
    assert (back.query_ids, back.category, back.split) == (scores.query_ids, scores.category, 2)
    assert back.unmerged.tolist() == scores.unmerged.tolist()
    assert back.subset([False, True]).unmerged.tolist() == [4]
    assert {name: part.rank.tolist() for name, part in slices(task, back).items()} == {
        name: part.rank.tolist() for name, part in slices(task, scores).items()
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"documents": pa.table({"doc_id": ["a"]})}, "lack the columns"),
        ({"documents": documents(["a", "a"])}, "unique and not empty"),
        ({"qrels": {"nobody": {"a": 1}}}, "the query table lacks"),
        ({"qrels": {"q0": {"nothing": 1}}}, "must be a document of the task"),
        ({"qrels": {"q0": {"a": 0}}}, "relevance 1 or more"),
        ({"category_of_query": {"q0": "first"}}, "no category"),
        ({"unseen_documents": {"nothing"}}, "no document of the task"),
    ],
)
def test_inconsistent_tables_are_rejected(change: dict[str, Any], message: str) -> None:
    task, _, _ = by_hand()
    valid = {name: getattr(task, name) for name in ("documents", "queries", "qrels", "category_of_query")}
    with pytest.raises(ValueError, match=message):
        Task("wrong", **(valid | change))


def test_embeddings_that_do_not_fit_the_task_are_rejected() -> None:
    task, query_QD, document_ND = by_hand()
    with pytest.raises(ValueError, match="2 queries and 5 documents"):
        evaluate(task, query_QD, document_ND[:4])
    with pytest.raises(ValueError, match="one width"):
        evaluate(task, query_QD, np.zeros((5, 2)))
    with pytest.raises(ValueError, match="not finite"):
        evaluate(task, query_QD * np.nan, document_ND)


def emoji_folder(folder: Path) -> Path:
    """Six categories in the format of the emoji example: test u0 and u1 (twins), validation v0, training t0 to t2."""
    splits = {"u0": "test", "u1": "test", "v0": "validation", "t0": "train", "t1": "train", "t2": "train"}
    leaf = {"u0": "fruit", "u1": "animal", "v0": "animal", "t0": "fruit", "t1": "fruit", "t2": "animal"}
    sources = {"flat": "tags", "line": "language"}
    truth = [
        {"doc_id": f"{style}-{key}", "category": key, "style": style, "text_source": sources[style], "split": split}
        | {"twins": "u0" if key == "u1" else key}
        for key, split in splits.items()
        for style in sources
    ]
    rows = [{"doc_id": row["doc_id"], "text": row["doc_id"], "leaf": leaf[row["category"]]} for row in truth]
    image = {"bytes": plain_png("red"), "path": None}
    write = {
        "truth/catalogue": truth,
        "catalogue": [{**row, "image": image} for row in rows],
        "train_catalogue": [{**row, "image": image} for row in rows if "-t" in row["doc_id"]],
        "merged": [{"doc_id": f"{style}-{key}", "same_as": "flat-u0"} for style in sources for key in ("u0", "u1")],
        "behaviour": [{"query_id": "event0", "doc_id": "flat-t0"}],
        "queries": [{"query_id": f"event{number}", "image": image} for number in range(10)],
    }
    event_categories = ["t0"] * 6 + ["t1"] * 2 + ["t2"] * 2
    about = [{"query_id": f"event{n}", "category": key, "style": "noto"} for n, key in enumerate(event_categories)]
    queries_of = {"test": ["u0", "u1"], "extra": ["u0"], "validation": ["v0"], "seen": ["t0", "t2"]}
    for name, keys in queries_of.items():
        style = "noto-v1" if name == "extra" else "noto"
        ids = {key: f"{name}-{key}" for key in keys}
        about += [{"query_id": one, "category": key, "style": style} for key, one in ids.items()]
        write[f"{name}_queries"] = [{"query_id": one, "image": image} for one in ids.values()]
        write[f"{name}_qrels"] = [
            {"query_id": one, "doc_id": f"{drawn}-{key}", "relevance": 1}
            for key, one in ids.items()
            for drawn in sources
        ]
    write["truth/queries"] = about
    (folder / "truth").mkdir()
    for name, table in write.items():
        pq.write_table(pa.Table.from_pylist(table), folder / f"{name}.parquet")
    (folder / "emoji.json").write_text(json.dumps({"settings": {"setting": "hard", "split": 1}}))
    return folder


def test_emoji_tasks_contain_the_right_queries_documents_and_facts(tmp_path: Path) -> None:
    folder = emoji_folder(tmp_path)
    test, seen, extra = (emoji_task(folder, name) for name in ("test", "seen", "extra"))
    assert test.name == "emoji/hard/1/test"
    assert sorted(test.unseen_documents) == ["flat-u0", "flat-u1", "line-u0", "line-u1"]
    assert test.documents.num_rows == seen.documents.num_rows == 12
    assert set(test.category_of_query.values()) == {"u0"}, "twins are one bootstrap category"
    assert not seen.unseen_documents
    assert test.document_facts["line-t0"] == {"text": "other_language", "image": "clean", "style": "line"}
    assert test.query_facts["test-u0"] == {"style": "noto", "training": "trained", "band": "head"}, "fruit: 8 of 10"
    assert test.query_facts["test-u1"]["band"] == "tail", "animal: the last 2 of 10"
    assert seen.query_facts["seen-t0"]["band"] == "head"
    assert seen.query_facts["seen-t2"]["band"] == "tail", "its own two events, after t0 and t1 by name"
    assert extra.query_facts["extra-u0"] == {"style": "noto-v1", "training": "never", "band": "head"}


def test_the_validation_task_contains_no_test_document(tmp_path: Path) -> None:
    task = emoji_task(emoji_folder(tmp_path), "validation")
    assert task.documents.num_rows == 8
    assert not any("-u" in one for one in task.doc_ids)
    assert sorted(task.unseen_documents) == ["flat-v0", "line-v0"]
    assert not task.merged, "all identical documents are test documents"


def test_training_modes_differ_in_the_catalogue_that_training_may_read(tmp_path: Path) -> None:
    folder = emoji_folder(tmp_path)
    inductive, transductive = (training_tables(folder, mode=name) for name in ("inductive", "transductive"))
    assert pq.read_table(inductive.catalogue).num_rows == 6
    assert pq.read_table(transductive.catalogue).num_rows == 12
    assert inductive.behaviour == transductive.behaviour
    with pytest.raises(ValueError, match="mode is 'both'"):
        training_tables(folder, mode="both")


def test_the_error_for_a_missing_table_names_the_command_that_builds_it(tmp_path: Path) -> None:
    folder = emoji_folder(tmp_path)
    (folder / "extra_queries.parquet").unlink()
    with pytest.raises(ValueError, match="--extra-styles"):
        emoji_task(folder, "extra")
    with pytest.raises(ValueError, match="queries is 'train'"):
        emoji_task(folder, "train")


def test_frequency_bands_are_cut_at_half_and_eight_tenths_of_the_events() -> None:
    assert bands(["a"] * 5 + ["b"] * 3 + ["c"] + ["d"]) == {"a": "head", "b": "body", "c": "tail", "d": "tail"}
    assert bands([]) == {}


def synthetic_task() -> Task:
    """Four documents; a and b are unseen; the last has neither image nor text."""
    struct = [{"bytes": drawing(seed), "path": None} for seed in range(2)]
    return Task(
        "synthetic",
        documents(["a", "b", "c", "d"], image=[*struct, struct[0], None], text=["red apple", "pear", "", ""]),
        queries(["q0", "q1"]),
        {"q0": {"a": 1}, "q1": {"b": 1}},
        {"q0": "a", "q1": "b"},
        unseen_documents={"a", "b"},
        document_facts={"c": {"image": "clean"}},
    )


def drawing(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (33, 37, 3), dtype=np.uint8)
    return pixels_png(pixels)


def pixels(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as opened:
        return np.asarray(opened, dtype=np.float64)


@pytest.mark.parametrize("variant", sorted(CHANGES))
def test_a_degraded_image_keeps_its_size_is_repeatable_and_has_the_stated_change(variant: str) -> None:
    before = drawing(0)
    after = degraded_image(before, variant, doc_id="a")
    assert after == degraded_image(before, variant, doc_id="a")
    old, new = pixels(before), pixels(after)
    assert new.shape == old.shape
    rough = np.abs(np.diff(old, axis=1)).mean()
    if variant in ("tiny", "blurred"):
        assert np.abs(np.diff(new, axis=1)).mean() < 0.5 * rough
    elif variant == "line_art":
        assert np.ptp(new, axis=2).max() == 0, "no colour"
    else:
        covered = (new == 128).all(axis=2)
        assert 0.45 < covered.mean() < 0.55
        assert np.array_equal(new[~covered], old[~covered])


def test_the_occluded_half_depends_on_the_document() -> None:
    assert len({degraded_image(drawing(0), "occluded", doc_id=f"d{number}") for number in range(30)}) == 4


def test_transparent_images_are_put_on_white_before_the_change() -> None:
    stream = io.BytesIO()
    Image.new("RGBA", (40, 40), (255, 0, 0, 0)).save(stream, "PNG")
    assert pixels(degraded_image(stream.getvalue(), "tiny", doc_id="a")).min() == 255


def test_only_unseen_documents_are_degraded_and_their_facts_name_the_variant() -> None:
    task = synthetic_task()
    before = task.documents["image"].to_pylist()
    for variant in (*sorted(CHANGES), "missing"):
        worse = degraded(task, variant)
        after = worse.documents["image"].to_pylist()
        assert after[2:] == before[2:]
        assert all(new != old for new, old in zip(after[:2], before[:2], strict=True))
        assert [worse.document_facts[one].get("image") for one in "abc"] == [variant, variant, "clean"]
        assert worse.documents["text"].to_pylist() == task.documents["text"].to_pylist()
        assert worse.qrels == task.qrels
    assert degraded(task, "missing").documents["image"].to_pylist()[:2] == [None, None]


def test_a_wrong_text_comes_from_another_category_and_images_stay() -> None:
    worse = degraded(synthetic_task(), "wrong_text")
    assert worse.documents["text"].to_pylist() == ["pear", "red apple", "", ""]
    assert worse.document_facts["a"] == {"text": "wrong"}
    assert worse.documents["image"].to_pylist() == synthetic_task().documents["image"].to_pylist()
    alone = synthetic_task()
    same = Task(
        "same", alone.documents, alone.queries, {"q0": {"a": 1, "b": 1}}, {"q0": "a"}, unseen_documents={"a", "b"}
    )
    assert degraded(same, "wrong_text").documents["text"].to_pylist() == ["red apple", "pear", "", ""]


def test_unknown_variants_and_images_given_as_paths_are_rejected() -> None:
    assert set(VARIANTS) == {*CHANGES, "missing", "wrong_text"}
    with pytest.raises(ValueError, match="variant is 'upside_down'"):
        degraded(synthetic_task(), "upside_down")
    task, _, _ = by_hand()
    paths = Task("paths", documents(["a"], image=["a.png"]), queries(["q0"]), {"q0": {"a": 1}}, {"q0": "a"})
    with pytest.raises(ValueError, match="is a path"):
        degraded(paths, "tiny")
