"""The weight average equals its definition, survives a resume, and does not change training."""

from pathlib import Path

import pytest
import torch
from torch import nn

from tests.support.synthetic_run import small_recipe, train_small
from train.encoders.ema import WeightAverage


def by_definition(weights: list[torch.Tensor], decay: float) -> torch.Tensor:
    """sum_i d^(t - i) (1 - d) w_i / (1 - d^t), term by term."""
    count = len(weights)
    terms = [decay ** (count - 1 - place) * (1 - decay) * value for place, value in enumerate(weights)]
    return torch.stack(terms).sum(0) / (1 - decay**count)


def test_recursion_equals_the_definition() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(3, 2).double()
    layer.bias.requires_grad_(False)
    average, seen = WeightAverage(layer, decay=0.8), []
    assert set(average.state()) == {"weight"}
    for step in range(6):
        with torch.no_grad():
            layer.weight.normal_()
        average.update(step)
        seen.append(layer.weight.detach().clone())
        torch.testing.assert_close(average.gathered()["weight"], by_definition(seen, 0.8), rtol=1e-12, atol=1e-12)


def test_average_without_decay_is_the_last_step_and_before_any_step_the_start() -> None:
    layer = nn.Linear(3, 2)
    average = WeightAverage(layer, decay=0.0)
    assert torch.equal(average.gathered()["weight"], layer.weight)
    for step in range(3):
        with torch.no_grad():
            layer.weight.normal_()
        average.update(step)
    assert torch.equal(average.gathered()["weight"], layer.weight)


def test_encoders_use_the_average_inside_the_block_and_their_own_weights_after() -> None:
    layer = nn.Linear(3, 2)
    average = WeightAverage(layer, decay=0.5)
    before, kept = layer.weight.detach().clone(), average.gathered()["weight"]
    with torch.no_grad():
        layer.weight.add_(1)
    inside = []

    def fail() -> None:
        with average.in_place():
            inside.append(layer.weight.detach().clone())
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert torch.equal(inside[0], before)
    assert torch.equal(layer.weight, before + 1)
    assert torch.equal(average.gathered()["weight"], kept)


def test_run_returns_the_average_and_trains_as_without_it(tmp_path: Path) -> None:
    steps = [train_small(small_recipe(), tmp_path / str(count), max_steps=count) for count in (1, 2, 3)]
    averaged = train_small(small_recipe({"image.ema_decay": 0.7}), tmp_path / "averaged", max_steps=3)
    assert torch.equal(averaged.class_weights, steps[-1].class_weights)
    for name in ("vision.stages.1.0.expand.conv.weight", "image_head.projection.weight"):
        expected = by_definition([found.weights[name] for found in steps], 0.7)
        torch.testing.assert_close(averaged.weights[name], expected, rtol=1e-12, atol=1e-12)
        assert not torch.equal(averaged.weights[name], steps[-1].weights[name])
    frozen = "vision.stages.0.0.project.conv.weight"
    assert torch.equal(averaged.weights[frozen], steps[0].weights[frozen])


def test_resumed_average_is_bit_equal(tmp_path: Path) -> None:
    recipe = small_recipe({"image.ema_decay": 0.9})
    whole = train_small(recipe, tmp_path / "whole")
    train_small(recipe, tmp_path / "cut", max_steps=7)
    resumed = train_small(recipe, tmp_path / "cut", resume=True)
    assert all(torch.equal(resumed.weights[name], value) for name, value in whole.weights.items())


@pytest.mark.parametrize("value", [1.0, -0.1])
def test_decay_out_of_range_is_rejected(value: float) -> None:
    with pytest.raises(ValueError, match="ema_decay is .*at least 0 and below 1"):
        small_recipe({"image.ema_decay": value})
    with pytest.raises(ValueError, match="at least 0 and below 1"):
        WeightAverage(nn.Linear(1, 1), decay=value)
