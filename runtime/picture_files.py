"""Read picture files that a table names, below the folder of the table only.

A table from elsewhere must not reach other files: `..`, absolute paths and links that lead out are refused. Nothing is
downloaded. A path that was written on another system is found too: with backslashes, or with accents in another form.
"""

import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path

from modeling_oclear.image_decoding_oclear import BASE64_BEGINNINGS

URL = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
DATA_URI = re.compile(r"data:[\w./+-]*[;,]", re.IGNORECASE)
LEAST_BASE64 = 100  # characters; a shorter text may be a path
NAME_SHOWN = 80


class PictureFileError(ValueError):
    """A picture file that cannot be had; the text is one sentence.

    Attributes:
        reason: "image_is_a_url", "image_is_base64", "image_path_without_folder", "image_path_escapes_folder",
            "image_file_missing" or "image_file_too_large".
    """

    def __init__(self, reason: str, sentence: str) -> None:
        super().__init__(sentence)
        self.reason = reason


def read_picture_file(name: str, folder: Path | None, *, max_bytes: int) -> bytes:
    """The bytes of the file that `name` names below `folder`; None: the table has no folder.

    Raises:
        PictureFileError: it is not there, is too large, lies elsewhere, or `name` is no path.
    """
    path = find_picture_file(name, folder)
    try:
        size = path.stat().st_size
        if size > max_bytes:
            raise PictureFileError("image_file_too_large", f"image file of {size} bytes is over {max_bytes} bytes")
        return path.read_bytes()
    except OSError as error:
        raise _missing(name, error) from error


def find_picture_file(name: str, folder: Path | None) -> Path:
    """The file that `name` names below `folder`.

    Raises:
        PictureFileError: it is not there, lies elsewhere, or `name` is no path.
    """
    shown = name if len(name) <= NAME_SHOWN else name[:NAME_SHOWN] + "..."
    if DATA_URI.match(name):
        raise PictureFileError("image_is_base64", f"image {shown!r} is a data URI: store the bytes that it encodes")
    if URL.match(name):
        raise PictureFileError("image_is_a_url", f"image {shown!r} is an address: nothing is downloaded")
    if folder is None:
        raise PictureFileError(
            "image_path_without_folder", f"image path {shown!r} in a table that has no folder: embed the bytes"
        )
    root = folder.resolve()
    try:
        for written in _spellings(name):
            path = (root / written).resolve()
            if not path.is_relative_to(root):
                raise PictureFileError(
                    "image_path_escapes_folder", f"image path {shown!r} leaves the folder of its table"
                )
            if path.exists():
                return path
    # A path may hold a zero byte, be too long, or be a circle of links.
    except (OSError, RuntimeError) as error:
        raise _missing(name, error) from error
    except ValueError as error:
        if isinstance(error, PictureFileError) and not _is_base64(name):
            raise
        raise _missing(name, error) from error
    raise _missing(name, FileNotFoundError())


def _spellings(name: str) -> Iterator[str]:
    """The path as it is written, then as other systems write it."""
    yield name
    for form in ("NFC", "NFD"):
        if (other := unicodedata.normalize(form, name)) != name:
            yield other
    if "\\" in name:
        yield name.replace("\\", "/")


def _is_base64(name: str) -> bool:
    return len(name) >= LEAST_BASE64 and name.startswith(BASE64_BEGINNINGS)


def _missing(name: str, error: Exception) -> PictureFileError:
    if _is_base64(name):
        return PictureFileError("image_is_base64", "image is base64 text: store the bytes that it encodes")
    shown = name if len(name) <= NAME_SHOWN else name[:NAME_SHOWN] + "..."
    return PictureFileError("image_file_missing", f"image file {shown!r} cannot be read ({type(error).__name__})")
