"""Image processor: orientation, crop to the subject, padding, normalisation.

All options are stored with the model, so that training, indexing and queries use the same pixels.
"""

import struct
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from transformers import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor

ORIENTATION_TAG = 0x0112
WHITE = (255, 255, 255)
OPAQUE_FROM = 16  # alpha from 0 to 255; below this a pixel counts as background
# Errors that the decoders of Pillow raise on damaged files.
DECODE_ERRORS = (
    OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, zlib.error, Image.DecompressionBombError,
)  # fmt: skip
RESAMPLING = {"nearest", "bilinear", "bicubic", "lanczos"}


class OclearImageProcessor(BaseImageProcessor):
    """Converts images to pixel values.

    Args:
        size: edge of the square output, in pixels.
        image_mean, image_std: per channel, for values in 0..1.
        exif_orientation: apply the orientation of the EXIF data.
        crop_to_subject: crop to the bounding box of the pixels that differ from the border colour or are not
            transparent. A subject is then of the same size in a product photograph and in a drawing.
        crop_tolerance: difference from the border colour (0..255, largest channel) that still counts as background.
        pad_to_square: keep the aspect ratio and pad with the border colour; False = stretch.
        resample: nearest, bilinear, bicubic or lanczos.
        max_image_pixels: larger images are rejected before they are decoded.

    Raises:
        ValueError: for an option out of range or an unknown one.
    """

    model_input_names = ["pixel_values"]

    def __init__(
        self,
        size: int = 96,
        image_mean: Sequence[float] = (0.498, 0.498, 0.498),
        image_std: Sequence[float] = (0.502, 0.502, 0.502),
        exif_orientation: bool = True,
        crop_to_subject: bool = True,
        crop_tolerance: int = 16,
        pad_to_square: bool = True,
        resample: str = "bicubic",
        max_image_pixels: int = 50_000_000,
        **bookkeeping: Any,
    ) -> None:
        known = {"image_processor_type", "auto_map", "processor_class", "feature_extractor_type"}
        if unknown := sorted(set(bookkeeping) - known):
            raise ValueError(f"unknown image option {', '.join(unknown)}; see the arguments of {type(self).__name__}.")
        bookkeeping.pop("image_processor_type", None)
        super().__init__(**bookkeeping)
        for name, value in (("size", size), ("crop_tolerance", crop_tolerance), ("max_image_pixels", max_image_pixels)):
            if not isinstance(value, int) or isinstance(value, bool):
                raise ValueError(f"{name} is {value!r}; a whole number is needed.")
        if not 1 <= size <= 4096:
            raise ValueError(f"size is {size}; it must be from 1 to 4096 pixels.")
        if len(image_mean) != 3 or len(image_std) != 3 or not min(image_std) > 0:
            raise ValueError(
                f"image_mean {list(image_mean)} and image_std {list(image_std)} need three values each, std above 0."
            )
        if resample not in RESAMPLING:
            raise ValueError(f"resample is {resample!r}; choose one of {', '.join(sorted(RESAMPLING))}.")
        if not 0 <= crop_tolerance <= 255:
            raise ValueError(f"crop_tolerance is {crop_tolerance}; it must be from 0 to 255.")
        if max_image_pixels < 1:
            raise ValueError(f"max_image_pixels is {max_image_pixels}; it must be at least 1.")
        self.size, self.image_mean, self.image_std = size, list(image_mean), list(image_std)
        self.exif_orientation, self.crop_to_subject = exif_orientation, crop_to_subject
        self.crop_tolerance, self.pad_to_square, self.resample = crop_tolerance, pad_to_square, resample
        self.max_image_pixels = max_image_pixels

    def preprocess(self, images: Any, *args: Any, return_tensors: str = "pt", **kwargs: Any) -> BatchFeature:
        """Convert a PIL image or a list of them; None stands for a missing image.

        Returns:
            pixel_values (B, 3, size, size) float32, zeros where the image is missing; has_image (B,) bool.

        Raises:
            ValueError: for an entry that is not an image, cannot be decoded or is too large; names its row.
        """
        if args or kwargs:
            named = ", ".join([*map(repr, args), *kwargs])
            raise ValueError(f"{named} is not an argument of this call; the options are stored in the image processor.")
        rows = [images] if images is None or isinstance(images, Image.Image) else list(images)
        if not rows:
            raise ValueError("images is an empty list: give at least one image, or None in its place.")
        pixel_BHWC = np.zeros((len(rows), self.size, self.size, 3), np.uint8)
        has_image_B = np.zeros(len(rows), bool)
        for row, image in enumerate(rows):
            if image is not None:
                pixel_BHWC[row] = self._square(image, row)
                has_image_B[row] = True
        # (pixel / 255 - mean) / std, written per channel into the output: no float copy of the whole batch.
        scale_C = 1 / (255 * np.asarray(self.image_std, np.float32))
        shift_C = np.asarray(self.image_mean, np.float32) / np.asarray(self.image_std, np.float32)
        pixel_BCHW = np.empty((len(rows), 3, self.size, self.size), np.float32)
        for channel in range(3):
            np.multiply(pixel_BHWC[..., channel], scale_C[channel], out=pixel_BCHW[:, channel], casting="unsafe")
            pixel_BCHW[:, channel] -= shift_C[channel]
        pixel_BCHW[~has_image_B] = 0
        arrays: dict[str, Any] = {"pixel_values": pixel_BCHW, "has_image": has_image_B}
        if return_tensors == "pt":
            arrays = {name: torch.from_numpy(array) for name, array in arrays.items()}
        elif return_tensors != "np":
            raise ValueError(f"return_tensors is {return_tensors!r}; choose 'pt' or 'np'.")
        return BatchFeature(arrays)

    def _square(self, image: Any, row: int) -> np.ndarray:
        """One image -> (size, size, 3) uint8."""
        if not isinstance(image, Image.Image):
            raise ValueError(f"images[{row}] is a {type(image).__name__}; give PIL images (PIL.Image.open) or None.")
        width, height = image.size
        if width * height > self.max_image_pixels or width * height == 0:
            raise ValueError(
                f"images[{row}] has {width} x {height} pixels; the limit is {self.max_image_pixels} in total, at least "
                "1. Scale it down first, or raise max_image_pixels."
            )
        try:
            image.load()
            if self.exif_orientation and image.getexif().get(ORIENTATION_TAG, 1) != 1:
                image = ImageOps.exif_transpose(image)
        except DECODE_ERRORS as error:
            raise ValueError(
                f"images[{row}] cannot be decoded ({error}): replace this file or leave it out."
            ) from error
        colour, alpha = split_alpha(image)
        box, border = self._subject(colour, alpha)
        if alpha is not None:
            colour = Image.composite(colour, Image.new("RGB", colour.size, WHITE), alpha)
        return self._fit(colour, box, border)

    def _subject(
        self, colour: Image.Image, alpha: Image.Image | None
    ) -> tuple[tuple[int, int, int, int], tuple[int, ...]]:
        """(bounding box of the subject, colour of the border)."""
        full_box = (0, 0, *colour.size)
        if alpha is not None:
            is_opaque = alpha.point(lambda value: 255 * (value >= OPAQUE_FROM))
            box = is_opaque.getbbox() if self.crop_to_subject else full_box
            return box or full_box, WHITE
        pixel_HWC = np.asarray(colour)
        border_C = border_colour(pixel_HWC)
        border = tuple(int(value) for value in border_C)
        if not self.crop_to_subject:
            return full_box, border
        # |pixel - border| in uint8: conversion to int64 would take eight times the memory of a large photograph.
        difference_HWC = np.maximum(pixel_HWC, border_C) - np.minimum(pixel_HWC, border_C)
        is_far_HWC = difference_HWC > self.crop_tolerance
        is_subject_HW = is_far_HWC[..., 0] | is_far_HWC[..., 1] | is_far_HWC[..., 2]
        rows, columns = np.flatnonzero(is_subject_HW.any(axis=1)), np.flatnonzero(is_subject_HW.any(axis=0))
        if not len(rows):
            return full_box, border
        return (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1), border

    def _fit(self, image: Image.Image, box: tuple[int, int, int, int], border: tuple[int, ...]) -> np.ndarray:
        """Resize the box to the square; the shorter side is padded with the border colour."""
        resample = Image.Resampling[self.resample.upper()]
        # Crop before resizing: the filter would otherwise mix in pixels outside of the box.
        image = image.crop(box)
        width, height = image.size
        if not self.pad_to_square or width == height:
            return np.asarray(image.resize((self.size, self.size), resample))
        longest = max(width, height)
        inner = (max(1, round(width * self.size / longest)), max(1, round(height * self.size / longest)))
        square = np.empty((self.size, self.size, 3), np.uint8)
        square[:] = np.asarray(border, np.uint8)
        left, top = (self.size - inner[0]) // 2, (self.size - inner[1]) // 2
        square[top : top + inner[1], left : left + inner[0]] = np.asarray(image.resize(inner, resample))
        return square


def split_alpha(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """(RGB image, alpha or None when everything is opaque), for every mode that Pillow reads."""
    if image.mode.startswith("I;16") or image.mode == "I":
        # Pillow would clip 16-bit values to white: keep the high byte.
        high_byte_HW = (np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)
        return Image.fromarray(high_byte_HW).convert("RGB"), None
    has_alpha = image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info
    if not has_alpha:
        return (image if image.mode == "RGB" else image.convert("RGB")), None
    full = image if image.mode == "RGBA" else image.convert("RGBA")
    alpha = full.getchannel("A")
    return full.convert("RGB"), None if alpha.getextrema()[0] == 255 else alpha


def border_colour(pixel_HWC: np.ndarray) -> np.ndarray:
    """Median colour (3,) uint8 of the outermost pixels; robust against a subject that touches an edge."""
    edges = (pixel_HWC[0], pixel_HWC[-1], pixel_HWC[:, 0], pixel_HWC[:, -1])
    border_XC = np.concatenate(edges)
    middle = len(border_XC) // 2
    return np.partition(border_XC, middle, axis=0)[middle]
