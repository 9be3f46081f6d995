"""Awkward image files, each with the reason it is refused for, or "" where it is a picture."""

import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image

from tests.support.images import encode

UNDECODABLE, TOO_MANY, REFUSED = "image_undecodable", "image_too_many_pixels", "image_format_refused"
ORIENTATION, X_RESOLUTION, GPS, GPS_ALTITUDE_REF = 0x0112, 0x011A, 0x8825, 5


def scene(width: int = 48, height: int = 36) -> Image.Image:
    """A drawing without any symmetry, so that a turned copy cannot pass for the original."""
    image = Image.new("RGB", (width, height), (250, 250, 250))
    image.paste((200, 30, 30), (width // 8, height // 8, width // 2, height // 2))
    image.paste((20, 90, 200), (width // 8, height // 2, width // 4, height - height // 8))
    image.paste((0, 0, 0), (width - width // 3, height // 8, width - width // 8, height // 4))
    return image


def png_chunk(kind: bytes, content: bytes) -> bytes:
    """One chunk of a PNG file."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_of(width: int, height: int, *chunks: bytes, depth: int = 8, colour: int = 2) -> bytes:
    """A PNG with a header and the given chunks."""
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", head) + b"".join(chunks) + png_chunk(b"IEND", b"")


def plain_rows(width: int, height: int, *, bytes_per_pixel: int = 3) -> bytes:
    """The pixel chunk of a PNG of one colour; it compresses to almost nothing."""
    row = b"\0" + b"\x40" * (width * bytes_per_pixel)
    packer = zlib.compressobj(6)
    packed = b"".join(packer.compress(row) for _ in range(height))
    return png_chunk(b"IDAT", packed + packer.flush())


def with_chunk(data: bytes, chunk: bytes) -> bytes:
    """A PNG with one more chunk after its header."""
    return data[:33] + chunk + data[33:]


def exif_of(*entries: tuple[int, int, int, bytes], order: str = "<") -> bytes:
    """EXIF data with entries (tag, type, count, value of four bytes), as damaged as the caller wants."""
    mark = b"II" if order == "<" else b"MM"
    head = mark + struct.pack(f"{order}HIH", 42, 8, len(entries))
    return head + b"".join(struct.pack(f"{order}HHI", *entry[:3]) + entry[3] for entry in entries) + b"\0" * 4


def orientation(value: int) -> tuple[int, int, int, bytes]:
    """EXIF entry of the orientation."""
    return ORIENTATION, 3, 1, struct.pack("<HH", value, 0)


def jpeg_with_exif(exif: bytes, image: Image.Image | None = None) -> bytes:
    """A JPEG whose EXIF data are written as they are."""
    content = b"Exif\0\0" + exif
    data = encode(image or scene(), "JPEG", quality=95)
    # Without the JFIF segment: Pillow then looks for the resolution in the EXIF data.
    (length,) = struct.unpack(">H", data[4:6])
    return data[:2] + b"\xff\xe1" + struct.pack(">H", len(content) + 2) + content + data[4 + length :]


def webp_header(width: int, height: int) -> bytes:
    """The header of an animated WebP."""
    size = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    body = b"WEBPVP8X" + struct.pack("<I", 10) + b"\x02\0\0\0" + size
    return b"RIFF" + struct.pack("<I", len(body)) + body


def bmp_of(width: int, height: int, *, compression: int = 0, bits: int = 24, pixels: bytes = b"") -> bytes:
    """A BMP file; a negative height is stored from the top."""
    palette = struct.pack("<4B", 1, 2, 3, 0) * 256 if bits == 8 else b""
    start = 54 + len(palette)
    head = struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, compression, len(pixels), 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", start + len(pixels), 0, 0, start) + head + palette + pixels


def ico_of(content: bytes) -> bytes:
    """An icon that says 16 x 16 and holds one file."""
    return struct.pack("<HHH", 0, 1, 1) + struct.pack("<BBBBHHII", 16, 16, 0, 0, 1, 32, len(content), 22) + content


def gif_of(width: int, height: int) -> bytes:
    """A GIF of one frame without pixels."""
    screen = struct.pack("<HHBBB", width, height, 0, 0, 0)
    return b"GIF89a" + screen + b"\x2c" + struct.pack("<HHHHB", 0, 0, width, height, 0) + b"\x02\x00;"


def tiff_with(entry: bytes, *, replaced: int = 0) -> bytes:
    """A TIFF with a directory entry in place of that of the same tag, or of tag `replaced`."""
    tag = struct.pack("<H", replaced) if replaced else entry[:2]
    data = bytearray(encode(scene(), "TIFF"))
    (directory,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, directory)
    for at in range(directory + 2, directory + 2 + 12 * count, 12):
        if data[at : at + 2] == tag:
            data[at : at + 12] = entry
    return bytes(data)


def grey_16(high: int = 65535) -> np.ndarray:
    """A 16-bit picture up to a value."""
    return (np.asarray(scene().convert("L")).astype(np.uint32) * high // 250).astype(np.uint16)


def progressive_passes(count: int, *, side: int = 4000) -> bytes:
    """A small progressive JPEG whose last pass is repeated."""
    data = encode(Image.new("L", (side, side), 128), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * count + data[-2:]


def pictures() -> dict[str, bytes]:
    """Files that are pictures."""
    colour, grey = scene(), scene().convert("L")
    clear = scene().convert("RGBA")
    clear.putalpha(Image.new("L", clear.size, 0))
    palette = scene().quantize(8)
    more = [Image.new("RGB", colour.size, "green")]
    gps = (GPS, 4, 1, struct.pack("<I", 60))
    text_altitude = exif_of(orientation(6), gps) + exif_of((GPS_ALTITUDE_REF, 2, 4, b"sea\0"))[8:]
    text_resolution = exif_of((X_RESOLUTION, 2, 3, b"72\0\0"), (0x0128, 3, 1, b"\2\0\0\0"), orientation(6))
    rgb_16 = np.repeat(grey_16()[..., None], 3, axis=2).astype(">u2")
    rows_16 = b"".join(b"\0" + row.tobytes() for row in rgb_16)
    found = {
        "jpeg": encode(colour, "JPEG"),
        "progressive_jpeg": encode(colour, "JPEG", progressive=True),
        "grey_jpeg": encode(grey, "JPEG"),
        "cmyk_jpeg": encode(colour.convert("CMYK"), "JPEG"),
        "large_jpeg": encode(scene(641, 482), "JPEG"),
        "large_turned_jpeg": jpeg_with_exif(exif_of(orientation(6)), scene(641, 482)),
        "large_progressive_jpeg": encode(scene(1280, 960), "JPEG", progressive=True),
        "large_cmyk_jpeg": encode(scene(641, 482).convert("CMYK"), "JPEG"),
        "large_grey_jpeg": encode(scene(641, 482).convert("L"), "JPEG"),
        "large_mpo": encode(scene(641, 482), "MPO", save_all=True, append_images=[Image.new("RGB", (641, 482))]),
        "ycbcr_tiff": encode(colour.convert("YCbCr"), "TIFF"),
        "lab_tiff": encode(lab(colour), "TIFF"),
        "png": encode(colour),
        "one_bit_png": encode(grey.convert("1")),
        "grey_alpha_png": encode(clear.convert("LA")),
        "clear_png": encode(clear),
        "palette_clear_png": encode(palette, transparency=0),
        "palette_gif": encode(palette, "GIF", transparency=0),
        "palette_alpha_png": encode(palette, transparency=bytes([0, 128, 255])),
        "colour_key_png": encode(colour, transparency=(250, 250, 250)),
        "grey_16_png": encode(Image.fromarray(grey_16())),
        "grey_16_tiff": encode(Image.fromarray(grey_16()), "TIFF"),
        "grey_12_tiff": encode(Image.fromarray(grey_16(4095)), "TIFF"),
        "colour_16_png": png_of(48, 36, png_chunk(b"IDAT", zlib.compress(rows_16)), depth=16),
        "integer_tiff": encode(Image.fromarray(np.asarray(grey).astype(np.int32)), "TIFF"),
        "float_tiff": encode(Image.fromarray(np.asarray(grey).astype(np.float32) / 250), "TIFF"),
        "animated_gif": encode(colour, "GIF", save_all=True, append_images=more),
        "animated_webp": encode(colour, "WEBP", save_all=True, append_images=more, lossless=True),
        "animated_png": encode(colour, "PNG", save_all=True, append_images=more),
        "pages_tiff": encode(colour, "TIFF", save_all=True, append_images=more),
        "mpo": encode(colour, "MPO", save_all=True, append_images=more),
        "webp": encode(colour, "WEBP", lossless=True),
        "avif": encode(colour, "AVIF"),
        "bmp_from_the_top": bmp_of(5, -3, pixels=bytes(range(48))),
        "ico": ico_of(encode(colour)),
        "altitude_as_text": jpeg_with_exif(text_altitude),
        "resolution_as_text": jpeg_with_exif(text_resolution),
        "xmp_as_numbers": tiff_with(struct.pack("<HHII", 700, 4, 2, 8), replaced=284),
        "exif_garbage": jpeg_with_exif(b"II*\0\xff\xff\xff\xff rubbish"),
        "large_text_png": with_chunk(encode(colour), png_chunk(b"tEXt", b"Comment\0" + b"x" * 900_000)),
        "long_and_thin": png_of(8, 60_000, plain_rows(8, 60_000)),
        "one_row": png_of(1_000_000, 1, plain_rows(1_000_000, 1)),
        "one_column": png_of(1, 1_000_000, plain_rows(1, 1_000_000)),
        "one_pixel": encode(Image.new("RGB", (1, 1), "red")),
    }
    for value in (0, *range(2, 10), 700):
        found[f"orientation_{value}"] = jpeg_with_exif(exif_of(orientation(value)))
    return found


def lab(image: Image.Image) -> Image.Image:
    """The image in the mode LAB."""
    from PIL import ImageCms

    lab_profile, rgb_profile = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    found = ImageCms.profileToProfile(image, rgb_profile, lab_profile, outputMode="LAB")
    assert found is not None
    return found


def refused() -> dict[str, tuple[bytes, str]]:
    """Files that are refused, with the reason."""
    colour = scene()
    bomb = png_chunk(b"iCCP", b"bomb\0\0" + zlib.compress(bytes(80_000_000)))
    endless = np.full((4, 4), np.nan, np.float32)
    jpeg, bytes_of_pixels = encode(colour, "JPEG"), b"\1" * 3
    avif = bytearray(encode(colour, "AVIF"))
    at = avif.index(b"av01", 40)
    avif[at : at + 4] = b"xx01"
    return {
        "empty": (b"", UNDECODABLE),
        "text": (b"no image at all", UNDECODABLE),
        "web_page": (b"<!DOCTYPE html><html><body>404</body></html>", UNDECODABLE),
        "svg": (b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg" width="9"/>', REFUSED),
        "eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", REFUSED),
        "photoshop": (b"8BPS\0\1" + bytes(60), REFUSED),
        "wmf": (b"\xd7\xcd\xc6\x9a\0\0" + bytes(60), REFUSED),
        "dds": (b"DDS " + struct.pack("<I", 124) + bytes(120), REFUSED),
        "heic": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", REFUSED),
        "ppm": (encode(colour, "PPM"), REFUSED),
        "jpeg_2000": (encode(colour, "JPEG2000"), REFUSED),
        "avif_of_an_unknown_codec": (bytes(avif), UNDECODABLE),
        "half_a_jpeg": (jpeg[: len(jpeg) // 2], UNDECODABLE),
        "most_of_a_jpeg": (jpeg[: len(jpeg) * 4 // 5], UNDECODABLE),
        "jpeg_without_pixels": (jpeg[: jpeg.index(b"\xff\xda")], UNDECODABLE),
        "half_a_png": (encode(colour)[:90], UNDECODABLE),
        "half_a_webp": (encode(colour, "WEBP", lossless=True)[:60], UNDECODABLE),
        "no_width": (png_of(0, 4, plain_rows(0, 4)), UNDECODABLE),
        "profile_bomb": (with_chunk(encode(colour), bomb), UNDECODABLE),
        "not_a_number": (encode(Image.fromarray(endless), "TIFF"), UNDECODABLE),
        "giant_png": (png_of(50_000, 50_000, png_chunk(b"IDAT", zlib.compress(b""))), TOO_MANY),
        "large_png": (png_of(10_000, 10_000, png_chunk(b"IDAT", zlib.compress(b""))), TOO_MANY),
        "giant_webp": (webp_header(16_000_000, 200), TOO_MANY),
        "giant_gif": (gif_of(65_535, 65_535), TOO_MANY),
        "giant_bmp": (bmp_of(2**30, 2**20), TOO_MANY),
        "giant_in_an_icon": (ico_of(png_of(15_000, 11_000, plain_rows(9, 9))), TOO_MANY),
        "giant_tiff": (tiff_with(struct.pack("<HHII", 256, 4, 1, 2_000_000)), TOO_MANY),
        "run_length_bmp": (bmp_of(4, 2, compression=1, bits=8, pixels=bytes_of_pixels), REFUSED),
        "jpeg_of_many_passes": (progressive_passes(80), TOO_MANY),
    }


def all_images() -> dict[str, tuple[bytes, str]]:
    """Every file with its reason."""
    return {**{name: (data, "") for name, data in pictures().items()}, **refused()}


def opened(data: bytes, **options: Any) -> Image.Image:
    """What Pillow itself opens."""
    return Image.open(io.BytesIO(data), **options)
