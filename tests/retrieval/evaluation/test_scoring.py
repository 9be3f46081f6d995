"""Merging, slices, counts and intervals, on rankings small enough to score by hand."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from retrieval.evaluation.judgements import build_gallery, connected, read_judgements, warnings_of
from retrieval.evaluation.scoring import Tally
from retrieval.tables import QRELS, read_table


def write_qrels(folder: Path, rows: Any, **further: Any) -> Any:
    columns = dict(zip(("query_id", "doc_id", "relevance"), map(list, zip(*rows, strict=True)), strict=True))
    pa.parquet.write_table(pa.table(columns | further), folder / "qrels.parquet")
    return read_table(folder / "qrels.parquet", QRELS)


def add(tally: Any, query_id: str, names: Any, scores: Any = None) -> None:
    rows = np.asarray([tally.gallery.doc_ids.index(name) for name in names])
    tally.add(query_id, rows, np.asarray(scores or -np.arange(len(names)), dtype=np.float64))


def test_merged_documents_are_one_and_the_first_ranked_is_kept() -> None:
    gallery = build_gallery(["a", "b", "c", "d"], None, [("c", "b")])
    relevance = {"q": {"a": 1, "c": 2}}
    merged, unmerged = Tally(gallery, relevance), Tally(gallery.unmerged(), relevance)
    for tally in (merged, unmerged):
        add(tally, "q", ["d", "b", "c", "a"])
    assert merged.rows[0]["doc_ids"] == ["d", "b", "a"]  # c went with b, the first-ranked of the two
    assert merged.rows[0]["relevance"] == [0, 2, 1]  # and b counts with the larger relevance of the two
    assert merged.rows[0]["map"] == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert unmerged.rows[0]["doc_ids"] == ["d", "b", "c", "a"]
    assert unmerged.rows[0]["map"] == pytest.approx((1 / 3 + 2 / 4) / 2)
    assert merged.metrics()["documents"] == 3
    assert unmerged.metrics()["documents"] == 4


def test_merging_is_transitive_even_through_ids_outside_the_gallery() -> None:
    gallery = build_gallery(["a", "b", "c"], None, [("a", "x"), ("x", "c")])
    assert gallery.documents == 2
    assert gallery.group[0] == gallery.group[2] != gallery.group[1]


def test_every_name_of_a_component_has_its_smallest_name() -> None:
    pairs = [("c", "b"), ("b", "a"), ("z", "y"), ("a", "a")]
    assert connected(pairs) == {"a": "a", "b": "a", "c": "a", "y": "y", "z": "y"}
    assert connected([]) == {}


def test_two_relevant_ids_of_one_group_count_as_one_relevant_document() -> None:
    gallery = build_gallery(["a", "b", "c"], None, [("a", "b")])
    tally = Tally(gallery, {"q": {"a": 1, "b": 1}})
    add(tally, "q", ["a", "b", "c"])
    assert tally.rows[0]["trec_recall_at_10"] == 1.0
    assert tally.rows[0]["map"] == 1.0


def test_queries_without_relevant_documents_are_counted_not_scored() -> None:
    tally = Tally(build_gallery(["a", "b"], None, []), {"q": {"a": 1}})
    add(tally, "q", ["b", "a"])
    add(tally, "nothing to find", ["b", "a"])
    found = tally.metrics()
    assert (found["queries"], found["skipped"]) == (1, 1)
    assert found["mrr_at_10"] == 0.5
    assert found["intervals"]["mrr_at_10"] == [0.5, 0.5]


def test_a_relevant_document_that_was_not_ranked_is_a_miss() -> None:
    tally = Tally(build_gallery(["a", "b"], None, []), {"q": {"a": 1}})
    add(tally, "q", ["b"])
    assert tally.rows[0]["first_relevant_rank"] is None
    assert tally.rows[0]["recall_at_10"] == 0.0


def test_queries_that_share_their_relevant_documents_are_one_category() -> None:
    tally = Tally(build_gallery(["a", "b"], None, []), {"q": {"a": 1}, "r": {"a": 3}, "s": {"b": 1}})
    for name in "qrs":
        add(tally, name, ["a", "b"])
    assert [row["category"] for row in tally.rows] == [0, 0, 1]


def test_a_slice_of_the_qrels_hides_the_other_relevant_documents() -> None:
    relevance = {"q": {"a": 1, "b": 1}}
    tally = Tally(build_gallery(["a", "b", "c"], None, []), {"q": {"b": 1}}, hidden=relevance)
    add(tally, "q", ["c", "a", "b"])
    assert tally.rows[0]["doc_ids"] == ["c", "b"]
    assert tally.rows[0]["first_relevant_rank"] == 2


def test_qrels_of_unknown_ids_are_counted_and_warned_about(tmp_path: Path) -> None:
    rows = [("q", "a", 1), ("q", "b", 0), ("q", "lost", 1), ("gone", "a", 1), ("q", "c", 1)]
    qrels = write_qrels(tmp_path, rows)
    gallery = build_gallery(["a", "b", "c"], ["a", "b", "other"], [])
    found = read_judgements(qrels, queries=["q"], catalogue=["a", "b", "c"], gallery=gallery)
    assert found.relevance == {"q": {"a": 1}}
    assert (found.unknown_queries, found.unknown_documents, found.outside_gallery) == (1, 1, 1)
    assert len(warnings_of(found)) == 2


def test_further_columns_of_the_qrels_become_slices(tmp_path: Path) -> None:
    rows = [("q", "a", 1), ("q", "b", 2), ("r", "a", 1)]
    qrels = write_qrels(tmp_path, rows, source=["tags", "none", "tags"], note=["x", "x", "x"])
    gallery = build_gallery(["a", "b"], None, [])
    found = read_judgements(qrels, queries=["q", "r"], catalogue=["a", "b"], gallery=gallery)
    assert found.slices == {"source": {"tags": {"q": {"a": 1}, "r": {"a": 1}}, "none": {"q": {"b": 2}}}}


@pytest.mark.parametrize(
    ("rows", "message"),
    [([("q", "a", 1), ("q", "a", 2)], "again in row 1"), ([("q", "a", -1)], "row 0 has relevance -1")],
)
def test_contradicting_judgements_are_rejected(tmp_path: Path, rows: Any, message: str) -> None:
    gallery = build_gallery(["a"], None, [])
    with pytest.raises(ValueError, match=message):
        read_judgements(write_qrels(tmp_path, rows), queries=["q"], catalogue=["a"], gallery=gallery)


def test_a_gallery_without_known_documents_is_rejected() -> None:
    with pytest.raises(ValueError, match="no document of the catalogue"):
        build_gallery(["a"], ["b"], [])
