"""Paired cluster bootstrap over categories, and Holm's correction for many slices.

Two systems answer the same queries, so differences are taken query by query. Queries of one category are correlated,
and so is one query under several training seeds: whole categories are resampled with replacement, with all their
queries of all seeds (cluster bootstrap; Davison and Hinkley, Bootstrap Methods and their Application, 1997, section
3.8). Splits are strata: each is resampled from its own categories, as many as it has.

Legend: Q queries pooled over all experiments, B resamples, M metrics, G categories.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from benchmarks.immr.protocol.scores import METRICS, Scores

DRAWS = 2000
SLICE_DRAWS = 10_000  # corrected intervals of many slices need accurate tails
LEVEL = 0.95
DECIMALS = 12  # rounds sums that cancel to exactly zero
MIN_EVALUATIONS = 500  # slices with fewer pooled evaluations are shown but not tested

ScoresOfSystem = Scores | Sequence[Scores]


def bootstrap_differences(
    difference: ArrayLike, category: Sequence[str], split: ArrayLike, *, draws: int = DRAWS, seed: int = 0
) -> NDArray[np.float64]:
    """Mean differences in `draws` resamples of the categories within each split.

    mean_b = sum_s sum_g n_bsg (sum of the differences of category g of split s) / sum_s sum_g n_bsg (its queries),
    n_bs ~ Multinomial(G_s; 1/G_s, ..., 1/G_s) with G_s categories in split s.

    Args:
        difference: (Q, M) first system - second.
        category: (Q,) category of each query; the same name in two splits is two categories.
        split: (Q,) split of each query.
        draws: number of resamples B.
        seed: of the resamples.

    Returns:
        (B, M).

    Raises:
        ValueError: lengths differ, or no query.
    """
    difference_QM, split_Q = np.asarray(difference, dtype=np.float64), np.asarray(split)
    if difference_QM.ndim != 2 or not len(difference_QM) == len(category) == len(split_Q) > 0:
        raise ValueError(
            f"need (Q, M) differences with a category and a split each, Q >= 1, got {difference_QM.shape}, "
            f"{len(category)} and {len(split_Q)}"
        )
    generator = np.random.default_rng(seed)
    total_BM = np.zeros((draws, difference_QM.shape[1]))
    count_B = np.zeros(draws)
    name_Q = np.asarray(list(category), dtype=str)
    for one in np.unique(split_Q):
        rows = split_Q == one
        _, index, size_G = np.unique(name_Q[rows], return_inverse=True, return_counts=True)
        sum_GM = np.zeros((len(size_G), difference_QM.shape[1]))
        np.add.at(sum_GM, index, difference_QM[rows])
        times_BG = generator.multinomial(len(size_G), np.full(len(size_G), 1.0 / len(size_G)), size=draws)
        total_BM += times_BG @ sum_GM
        count_B += times_BG @ size_G
    return total_BM / count_B[:, None]


def p_value(means_B: ArrayLike) -> float:
    """Two-sided bootstrap p-value of "no difference": 2 min(P(mean <= 0), P(mean >= 0)).

    One is added to the counts and to the number of resamples (Davison and Hinkley, section 4.2), so that the value is
    at least 2 / (B + 1).
    """
    mean_B = np.round(np.asarray(means_B, dtype=np.float64), DECIMALS)
    tail = min(np.count_nonzero(mean_B <= 0), np.count_nonzero(mean_B >= 0))
    return float(min(1.0, 2.0 * (tail + 1) / (mean_B.size + 1)))


def paired(
    first: ScoresOfSystem, second: ScoresOfSystem, *, draws: int = DRAWS, seed: int = 0, level: float = LEVEL
) -> dict[str, dict[str, float]]:
    """The difference first - second in every metric, paired by query.

    Args:
        first: one Scores, or one for each (split, seed) experiment.
        second: likewise of the other system, with the same queries in the same order.
        draws: resamples.
        seed: of the resamples.
        level: of the interval.

    Returns:
        {metric: {difference, low, high, p}}: the mean over all queries of all experiments, its percentile interval and
        the two-sided p-value.

    Raises:
        ValueError: the experiments do not pair: other numbers, other queries, other splits.
    """
    difference_QM, category, split_Q = _pairs(first, second)
    means_BM = bootstrap_differences(difference_QM, category, split_Q, draws=draws, seed=seed)
    tail = (1.0 - level) / 2.0
    low_M, high_M = np.quantile(means_BM, [tail, 1.0 - tail], axis=0)
    return {
        name: {
            "difference": float(difference_QM[:, column].mean()),
            "low": float(low_M[column]),
            "high": float(high_M[column]),
            "p": p_value(means_BM[:, column]),
        }
        for column, name in enumerate(METRICS)
    }


def _pairs(first: ScoresOfSystem, second: ScoresOfSystem) -> tuple[NDArray[np.float64], list[str], NDArray[np.int64]]:
    ones = [first] if isinstance(first, Scores) else list(first)
    others = [second] if isinstance(second, Scores) else list(second)
    if len(ones) != len(others) or not ones:
        raise ValueError(f"experiments are paired: got {len(ones)} of one system and {len(others)} of another")
    for one, other in zip(ones, others, strict=True):
        if one.query_ids != other.query_ids or one.split != other.split:
            raise ValueError(
                f"two experiments on splits {one.split} and {other.split} have different queries ({len(one.query_ids)} "
                f"and {len(other.query_ids)}): evaluate both on one task and one gallery, in the same order"
            )
    difference_QM = np.concatenate([a.values() - b.values() for a, b in zip(ones, others, strict=True)])
    category = [name for one in ones for name in one.category]
    return difference_QM, category, np.concatenate([np.full(len(one.query_ids), one.split) for one in ones])


def holm(p_values: Iterable[float]) -> list[float]:
    """Holm's adjusted p-values, in the order of the arguments; reject where they are at most alpha.

    With p sorted upwards, adjusted_i = max_{j <= i} min(1, (m - j + 1) p_j), j from 1 (Holm, Scandinavian Journal of
    Statistics 6, 1979).

    Raises:
        ValueError: a value outside 0..1.
    """
    values = [float(p) for p in p_values]
    if any(not 0.0 <= p <= 1.0 for p in values):
        raise ValueError(f"p-values must be in 0..1, got {values}")
    adjusted, floor = [0.0] * len(values), 0.0
    for rank, row in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        floor = max(floor, min(1.0, (len(values) - rank) * values[row]))
        adjusted[row] = floor
    return adjusted


def paired_slices(
    first: Mapping[str, Sequence[Scores]],
    second: Mapping[str, Sequence[Scores]],
    *,
    metric: str = "recall_at_10",
    draws: int = SLICE_DRAWS,
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """Compare two systems on many slices, with Holm's correction over the large enough ones.

    Args:
        first: {slice: its Scores of every experiment}, from slices().
        second: likewise of the other system.
        metric: one of METRICS.
        draws: resamples.
        seed: of the resamples.

    Returns:
        {slice: {difference, low, high, p, evaluations, judged, p_holm, low_holm, high_holm}}. `judged`: it has at least
        MIN_EVALUATIONS; otherwise the last three are None. The corrected interval of the slice with the i-th smallest p
        of m has level 1 - 0.05 / (m - i + 1): Holm's step as an interval.

    Raises:
        ValueError: the two systems have different slices, or their experiments do not pair.
    """
    if set(first) != set(second):
        raise ValueError(f"slices differ: {sorted(set(first) ^ set(second))}")
    found: dict[str, dict[str, Any]] = {}
    for name in first:
        row: dict[str, Any] = dict(paired(first[name], second[name], draws=draws, seed=seed)[metric])
        row["evaluations"] = sum(len(one.query_ids) for one in first[name])
        row["judged"] = row["evaluations"] >= MIN_EVALUATIONS
        found[name] = row | {"p_holm": None, "low_holm": None, "high_holm": None}
    tested = sorted((name for name in found if found[name]["judged"]), key=lambda name: found[name]["p"])
    for rank, (name, p) in enumerate(zip(tested, holm(found[n]["p"] for n in tested), strict=True)):
        level = 1.0 - (1.0 - LEVEL) / (len(tested) - rank)
        wide = paired(first[name], second[name], draws=draws, seed=seed, level=level)[metric]
        found[name] |= {"p_holm": p, "low_holm": wide["low"], "high_holm": wide["high"]}
    return found
