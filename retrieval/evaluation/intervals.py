"""Bootstrap confidence intervals over categories.

Queries of one category (those that share the same relevant documents) are right or wrong together, so resampling single
queries would give intervals that are too narrow: whole categories are drawn with replacement (cluster bootstrap;
Davison and Hinkley, Bootstrap Methods and their Application, 1997, section 3.8).

Letters: Q queries, G categories, M metrics, B bootstrap draws.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

DRAWS = 2000
LEVEL = 0.95


def bootstrap_means(
    values: ArrayLike, category: ArrayLike, *, draws: int = DRAWS, seed: int = 0
) -> NDArray[np.float64]:
    """Means over queries in `draws` resamples of the categories.

    Args:
        values: (Q, M) one value per query and metric.
        category: (Q,) any integer label of the query's category.
        draws: number of resamples B.
        seed: the same seed gives the same resamples for the same categories, so that two systems can be paired.

    Returns:
        (B, M) means; each is sum of values / number of queries of the categories drawn.

    Raises:
        ValueError: no query, or the two lengths differ.
    """
    values_QM = np.asarray(values, dtype=np.float64)
    label_Q = np.asarray(category)
    if values_QM.ndim != 2 or len(values_QM) == 0 or label_Q.shape != (len(values_QM),):
        raise ValueError(f"need (Q, M) values and (Q,) categories with Q >= 1, got {values_QM.shape}, {label_Q.shape}")
    _, index_Q, size_G = np.unique(label_Q, return_inverse=True, return_counts=True)
    groups = len(size_G)
    sum_GM = np.zeros((groups, values_QM.shape[1]))
    np.add.at(sum_GM, index_Q, values_QM)
    times_BG = np.random.default_rng(seed).multinomial(groups, np.full(groups, 1.0 / groups), size=draws)
    return (times_BG @ sum_GM) / (times_BG @ size_G)[:, None]


def intervals(
    values: ArrayLike, category: ArrayLike, *, draws: int = DRAWS, seed: int = 0, level: float = LEVEL
) -> list[tuple[float, float]]:
    """The percentile interval of every column of `values`, 95% by default; the rest as in bootstrap_means."""
    means_BM = bootstrap_means(values, category, draws=draws, seed=seed)
    tail = (1.0 - level) / 2.0
    low_M, high_M = np.quantile(means_BM, [tail, 1.0 - tail], axis=0)
    return [(float(low), float(high)) for low, high in zip(low_M, high_M, strict=True)]


def paired_difference(
    first: ArrayLike,
    second: ArrayLike,
    category: ArrayLike,
    *,
    draws: int = DRAWS,
    seed: int = 0,
    level: float = LEVEL,
) -> tuple[float, float, float]:
    """(mean, low, high) of first - second for two systems on the same queries, paired over categories.

    Args:
        first: (Q,) values of one system.
        second: (Q,) values of the other, the same queries in the same order.
        category: (Q,) label of the query's category.
        draws: number of resamples.
        seed: of the resamples.
        level: of the two-sided interval.

    Raises:
        ValueError: the systems answered different numbers of queries, or none.
    """
    first_Q, second_Q = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if first_Q.shape != second_Q.shape:
        raise ValueError(f"paired systems need the same queries, got {first_Q.shape} and {second_Q.shape} values")
    difference_Q1 = (first_Q - second_Q)[:, None]
    [(low, high)] = intervals(difference_Q1, category, draws=draws, seed=seed, level=level)
    return float(difference_Q1.mean()), low, high
