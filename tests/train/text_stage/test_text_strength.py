"""The text weight: the largest whose validation metrics are not significantly worse."""

import numpy as np
import pytest

from train.selection.held_out import metric_means
from train.text_stage.weight import SIGNIFICANT_Z, largest_harmless, least_z


def test_z_is_the_mean_paired_difference_over_its_standard_error_of_the_worst_figure() -> None:
    rng = np.random.default_rng(0)
    difference = rng.normal(0.2, 1.0, (50, 3))
    slow = [column.mean() / (column.std(ddof=1) / np.sqrt(50)) for column in difference.T]
    assert least_z(difference) == pytest.approx(min(slow), abs=0.005)
    assert least_z(np.zeros((4, 3))) == least_z(np.zeros((0, 3))) == 0.0
    assert least_z(np.full((4, 3), -0.1)) == -99.0  # every category loses the same: nothing is surer


def found(*gains: float, categories: int = 100, spread: float = 0.2) -> dict[float, np.ndarray]:
    """Strengths 0, .2, .4, ...: all figures of the first are 0, those of the next differ by the gains on average."""
    swing = np.where(np.arange(categories) % 2, spread, -spread)
    table = {0.0: np.zeros((categories, 3))}
    for number, gain in enumerate(gains, start=1):
        table[round(0.2 * number, 1)] = np.repeat((gain + swing)[:, None], 3, axis=1)
    return table


def test_the_largest_strength_is_taken_unless_a_figure_surely_loses() -> None:
    # Standard error .2 / sqrt(99) = .0201: a loss of .039 is 1.94 of them, one of .041 is 2.04.
    assert largest_harmless(found(0.05, 0.01))[0] == 0.4
    assert largest_harmless(found(0.05, -0.039))[0] == 0.4
    strength, z = largest_harmless(found(0.05, -0.041))
    assert (strength, z[0.0]) == (0.2, 0.0)
    assert z[0.4] < -SIGNIFICANT_Z < z[0.2]
    assert largest_harmless(found(-0.1, -0.1))[0] == 0.0


def test_one_figure_that_surely_loses_is_enough() -> None:
    table = found(0.05, 0.05)
    table[0.4][:, 1] -= 0.2
    assert largest_harmless(table)[0] == 0.2


def test_the_order_of_the_strengths_does_not_matter_and_none_may_be_missing() -> None:
    table = found(0.05, 0.05)
    assert largest_harmless({key: table[key] for key in (0.4, 0.0, 0.2)})[0] == 0.4
    assert largest_harmless({key: table[key] for key in (0.2, 0.4)})[0] == 0.4


def test_without_categories_the_weakest_strength_and_zeros() -> None:
    nothing = {strength: np.zeros((0, 3)) for strength in (0.6, 0.2, 0.4)}
    assert largest_harmless(nothing) == (0.2, {0.6: 0.0, 0.2: 0.0, 0.4: 0.0})
    assert metric_means(nothing[0.2]) == [0.0, 0.0, 0.0]
    assert metric_means(np.array([[1.0, 0.0, 0.5], [0.0, 0.0, 1.0]])) == [0.5, 0.0, 0.75]
