"""Decode the image values of a table: bytes, a path or {bytes, path}.

A path must lie below the folder of its table, so that a table from elsewhere cannot read other files. The size is read
from the header before anything is decoded, so that a picture of 50,000 x 50,000 pixels costs nothing.
"""

import io
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

from PIL import Image

MAX_IMAGE_PIXELS = 50_000_000  # used when the processor names no limit of its own
DAMAGE = (OSError, ValueError, SyntaxError, EOFError, OverflowError, IndexError, KeyError, TypeError, struct.error)


class PictureError(ValueError):
    """An image value that cannot be used; the text is the reason, for a list of skipped rows."""


def decode(cell: Any, *, folder: Path | None, max_pixels: int = MAX_IMAGE_PIXELS) -> Image.Image | None:
    """Decode one image value.

    Args:
        cell: None, bytes, a path below `folder`, {"bytes", "path"}, or a list of those (the first is the main image).
        folder: where the table lives; None when the table came from the Hub and holds bytes only.
        max_pixels: the largest width x height that is decoded.

    Returns:
        The picture, fully loaded, in its own mode and EXIF orientation (the processor rotates it), or None if missing.

    Raises:
        PictureError: a path outside the folder, no such file, not a picture, too large, damaged.
    """
    content = _content(cell, folder)
    if content is None:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit below is stricter
            picture = Image.open(io.BytesIO(content))
            if picture.width * picture.height > max_pixels:
                raise PictureError(f"image of {picture.width} x {picture.height} is over {max_pixels} pixels")
            picture.load()
            picture.getexif()  # damaged orientation data would stop a whole batch later
    except PictureError:
        raise
    except Image.DecompressionBombError as error:
        raise PictureError(f"image is over {max_pixels} pixels") from error
    except (*DAMAGE, zlib.error, MemoryError) as error:
        raise PictureError(f"image cannot be decoded ({type(error).__name__})") from error
    return picture


def _content(cell: Any, folder: Path | None) -> bytes | None:
    if isinstance(cell, list):
        cell = cell[0] if cell else None
    if isinstance(cell, dict):
        cell = cell.get("bytes") or cell.get("path")
    if isinstance(cell, str):
        return _read_below(cell, folder) if cell else None
    if cell is None or isinstance(cell, bytes):
        return cell or None
    raise PictureError(f"image value of type {type(cell).__name__}: need bytes, a path or {{bytes, path}}")


def _read_below(name: str, folder: Path | None) -> bytes:
    if folder is None:
        raise PictureError(f"image path {name!r} in a table that has no folder: embed the bytes")
    root = folder.resolve()
    try:
        place = (root / name).resolve()
        if not place.is_relative_to(root):
            raise PictureError(f"image path {name!r} leaves the folder of its table")
        return place.read_bytes()
    except PictureError:
        raise
    except (OSError, ValueError) as error:
        raise PictureError(f"image file {name!r} cannot be read ({type(error).__name__})") from error


def read_picture(path: Path, *, max_pixels: int = MAX_IMAGE_PIXELS) -> Image.Image:
    """Decode a picture file that the user names on the command line, in any folder.

    Raises:
        PictureError: no such file, or one that decode refuses; the message names the path.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise PictureError(f"image {path}: {error.strerror or type(error).__name__}") from error
    try:
        picture = decode(content, folder=None, max_pixels=max_pixels)
    except PictureError as error:
        raise PictureError(f"image {path}: {error}") from error
    if picture is None:
        raise PictureError(f"image {path}: the file is empty")
    return picture
