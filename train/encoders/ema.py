"""Exponential moving average of the encoders' trained weights.

The last steps of a run oscillate around a good point; their average is closer to it (Polyak & Juditsky 1992; Izmailov
et al. 2018, 1803.05407). Class weights are not averaged: if few classes are sampled, most do not change in a step.

    average_t = sum_{i <= t} d^(t - i) (1 - d) w_i / (1 - d^t)

after t steps: divided by the sum of the factors, as Adam corrects its moments (Kingma & Ba 2015, 1412.6980), so that
the initial weights do not contribute and no warm-up is needed. As a recursion, which needs no counter of its own:

    average_t = average_{t-1} + (1 - d) / (1 - d^t) (w_t - average_{t-1})
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn


class WeightAverage:
    """Average of every trained parameter, on its device, in its type and, under FSDP2, in its shards.

    Args:
        encoders: as `accelerator.prepare` returns them. decay: d, at least 0 and below 1; 0 is the last step's weights.
    """

    def __init__(self, encoders: nn.Module, *, decay: float) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"the decay of the weight average is {decay}; it must be at least 0 and below 1")
        self.decay = decay
        self._live = trained_parameters(encoders)
        self._average = {name: value.detach().clone() for name, value in self._live.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Add the weights after step `step` (0-based)."""
        share = (1 - self.decay) / (1 - self.decay ** (step + 1))
        for name, average in self._average.items():
            average.lerp_(self._live[name].detach(), share)

    def state(self) -> dict[str, Tensor]:
        """The averages themselves, not copies, by the names of `EncoderPair`; a checkpoint loads into them."""
        return self._average

    def gathered(self) -> dict[str, Tensor]:
        """Copies on the CPU, gathered from all shards; all ranks call it."""
        return {name: _full(value).cpu().clone() for name, value in self._average.items()}

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Compute with the averages inside the block; the encoders' own weights are restored bit for bit."""
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
    """Trained parameters by the names of `EncoderPair`, without those of a wrapper."""
    bare = getattr(encoders, "module", encoders)
    return {name: value for name, value in bare.named_parameters() if value.requires_grad}


def _full(value: Any) -> Tensor:
    full: Tensor = value.full_tensor() if hasattr(value, "full_tensor") else value
    return full
