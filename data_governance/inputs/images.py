"""Decode an image within limits, crop it to its content, compute its 64-bit hash.

The size is read from the header first: a 50,000 x 50,000 image is rejected without being decoded.
"""

import io
import warnings

import numpy as np
from PIL import Image, UnidentifiedImageError
from scipy.fft import dctn

# Differences up to this many grey levels from the border colour are JPEG noise, not content.
BORDER_TOLERANCE = 24


def decode_square(data: bytes, *, size: int, max_pixels: int) -> tuple[np.ndarray | None, str | None]:
    """(pixels (S, S, 3) uint8, None), or (None, reason)."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns about large images and bad EXIF; the limit below decides
            with Image.open(io.BytesIO(data)) as image:
                if image.width * image.height > max_pixels:
                    return None, "image_too_many_pixels"
                image.draft("RGB", (2 * size, 2 * size))
                return _square(_opaque(image), size), None
    except Image.DecompressionBombError:
        return None, "image_too_many_pixels"
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, EOFError, IndexError, TypeError, KeyError):
        # Pillow raises different exceptions on a broken file, depending on the format.
        return None, "image_undecodable"


def _opaque(image: Image.Image) -> Image.Image:
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        layer = image.convert("RGBA")
        canvas = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        canvas.alpha_composite(layer)
        return canvas.convert("RGB")
    return image.convert("RGB")


def _square(image: Image.Image, size: int) -> np.ndarray:
    """Crop away the border colour, pad to a square with it, resize."""
    pixels = np.asarray(image).astype(np.int16)
    edge = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    border = np.median(edge, axis=0)
    differs = np.abs(pixels - border).max(axis=2) > BORDER_TOLERANCE
    rows, columns = np.flatnonzero(differs.any(axis=1)), np.flatnonzero(differs.any(axis=0))
    if len(rows) > 4 and len(columns) > 4:
        image = image.crop((int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1))
    side = max(image.size)
    canvas = Image.new("RGB", (side, side), (int(border[0]), int(border[1]), int(border[2])))
    canvas.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return np.asarray(canvas.resize((size, size), Image.Resampling.BILINEAR))


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
