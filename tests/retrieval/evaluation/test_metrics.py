"""Metrics against cases worked by hand, ties and empty answers included."""

import json
import os
import subprocess
import sys
from math import log2
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from retrieval.evaluation.intervals import bootstrap_means, intervals, paired_difference
from retrieval.evaluation.metrics import (
    METRICS,
    RANK_METRICS,
    average_precision,
    mrr_at_10,
    ndcg_at_10,
    rank_metrics,
    ranked_relevance,
    ranking,
    recall_at_k,
    trec_recall_at_k,
)

MODULES = Path(__file__).resolve().parents[3] / "retrieval" / "evaluation" / "metrics_hub"


def test_a_ranking_worked_by_hand() -> None:
    ranked, judged = [0, 2, 0, 1], [1, 2, 1]  # right at ranks 2 and 4; a third relevant document was never returned
    assert recall_at_k(ranked, judged, k=1) == 0.0
    assert recall_at_k(ranked, judged, k=2) == 1.0
    assert trec_recall_at_k(ranked, judged, k=2) == pytest.approx(1 / 3)
    assert trec_recall_at_k(ranked, judged, k=10) == pytest.approx(2 / 3)
    assert mrr_at_10(ranked, judged) == 0.5
    assert average_precision(ranked, judged) == pytest.approx((1 / 2 + 2 / 4) / 3)
    best = 3 / log2(2) + 1 / log2(3) + 1 / log2(4)
    assert ndcg_at_10(ranked, judged) == pytest.approx((3 / log2(3) + 1 / log2(5)) / best)


def test_the_cutoff_is_exactly_ten() -> None:
    tenth, eleventh = [0] * 9 + [1], [0] * 10 + [1]
    assert mrr_at_10(tenth, [1]) == pytest.approx(0.1)
    assert mrr_at_10(eleventh, [1]) == 0.0
    assert ndcg_at_10(eleventh, [1]) == 0.0
    assert METRICS["recall_at_10"](tenth, [1]) == 1.0
    assert METRICS["recall_at_10"](eleventh, [1]) == 0.0
    assert average_precision(eleventh, [1]) == pytest.approx(1 / 11)  # the whole ranking counts


def test_more_relevant_documents_than_places_still_reach_an_ndcg_of_one() -> None:
    assert ndcg_at_10([1] * 12, [1] * 12) == pytest.approx(1.0)
    assert trec_recall_at_k([1] * 12, [1] * 12, k=10) == pytest.approx(10 / 12)


@pytest.mark.parametrize("name", METRICS)
def test_no_answer_at_all_scores_zero(name: str) -> None:
    assert METRICS[name]([], [1, 3]) == 0.0


