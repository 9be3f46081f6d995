"""Decode an image as the model does, into the model's square; compute its 64-bit hash.

Decoder and square are those of `modeling_oclear`, so that governance, training's clean view and an index see the same
pixels, and refuse the same files for the same reason.
"""

from functools import cache
from typing import Any

import numpy as np
from PIL import Image
from scipy.fft import dctn

from modeling_oclear.image_decoding_oclear import MAX_IMAGE_BYTES, MAX_IMAGE_PIXELS, ImageRefused
from runtime.picture_workers import decode_apart


def decode_square(
    data: bytes, *, size: int, max_pixels: int = MAX_IMAGE_PIXELS, max_bytes: int = MAX_IMAGE_BYTES
) -> tuple[np.ndarray | None, str | None]:
    """(pixels (S, S, 3) uint8, None), or (None, reason)."""
    processor = image_processor(size, max_pixels, max_bytes)
    try:
        return processor.square(decode_apart(data, **processor.decoding)), None
    except ImageRefused as error:
        return None, error.reason


@cache
def image_processor(size: int, max_pixels: int, max_bytes: int) -> Any:
    """The model's image processor for squares of one size."""
    from modeling_oclear.image_processing_oclear import OclearImageProcessor

    return OclearImageProcessor(size=size, max_image_pixels=max_pixels, max_image_bytes=max_bytes)


def hash64(square: np.ndarray) -> int:
    """Perceptual hash of an (S, S, 3) square: signs of the 64 lowest DCT terms of its 32 x 32 grey copy, as int64.

    The constant term is omitted (with one more column instead), so brightness does not matter. Name: "dct32-64".
    """
    grey = np.asarray(
        Image.fromarray(square).convert("L").resize((32, 32), Image.Resampling.BILINEAR), dtype=np.float32
    )
    terms = dctn(grey, norm="ortho")[:8, :9].reshape(-1)[1:65]
    bits = np.packbits(terms > np.median(terms))
    return int(bits.view(np.int64)[0])
