"""Synthetic click log and pair scores of the organising benchmark."""

import numpy as np
import pytest

from benchmarks.governance import organising
from data_governance.grouping import matching


def test_pair_scores_by_hand() -> None:
    group, truth = np.array([0, 0, 0, 1]), np.array([5, 5, 6, 6])
    # in one group: 3 pairs, in one category: 2, both: 1
    assert organising.pair_scores(group, truth) == {"precision": 0.3333, "recall": 0.5, "f1": 0.4}
    assert organising.pair_scores(np.arange(4), np.arange(4)) == {"precision": 0.0, "recall": 0.0, "f1": 0.0}


def test_clicks_without_noise_stay_in_the_category_and_follow_popularity() -> None:
    rng = np.random.default_rng(0)
    truth, popularity = np.array([1, 0, 1, 0]), np.array([1.0, 9.0, 3.0, 1.0])
    asked = np.repeat([0, 1], 2_000)
    clicked = organising.drawn_documents(truth, popularity, asked, rng)
    assert (truth[clicked] == asked).all()
    assert (clicked[:2_000] == 1).mean() == pytest.approx(0.9, abs=0.03)
    assert (clicked[2_000:] == 2).mean() == pytest.approx(0.75, abs=0.03)


def test_noise_is_the_share_of_clicks_outside_the_category() -> None:
    log = organising.synthetic_log(600, noise=0.0, seed=0)
    weight = organising.co_clicks(log)
    pairs = weight[0]
    assert (log.truth[pairs[:, 0]] == log.truth[pairs[:, 1]]).all()
    assert len(log.queries) == 2_000
    assert 3 < len(log.edges) / len(log.queries) < 10


def test_jaccard_weights_by_hand() -> None:
    edges = np.array([[0, 0], [0, 1], [1, 0], [1, 1], [2, 1]])
    log = organising.ClickLog(np.zeros((3, 2)), np.zeros((2, 2)), edges, np.zeros(2, int), np.zeros(2, int))
    pairs, count, weight = organising.co_clicks(log)
    assert (pairs.tolist(), count.tolist()) == ([[0, 1]], [2.0])
    assert weight.tolist() == [2 / 3]


def test_organise_beats_the_graph_methods_on_a_catalogue_of_one_source() -> None:
    found = organising.setting(600, noise=0.3, seed=0)
    assert found["ours"]["f1"] > 0.8
    assert found["ours"]["f1"] > found["leiden"]["f1"] > found["components"]["f1"]
    assert found["ours"]["f1"] > found["content"]["f1"]
    assert found["stage"]["round_2"]["sources"] == 1
    assert found["stage"]["round_2"]["click_weight"] == 5.0


def test_resolutions_reach_further_down_without_sources() -> None:
    one, two = matching.resolutions(np.zeros(3, int)), matching.resolutions(np.array([0, 1, 1]))
    assert min(one) < min(two)
    assert list(one) == sorted(one)
