"""Decode image files into upright RGB or RGBA pictures, within limits.

Governance, training, indexing and search decode here, so that the same bytes give the same pixels, or the same reason,
everywhere. Of the metadata only the orientation is read. Of an animation or a file of several pages, the first image
is taken.
"""

import io
import struct
import threading
import warnings
from typing import Any

import numpy as np
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    IcoImagePlugin,
    Image,
    JpegImagePlugin,
    MpoImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,
)

MAX_IMAGE_PIXELS = 50_000_000  # width x height, unless a processor or policy names another limit
MOST_IMAGE_PIXELS = 178_956_970  # the highest such limit: above it Pillow itself refuses a file
MAX_IMAGE_BYTES = 30_000_000  # of a file, unless a processor or policy names another limit
# Imported by name: Pillow would otherwise load every plug-in at the first file, in several threads at once.
PLUGINS: tuple[Any, ...] = (
    JpegImagePlugin, MpoImagePlugin, PngImagePlugin, WebPImagePlugin, GifImagePlugin, AvifImagePlugin, TiffImagePlugin,
    BmpImagePlugin, IcoImagePlugin,
)  # fmt: skip
# A fixed list. Other plug-ins start programs (EPS, WMF), take any bytes (TGA), decode in Python (PPM) or need far more
# memory than the pixels (JPEG 2000). JPEG covers MPO, the files of several pictures that telephones write.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "AVIF", "TIFF", "BMP", "ICO")
ONE_PICTURE = ("JPEG", "PNG")  # once decoded, an image of these holds pixels alone; of others, its file as well
ORIENTATION_TAG = 0x0112
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Ranges of grey values of more than 8 bits: a mask or 0..1, 8, 12 and 16 bits.
GREY_RANGES = (1, 255, 4095, 65535)
GREY_SLACK = 0.02  # a filter overshoots a range by so much
VALUES_AT_ONCE = 2**20
# A progressive JPEG of a few bytes can ask for thousands of passes over all pixels.
MOST_JPEG_PASSES = 16  # over an image of the largest size
MOST_TILE_PIXELS = 2**24  # of a TIFF; an image of more pixels may be one tile
TIFF_TILE_TAGS = (322, 323)
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
BMP_UNCOMPRESSED = (0, 3)
# PNG, JPEG, GIF and WebP in base64.
BASE64_BEGINNINGS = ("iVBORw0KGgo", "/9j/", "R0lGOD", "UklGR")
MOST_DETAIL = 160  # characters of a library's message

# What files begin with that are images, and refused.
REFUSED_BEGINNINGS = (
    (b"%!PS", "EPS"), (b"\xc5\xd0\xd3\xc6", "EPS"), (b"8BPS", "Photoshop"), (b"DDS ", "DDS"), (b"%PDF", "PDF"),
    (b"\xd7\xcd\xc6\x9a", "WMF"), (b"\x01\x00\x00\x00\x6c\x00", "EMF"), (b"\x00\x00\x00\x0cjP", "JPEG 2000"),
    (b"\xff\x4f\xff\x51", "JPEG 2000"), (b"\x00\x00\x00\x0cJXL", "JPEG XL"), (b"\xff\x0a", "JPEG XL"),
    (b"II\xbc", "JPEG XR"), (b"gimp xcf", "GIMP"), (b"SIMPLE  =", "FITS"), (b"\x76\x2f\x31\x01", "OpenEXR"),
    (b"#?RADIANCE", "Radiance"), (b"qoif", "QOI"), (b"icns", "ICNS"), (b"\x0a\x05\x01", "PCX"), (b"Pf", "PFM"),
    (b"PF", "PFM"), *((b"P%d" % number, "PPM") for number in range(1, 8)),
)  # fmt: skip
REFUSED_BRANDS = {b"heic": "HEIC", b"heix": "HEIC", b"hevc": "HEIC", b"hevx": "HEIC", b"mif1": "HEIF", b"msf1": "HEIF"}


