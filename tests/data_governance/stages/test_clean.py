"""Cleaning: margins, threshold, neighbour vote, and synthetic labels."""

import numpy as np
import pytest

from benchmarks.governance import cleaning, noisy_labels
from data_governance.grouping import feature_space
from data_governance.noise import margins, neighbours, threshold
from data_governance.policy import Policy
from data_governance.stages import clean

POLICY = Policy()
NONE = np.zeros((0, 8), dtype=np.float32), np.zeros(0, dtype=np.int64)


def test_reliability_is_the_spearman_brown_formula() -> None:
    np.testing.assert_allclose(margins.reliability(np.array([1, 3]), 0.5), [np.sqrt(0.5), np.sqrt(1.5 / 2.0)])


def by_definition(
    rows: np.ndarray, label: np.ndarray, right: np.ndarray, other: np.ndarray, members: np.ndarray, named: np.ndarray
) -> tuple[np.ndarray, np.ndarray, float]:
    """The naive loop over rows and categories."""
    count = int(max(label.max(), named.max(initial=0))) + 1
    weight = np.zeros((count, len(label) + len(named)))
    for i in range(len(label)):
        weight[label[i], i] += right[i]
        weight[other[i], i] += 1 - right[i]
    weight[named, len(label) + np.arange(len(named))] = 1
    everyone = np.concatenate([rows, members]).astype(float)
    mass, square = weight.sum(axis=1), (weight**2).sum(axis=1)
    length = ((weight @ everyone) ** 2).sum(axis=1)
    rho = float((length - square).sum() / (mass**2 - square).sum())
    margin, best = np.full(len(label), np.nan), label.copy()
    for i in range(len(label)):
        scores = {}
        for k in range(count):
            part = weight[k].copy()
            part[i] = 0
            if part.sum() > 1e-3:
                size = part.sum() ** 2 / (part**2).sum()
                centre = part @ everyone
                scores[k] = float(rows[i] @ centre / np.linalg.norm(centre) / margins.reliability(size, rho))
        others = {k: score for k, score in scores.items() if k != label[i]}
        best[i] = max(others, key=lambda k: others[k])
        if label[i] in scores:
            margin[i] = scores[label[i]] - others[int(best[i])]
    return margin, best, rho


@pytest.mark.parametrize("doubt", [False, True])
def test_margins_follow_the_definition_row_by_row(doubt: bool) -> None:
    rng = np.random.default_rng(2)
    centre = feature_space.unit_rows(rng.normal(size=(6, 8)).astype(np.float32))
    label = np.repeat(np.arange(6), [4, 3, 5, 2, 1, 6])
    rows = feature_space.unit_rows((centre[label] + 0.3 * rng.normal(size=(21, 8))).astype(np.float32))
    named = np.array([0, 2, 2])
    members = feature_space.unit_rows((centre[named] + 0.3 * rng.normal(size=(3, 8))).astype(np.float32))
    right = rng.uniform(0.1, 1, 21) if doubt else np.ones(21)
    other = (label + rng.integers(1, 6, 21)) % 6
    if not doubt:
        found = margins.margins(rows, label, members, named, most=0.1)
        margin, best, rho = found.margin, found.other, found.rho
    else:
        labels = margins.SoftLabels(label, right, other)
        centres = margins.weighted_centres(rows, labels, members, named, 6)
        everyone = np.tile(np.arange(6), (21, 1))
        labels = margins.SoftLabels(label, right.astype(np.float32), other)
        margin, best = margins.scored(rows, labels, everyone, centres)
        rho = centres.rho
    expected = by_definition(rows, label, right, other, members, named)
    assert rho == pytest.approx(expected[2], abs=1e-5)
    np.testing.assert_allclose(margin, expected[0], atol=1e-4)
    known = np.isfinite(margin)
    assert best[known].tolist() == expected[1][known].tolist()
    assert known.sum() == (21 if doubt else 20)


def test_the_mixture_finds_the_low_component_with_an_interval_around_its_share() -> None:
    rng = np.random.default_rng(3)
    two = np.concatenate([rng.normal(-2, 0.4, 100), rng.normal(1, 0.4, 900)])
    fitted = threshold.mixture(two)
    assert fitted is not None
    assert -1.5 < fitted.cut < 0.2
    assert fitted.share == pytest.approx(0.1, abs=0.02)
    assert fitted.right(np.array([fitted.cut]))[0] == pytest.approx(0.5)
    assert fitted.right(np.array([-2.0, 1.0])).round(3).tolist() == [0.0, 1.0]
    low, high = threshold.share_interval(two, fitted)
    assert 0.07 < low < 0.1 < high < 0.13


