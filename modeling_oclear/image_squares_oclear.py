"""Pictures to squares and pixel values, with numpy and Pillow alone.

The image processor and a model exported to ONNX both call these functions, so their pixels are equal bit for bit.
"""

from collections.abc import Sequence

import numpy as np
from PIL import Image

WHITE = (255, 255, 255)
OPAQUE_FROM = 16  # alpha from 0 to 255; below this a pixel counts as background
# Options of an image processor that `square_of` takes.
GEOMETRY = ("size", "crop_to_subject", "crop_tolerance", "pad_to_square", "resample")


def square_of(
    picture: Image.Image,
    *,
    size: int,
    crop_to_subject: bool,
    crop_tolerance: int,
    pad_to_square: bool,
    resample: str,
) -> np.ndarray:
    """An upright RGB or RGBA picture -> (size, size, 3) uint8; the options are those of `OclearImageProcessor`."""
    alpha = picture.getchannel("A") if picture.mode == "RGBA" else None
    box, border = _subject(picture, alpha, crop_to_subject, crop_tolerance)
    if alpha is not None:
        opaque = Image.new("RGB", picture.size, WHITE)
        opaque.paste(picture, None, alpha)
        picture = opaque
    # Crop before resizing: the filter would otherwise mix in pixels outside of the box.
    return _fitted(picture.crop(box), border, size, pad_to_square, Image.Resampling[resample.upper()])


def normalised(
    squares_BHWC: np.ndarray, has_image_B: np.ndarray, *, mean: Sequence[float], std: Sequence[float]
) -> np.ndarray:
    """(B, H, W, 3) uint8 -> (B, 3, H, W) float32: (pixel / 255 - mean) / std, zeros where the image is missing."""
    # Written per channel into the output: no float copy of the whole batch.
    scale_C = 1 / (255 * np.asarray(std, np.float32))
    shift_C = np.asarray(mean, np.float32) / np.asarray(std, np.float32)
    rows, height, width, _ = squares_BHWC.shape
    pixel_BCHW = np.empty((rows, 3, height, width), np.float32)
    for channel in range(3):
        np.multiply(squares_BHWC[..., channel], scale_C[channel], out=pixel_BCHW[:, channel], casting="unsafe")
        pixel_BCHW[:, channel] -= shift_C[channel]
    pixel_BCHW[~has_image_B] = 0
    return pixel_BCHW


def _subject(
    colour: Image.Image, alpha: Image.Image | None, crop: bool, tolerance: int
) -> tuple[tuple[int, int, int, int], tuple[int, ...]]:
    """(bounding box of the subject, colour of the border)."""
    full_box = (0, 0, *colour.size)
    if alpha is not None:
        is_opaque = alpha.point(lambda value: 255 * (value >= OPAQUE_FROM))
        box = is_opaque.getbbox() if crop else full_box
        return box or full_box, WHITE
    border = border_colour(colour)
    if not crop:
        return full_box, border
    # A table per channel: 255 for the values that differ. An order of magnitude faster than arithmetic on arrays.
    is_far = [255 * (abs(value - middle) > tolerance) for middle in border for value in range(256)]
    return colour.point(is_far).getbbox() or full_box, border


def _fitted(
    image: Image.Image, border: tuple[int, ...], size: int, pad: bool, resample: Image.Resampling
) -> np.ndarray:
    """Resize to the square; the shorter side is padded with the border colour."""
    width, height = image.size
    if not pad or width == height:
        return np.asarray(image.resize((size, size), resample))
    longest = max(width, height)
    inner = (max(1, round(width * size / longest)), max(1, round(height * size / longest)))
    square = np.empty((size, size, 3), np.uint8)
    square[:] = np.asarray(border, np.uint8)
    left, top = (size - inner[0]) // 2, (size - inner[1]) // 2
    square[top : top + inner[1], left : left + inner[0]] = np.asarray(image.resize(inner, resample))
    return square


def border_colour(image: Image.Image) -> tuple[int, ...]:
    """Median colour of the outermost pixels of an RGB image; robust against a subject that touches an edge."""
    width, height = image.size
    edges = [(0, 0, width, 1), (0, height - 1, width, height), (0, 0, 1, height), (width - 1, 0, width, height)]
    border_XC = np.concatenate([np.asarray(image.crop(edge)).reshape(-1, 3) for edge in edges])
    middle = len(border_XC) // 2
    return tuple(int(value) for value in np.partition(border_XC, middle, axis=0)[middle])
