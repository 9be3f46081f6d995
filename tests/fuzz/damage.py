"""Damaged image files of 28 kinds over every format that the decoder reads.

`damaged(number)` is the same file on every machine with the same Pillow. Kind `number % 28`, everything else drawn.
"""

import io
import struct
import zlib
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import numpy as np
from PIL import Image

SEED = 20230503
EXTREMES = (0, 1, 2, 3, 8, 255, 256, 4096, 32767, 32768, 65535, 65536, 2**20, 2**24, 2**31 - 1, 2**31, 2**32 - 1)
SIGNATURES = (
    b"\xff\xd8\xff\xe0", b"\xff\xd8\xff\xc0", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"GIF87a", b"RIFF\x40\0\0\0WEBPVP8 ",
    b"RIFF\x40\0\0\0WEBPVP8L", b"RIFF\x40\0\0\0WEBPVP8X", b"II*\0", b"MM\0*", b"II+\0\x08\0\0\0", b"BM", b"\0\0\1\0",
    b"\0\0\0\x1cftypavif", b"\0\0\0\x1cftypavis", b"%!PS", b"8BPS", b"DDS ", b"<svg", b"P6 ", b"P1 ", b"\0\0\2\0",
)  # fmt: skip
TIFF_TAGS = (
    254, 256, 257, 258, 259, 262, 266, 270, 273, 274, 277, 278, 279, 282, 283, 284, 296, 305, 306, 317, 320, 322, 323,
    324, 325, 338, 339, 347, 513, 514, 529, 530, 532, 700, 33723, 34377, 34665, 34853, 37500, 40965, 50341,
)  # fmt: skip
Rng = np.random.Generator


@cache
def seeds() -> tuple[bytes, ...]:
    """Small valid files: every format, in several modes, plain, animated, with metadata."""
    rng = np.random.default_rng(SEED)
    noise = Image.fromarray(rng.integers(0, 256, (37, 53, 3), dtype=np.uint8))
    flat = Image.new("RGB", (53, 37), (10, 200, 90))
    flat.paste((250, 250, 250), (9, 7, 30, 20))
    clear = flat.convert("RGBA")
    clear.putalpha(noise.convert("L"))
    deep = Image.fromarray(rng.integers(0, 65536, (37, 53), dtype=np.uint16))
    real = Image.fromarray(rng.random((37, 53), dtype=np.float32))
    exif = Image.Exif()
    exif[0x0112], exif[0x010F], exif[0x011A] = 6, "maker", 72.0
    exif.get_ifd(0x8825)[5] = b"\0"
    wanted: list[tuple[Image.Image, str, dict[str, Any]]] = []
    for image in (noise, flat):
        wanted += [(image, "JPEG", {}), (image, "JPEG", {"progressive": True, "exif": exif}), (image, "PNG", {})]
        wanted += [(image, "WEBP", {}), (image, "WEBP", {"lossless": True}), (image, "TIFF", {}), (image, "BMP", {})]
        wanted += [(image, "TIFF", {"compression": name}) for name in ("tiff_lzw", "tiff_deflate", "packbits", "jpeg")]
        wanted += [(image, "AVIF", {"speed": 10}), (image, "GIF", {}), (image.convert("CMYK"), "JPEG", {})]
        for kind in ("GIF", "WEBP", "PNG", "TIFF", "MPO"):
            wanted.append((image, kind, {"save_all": True, "append_images": [flat.copy(), noise.copy()]}))
        wanted += [(image.convert("1"), "PNG", {}), (image.convert("1"), "TIFF", {"compression": "group4"})]
        wanted += [(image.quantize(9), "PNG", {"transparency": 0}), (image.quantize(9), "BMP", {})]
        wanted += [(image.convert("L"), "JPEG", {"exif": exif}), (image.convert("LAB"), "TIFF", {})]
    wanted += [(clear, kind, {}) for kind in ("PNG", "WEBP", "TIFF", "AVIF", "ICO", "BMP")]
    wanted += [(clear.convert("LA"), "PNG", {"exif": exif}), (deep, "PNG", {}), (deep, "TIFF", {}), (real, "TIFF", {})]
    wanted += [
        (flat, "WEBP", {"exif": exif}),
        (flat, "AVIF", {"exif": exif, "speed": 10}),
        (clear, "ICO", {"bitmap_format": "bmp"}),
    ]
    found = []
    for image, kind, options in wanted:
        stream = io.BytesIO()
        image.copy().save(stream, kind, **options)
        found.append(stream.getvalue())
    return tuple(found)


