"""Compare runs whose sums are taken in another order, step by step and relative to the values.

Two layouts of one computation add the same terms in another order, and training then multiplies that rounding from
step to step, by a factor that depends on the model and on the kernels of the processor. An absolute bound that holds
on one processor therefore fails on the next. Here the allowed gap is measured: the reference is run again with the
batch cut into more pieces (`reordered`), and at each step

    |ours - reference| <= TIMES_REORDERED * max(gap of the reordered runs up to this step, FLOOR * |reference|)

A curve that a wrong sum, factor or row has changed is beyond that by orders of magnitude: `test_same_run.py`.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from train.recipes.recipe import Recipe

FIGURES = ("loss", "grad_norm", "head_grad_norm")
TIMES_REORDERED = 10.0
# Relative. Float64 curves of the tiny recipe in other layouts are 1e-15 apart: sums of some thousand terms.
FLOOR = 1e-12
# Published weights are float64 rounded to float32: a last bit may fall on either side.
FLOOR_WEIGHTS = 2.0**-23
Curve = Mapping[str, np.ndarray]


def read_curve(run: Path, names: Sequence[str] = FIGURES) -> dict[str, np.ndarray]:
    """Figures of every step of a run, from its `train.jsonl`."""
    lines = [json.loads(line) for line in (run / "train.jsonl").read_text().splitlines()]
    return {name: np.array([line[name] for line in lines]) for name in names}


def reordered_recipe(recipe: Recipe, *, times: int = 2) -> Recipe:
    """The same computation with the rows of a step cut into `times` as many pieces, so summed in another order."""
    return recipe.with_changes({"image.gradient_accumulation": times * recipe.image.gradient_accumulation})


def allowed_gap(reference: np.ndarray, reordered: Sequence[np.ndarray], *, floor: float = FLOOR) -> np.ndarray:
    """Largest difference from `reference` that rounding explains, for each step."""
    gaps = [np.maximum.accumulate(np.abs(other - reference)) for other in reordered]
    limit: np.ndarray = TIMES_REORDERED * np.max([floor * np.abs(reference), *gaps], axis=0)
    return limit


def assert_same_curve(ours: Curve, reference: Curve, *, reordered: Sequence[Curve] = (), floor: float = FLOOR) -> None:
    """Every figure of `reference` is that of `ours` at every step, to the rounding that the reordered runs show."""
    for name, expected in reference.items():
        assert len(ours[name]) == len(expected), f"{name}: {len(ours[name])} and {len(expected)} steps"
        limit = allowed_gap(expected, [other[name] for other in reordered], floor=floor)
        beyond = np.flatnonzero(~(np.abs(ours[name] - expected) <= limit))  # not a number is beyond, too
        for step in beyond[:1]:
            raise AssertionError(
                f"{name} in step {step} is {ours[name][step]!r}, the reference has {expected[step]!r}: "
                f"a gap of {abs(ours[name][step] - expected[step]):.1e}, where rounding allows {limit[step]:.1e}"
            )


def assert_same_weights(
    ours: Mapping[str, np.ndarray],
    reference: Mapping[str, np.ndarray],
    *,
    reordered: Sequence[Mapping[str, np.ndarray]] = (),
    floor: float = FLOOR_WEIGHTS,
) -> None:
    """Every tensor of `reference` is that of `ours`, relative to its largest value and to the reordered runs' gap."""
    assert ours.keys() == reference.keys()
    for name, value in reference.items():
        expected = value.astype(np.float64)
        gaps = [np.abs(other[name] - expected).max() for other in reordered]
        limit = TIMES_REORDERED * max(floor * np.abs(expected).max(), *gaps, 0.0)
        gap = np.abs(ours[name] - expected).max()
        assert gap <= limit, f"{name}: a gap of {gap:.1e}, where rounding allows {limit:.1e}"


def assert_same_run(
    ours: Path,
    reference: Path,
    *,
    reordered: Sequence[Path],
    floor: float = FLOOR,
    files: Sequence[str] = ("hub/model.safetensors",),
) -> None:
    """Curves and published tensors of a run are those of the reference, to rounding."""
    curves = [read_curve(run) for run in reordered]
    assert_same_curve(read_curve(ours), read_curve(reference), reordered=curves, floor=floor)
    for file in files:
        mine, theirs, *others = (load_file(run / file) for run in (ours, reference, *reordered))
        assert_same_weights(mine, theirs, reordered=others)
