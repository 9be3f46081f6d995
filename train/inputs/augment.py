"""Image augmentation: small changes of geometry, large changes of drawing style.

A query and a document of one category often differ in style: palette, line width, flat or shaded, filled or outlined.
Images are not mirrored: left and right arrows are different categories.
"""

import hashlib

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps


def keyed_generator(seed: int, sample_id: str, view: int) -> np.random.Generator:
    """Random generator keyed by (seed, sample_id, view), so that every rank draws the same view."""
    digest = hashlib.blake2b(f"{seed}/{sample_id}/{view}".encode(), digest_size=16).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest, "little")))


def affine(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Rotation to 15 degrees, scale .8 to 1.1, shear to .1, shift to 8% of the side; the border colour fills."""
    width, height = image.size
    angle = np.deg2rad(rng.uniform(-15, 15))
    scale = 1 / rng.uniform(0.8, 1.1)
    shear = rng.uniform(-0.1, 0.1)
    cos, sin = np.cos(angle) * scale, np.sin(angle) * scale
    matrix = np.array([[cos, sin + shear], [-sin, cos]])
    centre = np.array([width / 2, height / 2])
    shift = centre - matrix @ (centre + rng.uniform(-0.08, 0.08, 2) * (width, height))
    data = (matrix[0, 0], matrix[0, 1], shift[0], matrix[1, 0], matrix[1, 1], shift[1])
    fill = image.getpixel((0, 0))
    return image.transform(image.size, Image.Transform.AFFINE, data, Image.Resampling.BILINEAR, fillcolor=fill)


def hue_shift(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Rotate the hue by at most 18 degrees in either direction."""
    hue, saturation, value = image.convert("HSV").split()
    turn = int(rng.integers(-13, 14))
    return Image.merge("HSV", (hue.point(lambda h: (h + turn) % 256), saturation, value)).convert("RGB")


def outline(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Draw the edges in black over the colours."""
    ink = line_mask(image, rng)
    return Image.composite(Image.new("RGB", image.size, (20, 20, 20)), image, ink)


def line_art(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Keep only the edges: dark lines on white."""
    return ImageOps.invert(line_mask(image, rng)).convert("RGB")


def line_mask(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Edges of the luminance as a mask, 1 or 3 pixels wide."""
    edges = image.convert("L").filter(ImageFilter.GaussianBlur(1)).filter(ImageFilter.FIND_EDGES)
    # The kernel does not change the outermost pixels, so they are cleared; tiny images have a thinner border.
    rim = min(2, (min(edges.size) - 1) // 2)
    edges = ImageOps.expand(ImageOps.crop(edges, rim), rim, 0).point(lambda value: min(255, value * 6))
    return edges.filter(ImageFilter.MaxFilter(3)) if rng.random() < 0.5 else edges


def flatten(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Reduce to a few flat colours, as in a vector drawing."""
    return ImageOps.posterize(image.filter(ImageFilter.MedianFilter(3)), int(rng.integers(2, 4)))


def on_white(image: Image.Image) -> Image.Image:
    """RGB image; transparent pixels become white, as in the processor."""
    if image.mode != "RGBA":
        return image.convert("RGB")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")


def style_view(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """One augmented view: geometry always, colour mostly, one drawing style sometimes, blur sometimes.

    Args:
        image: RGB or RGBA; transparent pixels become white.
        rng: the only source of randomness.

    Returns:
        An RGB image of the same size.
    """
    view = affine(on_white(image), rng)
    if rng.random() < 0.6:
        view = hue_shift(view, rng)
        view = ImageEnhance.Color(view).enhance(rng.uniform(0.3, 1.8))
        view = ImageEnhance.Brightness(view).enhance(rng.uniform(0.8, 1.2))
        view = ImageEnhance.Contrast(view).enhance(rng.uniform(0.75, 1.3))
    style = rng.random()
    if style < 0.12:
        view = ImageOps.grayscale(view).convert("RGB")
    elif style < 0.30:
        view = outline(view, rng)
    elif style < 0.42:
        view = line_art(view, rng)
    elif style < 0.54:
        view = flatten(view, rng)
    if rng.random() < 0.2:
        view = view.filter(ImageFilter.GaussianBlur(rng.uniform(0.5, 1.5)))
    return view
