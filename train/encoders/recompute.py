"""Activation checkpointing: a block keeps its input alone and computes the rest again in the backward pass.

Why here and not by `gradient_checkpointing_enable`: that acts in training mode alone, and the encoders run in eval mode
(their dropout comes as masks, their norms read running statistics), where it would silently do nothing. And why no
wrapper module: a wrapper renames parameters in checkpoints, learning-rate groups and FSDP's plan.
"""

import functools

from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer


def recompute_blocks(vision: nn.Module) -> int:
    """Let every trained block keep its input alone; the values and gradients are the same, bit for bit.

    Blocks are the layers that transformers itself can checkpoint. None may draw random numbers in its forward pass.

    Returns:
        How many blocks were changed.

    Raises:
        ValueError: the backbone has no such block with a trained parameter.
    """
    blocks = [module for module in vision.modules() if isinstance(module, GradientCheckpointingLayer)]
    trained = [block for block in blocks if any(value.requires_grad for value in block.parameters())]
    if not trained:
        raise ValueError(
            f"recipe.runtime.activation_checkpointing is on, but {type(vision).__name__} has {len(blocks)} blocks that "
            "can be computed again and trains none of them; turn it off"
        )
    for block in trained:
        block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False)
    return len(trained)
