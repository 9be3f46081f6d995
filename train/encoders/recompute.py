"""Activation checkpointing that also works in eval mode."""

import functools

from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer


def recompute_blocks(vision: nn.Module) -> int:
    """Keep only the input of every trained block and recompute the rest in the backward pass; bit-equal results.

    transformers' `gradient_checkpointing_enable` acts only in training mode, and the encoders run in eval mode (their
    dropout comes as masks, their norms use running statistics). Blocks are the layers that transformers itself can
    checkpoint; none may draw random numbers in its forward pass.

    Returns:
        Number of changed blocks.

    Raises:
        ValueError: the backbone has no such block with a trained parameter.
    """
    blocks = [module for module in vision.modules() if isinstance(module, GradientCheckpointingLayer)]
    trained = [block for block in blocks if any(value.requires_grad for value in block.parameters())]
    if not trained:
        raise ValueError(
            f"recipe.runtime.activation_checkpointing is on, but {type(vision).__name__} has {len(blocks)} blocks that "
            "can be recomputed and trains none of them; turn it off"
        )
    # Not a wrapper module: it would rename parameters in checkpoints, learning-rate groups and FSDP's plan.
    for block in trained:
        block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False)
    return len(trained)
