"""The image encoder of a loaded model with fused kernels, for embedding many pictures on a CPU.

Parts of `IMAGES_AT_ONCE` pictures go through kernels that are fused for this number (runtime/arithmetic.py); what
remains, such as a single query, goes through the encoder itself. The two differ by rounding.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPoolingAndNoAttention

from runtime.arithmetic import IMAGES_AT_ONCE, with_fused_kernels


class FusedVision(nn.Module):
    """Takes the place of a convolutional image encoder.

    Args:
        vision: the encoder, float32 on the CPU. stage: index of the hidden state that is read; None reads none.
    """

    def __init__(self, vision: Any, *, stage: int | None) -> None:
        super().__init__()
        self.vision, self.stage, self.config = vision, stage, vision.config
        self._fused: dict[torch.Size, Any] = {}

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
        whole = len(pixel_values) - len(pixel_values) % IMAGES_AT_ONCE
        if not whole:
            return self.vision(pixel_values, **settings)
        parts = [self._part(part) for part in pixel_values[:whole].split(IMAGES_AT_ONCE)]
        if whole < len(pixel_values):
            parts.append(_Tensors(self.vision, self.stage)(pixel_values[whole:]))
        last, pooled, hidden = (torch.cat(column) for column in zip(*parts, strict=True))
        states = () if self.stage is None else (*[hidden[:0]] * self.stage, hidden)
        return BaseModelOutputWithPoolingAndNoAttention(
            last_hidden_state=last, pooler_output=pooled, hidden_states=states
        )

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
