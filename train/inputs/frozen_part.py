"""Output and arithmetic of the frozen encoder stages, cached or streamed.

Letters: B batch, C channels, P patches, H width.
"""

from typing import Any

import torch
from torch import Tensor

from runtime.arithmetic import fast_feature_dtype
from train.recipes.recipe import Recipe

IMAGES_AT_ONCE = 16


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


def trunk_in_parts(model: Any, pixel_BCHW: Tensor, recipe: Recipe) -> dict[str, Tensor]:
    """`trunk` of any number of images in parts of `IMAGES_AT_ONCE`, the last one padded with zeros.

    Kernels, and with them the last bits, depend on the number of images, so every call has the same number. Small parts
    also fit in the processor's cache.
    """
    count = len(pixel_BCHW)
    if not count or cells_are_trained(model, recipe):
        return trunk(model, pixel_BCHW, recipe)
    filled = torch.cat([pixel_BCHW, pixel_BCHW.new_zeros(-count % IMAGES_AT_ONCE, *pixel_BCHW.shape[1:])])
    parts = [
        trunk(model, part.contiguous(memory_format=torch.channels_last), recipe)
        for part in filled.split(IMAGES_AT_ONCE)
    ]
    return {name: torch.cat([part[name] for part in parts])[:count] for name in parts[0]}


def arithmetic(recipe: Recipe) -> Any:
    """Autocast of `feature_dtype`."""
    return torch.autocast("cpu", torch.bfloat16, enabled=feature_dtype(recipe) == "bfloat16")


def feature_dtype(recipe: Recipe) -> str:
    """The recipe's `feature_dtype`, "auto" decided for this processor."""
    return fast_feature_dtype() if recipe.model.feature_dtype == "auto" else recipe.model.feature_dtype
