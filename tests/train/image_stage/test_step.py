"""One optimiser step is the same computation however it is cut, and it learns."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support.curves import FLOOR, assert_same_curve, assert_same_weights, read_curve
from tests.support.synthetic_run import TRAINED, small_cache, small_model, small_recipe, train_small
from train.image_stage.loop import ImageResult, check_layout
from train.image_stage.schedule import learning_rate_factor


def figures(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]


def losses(folder: Path) -> np.ndarray:
    return np.array([line["loss"] for line in figures(folder)])


def gap(ours: ImageResult, theirs: ImageResult) -> float:
    pairs = [(ours.weights[name], theirs.weights[name]) for name in ours.weights]
    return max(float((a.double() - b.double()).abs().max()) for a, b in pairs)


@pytest.mark.parametrize("rate", [1.0, 0.2])
def test_any_accumulation_of_the_same_rows_gives_the_same_run(tmp_path: Path, rate: float) -> None:
    runs = {
        pieces: train_small(
            small_recipe({"image.gradient_accumulation": pieces, "head.sample_rate": rate}), tmp_path / str(pieces)
        )
        for pieces in (1, 2, 4, 8)
    }
    ours = {pieces: read_curve(tmp_path / str(pieces)) for pieces in runs}
    weights = {pieces: {name: value.numpy() for name, value in run.weights.items()} for pieces, run in runs.items()}
    for pieces in (2, 4, 8):
        # No reordered run beside: all are that. In float64 this small model does not magnify rounding in 12 steps.
        assert_same_curve(ours[pieces], ours[1])
        assert_same_weights(weights[pieces], weights[1], floor=FLOOR)


def test_the_steps_do_not_agree_by_accident(tmp_path: Path) -> None:
    first = train_small(small_recipe(), tmp_path / "a")
    assert gap(first, train_small(small_recipe({"image.embed_dropout": 0.0}), tmp_path / "b")) > 1e-3
    assert gap(first, train_small(small_recipe(), tmp_path / "c", seed=1)) > 1e-3


def test_the_loss_falls_and_every_trained_part_moves(tmp_path: Path) -> None:
    recipe = small_recipe({"image.steps": 40, "image.embed_dropout": 0.0})
    result = train_small(recipe, tmp_path)
    curve = losses(tmp_path)
    assert curve[-5:].mean() < 0.5 * curve[:5].mean()
    start = small_model(recipe)
    moved = {
        name
        for name, value in start.vision_model.named_parameters()
        if not torch.equal(value.double(), result.weights[f"vision.{name}"])
    }
    assert moved == {name for name, _ in start.vision_model.named_parameters() if name.startswith(("stages.1", "head"))}
    assert result.class_weights.shape == (len(TRAINED), 6)
    torch.testing.assert_close(result.class_weights.norm(dim=1), torch.ones(len(TRAINED)))


def test_the_journal_has_one_line_a_step_with_both_norms(tmp_path: Path) -> None:
    train_small(small_recipe(), tmp_path)
    lines = figures(tmp_path)
    assert [line["step"] for line in lines] == list(range(12))
    names = {"step", "loss", "grad_norm", "head_grad_norm", "learning_rate", "samples_per_second"}
    assert all(set(line) == names and min(line["grad_norm"], line["head_grad_norm"]) > 0 for line in lines)


def test_warm_up_is_linear_and_the_cosine_ends_at_zero() -> None:
    factors = [learning_rate_factor(step, steps=10, warmup_steps=4) for step in range(11)]
    assert factors[:4] == [0.25, 0.5, 0.75, 1.0]
    assert factors[7] == pytest.approx(0.5)
    assert factors[10] == pytest.approx(0.0)


@pytest.mark.parametrize(
    ("kind", "said"),
    [("feature", "an embedding is not finite at step"), ("scale", "the (loss|gradient norm of the encoders) is")],
)
def test_a_diverged_run_stops_with_its_step_and_the_remedy(tmp_path: Path, kind: str, said: str) -> None:
    cache, recipe = small_cache(), small_recipe()
    if kind == "feature":
        cache.query_inputs[4, 1] = np.nan  # an augmented view: the statistics at start see clean ones only
    else:
        recipe = small_recipe({"head.loss.scale": 1e308})
    with pytest.raises(ValueError, match=rf"{said}.*lower image.encoder_learning_rate"):
        train_small(recipe, tmp_path, cache=cache)


def test_a_step_too_small_for_the_layout_is_refused_before_anything_runs() -> None:
    with pytest.raises(ValueError, match="a step of 16 rows cannot be cut into 20 pieces"):
        check_layout(small_recipe({"image.gradient_accumulation": 10}), processes=2)
