"""A tiny random published model, for running the usage code of the cards."""

from pathlib import Path

import torch
from transformers import BertConfig, BertTokenizer, ViTConfig

from modeling_oclear import OclearConfig, OclearImageProcessor, OclearModel, OclearProcessor
from modeling_oclear.publishing import publish

WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "a",
    "small",
    "orange",
    "square",
    "document",
    "that",
    "has",
    "words",
]


def publish_tiny(folder: Path) -> Path:
    """Publish a random model of odd sizes into a folder, query side included."""
    torch.manual_seed(0)
    size = 37
    vision = ViTConfig(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=28, image_size=size, patch_size=5
    )
    text = BertConfig(
        vocab_size=len(WORDS), hidden_size=20, num_hidden_layers=1, num_attention_heads=2, intermediate_size=22
    )
    config = OclearConfig(
        vision_config=vision.to_dict(), text_config=text.to_dict(), hidden_size=12, num_concepts=3, num_memory_slots=5
    )
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = folder.parent / "vocab.txt"
    vocabulary.write_text("\n".join(WORDS) + "\n")
    tokenizer = BertTokenizer(str(vocabulary))
    processor = OclearProcessor(image_processor=OclearImageProcessor(size=size), tokenizer=tokenizer)
    publish(OclearModel(config).eval(), processor, folder)
    return folder