def fitted_by_value(values: np.ndarray, start: list[float], *, steps: int, common: bool) -> list[float]:
    """Reference implementation: all `steps` steps over every value, moved to the centre of its bin."""
    edges = np.histogram_bin_edges(values, bins=threshold.BINS)
    width = edges[1] - edges[0]
    place = np.clip(((values - edges[0]) / width).astype(int), 0, threshold.BINS - 1)
    x = edges[0] + (place + 0.5) * width
    low, high, a, b, share = start
    for _ in range(steps):
        below = share / a * np.exp(-((x - low) ** 2) / (2 * a**2))
        above = (1 - share) / b * np.exp(-((x - high) ** 2) / (2 * b**2))
        part = below / (below + above)
        low, high, share = np.average(x, weights=part), np.average(x, weights=1 - part), part.mean()
        left, right = (part * (x - low) ** 2).sum(), ((1 - part) * (x - high) ** 2).sum()
        if common:
            a = b = np.sqrt((left + right) / len(x)) + width / 2
        else:
            a, b = np.sqrt(left / part.sum()) + width / 2, np.sqrt(right / (1 - part).sum()) + width / 2
    return [low, high, a, b, share]


@pytest.mark.parametrize("common", [True, False])
def test_fitting_bins_until_convergence_equals_all_steps_over_every_value(common: bool) -> None:
    rng = np.random.default_rng(8)
    values = np.concatenate([rng.normal(-1, 0.4, 301), rng.normal(1, 0.5, 900)])
    start = [-1.2, 0.8, 0.6, 0.6, 0.1]
    centre_V, count_V = threshold.binned(values)
    assert len(centre_V) < threshold.BINS
    assert count_V.min() > 0
    found = threshold.expectation_maximisation(centre_V, count_V[None], np.array([start]), steps=300, common=common)
    np.testing.assert_allclose(found[0], fitted_by_value(values, start, steps=300, common=common), atol=1e-6)


def test_the_mixture_rejects_one_mode_a_tiny_component_and_empty_input() -> None:
    rng = np.random.default_rng(4)
    assert threshold.mixture(rng.normal(size=3_000)) is None
    assert threshold.mixture(-rng.gamma(4.0, size=3_000)) is None
    assert threshold.mixture(np.concatenate([rng.normal(-2, 0.4, 2), rng.normal(1, 0.4, 998)])) is None
    assert threshold.mixture(np.ones(50)) is None
    assert threshold.mixture(np.zeros(0)) is None


@pytest.mark.parametrize("share", [0.02, 0.1, 0.3, 0.5])
def test_two_modes_agrees_with_the_density(share: float) -> None:
    place = np.linspace(-4, 12, 4_001)
    for separation in (1.5, 1.9, 2.1, 2.5, 3.0, 3.5, 4.0, 5.0):
        low, high = np.exp(-(place**2) / 2), np.exp(-((place - separation) ** 2) / 2)
        density = share * low + (1 - share) * high
        peaks = int(((density[1:-1] > density[:-2]) & (density[1:-1] > density[2:])).sum())
        assert threshold.Mixture(0.0, separation, 1.0, share).two_modes == (peaks == 2), separation


def test_a_cut_without_two_modes_flags_few_rows() -> None:
    values = np.random.default_rng(5).normal(size=2_000)
    found = threshold.cut(values, most=0.1)
    assert found.method == "quantile"
    assert found.separation == 0
    assert (values < found.at).mean() == pytest.approx(threshold.QUANTILE, abs=0.001)
    few = np.concatenate([np.zeros(5), np.ones(95)])
    assert threshold.cut(few + 1e-4 * values[:100], most=0.1).method in ("otsu", "mixture")


def test_otsu_cuts_between_two_clusters() -> None:
    cut = threshold.otsu(np.array([0.0] * 10 + [1.0] * 30))
    assert 0.0 < cut <= 1.0


def test_quantised_search_has_high_recall_or_falls_back_to_exact_search() -> None:
    rng = np.random.default_rng(6)
    base = feature_space.unit_rows(rng.normal(size=(1_200, 32)).astype(np.float32))
    rows = feature_space.unit_rows(base[:300] + 0.1 * rng.normal(size=(300, 32)).astype(np.float32))
    exact, coded = neighbours.nearest(base, rows, 5), neighbours.nearest(base, rows, 5, products=0)
    assert (exact.recall, exact.method) == (1.0, "exact")
    assert coded.method.startswith("PQ16x4fs")
    assert coded.recall >= neighbours.LEAST_RECALL
    assert (coded.index[:, 0] == exact.index[:, 0]).mean() >= 0.97
    narrow = neighbours.nearest(base[:, :7].copy(), rows[:, :7].copy(), 5, products=0)
    assert narrow.method == "exact"


