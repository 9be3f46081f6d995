"""Adapters for the encoders of transformers: patches, pooled row, tokens.

Encoders return different things: token sequences with class and register tokens, or channel maps; a pooler that was
trained for another task, or none. The functions here return the same form for each.

Letters: B batch, P image patches, T tokens, H encoder width (differs by encoder and stage).
"""

import inspect
import math
from typing import Any

import torch
from torch import nn
from transformers import AutoModel, PreTrainedConfig

from .modeling_efficientnet_lite_oclear import EfficientNetLiteModel

# Encoders that return channel maps (B, H, rows, columns), with the config field of their widths. All others return a
# sequence of patches (B, P, H).
MAP_ENCODERS = {
    "convnext": "hidden_sizes",
    "convnextv2": "hidden_sizes",
    "efficientnet_lite_oclear": "out_channels",
}


def build_encoder(config: Any) -> nn.Module:
    """Build an encoder from its config, without its pooling layer where that is optional.

    Raises:
        ValueError: when transformers has no encoder for this config.
    """
    # Compared by name, not by class: with code loaded from a model folder, config and model may come from two copies.
    if config.model_type == EfficientNetLiteModel.config_class.model_type:
        return EfficientNetLiteModel._from_config(config)
    encoder_class: Any = AutoModel._model_mapping.get(type(config), None)
    if encoder_class is None:
        raise ValueError(
            f"transformers has no encoder for model_type {config.model_type!r}: give the config of an image or text "
            "encoder, such as ViTConfig, SiglipVisionConfig, Dinov2Config, ConvNextConfig, BertConfig."
        )
    # A parameter without a gradient stops data-parallel training.
    skip = {"add_pooling_layer": False} if "add_pooling_layer" in inspect.signature(encoder_class).parameters else {}
    encoder = AutoModel.from_config(config, **skip)
    for name, parameter in encoder.named_parameters():
        if name.endswith("mask_token"):
            parameter.requires_grad_(False)
    return encoder


def vision_widths(config: Any, stage: int | None) -> tuple[int, int]:
    """(width of the patches of `hidden_states[stage]`, width of the pooled row).

    Raises:
        ValueError: for a stage that the encoder does not have.
    """
    if config.model_type not in MAP_ENCODERS:
        _check_stage(stage, config.num_hidden_layers)
        return config.hidden_size, config.hidden_size
    widths = list(getattr(config, MAP_ENCODERS[config.model_type]))
    _check_stage(stage, len(widths))
    if config.model_type == "efficientnet_lite_oclear":
        stages = [config.stem_channels, *widths]
        return (config.hidden_size if stage is None else stages[stage]), config.hidden_size
    # ConvNeXt: hidden_states[0] is the patch embedding, which has the width of the first stage.
    return (widths[-1] if stage is None else [widths[0], *widths][stage]), widths[-1]


def _check_stage(stage: int | None, last: int) -> None:
    if stage is not None and stage > last:
        raise ValueError(f"vision_feature_stage is {stage}, but the encoder's hidden_states end at index {last}.")


def read_image(
    encoder: Any, pixel_values: torch.Tensor, *, stage: int | None
) -> tuple[torch.Tensor, torch.Tensor, tuple[int, int]]:
    """Raw output of an image encoder.

    Args:
        pixel_values: (B, 3, height, width).
        stage: index into hidden_states for the patches; None = the last hidden state.

    Returns:
        patches (B, P, H) in row-major order, without class and register tokens; pooled (B, H'): the class token where
        the encoder has one, else the mean of its patches; for channel maps the encoder's own pooled output; (rows,
        columns).

    Raises:
        ValueError: for pixel values of another shape, or when the sequence is shorter than the patches of the image.
    """
    if pixel_values.ndim != 4 or pixel_values.shape[1] != encoder.config.num_channels or not pixel_values.numel():
        raise ValueError(
            f"pixel_values has shape {tuple(pixel_values.shape)}; (rows, {encoder.config.num_channels}, height, width) "
            "is needed, as the processor returns it."
        )
    settings: dict[str, Any] = {"output_hidden_states": True} if stage is not None else {}
    if _needs_interpolation(encoder, pixel_values):
        settings["interpolate_pos_encoding"] = True
    output = encoder(pixel_values.to(encoder.dtype), **settings)
    last = output.last_hidden_state
    patches = last if stage is None else output.hidden_states[stage]
    if encoder.config.model_type in MAP_ENCODERS:
        return patches.flatten(2).transpose(1, 2), output.pooler_output, (patches.shape[2], patches.shape[3])
    grid = _patch_grid(encoder.config, pixel_values)
    num_prefix = last.shape[1] - grid[0] * grid[1]  # class and register tokens
    if num_prefix < 0:
        raise ValueError(
            f"{encoder.config.model_type} gives {last.shape[1]} tokens for an image of {grid[0]} x {grid[1]} patches: "
            "an encoder that merges patches is not supported. Use one with a plain patch sequence."
        )
    pooled = last[:, 0] if num_prefix else last.mean(dim=1)
    return patches[:, num_prefix:], pooled, grid


def _patch_grid(config: PreTrainedConfig, pixel_values: torch.Tensor) -> tuple[int, int]:
    size = config.patch_size
    height, width = (size, size) if isinstance(size, int) else size
    return pixel_values.shape[2] // height, pixel_values.shape[3] // width


def _needs_interpolation(encoder: Any, pixel_values: torch.Tensor) -> bool:
    """Whether the position table of a patch encoder has to be interpolated for this image size."""
    if "interpolate_pos_encoding" not in inspect.signature(encoder.forward).parameters:
        return False
    size = encoder.config.image_size
    trained = (size, size) if isinstance(size, int) else tuple(size)
    return trained != tuple(pixel_values.shape[2:])


def text_positions(config: Any) -> float:
    """Most tokens that a text encoder can read; infinity without a position table."""
    positions = getattr(config, "max_position_embeddings", None) or math.inf
    # RoBERTa and its relatives start positions at the padding index + 1.
    return positions - config.pad_token_id - 1 if "roberta" in config.model_type else positions


def read_text(encoder: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Raw output of a text encoder: last hidden state (B, T, H), special tokens included, and the mask (B, T) bool.

    For a row with an empty mask the encoder attends to its first token, since attention over nothing is nan; the
    returned mask of the row stays empty.

    Raises:
        ValueError: for texts longer than the encoder's position table, or a mask of another shape.
    """
    longest = text_positions(encoder.config)
    if input_ids.ndim != 2 or input_ids.shape != attention_mask.shape or input_ids.shape[1] > longest:
        raise ValueError(
            f"input_ids has shape {tuple(input_ids.shape)} and attention_mask {tuple(attention_mask.shape)}; both must "
            f"be (rows, tokens) with at most {longest} tokens. Lower max_length of the processor."
        )
    mask_BT = attention_mask.bool()
    is_empty_B1 = ~mask_BT.any(dim=1, keepdim=True)
    first_T = torch.arange(mask_BT.shape[1], device=mask_BT.device) == 0
    readable_BT = mask_BT | (is_empty_B1 & first_T)
    tokens_BTH = encoder(input_ids=input_ids, attention_mask=readable_BT.long()).last_hidden_state
    return tokens_BTH, mask_BT