@pytest.mark.parametrize(
    ("ranked", "judged", "message"),
    [
        ([1], [], "at least one"),
        ([0, 1], [0], "at least one"),
        ([-1], [1], "0 or more"),
        ([1, 1], [1], "only 1 judged"),
        ([[1]], [1], "one row per query"),
    ],
)
def test_impossible_relevance_is_rejected(ranked: Any, judged: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        average_precision(ranked, judged)


def test_k_below_one_is_rejected() -> None:
    with pytest.raises(ValueError, match="k is 0"):
        recall_at_k([1], [1], k=0)


def test_ties_are_broken_by_doc_id_after_rounding() -> None:
    ranked, judged = ranked_relevance(["b", "c", "a"], [0.5, 0.9, 0.5 + 1e-9], {"a": 1, "z": 2})
    assert ranked.tolist() == [0, 1, 0]  # c, then a before b although b was given first
    assert judged.tolist() == [1, 2]


def test_metrics_of_ranks_equal_those_of_whole_rankings() -> None:
    ranks = [1, 2, 10, 11, 12]
    found = rank_metrics(ranks)
    assert tuple(found) == RANK_METRICS
    for name in RANK_METRICS:
        assert found[name].tolist() == [METRICS[name]([0] * (rank - 1) + [1], [1]) for rank in ranks]


def test_a_ranking_orders_by_rounded_score_and_then_by_column() -> None:
    scores = [[0.1, 0.5, 0.5 + 1e-9, 0.9], [0.0, 0.0, 0.0, -1.0]]
    assert ranking(scores).tolist() == [[3, 1, 2, 0], [0, 1, 2, 3]]


def test_a_query_without_relevant_documents_has_no_judged_ones() -> None:
    ranked, judged = ranked_relevance(["a"], [1.0], {"a": 0})
    assert ranked.tolist() == [0]
    assert judged.size == 0


@pytest.mark.parametrize(
    ("doc_ids", "scores", "message"),
    [(["a", "a"], [1, 2], "twice"), (["a"], [1, 2], "one score"), (["a"], [float("nan")], "NaN")],
)
def test_impossible_answers_are_rejected(doc_ids: Any, scores: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ranked_relevance(doc_ids, scores, {"a": 1})


def test_intervals_of_a_constant_have_no_width() -> None:
    assert intervals(np.ones((6, 2)), [0, 0, 1, 1, 2, 2]) == [(1.0, 1.0), (1.0, 1.0)]


def test_the_bootstrap_draws_whole_categories() -> None:
    # Two categories, all right and all wrong, of unequal size: a draw of one kind only gives exactly 0 or 1.
    means = bootstrap_means([[1.0]] * 3 + [[0.0]], [7, 7, 7, 9], draws=500)[:, 0]
    assert set(np.round(means, 6)) == {0.0, 0.75, 1.0}


def test_clusters_make_intervals_wider_than_single_queries_would() -> None:
    value = np.repeat(np.arange(20) % 2, 10)[:, None].astype(float)
    [(low, high)] = intervals(value, np.repeat(np.arange(20), 10))
    [(low_single, high_single)] = intervals(value, np.arange(200))
    assert high - low > 2 * (high_single - low_single)


def test_a_paired_difference_ignores_what_both_systems_share() -> None:
    hard = np.repeat([0.0, 1.0], 50)
    mean, low, high = paired_difference(hard + 0.1, hard, np.arange(100))
    assert (mean, low, high) == pytest.approx((0.1, 0.1, 0.1))
    with pytest.raises(ValueError, match="same queries"):
        paired_difference([1.0], [1.0, 2.0], [0])


LOAD_ALL = """
import json, sys, evaluate
names, data = json.loads(sys.argv[2]), json.loads(sys.argv[3])
modules = {name: evaluate.load(sys.argv[1] + "/" + name) for name in names}
found = {name: module.compute(**data, **names[name]) for name, module in modules.items()}
try:
    modules["mrr_at_10"].compute(**data, depth=3)
except ValueError as error:
    found["refused"] = str(error)
print(json.dumps(found))
"""


@pytest.mark.slow
def test_evaluate_modules_load_offline_and_wrap_the_pure_functions(tmp_path: Path) -> None:
    names = {"recall_at_k": {"k": 1}, "trec_recall_at_k": {"k": 2}, "mrr_at_10": {}, "ndcg_at_10": {}}
    names["mean_average_precision"] = {}
    predictions = [{"doc_ids": ["a", "b"], "scores": [0.9, 0.1]}] * 2 + [{"doc_ids": ["a"], "scores": [0.9]}]
    references = [
        {"doc_ids": ["a"], "relevance": [1]},
        {"doc_ids": ["b", "z"], "relevance": [1, 1]},  # right at rank 2, another never returned
        {"doc_ids": [], "relevance": []},  # nothing to find: skipped
    ]
    data = {"predictions": predictions, "references": references}
    # A process of its own, with an empty cache and no way out: what loads here needs no network.
    command = [sys.executable, "-W", "error", "-c", LOAD_ALL, str(MODULES), json.dumps(names), json.dumps(data)]
    environment = os.environ | {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=MODULES.parents[2], check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert "depth" in found.pop("refused")
    assert all(value["skipped"] == 1 for value in found.values())
    ndcg = (1.0 + 1 / log2(3) / (1 + 1 / log2(3))) / 2
    expected = dict(zip(names, [0.5, 0.75, 0.75, ndcg, (1.0 + 1 / 4) / 2], strict=True))
    assert {name: value[name] for name, value in found.items()} == pytest.approx(expected)
