"""The image encoder of a loaded model with fused kernels, for embedding many pictures on a CPU.

Parts of `IMAGES_AT_ONCE` pictures go through kernels that are fused for this number (runtime/arithmetic.py); what
remains, such as a single query, goes through the encoder itself. The two differ by rounding.
"""

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPoolingAndNoAttention

from runtime.arithmetic import IMAGES_AT_ONCE, with_fused_kernels


@dataclass(frozen=True)
class KnownMaps:
    """Maps of some pictures of a batch that were computed earlier.

    Attributes:
        rows: (B,) bool, which pictures. inputs: (K, C, H, W) output of the first `stages` stages. cells: (K, P, C') the
            patches. stages: how many stages have run.
    """

    rows: Tensor
    inputs: Tensor
    cells: Tensor
    stages: int


class FusedVision(nn.Module):
    """Takes the place of a convolutional image encoder.

    Args:
        vision: the encoder, float32 on the CPU. stage: index of the hidden state that is read; None reads none.
    """

    def __init__(self, vision: Any, *, stage: int | None) -> None:
        super().__init__()
        self.vision, self.stage, self.config = vision, stage, vision.config
        self._fused: dict[torch.Size, Any] = {}
        self._known: KnownMaps | None = None

    @contextlib.contextmanager
    def knowing(self, known: KnownMaps | None) -> Iterator[None]:
        """Context in which the next batch holds pictures whose maps are known."""
        self._known = known
        try:
            yield
        finally:
            self._known = None

    def __getattr__(self, name: str) -> Any:
        """Everything else is the encoder's: its stages, its `forward_trunk` and `forward_tail`."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("vision"), name)

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights."""
        found: torch.dtype = self.vision.dtype
        return found

    def forward(self, pixel_values: Tensor, **settings: Any) -> Any:
        """(B, 3, H, W) -> output of the encoder, of whose hidden states only the one of `stage` is kept."""
        known = self._known
        if known is None and len(pixel_values) < IMAGES_AT_ONCE:
            return self.vision(pixel_values, **settings)
        last, pooled, hidden = self._tensors(pixel_values) if known is None else self._merged(pixel_values, known)
        states = () if self.stage is None else (*[hidden[:0]] * self.stage, hidden)
        return BaseModelOutputWithPoolingAndNoAttention(
            last_hidden_state=last, pooler_output=pooled, hidden_states=states
        )

    def _tensors(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        """Head map, pooled output and hidden state of pictures of which no map is known."""
        whole = len(pixel_values) - len(pixel_values) % IMAGES_AT_ONCE
        parts = [self._part(part) for part in pixel_values[:whole].split(IMAGES_AT_ONCE)] if whole else []
        if whole < len(pixel_values):
            parts.append(_Tensors(self.vision, self.stage)(pixel_values[whole:]))
        return tuple(torch.cat(column) for column in zip(*parts, strict=True))

    def _merged(self, pixel_values: Tensor, known: KnownMaps) -> tuple[Tensor, ...]:
        """The same for a batch of which some maps are known, in the order of its rows."""
        tail = self.vision.forward_tail(known.inputs, known.stages)
        side = math.isqrt(known.cells.shape[1])
        hidden = known.cells.transpose(1, 2).unflatten(2, (side, side))
        found = tail.last_hidden_state, tail.pooler_output, hidden
        if bool(known.rows.all()):
            return found
        rest = self._tensors(pixel_values[~known.rows])
        merged = [ours.new_empty(len(pixel_values), *ours.shape[1:]) for ours in found]
        for whole, ours, others in zip(merged, found, rest, strict=True):
            whole[known.rows], whole[~known.rows] = ours, others
        return tuple(merged)

    def _part(self, pixel_values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        shape = pixel_values.shape
        if shape not in self._fused:
            self._fused[shape] = with_fused_kernels(_Tensors(self.vision, self.stage), pixel_values)
        found: tuple[Tensor, Tensor, Tensor] = self._fused[shape](pixel_values)
        return found


class _Tensors(nn.Module):
    """The encoder with plain tensors as output, which torch can trace."""

    def __init__(self, vision: Any, stage: int | None) -> None:
        super().__init__()
        self.vision, self.stage = vision, stage

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        output = self.vision(pixel_values)
        hidden = output.last_hidden_state if self.stage is None else output.hidden_states[self.stage]
        return output.last_hidden_state, output.pooler_output, hidden


def with_fused_vision(model: Any) -> Any:
    """The model, its image encoder replaced where that is a convolutional one that can be cut into stages."""
    if hasattr(model.vision_model, "forward_trunk"):
        model.vision_model = FusedVision(model.vision_model, stage=model.config.vision_feature_stage)
    return model
