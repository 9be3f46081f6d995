"""Curves that differ by rounding pass as the same run; those of a wrong sum, factor or row do not."""

from pathlib import Path

import numpy as np
import pytest
from accelerate.state import AcceleratorState

from tests.support.curves import (
    FIGURES,
    FLOOR,
    TIMES_REORDERED,
    Curve,
    allowed_gap,
    assert_same_curve,
    assert_same_weights,
    read_curve,
)
from tests.support.synthetic_run import small_recipe, train_small

STEPS = 12


@pytest.fixture(autouse=True)
def _fresh_state() -> None:
    AcceleratorState._reset_state(reset_partial_state=True)


def run(folder: Path, changes: dict[str, object]) -> dict[str, np.ndarray]:
    train_small(small_recipe({"image.steps": STEPS, **changes}), folder)
    return read_curve(folder)


@pytest.fixture(scope="module")
def curves(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Curve]:
    """`whole`, and two runs that cut its steps into pieces."""
    AcceleratorState._reset_state(reset_partial_state=True)
    base = tmp_path_factory.mktemp("curves")
    pieces = {"whole": 1, "two": 2, "four": 4}
    return {name: run(base / name, {"image.gradient_accumulation": count}) for name, count in pieces.items()}


def changed(curve: Curve, name: str, value: np.ndarray) -> Curve:
    return {**curve, name: value}


def assert_refused(ours: Curve, curves: dict[str, Curve], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        assert_same_curve(ours, curves["whole"], reordered=[curves["two"]])


def test_a_run_summed_in_another_order_is_the_same_run(curves: dict[str, Curve]) -> None:
    assert any((curves["four"][name] != curves["whole"][name]).any() for name in FIGURES)
    assert_same_curve(curves["four"], curves["whole"], reordered=[curves["two"]])


def test_a_learning_rate_that_is_off_by_a_millionth_is_another_run(curves: dict[str, Curve], tmp_path: Path) -> None:
    rate = small_recipe().head.learning_rate * (1 + 1e-6)
    assert_refused(run(tmp_path, {"head.learning_rate": rate}), curves, "loss in step 1 is")


def test_a_gradient_that_is_off_by_a_millionth_in_one_step_is_another_run(curves: dict[str, Curve]) -> None:
    for step in (0, STEPS - 1):
        factor = np.where(np.arange(STEPS) == step, 1 + 1e-6, 1)
        for name in FIGURES:
            wrong = changed(curves["whole"], name, curves["whole"][name] * factor)
            assert_refused(
                wrong, curves, rf"{name} in step {step} is .*a gap of .*e-0[567], where rounding allows .*e-1"
            )


def test_the_loss_of_one_rank_alone_is_another_run(curves: dict[str, Curve], tmp_path: Path) -> None:
    """A missing sum over ranks leaves the loss of half the rows; a missing factor scales the gradient."""
    half = run(tmp_path, {"image.queries_per_step": small_recipe().image.queries_per_step // 2})
    assert_refused(half, curves, "loss in step 0")
    whole = curves["whole"]
    assert_refused(changed(whole, "grad_norm", whole["grad_norm"] / 2), curves, "grad_norm in step 0")
    assert_refused(changed(whole, "head_grad_norm", whole["head_grad_norm"] * 2), curves, "head_grad_norm in step 0")


def test_a_missing_step_and_a_value_that_is_no_number_are_refused(curves: dict[str, Curve]) -> None:
    whole = curves["whole"]
    assert_refused(changed(whole, "loss", whole["loss"][:-1]), curves, "loss: 11 and 12 steps")
    late = np.where(np.arange(STEPS) == 7, np.nan, whole["loss"])
    assert_refused(changed(whole, "loss", late), curves, "loss in step 7 is .*nan")


def test_the_allowed_gap_follows_the_value_and_grows_with_the_rounding_that_was_measured() -> None:
    reference, twin = np.array([400.0, 1.0, 400.0, 400.0]), np.array([400.0, 1.0, 400.0 + 4e-8, 400.0])
    plain = TIMES_REORDERED * FLOOR
    np.testing.assert_allclose(allowed_gap(reference, []), plain * reference)
    np.testing.assert_allclose(allowed_gap(reference, [twin]), [400 * plain, plain, 4e-7, 4e-7], rtol=1e-6)
    # The case that an absolute bound of 1e-8 refused: 5.2e-8 of 400 where a reordered sum is 4e-8 away.
    assert_same_curve({"x": reference + [0, 0, 5.2e-8, 0]}, {"x": reference}, reordered=[{"x": twin}])
    with pytest.raises(AssertionError, match="x in step 1"):
        assert_same_curve({"x": reference + [0, 5.2e-8, 0, 0]}, {"x": reference}, reordered=[{"x": twin}])


def single(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float32)


def test_weights_are_compared_tensor_by_tensor_with_the_largest_of_each() -> None:
    large, small = single(300, -1), single(1e-3, 2e-3)
    reference = {"large": large, "small": small}
    assert_same_weights({**reference, "large": large + single(1e-4, 0)}, reference)
    for name, value in (("small", small + single(1e-7, 1e-7)), ("large", large + single(1e-2, 1e-2))):
        with pytest.raises(AssertionError, match=f"{name}: a gap of"):
            assert_same_weights({**reference, name: value}, reference)
    with pytest.raises(AssertionError):
        assert_same_weights({"large": large}, reference)
    twin = {**reference, "small": small + single(1e-7, 1e-7)}
    assert_same_weights({**reference, "small": small + single(5e-7, 5e-7)}, reference, reordered=[twin])
