"""Decode the image values of a table: bytes, a path or {bytes, path}.

A path must lie below the folder of its table, so that a table from elsewhere cannot read other files. The bytes are
decoded by the model's own decoder, as in governance and training, in a process with limits.
"""

from pathlib import Path
from typing import Any

from PIL import Image

from modeling_oclear.image_decoding_oclear import MAX_IMAGE_BYTES, ImageRefused, check_file_size
from runtime.picture_files import PictureFileError, read_picture_file
from runtime.picture_workers import decode_apart

MOST_PIXELS_AT_ONCE = 50_000_000  # of decoded pictures that wait for the rest of their batch: 200 MB


class PictureError(ValueError):
    """An image value that cannot be used; the text is the reason, for a list of skipped rows."""


def decode(cell: Any, *, folder: Path | None, **options: Any) -> Image.Image | None:
    """Decode one image value.

    Args:
        cell: None, bytes, a path below `folder`, {"bytes", "path"}, or a list of those (the first is the main image).
        folder: where the table lives; None when the table came from the Hub and holds bytes only.
        options: of `decode_image`: `max_pixels`, `max_bytes`, `exif_orientation`, `least_side`.

    Returns:
        The picture, RGB or RGBA, or None if missing.

    Raises:
        PictureError: a path outside the folder, no such file, not a picture, another format, too large, damaged.
    """
    content = content_of(cell, folder=folder, max_bytes=options.get("max_bytes", MAX_IMAGE_BYTES))
    return None if content is None else decoded(content, **options)


def decoded(content: bytes, **options: Any) -> Image.Image:
    """Decode the bytes of a picture; arguments and errors as in `decode`."""
    try:
        return decode_apart(content, **options)
    except ImageRefused as error:
        raise PictureError(str(error)) from error


def content_of(cell: Any, *, folder: Path | None, max_bytes: int = MAX_IMAGE_BYTES) -> bytes | None:
    """The bytes of an image value, None if missing; arguments and errors as in `decode`."""
    if isinstance(cell, list):
        cell = cell[0] if cell else None
    if isinstance(cell, dict):
        cell = cell.get("bytes") or cell.get("path")
    if isinstance(cell, str):
        try:
            return read_picture_file(cell, folder, max_bytes=max_bytes) if cell else None
        except (ImageRefused, PictureFileError) as error:
            raise PictureError(str(error)) from error
    if cell is None or isinstance(cell, bytes):
        return cell or None
    raise PictureError(f"image value of type {type(cell).__name__}: need bytes, a path or {{bytes, path}}")


def read_picture(path: Path, **options: Any) -> Image.Image:
    """Decode a picture file that the user names on the command line, in any folder.

    Args:
        options: see `decode`.

    Raises:
        PictureError: no such file, or one that decode refuses; the message names the path.
    """
    try:
        check_file_size(path.stat().st_size, options.get("max_bytes", MAX_IMAGE_BYTES))
        picture = decode(path.read_bytes(), folder=None, **options)
    except OSError as error:
        raise PictureError(f"image {path}: {error.strerror or type(error).__name__}") from error
    except (PictureError, ImageRefused) as error:
        raise PictureError(f"image {path}: {error}") from error
    if picture is None:
        raise PictureError(f"image {path}: the file is empty")
    return picture
