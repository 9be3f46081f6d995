"""Image processor: orientation, crop to the subject, padding, normalisation.

All options are stored with the model, so that training, indexing and queries use the same pixels.
"""

import hashlib
import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor

from .image_decoding_oclear import (
    MAX_IMAGE_BYTES,
    MAX_IMAGE_PIXELS,
    MOST_IMAGE_PIXELS,
    ImageRefused,
    decode_image,
    upright_picture,
)
from .image_squares_oclear import GEOMETRY, normalised, square_of

# The shorter side of a JPEG that is decoded at a reduced size has at least this many times the pixels of the square, so
# that a subject of a quarter of the picture still fills it.
REDUCED_SIDES = 4
RESAMPLING = {"nearest", "bilinear", "bicubic", "lanczos"}
PIXEL_OPTIONS = (*GEOMETRY, "image_mean", "image_std", "exif_orientation")  # what changes the pixels of a picture
OPTIONS = (*PIXEL_OPTIONS, "max_image_pixels", "max_image_bytes")
# What other image processors can switch and this one always does.
ALWAYS_SO = (
    ("do_resize", True),
    ("do_rescale", True),
    ("do_normalize", True),
    ("do_convert_rgb", True),
    ("rescale_factor", 1 / 255),
    ("data_format", "channels_first"),
    ("input_data_format", None),
    ("device", None),
    ("device", "cpu"),
)


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
        max_image_bytes: larger image files are rejected, where a file is decoded here.

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
        max_image_pixels: int = MAX_IMAGE_PIXELS,
        max_image_bytes: int = MAX_IMAGE_BYTES,
        **bookkeeping: Any,
    ) -> None:
        known = {"image_processor_type", "auto_map", "processor_class", "feature_extractor_type"}
        if unknown := sorted(set(bookkeeping) - known):
            raise ValueError(f"unknown image option {', '.join(unknown)}; see the arguments of {type(self).__name__}.")
        bookkeeping.pop("image_processor_type", None)
        super().__init__(**bookkeeping)
        for name, value in (
            ("size", size),
            ("crop_tolerance", crop_tolerance),
            ("max_image_pixels", max_image_pixels),
            ("max_image_bytes", max_image_bytes),
        ):
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
        if not 1 <= max_image_pixels <= MOST_IMAGE_PIXELS:
            raise ValueError(f"max_image_pixels is {max_image_pixels}; it must be from 1 to {MOST_IMAGE_PIXELS}.")
        if max_image_bytes < 1:
            raise ValueError(f"max_image_bytes is {max_image_bytes}; it must be at least 1, such as {MAX_IMAGE_BYTES}.")
        self.size, self.image_mean, self.image_std = size, list(image_mean), list(image_std)
        self.exif_orientation, self.crop_to_subject = exif_orientation, crop_to_subject
        self.crop_tolerance, self.pad_to_square, self.resample = crop_tolerance, pad_to_square, resample
        self.max_image_pixels, self.max_image_bytes = max_image_pixels, max_image_bytes

    def preprocess(self, images: Any, *args: Any, return_tensors: str | None = "pt", **kwargs: Any) -> BatchFeature:
        """Convert a PIL image or a list of them; None stands for a missing image.

        Args:
            return_tensors: "pt", "np", or None for a list of arrays.
            kwargs: options of the constructor, for this call alone; the model was trained with the stored ones. The
                switches of other image processors (`do_resize` ...) may be given as they are here: on.

        Returns:
            pixel_values (B, 3, size, size) float32, zeros where the image is missing; has_image (B,) bool.

        Raises:
            ValueError: for an entry that is not an image, cannot be decoded or is too large; names its row.
        """
        changes = {name: value for name, value in kwargs.items() if (name, value) not in ALWAYS_SO}
        if args or changes.keys() - OPTIONS:
            named = ", ".join([*map(repr, args), *sorted(changes.keys() - OPTIONS)])
            raise ValueError(f"{named} is not an argument of this call; its options are {', '.join(OPTIONS)}.")
        if changes:
            other = type(self)(**{name: getattr(self, name) for name in OPTIONS} | changes)
            return other.preprocess(images, return_tensors=return_tensors)
        rows = [images] if images is None or isinstance(images, Image.Image) else list(images)
        if not rows:
            raise ValueError("images is an empty list: give at least one image, or None in its place.")
        pixel_BHWC = np.zeros((len(rows), self.size, self.size, 3), np.uint8)
        has_image_B = np.zeros(len(rows), bool)
        for row, image in enumerate(rows):
            if image is not None:
                pixel_BHWC[row] = self._row(image, row)
                has_image_B[row] = True
        pixel_BCHW = normalised(pixel_BHWC, has_image_B, mean=self.image_mean, std=self.image_std)
        arrays: dict[str, Any] = {"pixel_values": pixel_BCHW, "has_image": has_image_B}
        if return_tensors == "pt":
            arrays = {name: torch.from_numpy(array) for name, array in arrays.items()}
        elif return_tensors is None:
            arrays = {name: list(array) for name, array in arrays.items()}
        elif return_tensors != "np":
            raise ValueError(f"return_tensors is {return_tensors!r}; choose 'pt', 'np' or None.")
        return BatchFeature(arrays)

    def _row(self, image: Any, row: int) -> np.ndarray:
        """`square` of one image of a batch; its error names the row."""
        if not isinstance(image, Image.Image):
            raise ValueError(f"images[{row}] is a {type(image).__name__}; give PIL images (PIL.Image.open) or None.")
        try:
            return self.square(image)
        except ImageRefused as error:
            remedy = "replace this file or leave it out"
            if error.reason == "image_too_many_pixels":
                remedy = "scale it down first, or raise max_image_pixels"
            elif error.reason == "image_file_too_large":
                remedy = "compress it first, or raise max_image_bytes"
            raise ValueError(f"images[{row}]: {error}; {remedy}.") from error

    def decode(self, data: bytes) -> Image.Image:
        """Decode an image file as this processor wants it: RGB or RGBA, upright.

        Raises:
            ImageRefused: another format, damage, too many pixels, or too large a file.
        """
        return decode_image(data, **self.decoding)

    @property
    def decoding(self) -> dict[str, Any]:
        """Limits and options of `decode_image`."""
        return {
            "max_pixels": self.max_image_pixels,
            "max_bytes": self.max_image_bytes,
            "exif_orientation": self.exif_orientation,
            "least_side": REDUCED_SIDES * self.size,
        }

    @property
    def pixel_settings(self) -> list[Any]:
        """All that pixels depend on beside the picture: options, and a digest of the code."""
        return [*(getattr(self, name) for name in PIXEL_OPTIONS), self.pixel_code]

    @property
    def pixel_code(self) -> str:
        """Digest of the code that makes pixels of bytes: what was computed with other code is stale."""
        sources = (inspect.getsource(inspect.getmodule(part) or part) for part in (decode_image, square_of, type(self)))
        return hashlib.sha256("".join(sources).encode()).hexdigest()

    def square(self, image: Image.Image) -> np.ndarray:
        """One image -> (size, size, 3) uint8, before normalisation.

        Raises:
            ImageRefused: it cannot be decoded or has too many pixels.
        """
        return square_of(upright_picture(image, **self.decoding), **self.geometry)

    @property
    def geometry(self) -> dict[str, Any]:
        """Arguments of `square_of`."""
        return {name: getattr(self, name) for name in GEOMETRY}
