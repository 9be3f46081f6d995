"""Paired bootstrap, pooling, p-values and Holm's correction on cases computed by hand."""

import numpy as np
import pytest

from benchmarks.immr.protocol import statistics
from benchmarks.immr.protocol.scores import METRICS, Scores
from benchmarks.immr.protocol.statistics import bootstrap_differences, holm, p_value, paired, paired_slices


def scores(ranks: list[int], categories: str, *, split: int = 0) -> Scores:
    rank = np.asarray(ranks)
    return Scores(tuple(f"q{row}" for row in range(len(ranks))), tuple(categories), rank, rank, split=split)


def test_the_difference_is_the_mean_over_queries_of_first_minus_second() -> None:
    found = paired(scores([1, 1, 2, 20], "aabb"), scores([2, 1, 4, 5], "aabb"))
    assert set(found) == set(METRICS)
    assert found["recall_at_1"]["difference"] == pytest.approx(1 / 4)
    assert found["recall_at_10"]["difference"] == pytest.approx(-1 / 4)
    assert found["mrr_at_10"]["difference"] == pytest.approx((1 / 2 + 0 + 1 / 4 - 1 / 5) / 4)


def test_resamples_of_two_categories_follow_the_binomial_distribution() -> None:
    """Categories a (one query, difference 1) and b (three queries, 0): (2,0), (1,1), (0,2) with 1/4, 1/2, 1/4."""
    means = bootstrap_differences([[1.0], [0.0], [0.0], [0.0]], "abbb", [0, 0, 0, 0], draws=8000)[:, 0]
    values, counts = np.unique(means, return_counts=True)
    assert values.tolist() == [0.0, 0.25, 1.0], "categories are weighted by their number of queries"
    assert (counts / 8000).tolist() == pytest.approx([0.25, 0.5, 0.25], abs=0.02)


def test_categories_are_resampled_within_their_split() -> None:
    one_each = bootstrap_differences([[1.0], [0.0]], "ab", [0, 1], draws=200)
    assert set(one_each[:, 0]) == {0.5}, "each split has a single category"
    same_name = bootstrap_differences([[1.0], [0.0]], "aa", [0, 1], draws=200)
    assert set(same_name[:, 0]) == {0.5}, "the same name in two splits is two categories"
    together = bootstrap_differences([[1.0], [0.0]], "ab", [0, 0], draws=200)
    assert set(together[:, 0]) == {0.0, 0.5, 1.0}


def test_a_category_is_resampled_with_all_its_seeds() -> None:
    """Three equal seeds must not shrink the interval over categories."""
    better, worse = scores([1, 1, 5, 1, 9, 2], "abcdef"), scores([3, 1, 1, 2, 9, 4], "abcdef")
    once, thrice = paired(better, worse), paired([better] * 3, [worse] * 3)
    for name in METRICS:
        assert thrice[name] == pytest.approx(once[name])
    assert thrice["mrr_at_10"]["high"] - thrice["mrr_at_10"]["low"] > 0.1


def test_equal_systems_have_zero_difference_and_a_clear_gain_is_significant() -> None:
    names = "".join(chr(ord("a") + number) for number in range(20))
    good, bad = scores([1] * 20, names), scores([3] * 20, names)
    assert paired(good, good)["recall_at_1"] == {"difference": 0.0, "low": 0.0, "high": 0.0, "p": 1.0}
    gain = paired(good, bad, draws=999)["recall_at_1"]
    assert gain == {"difference": 1.0, "low": 1.0, "high": 1.0, "p": pytest.approx(2 / 1000)}


def test_experiments_that_do_not_pair_are_rejected() -> None:
    one, other = scores([1, 2], "ab"), scores([1, 2, 3], "abc")
    with pytest.raises(ValueError, match="have different queries"):
        paired(one, other)
    with pytest.raises(ValueError, match="have different queries"):
        paired(one, scores([1, 2], "ab", split=1))
    with pytest.raises(ValueError, match="got 2 of one system and 1"):
        paired([one, one], [one])
    with pytest.raises(ValueError, match="Q >= 1"):
        bootstrap_differences(np.zeros((0, 1)), "", [])


def test_the_p_value_is_twice_the_smaller_tail_plus_one() -> None:
    assert p_value([0.3, 0.2, -0.1, 0.4]) == pytest.approx(2 * 2 / 5)
    assert p_value([0.3, 0.2, 0.1, 0.4]) == pytest.approx(2 * 1 / 5)
    assert p_value([-0.3, -0.2, -0.1, 0.4]) == pytest.approx(2 * 2 / 5)
    assert p_value([0.0, 0.0]) == 1.0


def test_holm_agrees_with_values_computed_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.6]) == [1.0, 1.0]
    assert holm([]) == []
    with pytest.raises(ValueError, match=r"0\.\.1"):
        holm([0.5, 1.5])


def test_small_slices_are_shown_without_a_test_and_the_others_are_corrected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "MIN_EVALUATIONS", 12)
    draw = np.random.default_rng(1)
    names = [chr(ord("a") + number % 26) for number in range(120)]
    first, second = {}, {}
    for name, size, shift in (("big", 120, 1), ("middle", 60, 0), ("small", 6, 8)):
        base = draw.integers(1, 15, size)
        first[name] = [scores(base.tolist(), "".join(names[:size]))]
        second[name] = [scores((base + shift).tolist(), "".join(names[:size]))]
    found = paired_slices(first, second, metric="mrr_at_10", draws=2000)
    assert [found[name]["judged"] for name in ("big", "middle", "small")] == [True, True, False]
    assert found["small"]["p_holm"] is None
    assert found["small"]["evaluations"] == 6
    assert found["big"]["p_holm"] == pytest.approx(2 * found["big"]["p"]), "the smallest of two"
    assert found["middle"]["p_holm"] == 1.0
    wide = paired(first["big"], second["big"], level=0.975)["mrr_at_10"]
    assert (found["big"]["low_holm"], found["big"]["high_holm"]) == (wide["low"], wide["high"])
    assert found["big"]["low_holm"] <= found["big"]["low"] <= found["big"]["high"] <= found["big"]["high_holm"]
    assert found["middle"]["low_holm"] == found["middle"]["low"], "the last one is tested at the plain level"
    with pytest.raises(ValueError, match="slices differ"):
        paired_slices(first, {"big": second["big"]})
