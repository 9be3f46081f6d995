"""Stochastic rounding to bfloat16: unbiased, keyed, and training does not stall."""

import numpy as np
import pytest
import torch

from tests.train.class_weights.test_shard import shard, step
from train.class_weights.rounding import column_factors, mixed, round_to_bfloat16, row_keys

CPU = torch.device("cpu")


def rounded(value: torch.Tensor, *, seed: int = 0, step: int = 0, first: int = 0) -> torch.Tensor:
    keys = row_keys(torch.arange(first, first + len(value)), seed=seed, step=step)
    return round_to_bfloat16(value.clone(), keys, column_factors(value.shape[1], device=CPU))


def test_mixer_equals_the_published_one() -> None:
    # First outputs of SplitMix64 with seed 1234567, as published with its reference code.
    expected = np.array([6457827717110365317, 3203168211198807973], np.uint64).view(np.int64)
    # Our mixer multiplies before mixing; the generator adds. Undo that with the inverse of the multiplier.
    inverse = pow(0x9E3779B97F4A7C15, -1, 2**64)
    for number, value in enumerate(expected, start=1):
        raw = (1234567 + number * 0x9E3779B97F4A7C15) * inverse % 2**64
        state = torch.from_numpy(np.array([raw], np.uint64).view(np.int64))
        assert int(mixed(state)) == int(value)


def test_value_is_rounded_to_a_neighbour_and_bfloat16_values_do_not_change() -> None:
    value = torch.randn(40, 9, generator=torch.Generator().manual_seed(0))
    found = rounded(value).float()
    exact = value.bfloat16().float()
    assert torch.equal(rounded(exact).float(), exact)
    assert ((found - value).abs() <= value.abs() * 2**-7).all()
    low = (value.view(torch.int32) & -65536).view(torch.float32)
    high = ((value.view(torch.int32) & -65536) + 65536).view(torch.float32)
    assert ((found == low) | (found == high)).all()
    assert (found == low).any()
    assert (found == high).any()


@pytest.mark.parametrize("fraction", [0.03, 0.5, 0.9])
def test_mean_over_steps_and_rows_is_the_value(fraction: float) -> None:
    value = torch.full((50, 8), 1 + fraction * 2**-7)
    draws = torch.stack([rounded(value, step=number).float() for number in range(400)])
    up = (draws > 1).double()
    for mean, count in ((up.mean(), up.numel()), (up.mean((0, 1)), 400 * 50), (up.mean((1, 2)), 400)):
        error = (fraction * (1 - fraction) / count) ** 0.5
        assert ((mean - fraction).abs() < 4.5 * error).all()
    # Elements and steps do not follow one another.
    flat = up.reshape(400, -1) - fraction
    correlation = (flat.T @ flat / 400 / (fraction * (1 - fraction))).fill_diagonal_(0)
    assert fraction < 0.1 or float(correlation.abs().max()) < 6 / 400**0.5
    assert float(correlation.square().mean()) == pytest.approx(1 / 400, rel=0.1)


def test_noise_depends_only_on_seed_step_class_and_column() -> None:
    value = torch.randn(12, 8, generator=torch.Generator().manual_seed(1))
    whole = rounded(value)
    assert torch.equal(whole[5:], rounded(value[5:], first=5))
    assert not torch.equal(whole, rounded(value, step=1))
    assert not torch.equal(whole, rounded(value, seed=1))
    assert not torch.equal(whole, rounded(value, first=1))


def test_updates_below_the_last_bit_change_bfloat16_weights() -> None:
    rows = shard(200, 16, 0.0, dtype=torch.bfloat16, optimizer="sgd")
    rows.weight.fill_(1.0)
    for _ in range(64):
        step(rows, torch.arange(200), torch.ones(200, 16), learning_rate=1e-4)
    # Rounded to the nearest, 1 - 1e-4 is 1 again: nothing would ever happen.
    assert float(rows.weight.float().mean()) == pytest.approx(1 - 64e-4, abs=3e-4)
    assert rows.optimizer.tensors == {}
