"""Synthetic rows in small categories with wrong labels, and F1 scores.

Categories come in families of 8. A centre is sqrt(.5) times its family's direction plus sqrt(.5) times its own, so two
centres of a family have cosine .5. A row is sqrt(.45) times its category's centre plus Gaussian noise in 64 dimensions,
scaled to length 1: two rows of a category have cosine .45. Category sizes are log-normal (deviation .6), at least 2.
A share of the labels is wrong: "uniform" draws another category from all of them, "confusable" from the other seven of
the family.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from data_governance.grouping import feature_space

WIDTH = 64
FAMILY = 8
KINSHIP = 0.5
RHO = 0.45
SIZE_DEVIATION = 0.6
# The clean stage also takes documents (features and labels): this data set has none.
NO_DOCUMENTS = np.zeros((0, WIDTH), dtype=np.float32), np.zeros(0, dtype=np.int64)
# `describe` looks up the nearest other centre of at most so many centres.
MOST_DESCRIBED = 2_000


@dataclass(frozen=True)
class NoisyLabels:
    """Rows (N, W) of length 1, their labels (N,), true categories (N,) and true centres (K, W)."""

    rows: np.ndarray
    label: np.ndarray
    truth: np.ndarray
    centre: np.ndarray

    @property
    def wrong(self) -> np.ndarray:
        """(N,) bool: the label is not the true category."""
        return np.asarray(self.label != self.truth)


def noisy_labels(rows: int, categories: int, *, kind: str, noise: float, seed: int) -> NoisyLabels:
    """Draw the data set of the module's docstring.

    Args:
        kind: "uniform" or "confusable". noise: probability that a label is wrong.

    Raises:
        ValueError: when there are fewer than two rows a category, or fewer than two categories.
    """
    if rows < 2 * categories or categories < 2:
        raise ValueError(f"{rows} rows, {categories} categories: at least two of each, and two rows a category.")
    rng = np.random.default_rng(seed)
    family = feature_space.unit_rows(rng.standard_normal((categories // FAMILY + 1, WIDTH), dtype=np.float32))
    own = feature_space.unit_rows(rng.standard_normal((categories, WIDTH), dtype=np.float32))
    group = np.arange(categories) // FAMILY
    centre = feature_space.unit_rows(np.float32(KINSHIP**0.5) * family[group] + np.float32((1 - KINSHIP) ** 0.5) * own)
    share = rng.lognormal(0, SIZE_DEVIATION, categories)
    more = rng.choice(categories, rows - 2 * categories, p=share / share.sum())
    truth = np.concatenate([np.repeat(np.arange(categories), 2), more])
    vectors = rng.standard_normal((rows, WIDTH), dtype=np.float32)
    vectors *= np.float32(((1 - RHO) / WIDTH) ** 0.5)
    vectors += np.float32(RHO**0.5) * centre[truth]
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    chosen = rng.random(rows) < noise
    label = truth.copy()
    label[chosen] = other_category(truth[chosen], categories, kind, rng)
    return NoisyLabels(vectors, label, truth, centre)


def other_category(truth: np.ndarray, categories: int, kind: str, rng: np.random.Generator) -> np.ndarray:
    """Draw a category other than the true one, from all or from its family."""
    first, width = np.zeros(len(truth), dtype=np.int64), np.full(len(truth), categories)
    if kind == "confusable":
        first = truth // FAMILY * FAMILY
        # The last family may be shorter; one of a single category also takes the category before it.
        first = np.where(categories - first < 2, categories - 2, first)
        width = np.minimum(FAMILY, categories - first)
    return np.asarray(first + (truth - first + 1 + (rng.random(len(truth)) * (width - 1)).astype(np.int64)) % width)


def describe(data: NoisyLabels) -> dict[str, Any]:
    """Statistics of a data set.

    Returns:
        Numbers of rows and categories, width, share of wrong labels, mean cosines (between rows of one category, of a
        row to its own centre, of a centre to the nearest other one), quantiles of the category sizes and the largest.
    """
    size = np.bincount(data.truth, minlength=len(data.centre))
    total = np.zeros_like(data.centre, dtype=np.float64)
    np.add.at(total, data.truth, data.rows)
    pairs = np.maximum(size * (size - 1), 1)
    # |sum of n unit vectors|^2 = n + sum of the cosines of all ordered pairs.
    within = ((total**2).sum(axis=1) - size) / pairs
    chosen = np.linspace(0, len(data.centre) - 1, min(len(data.centre), MOST_DESCRIBED)).astype(np.int64)
    cosine = data.centre[chosen] @ data.centre.T
    cosine[np.arange(len(chosen)), chosen] = -np.inf
    low, middle, high = (int(value) for value in np.quantile(size, [0.05, 0.5, 0.95]))
    return {
        "rows": len(data.rows),
        "categories": len(data.centre),
        "width": data.rows.shape[1],
        "cosine_within": round(float(within[size > 1].mean()), 4),
        "cosine_to_own_centre": round(float((data.rows * data.centre[data.truth]).sum(axis=1).mean()), 4),
        "cosine_to_nearest_other_centre": round(float(cosine.max(axis=1).mean()), 4),
        "sizes_5_50_95": [low, middle, high],
        "largest": int(size.max()),
        "wrong": round(float(data.wrong.mean()), 4),
    }


def f1(flagged: np.ndarray, wrong: np.ndarray) -> float:
    """2 |flagged and wrong| / (|flagged| + |wrong|); 1 when nothing is flagged and nothing is wrong."""
    total = int(flagged.sum()) + int(wrong.sum())
    return 2 * int((flagged & wrong).sum()) / total if total else 1.0


def best_f1(score: np.ndarray, wrong: np.ndarray) -> float:
    """Largest F1 of `score < t` over all t; a row with a score that is not finite is never flagged."""
    order = np.argsort(np.where(np.isfinite(score), score, np.inf), kind="stable")[: int(np.isfinite(score).sum())]
    caught = np.cumsum(wrong[order])
    total = np.arange(1, len(order) + 1) + int(wrong.sum())
    return float((2 * caught / total).max(initial=0.0)) if wrong.any() else 1.0
