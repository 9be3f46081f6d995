"""How strongly text counts: as strongly as the recipe allows, unless held-out categories speak against it.

Letters: C held-out categories, F figures.
"""

import numpy as np

SURE = 1.96
MOST_Z = 99.0


def figure_means(values_CF: np.ndarray) -> list[float]:
    """Mean over categories of every figure; 0 without categories."""
    return [float(value) for value in values_CF.sum(0) / max(len(values_CF), 1)]


def largest_harmless(found: dict[float, np.ndarray]) -> tuple[float, dict[float, float]]:
    """The largest strength of which no figure surely loses against the weakest, and z of the worst figure of each.

    z = mean over categories of the paired difference / its standard error; sure is z < -`SURE`, the 95% interval wholly
    below zero. A hundred categories tell differences of two or three points, so picking the best of several strengths
    is mostly chance, while the sum of what was seen speaks for the largest (docs/log.md; ours). Where nothing is held
    out, nothing can speak against a strength and the weakest is kept.

    Args:
        found: strength -> (C, 3) figures by category.
    """
    weakest = min(found)
    surest = {strength: least_z(values_CF - found[weakest]) for strength, values_CF in found.items()}
    if not len(found[weakest]):
        return weakest, surest
    return max(strength for strength, z in surest.items() if z >= -SURE), surest


def least_z(difference_CF: np.ndarray) -> float:
    """The least of mean / standard error over the figures (columns); a figure that never differs has 0.

    >>> least_z(np.array([[0.0, 0.5], [0.0, 0.0], [0.0, 0.5], [0.0, 0.0]]))
    0.0
    """
    if not len(difference_CF):
        return 0.0
    mean_F = difference_CF.mean(0)
    error_F = difference_CF.std(0) / np.sqrt(max(len(difference_CF) - 1, 1))
    with np.errstate(divide="ignore", invalid="ignore"):
        z_F = np.where(mean_F == 0, 0.0, mean_F / error_F)
    return round(float(np.clip(z_F, -MOST_Z, MOST_Z).min()), 2)