def damaged(number: int) -> tuple[str, bytes]:
    """(kind, bytes) of one damaged file."""
    rng = np.random.default_rng([SEED, number])
    kind = KINDS[number % len(KINDS)]
    return kind.__name__, kind(rng)


def _seed(rng: Rng, *beginnings: bytes) -> bytearray:
    files = [data for data in seeds() if not beginnings or data.startswith(beginnings)]
    return bytearray(files[int(rng.integers(len(files)))])


def _span(rng: Rng, data: bytearray, most: int = 64) -> slice:
    start = int(rng.integers(len(data)))
    return slice(start, min(len(data), start + int(rng.integers(1, most))))


def _random(rng: Rng, count: int) -> bytes:
    return rng.integers(0, 256, count, dtype=np.uint8).tobytes()


def one_bit(rng: Rng) -> bytes:
    """One bit is flipped."""
    data = _seed(rng)
    data[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
    return bytes(data)


def bit_in_the_header(rng: Rng) -> bytes:
    """One to four bits of the first 64 bytes are flipped."""
    data = _seed(rng)
    for _ in range(int(rng.integers(1, 5))):
        data[int(rng.integers(min(64, len(data))))] ^= 1 << int(rng.integers(8))
    return bytes(data)


def many_bits(rng: Rng) -> bytes:
    """About one byte of a hundred is changed."""
    data = _seed(rng)
    for _ in range(1 + len(data) // 100):
        data[int(rng.integers(len(data)))] = int(rng.integers(256))
    return bytes(data)


def noise_burst(rng: Rng) -> bytes:
    """A range holds noise."""
    data = _seed(rng)
    span = _span(rng, data)
    data[span] = _random(rng, span.stop - span.start)
    return bytes(data)


def zeroed(rng: Rng) -> bytes:
    """A range holds zeros, as after a crash of the disk."""
    data = _seed(rng)
    span = _span(rng, data, 4096)
    data[span] = bytes(span.stop - span.start)
    return bytes(data)


def truncated(rng: Rng) -> bytes:
    """The end is missing."""
    data = _seed(rng)
    return bytes(data[: int(rng.integers(len(data)))])


def only_header(rng: Rng) -> bytes:
    """Almost everything is missing."""
    return bytes(_seed(rng)[: int(rng.integers(80))])


def range_lost(rng: Rng) -> bytes:
    """A range is missing."""
    data = _seed(rng)
    del data[_span(rng, data)]
    return bytes(data)


def range_inserted(rng: Rng) -> bytes:
    """Noise is inserted."""
    data = _seed(rng)
    at = int(rng.integers(len(data)))
    data[at:at] = _random(rng, int(rng.integers(1, 64)))
    return bytes(data)


def range_repeated(rng: Rng) -> bytes:
    """A range comes twice to fifty times."""
    data = _seed(rng)
    span = _span(rng, data, 256)
    data[span] = bytes(data[span]) * int(rng.integers(2, 50))
    return bytes(data)


def blocks_swapped(rng: Rng) -> bytes:
    """Two ranges are exchanged."""
    data = _seed(rng)
    one, other = sorted(int(value) for value in rng.integers(0, len(data), 2))
    size = int(rng.integers(1, 64))
    data[one : one + size], data[other : other + size] = data[other : other + size], data[one : one + size]
    return bytes(data)


def spliced(rng: Rng) -> bytes:
    """The beginning of one file and the end of another."""
    one, other = _seed(rng), _seed(rng)
    return bytes(one[: int(rng.integers(len(one)))] + other[int(rng.integers(len(other))) :])


def foreign_header(rng: Rng) -> bytes:
    """The header of one file before the body of another."""
    size = int(rng.integers(4, 64))
    return bytes(_seed(rng)[:size] + _seed(rng)[size:])


def joined(rng: Rng) -> bytes:
    """Two files, one after the other."""
    return bytes(_seed(rng) + _seed(rng))


def signature_and_noise(rng: Rng) -> bytes:
    """A signature, then noise."""
    return SIGNATURES[int(rng.integers(len(SIGNATURES)))] + _random(rng, int(rng.integers(600)))


def _field(rng: Rng, form: str, header: int) -> bytes:
    data = _seed(rng)
    size = struct.calcsize(form)
    for _ in range(int(rng.integers(1, 3))):
        at = int(rng.integers(max(1, min(header, len(data)) - size)))
        value = EXTREMES[int(rng.integers(len(EXTREMES)))] % 2 ** (8 * size)
        data[at : at + size] = struct.pack(form, value)
    return bytes(data)


def big_endian_32(rng: Rng) -> bytes:
    """An extreme value in four bytes."""
    return _field(rng, ">I", 400)


def little_endian_32(rng: Rng) -> bytes:
    """An extreme value in four bytes, the lowest first."""
    return _field(rng, "<I", 400)


def big_endian_16(rng: Rng) -> bytes:
    """An extreme value in two bytes."""
    return _field(rng, ">H", 400)


def little_endian_16(rng: Rng) -> bytes:
    """An extreme value in two bytes, the lowest first."""
    return _field(rng, "<H", 400)


def _chunks(data: bytearray) -> Iterator[tuple[bytes, bytes]]:
    at = 8
    while at + 8 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        yield bytes(data[at + 4 : at + 8]), bytes(data[at + 8 : at + 8 + length])
        at += 12 + length


def _png(chunks: list[tuple[bytes, bytes]]) -> bytes:
    parts = [
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def _shuffled(rng: Rng, items: list[Any]) -> list[Any]:
    """One or two items moved, repeated or lost."""
    for _ in range(int(rng.integers(1, 3))):
        at, to = (int(rng.integers(len(items))) for _ in range(2))
        match int(rng.integers(3)):
            case 0:
                items[at], items[to] = items[to], items[at]
            case 1:
                items[to:to] = [items[at]] * int(rng.integers(1, 9))
            case _ if len(items) > 1:
                del items[at]
    return items


def png_chunks(rng: Rng) -> bytes:
    """PNG chunks in another order, with valid checksums."""
    return _png(_shuffled(rng, list(_chunks(_seed(rng, b"\x89PNG")))))


def png_header(rng: Rng) -> bytes:
    """Another size, depth or colour in a PNG, with valid checksums."""
    chunks = list(_chunks(_seed(rng, b"\x89PNG")))
    fields = list(struct.unpack(">IIBBBBB", chunks[0][1]))
    for _ in range(int(rng.integers(1, 3))):
        at = int(rng.integers(7))
        most = 2**32 if at < 2 else 256
        wanted = [1, 2, 3, 4, 6, 8, 16, int(rng.integers(17)), EXTREMES[int(rng.integers(len(EXTREMES)))]]
        fields[at] = wanted[int(rng.integers(len(wanted)))] % most
    return _png([(b"IHDR", struct.pack(">IIBBBBB", *fields)), *chunks[1:]])


@cache
def _zeros(megabytes: int) -> bytes:
    return zlib.compress(bytes(megabytes * 10**6))


def png_bomb(rng: Rng) -> bytes:
    """Megabytes of zeros in a pixel, text, profile or animation chunk."""
    chunks = list(_chunks(_seed(rng, b"\x89PNG")))
    packed = _zeros(int(rng.choice((1, 5, 40))))
    bombs = [
        (b"IDAT", packed), (b"iCCP", b"x\0\0" + packed), (b"zTXt", b"x\0\0" + packed), (b"eXIf", packed),
        (b"iTXt", b"x\0\1\0\0\0" + packed), (b"tEXt", b"x\0" + packed), (b"fdAT", bytes(4) + packed),
        (b"acTL", struct.pack(">II", 2**31 - 1, 0)), (b"fcTL", _random(rng, 26)), (b"tRNS", packed[:300]),
    ]  # fmt: skip
    count = int(rng.integers(1, 40))
    chunks[1:1] = [bombs[int(rng.integers(len(bombs)))]] * count
    return _png(chunks)


def _segments(data: bytearray) -> list[bytes]:
    found, at = [], 2
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] != 0xDA:
        (length,) = struct.unpack_from(">H", data, at + 2)
        found.append(bytes(data[at : at + 2 + length]))
        at += 2 + length
    return [*found, bytes(data[at:])]


def jpeg_segments(rng: Rng) -> bytes:
    """JPEG segments in another order."""
    return b"\xff\xd8" + b"".join(_shuffled(rng, _segments(_seed(rng, b"\xff\xd8"))))


def jpeg_passes(rng: Rng) -> bytes:
    """A JPEG of any size whose passes are repeated up to two thousand times."""
    data = _seed(rng, b"\xff\xd8")
    frame = next((data.find(mark) for mark in (b"\xff\xc2", b"\xff\xc0") if mark in data), 0)
    if rng.random() < 0.7:
        struct.pack_into(">HH", data, frame + 5, *(int(value) for value in rng.integers(1, 9000, 2)))
    at = data.rfind(b"\xff\xda")
    return bytes(data[:at] + data[at:-2][:200] * int(rng.integers(1, 2000)) + b"\xff\xd9")


def _directory(rng: Rng, order: str) -> bytes:
    """A TIFF directory of random entries: tags that decoders interpret, of any type, count and value."""
    entries = b""
    count = int(rng.integers(1, 20))
    for _ in range(count):
        tag, kind = TIFF_TAGS[int(rng.integers(len(TIFF_TAGS)))], int(rng.integers(20))
        size = EXTREMES[int(rng.integers(len(EXTREMES)))] if rng.random() < 0.3 else int(rng.integers(5))
        value = EXTREMES[int(rng.integers(len(EXTREMES)))] if rng.random() < 0.3 else int(rng.integers(400))
        entries += struct.pack(f"{order}HHII", tag, kind, size, value)
    return struct.pack(f"{order}H", count) + entries + struct.pack(f"{order}I", int(rng.integers(2)) * 8)


def exif_directory(rng: Rng) -> bytes:
    """Random EXIF entries in a JPEG, PNG or WebP."""
    order = "<>"[int(rng.integers(2))]
    mark = b"II*\0\x08\0\0\0" if order == "<" else b"MM\0*\0\0\0\x08"
    exif = mark + _directory(rng, order) + _random(rng, int(rng.integers(300)))
    if rng.random() < 0.5:
        body = b"Exif\0\0" + exif
        return b"\xff\xd8\xff\xe1" + struct.pack(">H", len(body) + 2) + body + bytes(_seed(rng, b"\xff\xd8")[2:])
    chunks = list(_chunks(_seed(rng, b"\x89PNG")))
    return _png([chunks[0], (b"eXIf", exif), *chunks[1:]])


def tiff_directory(rng: Rng) -> bytes:
    """Random entries in the directory of a TIFF; some of the right ones stay."""
    data = _seed(rng, b"II*\0")
    (at,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, at)
    other = _directory(rng, "<")[2:-4]
    for entry in range(count):
        if rng.random() < 0.3 and 12 * entry < len(other):
            place = at + 2 + 12 * int(rng.integers(count))
            tag = data[place : place + 2]
            data[place : place + 12] = other[12 * entry : 12 * entry + 12]
            if rng.random() < 0.7:
                data[place : place + 2] = tag
    return bytes(data)


def boxes(rng: Rng) -> bytes:
    """Chunks of a WebP, or boxes of an AVIF, with other lengths or names."""
    data = _seed(rng, b"RIFF", b"\0\0\0")
    names = (b"VP8 ", b"VP8L", b"VP8X", b"ANIM", b"ANMF", b"ALPH", b"EXIF", b"meta", b"iloc", b"iinf", b"ispe", b"av1C",
             b"ipma", b"ipco", b"iref", b"grid", b"mdat", b"moov", b"stbl", b"pixi", b"irot", b"colr")  # fmt: skip
    places = [at for name in names for at in range(len(data) - 8) if data[at : at + 4] == name]
    for _ in range(int(rng.integers(1, 4))):
        at = places[int(rng.integers(len(places)))] if places else 12
        if rng.random() < 0.3:
            data[at : at + 4] = names[int(rng.integers(len(names)))]
        else:
            near = max(0, at + int(rng.integers(-4, 24)))
            size = int(rng.integers(1, 5))
            data[near : near + size] = EXTREMES[int(rng.integers(len(EXTREMES)))].to_bytes(4, "big")[-size:]
    return bytes(data)


def small_headers(rng: Rng) -> bytes:
    """Sizes, depths and compressions of a GIF, BMP or ICO."""
    data = _seed(rng, b"GIF8", b"BM", b"\0\0\1\0")
    for _ in range(int(rng.integers(1, 4))):
        at = int(rng.integers(4, 70))
        size = int(rng.integers(1, 5))
        data[at : at + size] = EXTREMES[int(rng.integers(len(EXTREMES)))].to_bytes(4, "little")[:size]
    return bytes(data)


KINDS: tuple[Callable[[Rng], bytes], ...] = (
    one_bit, bit_in_the_header, many_bits, noise_burst, zeroed, truncated, only_header, range_lost, range_inserted,
    range_repeated, blocks_swapped, spliced, foreign_header, joined, signature_and_noise, big_endian_32,
    little_endian_32, big_endian_16, little_endian_16, png_chunks, png_header, png_bomb, jpeg_segments, jpeg_passes,
    exif_directory, tiff_directory, boxes, small_headers,
)  # fmt: skip
