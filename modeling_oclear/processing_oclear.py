"""Processors: images and texts to model inputs, with masks for missing ones."""

from typing import Any

import numpy as np
from PIL import Image
from transformers import BatchFeature
from transformers.processing_utils import ProcessorMixin

from .visible_text_oclear import readable

TEXT_OPTIONS = frozenset(
    {
        "padding",
        "truncation",
        "max_length",
        "pad_to_multiple_of",
        "padding_side",
        "add_special_tokens",
        "return_attention_mask",
        "return_token_type_ids",
    }
)
GROUPS = ("common_kwargs", "text_kwargs", "images_kwargs")
NOT_READ = ("videos", "audio", "videos_kwargs", "audio_kwargs")


class OclearQueryProcessor(ProcessorMixin):
    """Images only: for queries, and for models without a text encoder."""

    def __init__(self, image_processor: Any) -> None:
        super().__init__(image_processor)

    def __call__(self, images: Any = None, text: Any = None, **kwargs: Any) -> BatchFeature:
        """Convert a PIL image or a list of them to pixel_values (B, 3, H, W) and has_image (B,).

        Args:
            kwargs: as of every processor: `return_tensors`, `images_kwargs`, `common_kwargs`; those of texts have no
                effect.

        Raises:
            ValueError: without images, with text, for an unknown argument or an image that cannot be read.
        """
        options = CallOptions(kwargs)
        if text is not None:
            raise ValueError(
                "text was given, but this processor belongs to a model that reads images only: leave it out."
            )
        if images is None:
            raise ValueError("images is missing: give a PIL image or a list of them.")
        return self.image_processor(images, return_tensors=options.tensors, **options.image)


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
            kwargs: as of every processor: `return_tensors` ("pt", "np" or None), `padding`, `truncation`, `max_length`
                and other options of the tokenizer, alone or in `text_kwargs`; options of the image processor in
                `images_kwargs`; `common_kwargs`. What is not given is as the model was trained.

        Returns:
            pixel_values (B, 3, H, W) and has_image (B,) with images; input_ids and attention_mask (B, T) and has_text
            (B,) with texts. The attention mask of a missing text is all 0.

        Raises:
            ValueError: without both, for lists of different lengths, or for an entry of the wrong type.
        """
        options = CallOptions(kwargs)
        if images is None and text is None:
            raise ValueError("images and text are both missing: give at least one of them.")
        batch: dict[str, Any] = {}
        if images is not None:
            batch.update(self.image_processor(images, return_tensors=options.tensors, **options.image))
        if text is not None:
            batch.update(self._tokenize([text] if isinstance(text, str) else list(text), options))
        if images is not None and text is not None and len(batch["has_image"]) != len(batch["has_text"]):
            num_images = 1 if isinstance(images, Image.Image) else len(images)
            raise ValueError(
                f"{num_images} images and {len(batch['has_text'])} texts were given: give one of each per document, "
                "with None where one is missing."
            )
        return BatchFeature(batch)

    def _tokenize(self, texts: list[str | None], options: "CallOptions") -> BatchFeature:
        settings = {"padding": True, "truncation": True, "max_length": self.max_length, **options.text}
        longest = max(settings["max_length"] or 0, self.max_length)
        cut = []
        for row, text in enumerate(texts):
            if text is not None and not isinstance(text, str):
                raise ValueError(f"text[{row}] is a {type(text).__name__}; give a string, or None where it is missing.")
            cut.append(readable(text or "", max_length=longest))
        if not cut:
            raise ValueError("text is an empty list: give at least one text, or None for no texts at all.")
        tokens = self.tokenizer(cut, **{"return_token_type_ids": False, **settings, "return_attention_mask": True})
        masks = [mask if text else [0] * len(mask) for mask, text in zip(tokens["attention_mask"], cut, strict=True)]
        found = {**tokens, "attention_mask": masks, "has_text": np.array([bool(text) for text in cut])}
        if options.tensors is not None and len({len(row) for row in tokens["input_ids"]}) > 1:
            raise ValueError(
                f"the texts have different numbers of tokens and padding is {settings['padding']!r}: leave padding "
                "out, or give return_tensors=None."
            )
        return BatchFeature(found, tensor_type=options.tensors)


class CallOptions:
    """Arguments of one call of a processor, sorted.

    Attributes:
        tensors: "pt", "np", or None for lists.
        text, image: options of the tokenizer and of the image processor.
    """

    def __init__(self, given: dict[str, Any]) -> None:
        groups = {name: dict(given.pop(name, None) or {}) for name in GROUPS}
        unread = [name for name in NOT_READ if given.pop(name, None)]
        self.text, self.image = groups["text_kwargs"], groups["images_kwargs"]
        common = {**groups["common_kwargs"], **given}
        self.tensors = common.pop("return_tensors", "pt")
        for group in (self.text, self.image):
            self.tensors = group.pop("return_tensors", self.tensors)
        self.text |= {name: common.pop(name) for name in TEXT_OPTIONS & set(common)}
        unknown = [*unread, *common, *(set(self.text) - TEXT_OPTIONS)]
        if unknown:
            raise ValueError(
                f"{', '.join(sorted(unknown))} is not an argument of this call; give return_tensors, padding, "
                "truncation, max_length, text_kwargs or images_kwargs."
            )
        tensors = getattr(self.tensors, "value", self.tensors)  # transformers also has an enumeration of them
        if tensors not in ("pt", "np", None):
            raise ValueError(f"return_tensors is {self.tensors!r}; choose 'pt', 'np' or None.")
        self.tensors = tensors