class ImageRefused(ValueError):
    """An image that is not used; the text is one sentence.

    Attributes:
        reason: "image_undecodable", "image_too_many_pixels", "image_file_too_large" or "image_format_refused".
    """

    def __init__(self, reason: str, sentence: str) -> None:
        super().__init__(sentence)
        self.reason = reason


class _PillowWarningsOff:
    """Context that silences the warnings of Pillow: what it tolerates in a file is not the user's concern.

    `warnings.catch_warnings` alone restores the wrong filters when several threads decode: here the first thread to
    enter saves them and the last one to leave restores them.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._saved = warnings.catch_warnings()

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._saved = warnings.catch_warnings()
                self._saved.__enter__()
                warnings.filterwarnings("ignore", module=r"PIL\.")
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self._saved.__exit__(None, None, None)


_pillow_warnings_off = _PillowWarningsOff()


def decode_image(
    data: bytes,
    *,
    max_pixels: int = MAX_IMAGE_PIXELS,
    max_bytes: int = MAX_IMAGE_BYTES,
    exif_orientation: bool = True,
    least_side: int | None = None,
) -> Image.Image:
    """Decode a file of one of `FORMATS`; its name does not matter.

    Args:
        data: the bytes of the file.
        max_pixels: largest width x height, read from the header before anything is decoded.
        max_bytes: largest file.
        exif_orientation: turn the picture as its metadata says.
        least_side: decode a JPEG at 1/2, 1/4 or 1/8 of its size, the smallest whose shorter side has so many pixels.
            None: at full size.

    Returns:
        An RGB picture, or RGBA if a pixel is transparent, without metadata.

    Raises:
        ImageRefused: another format, damage, too many pixels, or too large a file.
    """
    check_file_size(len(data), max_bytes)
    formats = [name for name in FORMATS if name in Image.OPEN]  # a build of Pillow may lack AVIF or WebP
    try:
        with _pillow_warnings_off:
            _check_webp(data, max_pixels)
            _check_icon(data, max_pixels)
            with Image.open(io.BytesIO(data), formats=formats) as image:
                _check_size(image.size, max_pixels)
                _check_work(image, data, max_pixels)
                if least_side is not None and isinstance(image, JpegImagePlugin.JpegImageFile):
                    image.draft(None, (least_side, least_side))
                picture = _upright(image, max_pixels, exif_orientation)
                if picture is image and (image.format not in ONE_PICTURE or getattr(image, "is_animated", False)):
                    picture = image.copy()
                picture.info = {}
                return picture
    except UnidentifiedImageError as error:
        raise _unidentified(data) from error
    except Exception as error:
        raise refusal(error, max_pixels) from error


def upright_picture(
    image: Image.Image,
    *,
    max_pixels: int = MAX_IMAGE_PIXELS,
    max_bytes: int = MAX_IMAGE_BYTES,
    exif_orientation: bool = True,
    least_side: int | None = None,
) -> Image.Image:
    """`decode_image` for an image that somebody else has opened, of any format and mode.

    A JPEG that is opened and not decoded yet is decoded here from its file, and stays as it is. One that is decoded
    already has its full size: its pixels then differ slightly from those of its file, where that is reduced.
    """
    try:
        data = _undecoded_jpeg(image)
        if data is not None:
            return decode_image(
                data,
                max_pixels=max_pixels,
                max_bytes=max_bytes,
                exif_orientation=exif_orientation,
                least_side=least_side,
            )
        with _pillow_warnings_off:
            _check_size(image.size, max_pixels)
            return _upright(image, max_pixels, exif_orientation)
    except Exception as error:
        raise refusal(error, max_pixels) from error


def _undecoded_jpeg(image: Image.Image) -> bytes | None:
    """The file of a JPEG that nobody has decoded, reduced or moved to another frame; None for any other image."""
    if not isinstance(image, JpegImagePlugin.JpegImageFile) or image.decoderconfig or image.tell():
        return None
    if not image.tile or image.fp is None:
        return None
    place = image.fp.tell()
    image.fp.seek(0)
    data = image.fp.read()
    image.fp.seek(place)
    return data


def check_file_size(size: int, max_bytes: int) -> None:
    """Refuse a file of more bytes than the limit; for callers that know the size before they read it.

    Raises:
        ImageRefused: it is larger.
    """
    if size > max_bytes:
        raise ImageRefused("image_file_too_large", f"image file of {size} bytes is over {max_bytes} bytes")


def refusal(error: Exception, max_pixels: int) -> ImageRefused:
    """What an error of a decoder says about its file. Decoders raise whatever the damage leads them into."""
    if isinstance(error, ImageRefused):
        return error
    if isinstance(error, Image.DecompressionBombError):
        return ImageRefused("image_too_many_pixels", f"image is over {max_pixels} pixels")
    detail = " ".join(f"{type(error).__name__}: {error}".split())[:MOST_DETAIL].rstrip(": ")
    return ImageRefused("image_undecodable", f"image cannot be decoded ({detail})")


def _check_size(size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if width * height > max_pixels:
        raise ImageRefused("image_too_many_pixels", f"image of {width} x {height} is over {max_pixels} pixels")
    if width < 1 or height < 1:
        raise ImageRefused("image_undecodable", f"image cannot be decoded (it has {width} x {height} pixels)")


def _check_webp(data: bytes, max_pixels: int) -> None:
    """Check the size in a WebP header: its decoder allocates two canvases when a file is opened."""
    if data[:4] != b"RIFF" or data[8:12] != b"WEBP" or len(data) < 30:
        return
    kind = data[12:16]
    if kind == b"VP8X":
        wide, high = (int.from_bytes(data[at : at + 3], "little") + 1 for at in (24, 27))
    elif kind == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        wide, high = (bits & 0x3FFF) + 1, ((bits >> 14) & 0x3FFF) + 1
    else:
        wide, high = (value & 0x3FFF for value in struct.unpack_from("<HH", data, 26))
    if wide and high:
        _check_size((wide, high), max_pixels)


def _check_icon(data: bytes, max_pixels: int) -> None:
    """Check the sizes in an icon: each of its pictures is a file of its own, which is decoded when it is opened."""
    if data[:4] != b"\0\0\1\0":
        return
    (count,) = struct.unpack_from("<H", data, 4)
    for entry in range(6, min(6 + 16 * count, len(data) - 15), 16):
        (at,) = struct.unpack_from("<I", data, entry + 12)
        if len(data) < at + 24:
            continue
        if data[at : at + 8] == PNG_SIGNATURE:
            _check_size(struct.unpack_from(">II", data, at + 16), max_pixels)
            continue
        wide, high, _, compression = struct.unpack_from("<iiII", data, at + 4)
        _check_size((max(1, abs(wide)), max(1, abs(high))), 2 * max_pixels)  # half of the rows are the mask
        if compression not in BMP_UNCOMPRESSED:
            raise ImageRefused("image_format_refused", "image is a run-length coded icon: save it as PNG")


def _check_work(image: Any, data: bytes, max_pixels: int) -> None:
    """Refuse files whose decoding takes far more time or memory than their pixels."""
    width, height = image.size
    if image.format in ("JPEG", "MPO"):
        passes = data.count(b"\xff\xda")
        if passes * width * height > MOST_JPEG_PASSES * max_pixels:
            raise ImageRefused("image_too_many_pixels", f"image of {width} x {height} has {passes} passes")
    elif image.format == "TIFF":
        sides = [image.tag_v2.get(tag) for tag in TIFF_TILE_TAGS]
        wide, high = (int(side) if isinstance(side, int) else 1 for side in sides)
        _check_size((max(1, wide), max(1, high)), max(max_pixels, MOST_TILE_PIXELS))
    elif image.format == "BMP" and image.info.get("compression", 0) not in BMP_UNCOMPRESSED:
        raise ImageRefused("image_format_refused", "image is a run-length coded BMP: save it as PNG")


def _upright(image: Image.Image, max_pixels: int, exif_orientation: bool) -> Image.Image:
    if not isinstance(image.info.get("xmp", b""), bytes):
        del image.info["xmp"]  # damaged: Pillow would look for an orientation in it when it decodes a TIFF
    image.load()
    _check_size(image.size, max_pixels)  # an icon, or a frame larger than its GIF, has another size once decoded
    turn = TURNS.get(_orientation(image)) if exif_orientation else None
    picture = in_colour(image)
    return picture if turn is None else picture.transpose(turn)


def _orientation(image: Image.Image) -> int:
    """Value of the orientation tag; 1 where it is missing or damaged. No other tag is interpreted."""
    try:
        value = image.getexif().get(ORIENTATION_TAG, 1)
    except Exception:  # noqa: BLE001 - damaged metadata leaves the picture as it is stored
        return 1
    return value if isinstance(value, int) else 1


def in_colour(image: Image.Image) -> Image.Image:
    """RGB, or RGBA if a pixel is transparent, for every mode that Pillow reads."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _eight_bits(image).convert("RGB")
    if image.mode == "La":
        image = image.convert("LA")
    if image.mode not in ("RGBA", "LA", "PA", "RGBa") and "transparency" not in image.info:
        return image if image.mode == "RGB" else image.convert("RGB")
    full = image if image.mode == "RGBA" else image.convert("RGBA")
    return full.convert("RGB") if full.getchannel("A").getextrema()[0] == 255 else full