def test_searching_all_cells_equals_the_exact_search() -> None:
    rng = np.random.default_rng(7)
    base = feature_space.unit_rows(rng.normal(size=(200, 8)).astype(np.float32))
    centre = feature_space.unit_rows(rng.normal(size=(5, 8)).astype(np.float32))
    near = neighbours.nearest(centre, base, 5)
    exact = neighbours.nearest(base, base[:20], 4)
    asked = neighbours.Found(near.cosine[:20], near.index[:20], 1.0, "exact")
    found = neighbours.nearest_in_cells(base, near.index[:, 0], centre, base[:20], asked, 4)
    assert found.index.tolist() == exact.index.tolist()
    assert found.recall == 1.0
    first = neighbours.Found(near.cosine[:20, :1], near.index[:20, :1], 1.0, "exact")
    assert neighbours.nearest_in_cells(base, near.index[:, 0], centre, base[:20], first, 4).recall < 1.0


def test_neighbours_vote_without_the_row_itself_and_by_label_confidence() -> None:
    rows = feature_space.unit_rows(np.array([[1, 0], [1, 0.1], [1, 0.2], [0, 1]], dtype=np.float32))
    label = np.array([3, 1, 1, 2])
    found = margins.margins(rows, label, np.zeros((0, 2), np.float32), np.zeros(0, np.int64), most=0.1)
    asking = np.array([0])
    assert clean.neighbour_vote(rows, label, found, asking, count=2)[0].tolist() == [1]
    found.confidence[:] = [1, 0.1, 0.1, 1]
    found.other[:] = [0, 2, 2, 0]
    assert clean.neighbour_vote(rows, label, found, asking, count=2)[0].tolist() == [2]


def test_wrong_labels_are_found_relabelled_and_estimated() -> None:
    found = cleaning.setting(1_500, 150, kind="confusable", noise=0.2, seed=0)
    assert found["f1"] > found["oracle_f1"] - 0.04
    assert found["f1"] > found["one_round_f1"] > 0.9
    assert found["noise_after"] < 0.03
    assert found["kept"] > 0.95
    low, high = found["stage"]["wrong_labels_interval"]
    assert low < found["noise_before"] < high
    assert found["stage"]["prototype_recall"] == 1.0


def test_the_vote_in_cells_agrees_with_the_exact_one(monkeypatch: pytest.MonkeyPatch) -> None:
    data = noisy_labels.noisy_labels(1_500, 150, kind="confusable", noise=0.2, seed=1)
    exact = clean.judge(data.rows, data.label, *noisy_labels.NO_DOCUMENTS, policy=POLICY)
    monkeypatch.setattr(clean, "EXACT_VOTE", 0)
    cells = clean.judge(data.rows, data.label, *noisy_labels.NO_DOCUMENTS, policy=POLICY)
    assert 0.8 < cells.notes["neighbour_recall"] <= 1
    assert (exact.flagged == cells.flagged).mean() > 0.995


def test_correct_labels_and_random_ones_are_never_relabelled() -> None:
    data = noisy_labels.noisy_labels(1_500, 150, kind="uniform", noise=0.0, seed=0)
    label = np.random.default_rng(8).integers(0, 150, 1_500)
    for given in (data.label, label):
        found = clean.judge(data.rows, given, *noisy_labels.NO_DOCUMENTS, policy=POLICY)
        assert found.notes["relabelling"].startswith("refused")
        assert not found.relabel.any()
        assert found.notes["wrong_labels_interval"] is None
        assert found.drop.mean() <= threshold.QUANTILE + 0.001


def test_a_single_row_and_a_single_category_are_not_changed() -> None:
    row = feature_space.unit_rows(np.ones((1, 8), dtype=np.float32))
    for rows, label in ((row, np.zeros(1, np.int64)), (np.repeat(row, 20, axis=0), np.zeros(20, np.int64))):
        found = clean.judge(rows, label, *NONE, policy=POLICY)
        assert not found.flagged.any()
        assert np.isnan(found.margins.margin).all()


def test_f1_equals_a_case_worked_by_hand() -> None:
    flagged, wrong = np.array([True, True, False, False]), np.array([True, False, True, False])
    assert noisy_labels.f1(flagged, wrong) == 0.5
    # cut above the lowest: 1 of 1 flagged is wrong, of 2 wrong ones; above the third: 2 of 3 flagged
    score = np.array([0.1, 0.2, 0.3, np.nan])
    assert noisy_labels.best_f1(score, wrong) == pytest.approx(2 * 2 / (3 + 2))
    assert noisy_labels.best_f1(score, np.zeros(4, dtype=bool)) == 1.0
