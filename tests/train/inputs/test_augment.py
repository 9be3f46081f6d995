"""Augmented views are keyed, keep size and orientation, and treat transparency like the processor."""

from typing import Any

import numpy as np
import pytest
from PIL import Image

from train.inputs.augment import affine, hue_shift, keyed_generator, line_mask, on_white, style_view


class Fixed:
    """A source of chance whose every draw is `value`."""

    def __init__(self, value: float) -> None:
        self.value = value

    def uniform(self, low: float, high: float, size: int | None = None) -> Any:
        return self.value if size is None else np.full(size, self.value)

    def integers(self, low: int, high: int) -> int:
        return int(self.value)

    def random(self) -> float:
        return self.value


def drawing(width: int = 41, height: int = 37) -> Image.Image:
    """A dark red mark in the upper left of a light ground."""
    pixels = np.full((height, width, 3), 235, np.uint8)
    pixels[8:14, 6:13] = (150, 20, 30)
    return Image.fromarray(pixels)


def view(seed: int, sample_id: str, number: int) -> bytes:
    return style_view(drawing(), keyed_generator(seed, sample_id, number)).tobytes()


def test_view_depends_only_on_seed_sample_and_number() -> None:
    assert view(3, "a", 1) == view(3, "a", 1)
    others = [view(4, "a", 1), view(3, "b", 1), view(3, "a", 2)]
    assert len({view(3, "a", 1), *others}) == 4


def test_keys_do_not_collide() -> None:
    draws = {keyed_generator(*key).random() for key in ((1, "2", 3), (12, "", 3), (1, "23", 0), (1, "2/3", 0))}
    assert len(draws) == 4


def test_view_is_rgb_and_has_the_size_of_its_image() -> None:
    for number in range(40):
        made = style_view(drawing(), keyed_generator(0, "size", number))
        assert (made.size, made.mode) == ((41, 37), "RGB")


@pytest.mark.parametrize("size", [(1, 1), (2, 1), (3, 3), (4, 7)])
def test_images_of_a_few_pixels_have_views_in_every_style(size: tuple[int, int]) -> None:
    for number in range(60):
        assert style_view(drawing(*size), keyed_generator(0, "few", number)).size == size


def test_no_view_is_mirrored_or_upside_down() -> None:
    for number in range(150):
        light = np.asarray(style_view(drawing(), keyed_generator(0, "hand", number)).convert("L")).astype(float)
        weight = np.abs(light - np.median(light))
        weight[weight < 0.5 * weight.max()] = 0
        rows, columns = np.indices(weight.shape)
        assert (weight * columns).sum() / weight.sum() < 20, number
        assert (weight * rows).sum() / weight.sum() < 18, number


def test_transparent_pixels_become_white() -> None:
    clear = Image.new("RGBA", (9, 9), (0, 0, 0, 0))
    clear.putpixel((4, 4), (10, 20, 30, 255))
    assert on_white(clear).getpixel((0, 0)) == (255, 255, 255)
    assert on_white(clear).getpixel((4, 4)) == (10, 20, 30)
    made, expected = (style_view(image, keyed_generator(0, "clear", 1)) for image in (clear, on_white(clear)))
    assert made.tobytes() == expected.tobytes()


def test_identity_transform_changes_nothing() -> None:
    class Neutral(Fixed):
        def uniform(self, low: float, high: float, size: int | None = None) -> Any:
            neutral = 1.0 if (low, high) == (0.8, 1.1) else 0.0
            return neutral if size is None else np.full(size, neutral)

    rng: Any = Neutral(0)
    assert affine(drawing(), rng).tobytes() == drawing().tobytes()


def test_uncovered_area_has_the_border_colour() -> None:
    class Shrunk(Fixed):
        def uniform(self, low: float, high: float, size: int | None = None) -> Any:
            small = 0.8 if (low, high) == (0.8, 1.1) else 0.0
            return small if size is None else np.full(size, small)

    rng: Any = Shrunk(0)
    filled = Image.new("RGB", (20, 20), (7, 8, 9))
    assert affine(filled, rng).getcolors() == [(400, (7, 8, 9))]


def test_hue_wraps_around() -> None:
    back: Any = Fixed(-13)
    red, green, blue = hue_shift(Image.new("RGB", (2, 2), (255, 0, 0)), back).getpixel((0, 0))  # type: ignore[misc]
    assert red == 255
    assert green == 0
    assert 60 <= blue <= 90  # 18 degrees back from red: magenta lies at 60 degrees with 255


def test_line_mask_is_only_at_edges() -> None:
    thin: Any = Fixed(0.9)
    ink = np.asarray(line_mask(drawing(), thin))
    assert ink[8:14, 5:8].max() == 255
    assert ink[20:].max() == 0
    assert ink[:2].max() == ink[:, :2].max() == 0