def _eight_bits(image: Image.Image) -> Image.Image:
    """Grey values of 16 or 32 bits or floats -> 8 bits, where Pillow would clip them to white.

    The range of `GREY_RANGES` that holds all values is scaled to 0..255; without one, the image's own range is.
    """
    value_HW = np.asarray(image)
    low, high = float(value_HW.min()), float(value_HW.max())
    if not np.isfinite((low, high)).all():
        raise ImageRefused("image_undecodable", "image cannot be decoded (its grey values are not finite)")
    slack = GREY_SLACK if image.mode == "F" else 0
    top = next((top for top in GREY_RANGES if high <= (1 + slack) * top), None)
    if top is not None and low >= -slack * top:
        low, high = 0.0, float(top)
    factor = 255 / (high - low) if high > low else 0.0
    grey_HW = np.empty(value_HW.shape, np.uint8)
    rows = max(1, VALUES_AT_ONCE // value_HW.shape[1])
    for start in range(0, len(value_HW), rows):
        part = slice(start, start + rows)
        grey_HW[part] = np.rint(((value_HW[part].astype(np.float64) - low) * factor).clip(0, 255))
    return Image.fromarray(grey_HW)


def _unidentified(data: bytes) -> ImageRefused:
    """The refusal of bytes that begin like none of `FORMATS`, or like a damaged one."""
    kind = next((name for start, name in REFUSED_BEGINNINGS if data.startswith(start)), None)
    if data[4:8] == b"ftyp":
        kind = REFUSED_BRANDS.get(bytes(data[8:12]))
        kind = "AVIF" if kind is None and "AVIF" not in Image.OPEN else kind
    start = bytes(data[:1000]).lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith(b"<") and b"<svg" in start:
        kind = "SVG"
    if kind is not None:
        known = ", ".join(FORMATS)
        return ImageRefused("image_format_refused", f"image is of the format {kind}: save it as one of {known}")
    if not data:
        detail = "the file is empty"
    elif start.startswith((b"<!doctype", b"<html", b"<?xml")):
        detail = "it is a web page"
    elif data.startswith((b"data:image/", *map(str.encode, BASE64_BEGINNINGS))):
        detail = "it is base64 text: store the bytes that it encodes"
    else:
        detail = "no known format, or a damaged header"
    return ImageRefused("image_undecodable", f"image cannot be decoded ({detail})")
