"""Encoded test images."""

import io
from typing import Any

import numpy as np
from PIL import Image


def encode(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """Bytes of an image file; `options` are those of `Image.save`."""
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def plain_png(colour: str, size: tuple[int, int] = (37, 33)) -> bytes:
    """A PNG of one colour; `size` is (width, height)."""
    return encode(Image.new("RGB", size, colour))


def pixels_png(pixel_HWC: np.ndarray) -> bytes:
    """A PNG of uint8 pixels."""
    return encode(Image.fromarray(pixel_HWC))
