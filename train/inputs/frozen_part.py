"""Output and arithmetic of the frozen encoder stages, cached or streamed.

Letters: B batch, C channels, P patches, H width.
"""

from typing import Any

import torch
from torch import Tensor

from runtime.arithmetic import IMAGES_AT_ONCE, fast_feature_dtype, with_fused_kernels
from train.recipes.recipe import Recipe


def cells_are_trained(model: Any, recipe: Recipe) -> bool:
    """Whether the image stage changes the patches: no stage is frozen, or the backbone cannot be cut."""
    is_whole = recipe.model.frozen_stages == 0 or not hasattr(model.vision_model, "forward_trunk")
    return recipe.model.frozen_stages is not None and is_whole


def check_stages(model: Any, recipe: Recipe) -> None:
    """Check that the frozen stages exist and contain the stage of the patches.

    Raises:
        ValueError: they do not.
    """
    frozen, stage = recipe.model.frozen_stages, model.config.vision_feature_stage
    if frozen is None:
        return
    if cells_are_trained(model, recipe):
        if frozen:
            raise ValueError(
                f"frozen_stages is {frozen}, but {type(model.vision_model).__name__} cannot be cut into stages; use "
                "None (whole backbone frozen) or 0 (whole backbone trained)"
            )
        return
    if stage is None or stage > frozen:
        raise ValueError(
            f"vision_feature_stage is {stage}, but only the output of stages 0 to {frozen} is cached: set it to "
            f"{frozen} or less, freeze more stages, or none (0), when the patches are computed after training"
        )


def trunk(model: Any, pixel_BCHW: Tensor, recipe: Recipe) -> dict[str, Tensor]:
    """`inputs` of the trained part, and `cells`, the patches (B, P, H)."""
    if recipe.model.frozen_stages is None:
        cells_BPH, pooled_BH, _ = model.encode_image(pixel_BCHW)
        return {"inputs": pooled_BH, "cells": cells_BPH}
    if cells_are_trained(model, recipe):
        return {"inputs": pixel_BCHW, "cells": pixel_BCHW.new_zeros(len(pixel_BCHW), 0, 1)}
    hidden_BCHW, stages = model.vision_model.forward_trunk(pixel_BCHW, recipe.model.frozen_stages)
    return {"inputs": hidden_BCHW, "cells": stages[model.config.vision_feature_stage].flatten(2).transpose(1, 2)}


class FrozenPart:
    """Computes `trunk` of any number of images, in parts of `IMAGES_AT_ONCE`, the last one padded with zeros.

    Kernels, and with them the last bits, depend on the number of images, so every call has the same number. Small parts
    also fit in the processor's cache. In float32 on a CPU the kernels are fused (runtime/arithmetic.py).
    """

    def __init__(self, model: Any, recipe: Recipe) -> None:
        self.model, self.recipe = model, recipe
        self._fused: tuple[tuple[int, ...], Any] | None = None

    def __call__(self, pixel_BCHW: Tensor) -> dict[str, Tensor]:
        """`inputs` of the trained part, and `cells`, the patches (B, P, H), in the recipe's feature dtype."""
        count = len(pixel_BCHW)
        with torch.inference_mode(), arithmetic(self.recipe):
            if not count or cells_are_trained(self.model, self.recipe):
                return trunk(self.model, pixel_BCHW, self.recipe)
            filled = torch.cat([pixel_BCHW, pixel_BCHW.new_zeros(-count % IMAGES_AT_ONCE, *pixel_BCHW.shape[1:])])
            parts = [self._part(part) for part in filled.split(IMAGES_AT_ONCE)]
        return {name: torch.cat([part[name] for part in parts])[:count] for name in parts[0]}

    def _part(self, pixel_BCHW: Tensor) -> dict[str, Tensor]:
        if not self._can_fuse(pixel_BCHW):
            return trunk(self.model, pixel_BCHW.contiguous(memory_format=torch.channels_last), self.recipe)
        if self._fused is None or self._fused[0] != pixel_BCHW.shape:
            self._fused = (tuple(pixel_BCHW.shape), with_fused_kernels(_Trunk(self.model, self.recipe), pixel_BCHW))
        inputs, cells_BPH = self._fused[1](pixel_BCHW)
        return {"inputs": inputs, "cells": cells_BPH}

    def _can_fuse(self, pixel_BCHW: Tensor) -> bool:
        is_network = hasattr(self.model.vision_model, "forward_trunk")
        return is_network and pixel_BCHW.device.type == "cpu" and feature_dtype(self.recipe) == "float32"


class _Trunk(torch.nn.Module):
    """`trunk` as a module, which torch can trace."""

    def __init__(self, model: Any, recipe: Recipe) -> None:
        super().__init__()
        self.model, self.recipe = model, recipe

    def forward(self, pixel_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        found = trunk(self.model, pixel_BCHW, self.recipe)
        return found["inputs"], found["cells"]


def arithmetic(recipe: Recipe) -> Any:
    """Autocast of `feature_dtype`."""
    return torch.autocast("cpu", torch.bfloat16, enabled=feature_dtype(recipe) == "bfloat16")


def feature_dtype(recipe: Recipe) -> str:
    """The recipe's `feature_dtype`, "auto" decided for this processor."""
    return fast_feature_dtype() if recipe.model.feature_dtype == "auto" else recipe.model.feature_dtype
