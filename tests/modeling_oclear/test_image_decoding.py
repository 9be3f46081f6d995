"""The one decoder: which files are pictures, what their pixels are, and what the others are refused for."""

import io
import threading
import tracemalloc
import warnings

import numpy as np
import pytest
from PIL import Image, ImageOps

from modeling_oclear import OclearImageProcessor
from modeling_oclear.image_decoding_oclear import FORMATS, ImageRefused, decode_image, in_colour, upright_picture
from tests.support import awkward_images as awkward
from tests.support.images import encode

PICTURES, REFUSED = awkward.pictures(), awkward.refused()


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(decode_image(data)).astype(int)


@pytest.mark.parametrize("name", PICTURES)
def test_an_awkward_picture_is_decoded_to_rgb_without_metadata(name: str) -> None:
    picture = decode_image(PICTURES[name])
    assert picture.mode in ("RGB", "RGBA")
    assert picture.info == {}
    square = OclearImageProcessor(size=9).square(picture)
    assert square.shape == (9, 9, 3)


@pytest.mark.parametrize("name", REFUSED)
def test_a_file_that_is_no_picture_is_refused_with_its_reason_in_one_line(name: str) -> None:
    data, reason = REFUSED[name]
    with pytest.raises(ImageRefused) as caught:
        decode_image(data)
    assert caught.value.reason == reason
    assert str(caught.value).startswith("image ")
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 240


@pytest.mark.parametrize(
    ("name", "tolerance"),
    [("jpeg", 8), ("progressive_jpeg", 8), ("cmyk_jpeg", 4), ("ycbcr_tiff", 1), ("lab_tiff", 4), ("animated_gif", 0),
     ("animated_webp", 0), ("animated_png", 0), ("pages_tiff", 0), ("mpo", 8), ("webp", 0), ("avif", 4), ("ico", 0),
     ("large_text_png", 0)],
)  # fmt: skip
def test_every_format_shows_the_same_drawing(name: str, tolerance: int) -> None:
    assert np.abs(pixels(PICTURES[name]) - np.asarray(awkward.scene()).astype(int)).mean() <= tolerance


@pytest.mark.parametrize("name", ["grey_16_png", "grey_16_tiff", "grey_12_tiff", "integer_tiff", "float_tiff"])
def test_grey_values_of_more_than_eight_bits_are_scaled_and_not_clipped(name: str) -> None:
    grey = np.asarray(awkward.scene().convert("L")).astype(int)
    expected = grey if name == "integer_tiff" else np.rint(grey * 255 / 250)
    assert np.abs(pixels(PICTURES[name]) - expected[..., None]).max() <= 1


@pytest.mark.parametrize(
    ("values", "expected"),
    [([0, 1], [0, 255]), ([0, 200], [0, 200]), ([0, 4095], [0, 255]), ([0, 16384], [0, 64]), ([-50, 50], [0, 255]),
     ([0, 10**9], [0, 255]), ([7, 7], [7, 7]), ([-3, -3], [0, 0])],
)  # fmt: skip
def test_integers_take_the_first_range_that_holds_them_or_their_own(values: list[int], expected: list[int]) -> None:
    image = Image.fromarray(np.array([values], np.int32))
    assert image.mode == "I"
    assert np.asarray(in_colour(image))[0, :, 0].tolist() == expected


@pytest.mark.parametrize(
    ("values", "expected"),
    [([0, 0.5], [0, 128]), ([-0.01, 1.01], [0, 255]), ([0, 254.6], [0, 255]), ([0, 65535.0], [0, 255]),
     ([-1.0, 1.0], [0, 255]), ([0.5, 0.5], [128, 128])],
)  # fmt: skip
def test_floats_may_overshoot_their_range_by_a_little(values: list[float], expected: list[int]) -> None:
    image = Image.fromarray(np.array([values], np.float32))
    assert image.mode == "F"
    assert np.asarray(in_colour(image))[0, :, 0].tolist() == expected


@pytest.mark.parametrize("value", range(1, 10))
def test_all_orientations_turn_the_picture_as_pillow_does(value: int) -> None:
    data = awkward.jpeg_with_exif(awkward.exif_of(awkward.orientation(value)))
    with Image.open(io.BytesIO(data)) as image:
        expected = ImageOps.exif_transpose(image)
    assert np.array_equal(pixels(data), np.asarray(expected))
    assert decode_image(data, exif_orientation=False).size == (48, 36)


@pytest.mark.parametrize("name", ["altitude_as_text", "resolution_as_text"])
def test_damaged_metadata_beside_the_orientation_do_no_harm(name: str) -> None:
    plain = awkward.jpeg_with_exif(awkward.exif_of(awkward.orientation(6)))
    assert np.array_equal(pixels(PICTURES[name]), pixels(plain))
    opened = awkward.opened(PICTURES[name])
    assert np.array_equal(np.asarray(upright_picture(opened)), pixels(plain))


