"""Images and texts -> model inputs, in one call; a missing image or text is None and comes back marked.

Why: catalogues have holes, and the model must know which rows are holes. The image options and the length of a text are
stored with the model, so that nobody has to repeat them.
"""

from typing import Any

import torch
from PIL import Image
from transformers import BatchFeature
from transformers.processing_utils import ProcessorMixin

# A token is never longer than this in any usual vocabulary, so that cutting a text at this many characters per token
# before tokenising changes nothing but the time that ten megabytes of text would take.
CHARACTERS_PER_TOKEN = 100


class OclearQueryProcessor(ProcessorMixin):
    """Images only: for queries, and for models without a text encoder."""

    def __init__(self, image_processor: Any) -> None:
        super().__init__(image_processor)

    def __call__(self, images: Any = None, text: Any = None, **kwargs: Any) -> BatchFeature:
        """A PIL image or a list of them -> pixel_values (B, 3, H, W), has_image (B,).

        Raises:
            ValueError: without images, with text, for an unknown argument or an image that cannot be read.
        """
        _refuse_unknown(kwargs)
        if text is not None:
            raise ValueError(
                "text is given, but this processor belongs to a model that reads images only: leave it out."
            )
        if images is None:
            raise ValueError("images is missing: give a PIL image or a list of them.")
        return self.image_processor(images)


class OclearProcessor(ProcessorMixin):
    """Images and texts of documents, or images of queries.

    Args:
        image_processor: an `OclearImageProcessor`.
        tokenizer: the tokenizer of the text encoder.
        max_length: tokens of a text that are read, special tokens included.
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
            pixel_values (B, 3, H, W) and has_image (B,) when images were given; input_ids and attention_mask (B, T) and
            has_text (B,) when texts were given. The mask of a missing text is 0 throughout.

        Raises:
            ValueError: without both, with lists of unequal length, or for a row that is neither of what it should be.
        """
        _refuse_unknown(kwargs)
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
            # Half of a surrogate pair is no text that a tokenizer accepts; it becomes a question mark.
            cut.append((text or "")[:longest].encode("utf-8", "replace").decode("utf-8").strip())
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


def _refuse_unknown(kwargs: dict[str, Any]) -> None:
    if kwargs.pop("return_tensors", "pt") != "pt" or kwargs:
        named = ", ".join(kwargs) or "another return_tensors than 'pt'"
        raise ValueError(f"{named} is not an argument of this call; its options are stored in the processor.")
