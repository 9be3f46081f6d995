"""Exponential moving average of the encoders' trained weights: what is published instead of those of the last step.

Why: the last steps of a run wander around a good point; their average is nearer to it (Polyak & Juditsky 1992;
Izmailov et al. 2018, 1803.05407). Class weights are not averaged: where few are drawn, most stand still in a step.

    average_t = sum_{i <= t} d^(t - i) (1 - d) w_i / (1 - d^t)

after t steps: divided by what the factors sum to, as Adam corrects its moments (Kingma & Ba 2015, 1412.6980), so that
the weights at start have no share and no warm-up is needed. As a running form, with no count of its own to keep:

    average_t = average_{t-1} + (1 - d) / (1 - d^t) (w_t - average_{t-1})
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn


class WeightAverage:
    """The average of every trained parameter, on its device, in its type and, under FSDP2, in its shards.

    Args:
        encoders: as `accelerator.prepare` gives them. decay: d, at least 0 and below 1; 0 is the last step's weights.
    """

    def __init__(self, encoders: nn.Module, *, decay: float) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"the decay of the weight average is {decay}; it must be at least 0 and below 1")
        self.decay = decay
        self._live = trained_parameters(encoders)
        self._average = {name: value.detach().clone() for name, value in self._live.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights that step `step` (0-based) has left."""
        share = (1 - self.decay) / (1 - self.decay ** (step + 1))
        for name, average in self._average.items():
            average.lerp_(self._live[name].detach(), share)

    def state(self) -> dict[str, Tensor]:
        """The averages themselves, by the names of `EncoderPair`: what a checkpoint writes, and reads into."""
        return self._average

    def whole(self) -> dict[str, Tensor]:
        """Copies on the CPU, gathered from all shards; all ranks call it."""
        return {name: _whole(value).cpu().clone() for name, value in self._average.items()}

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """While inside, the encoders compute with the averages; their own weights come back after, bit for bit."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, average in self._average.items():
            live = self._live[name].detach()
            kept = live.clone()
            live.copy_(average)
            average.copy_(kept)


def trained_parameters(encoders: nn.Module) -> dict[str, Any]:
    """Trained parameters by the names of `EncoderPair`, whatever wraps it."""
    bare = getattr(encoders, "module", encoders)
    return {name: value for name, value in bare.named_parameters() if value.requires_grad}


def _whole(value: Any) -> Tensor:
    full: Tensor = value.full_tensor() if hasattr(value, "full_tensor") else value
    return full
