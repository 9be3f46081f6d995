"""Pictures of documents and queries, also from shapes of one colour."""

import colorsys
import io
from typing import NamedTuple, Self

import numpy as np
from PIL import Image, ImageDraw

from examples.emoji.drawings import SIZE
from examples.emoji.keys import keyed_generator
from examples.emoji.renderings import Shot, clean_picture, event_picture

SCALES = (0.62, 0.82)  # of a painted shape in its picture
COPY_ROTATION = 8.0  # degrees, of copies
INVERTED_SHARE = 0.2  # light shapes on dark tiles


class Job(NamedTuple):
    """Input of one picture: the drawing and the key of its random choices.

    `number` is that of a query picture, or of the copy of a document (0: the drawing as its artist shows it).
    """

    png: bytes
    seed: int
    name: str
    number: int
    painted: bool
    attempt: int = 0

    def next_attempt(self) -> Self:
        """The same picture with other random choices."""
        return self._replace(attempt=self.attempt + 1)


def _colour(
    generator: np.random.Generator, saturation: tuple[float, float], value: tuple[float, float]
) -> tuple[int, ...]:
    parts = colorsys.hsv_to_rgb(generator.random(), generator.uniform(*saturation), generator.uniform(*value))
    return tuple(round(255 * part) for part in parts)


def _colours(generator: np.random.Generator, *, plain: bool) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Colour of a shape and of its tile: dark on light, of copies and queries sometimes light on dark."""
    if plain:
        ink = _colour(generator, (0.0, 0.6), (0.0, 0.3))
        return ink, (255, 255, 255) if generator.random() < 0.6 else _colour(generator, (0.0, 0.08), (0.93, 1.0))
    ink, tile = _colour(generator, (0.0, 1.0), (0.0, 0.5)), _colour(generator, (0.0, 0.25), (0.85, 1.0))
    return (tile, ink) if generator.random() < INVERTED_SHARE else (ink, tile)


def _tile(png: bytes, generator: np.random.Generator, *, plain: bool, corners: bool) -> Image.Image:
    """A painted shape on a square, which may have round corners."""
    ink, ground = _colours(generator, plain=plain)
    with Image.open(io.BytesIO(png)) as opened:
        shape = opened.convert("RGBA").getchannel("A")
    side = round(SIZE * generator.uniform(*SCALES))
    tile = Image.new("RGBA", (SIZE, SIZE), (0, 0, 0, 0) if corners else (*ground, 255))
    if corners:
        radius = generator.uniform(0, SIZE / 2.6)
        ImageDraw.Draw(tile).rounded_rectangle((0, 0, SIZE - 1, SIZE - 1), radius, fill=(*ground, 255))
    place = (SIZE - side) // 2
    tile.paste((*ink, 255), (place, place, place + side, place + side), shape.resize((side, side)))
    return tile


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=4)
    return buffer.getvalue()


def _recoloured(png: bytes, generator: np.random.Generator) -> bytes:
    """A copy of a drawing in other colours: hue shifted, turned a little, smaller."""
    with Image.open(io.BytesIO(png)) as opened:
        drawing = opened.convert("RGBA")
    alpha = drawing.getchannel("A")
    hue, saturation, value = drawing.convert("RGB").convert("HSV").split()
    shift = int(generator.integers(20, 236))
    moved = hue.point(lambda one: (one + shift) % 256)
    image = Image.merge("HSV", (moved, saturation, value)).convert("RGBA")
    image.putalpha(alpha)
    side = round(SIZE * generator.uniform(0.8, 1.0))
    image = image.resize((side, side)).rotate(
        generator.uniform(-COPY_ROTATION, COPY_ROTATION), Image.Resampling.BICUBIC
    )
    canvas = Image.new("RGBA", (SIZE, SIZE))
    canvas.paste(image, ((SIZE - side) // 2, (SIZE - side) // 2))
    return _png(canvas)


def document_picture(job: Job) -> bytes:
    """Render the picture of a document as PNG (128 x 128 RGB); `job.name` is the artist, or the document of a copy."""
    generator = keyed_generator(job.seed, "document picture", job.name, job.number)
    if job.painted:
        return _png(_tile(job.png, generator, plain=not job.number, corners=False).convert("RGB"))
    return clean_picture(_recoloured(job.png, generator) if job.number else job.png)


def query_picture(job: Job) -> bytes:
    """Render a query picture as JPEG: turned, cropped, recoloured, on a background (examples/emoji/renderings)."""
    png = job.png
    if job.painted:
        generator = keyed_generator(job.seed, "tile", job.name, job.number, job.attempt)
        png = _png(_tile(png, generator, plain=False, corners=True))
    return event_picture(Shot(png, job.seed, job.number, job.attempt))
