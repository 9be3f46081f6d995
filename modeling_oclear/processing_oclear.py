"""Processors: images and texts to model inputs, with masks for missing ones."""

from typing import Any

import torch
from PIL import Image
from transformers import BatchFeature
from transformers.processing_utils import ProcessorMixin

from .visible_text_oclear import visible

# No token of a usual vocabulary is longer. Texts are cut at this many characters per token before tokenising, which
# saves time on texts of megabytes and changes nothing else.
CHARACTERS_PER_TOKEN = 100


class OclearQueryProcessor(ProcessorMixin):
    """Images only: for queries, and for models without a text encoder."""

    def __init__(self, image_processor: Any) -> None:
        super().__init__(image_processor)

    def __call__(self, images: Any = None, text: Any = None, **kwargs: Any) -> BatchFeature:
        """Convert a PIL image or a list of them to pixel_values (B, 3, H, W) and has_image (B,).

        Raises:
            ValueError: without images, with text, for an unknown argument or an image that cannot be read.
        """
        _reject_unknown(kwargs)
        if text is not None:
            raise ValueError(
                "text was given, but this processor belongs to a model that reads images only: leave it out."
            )
        if images is None:
            raise ValueError("images is missing: give a PIL image or a list of them.")
        return self.image_processor(images)


class OclearProcessor(ProcessorMixin):
    """Images and texts of documents, or images of queries.

    Args:
        image_processor: an `OclearImageProcessor`.
        tokenizer: the tokenizer of the text encoder.
        max_length: most tokens of a text, special tokens included; the rest is cut.
    """

    def __init__(self, image_processor: Any, tokenizer: Any, max_length: int = 64) -> None:
        super().__init__(image_processor, tokenizer)
        if max_length < 3:
            raise ValueError(f"max_length is {max_length}; a text needs at least 3 tokens, such as 64.")
        self.max_length = max_length

    def __call__(self, images: Any = None, text: Any = None, **kwargs: Any) -> BatchFeature:
        """Prepare a batch.

        Args:
            images: a PIL image, or a list with None where a document has none; None = no images at all.
            text: a text, or a list with None or "" where a document has none; None = no texts at all.

        Returns:
            pixel_values (B, 3, H, W) and has_image (B,) with images; input_ids and attention_mask (B, T) and has_text
            (B,) with texts. The attention mask of a missing text is all 0.

        Raises:
            ValueError: without both, for lists of different lengths, or for an entry of the wrong type.
        """
        _reject_unknown(kwargs)
        if images is None and text is None:
            raise ValueError("images and text are both missing: give at least one of them.")
        batch: dict[str, torch.Tensor] = {}
        if images is not None:
            batch.update(self.image_processor(images))
        if text is not None:
            batch.update(self._tokenize([text] if isinstance(text, str) else list(text)))
        if images is not None and text is not None and len(batch["has_image"]) != len(batch["has_text"]):
            num_images = 1 if isinstance(images, Image.Image) else len(images)
            raise ValueError(
                f"{num_images} images and {len(batch['has_text'])} texts were given: give one of each per document, "
                "with None where one is missing."
            )
        return BatchFeature(batch)

    def _tokenize(self, texts: list[str | None]) -> dict[str, torch.Tensor]:
        longest = self.max_length * CHARACTERS_PER_TOKEN
        cut = []
        for row, text in enumerate(texts):
            if text is not None and not isinstance(text, str):
                raise ValueError(f"text[{row}] is a {type(text).__name__}; give a string, or None where it is missing.")
            # Tokenizers reject half of a surrogate pair: replace it by a question mark.
            whole = (text or "")[:longest].encode("utf-8", "replace").decode("utf-8").strip()
            cut.append(visible(whole))
        if not cut:
            raise ValueError("text is an empty list: give at least one text, or None for no texts at all.")
        tokens = self.tokenizer(
            cut,
            padding=True,
            truncation=True,
            max_length=self.max_length,
            return_tensors="pt",
            return_token_type_ids=False,
        )
        has_text_B = torch.tensor([bool(text) for text in cut])
        return {
            "input_ids": tokens["input_ids"],
            "attention_mask": tokens["attention_mask"] * has_text_B[:, None],
            "has_text": has_text_B,
        }


def _reject_unknown(kwargs: dict[str, Any]) -> None:
    if kwargs.pop("return_tensors", "pt") != "pt" or kwargs:
        named = ", ".join(kwargs) or "return_tensors other than 'pt'"
        raise ValueError(f"{named} is not an argument of this call; its options are stored in the processor.")
