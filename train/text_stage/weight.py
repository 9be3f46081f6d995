"""Chooses the text weight on queries of held-out categories (selection/held_out.py).

Letters: C held-out categories, F metrics.
"""

import numpy as np

SIGNIFICANT_Z = 1.96
MOST_Z = 99.0


def largest_harmless(found: dict[float, np.ndarray]) -> tuple[float, dict[float, float]]:
    """Largest text weight whose validation metrics are not significantly worse than those of the smallest weight.

    z = mean over categories of the paired difference / its standard error; significant is z < -`SIGNIFICANT_Z`, where
    the 95% interval lies below zero. A hundred categories resolve differences of two or three points only, so picking
    the best of several weights is mostly chance, while the evidence of all trials favours the largest (docs/log.md;
    ours). Without held-out queries the smallest weight is kept.

    Args:
        found: text weight -> (C, F) metrics by category.

    Returns:
        The chosen weight, and z of the worst metric of each weight.
    """
    smallest = min(found)
    worst_z = {weight: least_z(values_CF - found[smallest]) for weight, values_CF in found.items()}
    if not len(found[smallest]):
        return smallest, worst_z
    return max(weight for weight, z in worst_z.items() if z >= -SIGNIFICANT_Z), worst_z


def least_z(difference_CF: np.ndarray) -> float:
    """The least of mean / standard error over the metrics (columns); a metric that never differs has 0.

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
