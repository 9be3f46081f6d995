"""Photo-like renderings of drawings, as the query images of the simulated events.

Every event has its own placement, rotation up to 15 degrees, crop, colours, background and JPEG quality. Exact
deduplication therefore finds no equal query images, as in a log of real photographs.
"""

import io
from typing import NamedTuple, Self

import numpy as np
from PIL import Image

from examples.emoji.drawings import SIZE
from examples.emoji.keys import keyed_generator

# Ranges of uniform draws: degrees; fractions of SIZE (scale, shift, crop); relative changes of colour; JPEG quality.
ROTATION = 15.0
SCALES = (0.72, 1.0)
SHIFT = 0.08
CROP = 0.85
BRIGHTNESS = CONTRAST = 0.25
SATURATION = 0.4
WHITE_BALANCE = 0.1
QUALITY = (40, 93)
WHITE_SHARE, PLAIN_SHARE = 0.25, 0.35  # of backgrounds; the others are colour gradients


class Shot(NamedTuple):
    """Input of one rendering: the drawing, and seed, event number and attempt as the key of its random choices."""

    png: bytes
    seed: int
    number: int
    attempt: int = 0

    def next_attempt(self) -> Self:
        """The same rendering with other random choices."""
        return self._replace(attempt=self.attempt + 1)


def clean_picture(png: bytes) -> bytes:
    """Render a drawing on white as PNG (128 x 128 RGB)."""
    with Image.open(io.BytesIO(png)) as opened:
        drawing = opened.convert("RGBA")
    canvas = Image.new("RGBA", drawing.size, "white")
    canvas.alpha_composite(drawing)
    buffer = io.BytesIO()
    canvas.convert("RGB").save(buffer, "PNG", compress_level=4)
    return buffer.getvalue()


def _background(generator: np.random.Generator) -> Image.Image:
    draw = generator.random()
    first, second = generator.integers(0, 256, (2, 3))
    if draw < WHITE_SHARE:
        first = second = np.full(3, 255)
    elif draw < WHITE_SHARE + PLAIN_SHARE:
        second = first
    angle = generator.uniform(0, 2 * np.pi)
    rows, columns = np.mgrid[-1 : 1 : SIZE * 1j, -1 : 1 : SIZE * 1j]
    share = (np.cos(angle) * columns + np.sin(angle) * rows) / (2 * np.sqrt(2)) + 0.5
    pixels = first * (1 - share[:, :, None]) + second * share[:, :, None]
    return Image.fromarray(pixels.astype(np.uint8)).convert("RGBA")


def _placed(drawing: Image.Image, generator: np.random.Generator) -> Image.Image:
    side = round(SIZE * generator.uniform(*SCALES))
    turned = drawing.resize((side, side), Image.Resampling.BICUBIC).rotate(
        generator.uniform(-ROTATION, ROTATION), Image.Resampling.BICUBIC, expand=True
    )
    shift = generator.uniform(-SHIFT, SHIFT, 2) * SIZE
    layer = Image.new("RGBA", (SIZE, SIZE))
    layer.paste(turned, (round((SIZE - turned.width) / 2 + shift[0]), round((SIZE - turned.height) / 2 + shift[1])))
    return layer


def _cropped(image: Image.Image, generator: np.random.Generator) -> Image.Image:
    side = SIZE * generator.uniform(CROP, 1.0)
    left, top = generator.uniform(0, SIZE - side, 2)
    return image.resize((SIZE, SIZE), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))


def _recoloured(image: Image.Image, generator: np.random.Generator) -> Image.Image:
    pixels = np.asarray(image, dtype=np.float32)
    gain = generator.uniform(1 - BRIGHTNESS, 1 + BRIGHTNESS) * generator.uniform(
        1 - WHITE_BALANCE, 1 + WHITE_BALANCE, 3
    )
    pixels = pixels * gain.astype(np.float32)
    pixels = pixels.mean() + (pixels - pixels.mean()) * np.float32(generator.uniform(1 - CONTRAST, 1 + CONTRAST))
    grey = pixels.mean(axis=2, keepdims=True)
    pixels = grey + (pixels - grey) * np.float32(generator.uniform(1 - SATURATION, 1 + SATURATION))
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def event_picture(shot: Shot) -> bytes:
    """Render the image of one query event as JPEG (128 x 128); deterministic, on any worker."""
    generator = keyed_generator(shot.seed, "rendering", shot.number, shot.attempt)
    with Image.open(io.BytesIO(shot.png)) as opened:
        drawing = opened.convert("RGBA")
    canvas = _background(generator)
    canvas.alpha_composite(_placed(drawing, generator))
    picture = _recoloured(_cropped(canvas.convert("RGB"), generator), generator)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=int(generator.integers(*QUALITY)))
    return buffer.getvalue()