def test_an_image_of_the_caller_is_not_changed() -> None:
    data = awkward.jpeg_with_exif(awkward.exif_of(awkward.orientation(6)))
    image = awkward.opened(data)
    first = OclearImageProcessor(size=20).square(image)
    assert image.size == (48, 36)
    assert "exif" in image.info
    assert np.array_equal(first, OclearImageProcessor(size=20).square(image))
    assert np.array_equal(first, OclearImageProcessor(size=20).square(decode_image(data)))


LARGE = [name for name in PICTURES if name.startswith("large_") and name != "large_text_png"]


@pytest.mark.parametrize("name", LARGE)
def test_a_large_jpeg_is_decoded_at_a_reduced_size_that_shows_the_same(name: str) -> None:
    data = PICTURES[name]
    full, least = decode_image(data), 100
    small = decode_image(data, least_side=least)
    assert least <= min(small.size) < 2 * least + 2
    assert [-(-side // round(full.width / small.width)) for side in full.size] == list(small.size)
    shown = full.resize(small.size, Image.Resampling.BOX)
    assert np.abs(np.asarray(shown).astype(int) - np.asarray(small).astype(int)).mean() < 2
    assert decode_image(data, least_side=max(full.size)).size == full.size


@pytest.mark.parametrize("name", [*LARGE, "jpeg", "png", "mpo"])
def test_an_opened_file_and_its_bytes_give_the_same_square(name: str) -> None:
    processor = OclearImageProcessor(size=23)
    square = processor.square(processor.decode(PICTURES[name]))
    opened = awkward.opened(PICTURES[name])
    size = opened.size
    for _ in range(2):
        assert np.array_equal(processor.square(opened), square)
    assert opened.size == size
    decoded = awkward.opened(PICTURES[name])
    decoded.load()
    assert np.abs(processor.square(decoded).astype(int) - square).mean() < 4


def test_a_file_over_the_limit_of_bytes_is_refused_before_it_is_opened() -> None:
    data = PICTURES["large_jpeg"]
    assert decode_image(data, max_bytes=len(data)).size == (641, 482)
    for refuse in (decode_image, lambda data, max_bytes: upright_picture(awkward.opened(data), max_bytes=max_bytes)):
        with pytest.raises(
            ImageRefused, match=f"image file of {len(data)} bytes is over {len(data) - 1} bytes"
        ) as caught:
            refuse(data, max_bytes=len(data) - 1)
        assert caught.value.reason == "image_file_too_large"
    with pytest.raises(ValueError, match=r"images\[0\]: image file .* or raise max_image_bytes"):
        OclearImageProcessor(max_image_bytes=9)(awkward.opened(data))


def test_the_limit_is_inclusive_and_each_format_obeys_it() -> None:
    for kind in FORMATS:
        data = encode(awkward.scene(16, 16), kind)
        assert decode_image(data, max_pixels=256).size == (16, 16), kind
        with pytest.raises(ImageRefused) as caught:
            decode_image(data, max_pixels=255)
        assert caught.value.reason == "image_too_many_pixels", kind


@pytest.mark.parametrize("kind", FORMATS)
def test_a_file_cut_at_any_length_is_a_picture_or_refused(kind: str) -> None:
    data = encode(awkward.scene(16, 16), kind)
    found = set()
    for length in range(len(data)):
        try:
            found.add(decode_image(data[:length]).mode)
        except ImageRefused as error:
            found.add(error.reason)
    assert found <= {"RGB", "RGBA", "image_undecodable"}
    assert "image_undecodable" in found


def test_the_name_of_a_file_does_not_matter_and_a_picture_holds_no_open_file() -> None:
    for name in ("webp", "pages_tiff", "animated_png", "mpo", "ico"):
        assert type(decode_image(PICTURES[name])) is Image.Image


def test_memory_of_a_thin_picture_is_that_of_its_pixels() -> None:
    processor = OclearImageProcessor(size=32)
    data = PICTURES["long_and_thin"]
    tracemalloc.start()
    processor(decode_image(data))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20_000_000  # a square of its longer side would have 3.6 billion pixels


def test_pillow_warns_nobody_and_the_filters_survive_threads() -> None:
    before = list(warnings.filters)
    noisy = awkward.tiff_with(b"\x1a\x01\x05\x00\x01\x00\x00\x00\xff\xff\xff\x7f")  # resolution beyond the file

    def work() -> None:
        for _ in range(30):
            for data in (noisy, PICTURES["palette_alpha_png"], PICTURES["exif_garbage"]):
                try:
                    decode_image(data)
                except ImageRefused as error:
                    found.append(str(error))

    found: list[str] = []
    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not found
    assert list(warnings.filters) == before
