"""The memory: kernel ridge regression on a subset of regressors, as its equation says."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from train.encoders.backbones import build_model
from train.recipes.emoji import tiny
from train.text_stage import memory
from train.text_stage.memory import JITTER, RIDGE, chosen_slots, install_memory, kernel, memory_values

TOKEN_WIDTH, WIDTH = 12, 20  # of the tiny recipe


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def texts(count: int, *, seed: int = 0) -> Tensor:
    return functional.normalize(normal(count, TOKEN_WIDTH, seed=seed), dim=1)


def test_the_gradient_of_the_objective_is_zero_at_the_values() -> None:
    sentences, targets = texts(11), normal(11, 3, seed=1)
    slots = sentences[[1, 4, 7, 8]]
    found = memory_values(sentences, targets, slots, sharpness=4.0)

    def largest_slope(values: Tensor) -> float:
        values = values.clone().requires_grad_()
        objective = torch.zeros((), dtype=torch.float64)
        for sentence, target in zip(sentences, targets, strict=True):
            said = torch.zeros(3, dtype=torch.float64)
            for slot, value in zip(slots, values, strict=True):
                said = said + torch.exp(4.0 * (sentence @ slot - 1)) * value
            objective = objective + (target - said).square().sum()
        for left, mine in zip(slots, values, strict=True):
            for right, theirs in zip(slots, values, strict=True):
                objective = objective + RIDGE * torch.exp(4.0 * (left @ right - 1)) * (mine @ theirs)
        objective = objective + JITTER * values.square().sum()
        return float(torch.autograd.grad(objective, values)[0].abs().max())

    # Rounding leaves a few last bits of the terms that cancel; values that are off by 1e-9 leave more.
    assert largest_slope(found) < 1e-12 * largest_slope(torch.zeros_like(found))
    assert largest_slope(found * (1 + 1e-9)) > 1e-11 * largest_slope(torch.zeros_like(found))


def test_with_every_text_as_a_slot_it_is_plain_kernel_ridge_regression() -> None:
    sentences, targets, asked = texts(9), normal(9, 3, seed=1), texts(5, seed=2)
    values = memory_values(sentences, targets, sentences, sharpness=4.0)
    own = kernel(sentences, sentences, sharpness=4.0)
    expected = kernel(asked, sentences, sharpness=4.0) @ torch.linalg.solve(
        own + RIDGE * torch.eye(9, dtype=torch.float64), targets
    )
    torch.testing.assert_close(kernel(asked, sentences, sharpness=4.0) @ values, expected, rtol=1e-4, atol=1e-5)


def test_chunks_of_rows_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    sentences, targets = texts(10), normal(10, 3, seed=1)
    whole = memory_values(sentences, targets, sentences[:4], sharpness=4.0)
    monkeypatch.setattr(memory, "ROWS_PER_CHUNK", 3)  # the last one is short
    torch.testing.assert_close(memory_values(sentences, targets, sentences[:4], sharpness=4.0), whole)


def test_slots_are_different_texts_spread_over_the_rows() -> None:
    sentences = texts(10)[np.array([0, 0, 1, 2, 3, 3, 4, 5, 6, 7, 8, 9])]
    assert chosen_slots(sentences, most=99).tolist() == [0, 2, 3, 4, 6, 7, 8, 9, 10, 11]
    assert chosen_slots(sentences, most=3).tolist() == [0, 4, 8]
    assert chosen_slots(sentences[:0], most=3).tolist() == []


def test_the_fusion_recalls_what_the_regression_says_times_the_loudness_and_spare_slots_are_silent() -> None:
    model, _ = build_model(tiny(), seed=0)
    fusion = model.fusion.double()
    sentences, targets = texts(14), normal(14, WIDTH, seed=1)
    assert install_memory(fusion, sentences, targets) == 14
    assert not fusion.memory_value[14:].any()
    values = memory_values(sentences, targets, sentences, sharpness=fusion.config.memory_sharpness)
    plain = kernel(texts(5, seed=2), sentences, sharpness=fusion.config.memory_sharpness) @ values
    with torch.no_grad():
        found = fusion.recall(texts(5, seed=2))
        assert float(fusion.recall(sentences).norm(dim=1).mean()) == pytest.approx(memory.RECALL_LENGTH)
    torch.testing.assert_close(functional.normalize(found, dim=1), functional.normalize(plain, dim=1))


def test_targets_that_are_all_zero_leave_a_silent_memory() -> None:
    model, _ = build_model(tiny(), seed=0)
    install_memory(model.fusion, texts(6), torch.zeros(6, WIDTH, dtype=torch.float64))
    assert not model.fusion.memory_value.any()
