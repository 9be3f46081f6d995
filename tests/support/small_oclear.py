"""Small random encoders, models, processors and batches of odd sizes."""

from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw
from transformers import (
    BertConfig,
    BertTokenizer,
    ConvNextConfig,
    Dinov2Config,
    SiglipVisionConfig,
    ViTConfig,
    XLMRobertaConfig,
)

from modeling_oclear import EfficientNetLiteConfig, OclearConfig, OclearImageProcessor, OclearProcessor

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "ball", "on", "grass", "blue", "cup", "##s"]
PATCHES: dict[str, Any] = {"num_hidden_layers": 2, "num_attention_heads": 3, "image_size": 37, "patch_size": 7}
TEXT: dict[str, Any] = {
    "vocab_size": 29, "hidden_size": 21, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 23,
    "max_position_embeddings": 31, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
}  # fmt: skip
VISION_CONFIGS: dict[str, Any] = {
    "vit": ViTConfig(hidden_size=33, intermediate_size=35, **PATCHES),
    "siglip": SiglipVisionConfig(hidden_size=33, intermediate_size=35, **PATCHES),
    "dinov2": Dinov2Config(hidden_size=33, mlp_ratio=2, **PATCHES),
    "convnext": ConvNextConfig(hidden_sizes=[7, 9, 11, 13], depths=[1, 1, 1, 1], image_size=37),
    "efficientnet_lite": EfficientNetLiteConfig(
        stem_channels=5,
        out_channels=(6, 7, 9),
        num_block_repeats=(1, 2, 1),
        kernel_sizes=(3, 5, 3),
        strides=(1, 2, 2),
        expand_ratios=(1, 2, 3),
        hidden_size=19,
    ),
}
TEXT_CONFIGS: dict[str, Any] = {"bert": BertConfig(**TEXT), "xlm_roberta": XLMRobertaConfig(pad_token_id=1, **TEXT)}


def small_config(vision: str = "efficientnet_lite", text: str | None = "bert", **fields: Any) -> OclearConfig:
    sizes = {
        "hidden_size": 27,
        "intermediate_size": 17,
        "num_attention_heads": 3,
        "num_concepts": 3,
        "num_memory_slots": 5,
    }
    text_config = TEXT_CONFIGS[text].to_dict() if text is not None else None
    return OclearConfig(vision_config=VISION_CONFIGS[vision].to_dict(), text_config=text_config, **{**sizes, **fields})


def small_processor(folder: Path, size: int = 37) -> OclearProcessor:
    vocabulary = folder / "vocab.txt"
    vocabulary.write_text("\n".join(WORDS) + "\n")
    return OclearProcessor(OclearImageProcessor(size=size), BertTokenizer(str(vocabulary)), 11)


def drawing(colour: str = "red", box: tuple[int, int, int, int] = (20, 10, 60, 40)) -> Image.Image:
    """An ellipse on light grey, 70 x 50."""
    image = Image.new("RGB", (70, 50), (240, 240, 240))
    ImageDraw.Draw(image).ellipse(box, fill=colour)
    return image


def small_batch(rows: int = 5, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random inputs: row 1 has no image, row 2 no text, row 3 a text without tokens, row 4 a padded text."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.ones(rows, 6, dtype=torch.int64)
    mask[3], mask[4, 4:] = 0, 0
    has_image, has_text = torch.ones(rows, dtype=torch.bool), torch.ones(rows, dtype=torch.bool)
    has_image[1], has_text[2] = False, False
    return {
        "pixel_values": torch.randn(rows, 3, 37, 37, generator=generator),
        "input_ids": torch.randint(5, 29, (rows, 6), generator=generator),
        "attention_mask": mask,
        "has_image": has_image,
        "has_text": has_text,
    }
