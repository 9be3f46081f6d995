"""Build the initial model of a run: backbones by name, the rest from the seed."""

import string
from typing import Any

import torch
from torch import Tensor
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer, BertConfig, BertModel, BertTokenizer

from modeling_oclear import OclearImageProcessor, OclearModel, OclearProcessor, OclearQueryProcessor
from modeling_oclear.configuration_efficientnet_lite_oclear import EfficientNetLiteConfig
from modeling_oclear.modeling_efficientnet_lite_oclear import EfficientNetLiteModel
from modeling_oclear.packaged_weights import IMAGE_MEAN, IMAGE_STD, load_efficientnet_lite0, load_minilm
from train.encoders.lora import load_and_merge
from train.recipes.recipe import Recipe

MEMORY_SLOTS = 2048  # texts of training documents that a model remembers, for documents without an image


def build_model(recipe: Recipe, *, seed: int) -> tuple[Any, Any]:
    """Untrained model (float32, eval mode) and its processor; equal on every rank for equal arguments.

    Raises:
        ValueError: a backbone cannot be loaded.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vision, mean, deviation = _vision(recipe.model.vision)
        text, tokenizer = (None, None) if recipe.text.encoder is None else _text(recipe.text.encoder)
        model = OclearModel.from_encoders(
            vision,
            text,
            hidden_size=recipe.model.hidden_size,
            intermediate_size=recipe.model.hidden_size,
            vision_feature_stage=recipe.model.vision_feature_stage,
            num_memory_slots=MEMORY_SLOTS,
        )
    images = OclearImageProcessor(size=recipe.model.image_size, image_mean=mean, image_std=deviation)
    processor = (
        OclearQueryProcessor(images)
        if tokenizer is None
        else OclearProcessor(images, tokenizer, max_length=recipe.text.max_tokens)
    )
    return model.eval(), processor


def with_image_weights(recipe: Recipe, weights: dict[str, Tensor], *, seed: int) -> tuple[Any, Any]:
    """New model of `build_model` with trained image weights, in float32; adapters are merged into them.

    A new model, because the trained one may be sharded over ranks and in another dtype.

    Args:
        weights: state of the `EncoderPair`.
    """
    model, processor = build_model(recipe, seed=seed)
    for prefix, module in (("vision.", model.vision_model), ("image_head.", model.image_head)):
        mine = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
        if mine and prefix == "vision." and recipe.image.lora.rank:
            load_and_merge(module, mine, recipe, seed=seed)
        elif mine:
            module.load_state_dict(mine)
    return model, processor


def _vision(name: str) -> tuple[Any, list[float], list[float]]:
    """Image backbone, and mean and deviation of its input pixels."""
    packaged = [IMAGE_MEAN] * 3, [IMAGE_STD] * 3
    if name == "efficientnet_lite0":
        return load_efficientnet_lite0(), *packaged
    if name == "tiny":
        return EfficientNetLiteModel(_tiny_vision()), *packaged
    model = _from_hub(AutoModel, name)
    processor = _from_hub(AutoImageProcessor, name)
    # Models of images and texts (CLIP, SigLIP) hold their image encoder as `vision_model`.
    return getattr(model, "vision_model", model), list(processor.image_mean), list(processor.image_std)


def _tiny_vision() -> EfficientNetLiteConfig:
    return EfficientNetLiteConfig(
        stem_channels=8,
        out_channels=(6, 8, 10, 10, 12, 12, 14),
        num_block_repeats=(1,) * 7,
        kernel_sizes=(3,) * 7,
        strides=(1, 2, 1, 2, 1, 1, 1),
        expand_ratios=(1, 2, 2, 2, 2, 2, 2),
        hidden_size=24,
    )


def _text(name: str) -> tuple[Any, Any]:
    """Text backbone and its tokenizer."""
    if name == "minilm":
        return load_minilm()
    if name == "tiny":
        return _tiny_text()
    model = _from_hub(AutoModel, name)
    return getattr(model, "text_model", model), _from_hub(AutoTokenizer, name)


def _tiny_text() -> tuple[BertModel, Any]:
    """Random BERT of two layers with a tokenizer of single letters."""
    letters = string.ascii_lowercase + string.digits
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    tokenizer = BertTokenizer(vocab={piece: number for number, piece in enumerate(pieces)}, model_max_length=64)
    config = BertConfig(
        vocab_size=len(pieces),
        hidden_size=12,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=64,
    )
    return BertModel(config, add_pooling_layer=False), tokenizer


def _from_hub(kind: Any, name: str) -> Any:
    try:
        return kind.from_pretrained(name)
    except OSError as error:
        raise ValueError(
            f"{name!r} cannot be loaded ({str(error).splitlines()[0]}); give a folder, or an id of the Hub that this "
            "machine can reach"
        ) from error
