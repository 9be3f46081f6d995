"""Processors: pixel values, cropping, missing inputs, rejected inputs."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoProcessor

from modeling_oclear import OclearImageProcessor, OclearProcessor, OclearQueryProcessor
from modeling_oclear.image_decoding_oclear import in_colour
from modeling_oclear.image_squares_oclear import border_colour
from tests.support.images import encode
from tests.support.small_oclear import drawing, small_processor

PLAIN = {"image_mean": (0.0, 0.0, 0.0), "image_std": (1.0, 1.0, 1.0)}


def pixels(image: Image.Image, **options: object) -> np.ndarray:
    """(size, size, 3) values 0..255, without normalisation."""
    processor = OclearImageProcessor(**{"size": 8, **PLAIN, **options})  # type: ignore[arg-type]
    return np.rint(processor(image)["pixel_values"][0].permute(1, 2, 0).numpy() * 255).astype(int)


def test_pixel_values_are_normalised_per_channel() -> None:
    processor = OclearImageProcessor(size=3, image_mean=(0.1, 0.2, 0.3), image_std=(0.5, 0.25, 2.0))
    values = processor(Image.new("RGB", (5, 7), (255, 51, 0)))["pixel_values"]
    assert values.shape == (1, 3, 3, 3)
    assert values.dtype == torch.float32
    torch.testing.assert_close(values[0, :, 1, 1], torch.tensor([(1 - 0.1) / 0.5, 0.0, -0.15]))


def test_subject_is_cropped_and_fills_the_square() -> None:
    image = Image.new("RGB", (40, 30), (200, 200, 200))
    image.paste((10, 20, 30), (20, 5, 28, 13))
    assert (pixels(image) == (10, 20, 30)).all()
    assert (pixels(image, crop_to_subject=False)[0, 0] == 200).all()


def test_wide_subject_keeps_its_aspect_ratio_and_is_padded_with_the_border_colour() -> None:
    image = Image.new("RGB", (40, 30), (200, 100, 0))
    image.paste((10, 20, 30), (4, 5, 20, 13))  # 16 x 8
    square = pixels(image)
    assert (square[:2] == (200, 100, 0)).all()
    assert (square[6:] == (200, 100, 0)).all()
    assert (square[2:6] == (10, 20, 30)).all()
    assert (pixels(image, pad_to_square=False) == (10, 20, 30)).all()


def test_small_differences_from_the_border_colour_are_background() -> None:
    image = Image.new("RGB", (20, 20), (200, 200, 200))
    image.paste((190, 200, 205), (2, 2, 6, 6))
    image.paste((0, 0, 0), (10, 10, 14, 14))
    assert (pixels(image) == 0).all()
    assert not (pixels(image, crop_tolerance=4) == 0).all()


def test_image_of_one_colour_is_not_cropped() -> None:
    assert (pixels(Image.new("RGB", (9, 5), (7, 8, 9))) == (7, 8, 9)).all()
    assert (pixels(Image.new("RGBA", (9, 5), (7, 8, 9, 0))) == 255).all()
    assert pixels(Image.new("L", (1, 1), 77))[0, 0].tolist() == [77, 77, 77]


def test_transparent_image_is_cropped_by_alpha_and_put_on_white() -> None:
    image = Image.new("RGBA", (30, 30), (0, 0, 0, 0))
    image.paste((255, 255, 255, 255), (5, 5, 25, 25))
    image.paste((200, 0, 0, 255), (10, 10, 20, 20))
    square = pixels(image, size=20)
    assert (square[0, 0] == 255).all()  # white on white belongs to the subject all the same
    assert (square[5:15, 5:15] == (200, 0, 0)).all()
    half = Image.new("RGBA", (4, 4), (0, 0, 0, 51))
    assert (pixels(half) == 204).all()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "I", "F", "I;16"])
def test_every_pillow_mode_is_accepted(mode: str) -> None:
    source = drawing().convert("RGBA" if mode == "PA" else "RGB")
    if mode == "I;16":
        image = Image.fromarray(np.asarray(source.convert("L")).astype(np.uint16) * 257)
    elif mode == "PA":
        image = source.convert("P").convert("PA")
    elif mode == "I":
        image = Image.fromarray(np.asarray(source.convert("L")).astype(np.int32) * 257)
    else:
        image = source.convert(mode)
    assert image.mode == mode
    square = pixels(image, crop_to_subject=False)
    assert square.min() < 150 < 200 < square.max()


def test_palette_with_a_transparent_entry_is_transparent() -> None:
    image = Image.new("P", (6, 6), 0)
    image.putpalette([0, 0, 0, 255, 0, 0])
    image.paste(1, (2, 2, 4, 4))
    buffer = io.BytesIO()
    image.save(buffer, "PNG", transparency=0)
    assert (pixels(Image.open(buffer)) == (255, 0, 0)).all()


def test_exif_orientation_is_applied() -> None:
    image = Image.new("RGB", (8, 8), "white")
    image.paste("black", (0, 0, 8, 2))  # dark on top
    exif = Image.Exif()
    exif[0x0112] = 6  # stored turned left: the top belongs to the right
    buffer = io.BytesIO()
    image.save(buffer, "PNG", exif=exif)
    turned = pixels(Image.open(buffer), crop_to_subject=False)
    assert turned[4, 7].max() < 100 < turned[4, 0].min()
    plain = pixels(Image.open(buffer), crop_to_subject=False, exif_orientation=False)
    assert plain[0, 4].max() < 100 < plain[7, 4].min()


def test_border_colour_is_the_median_of_the_edge_pixels() -> None:
    image = np.zeros((5, 5, 3), np.uint8) + 90
    image[0, :2] = 255
    image[2, 2] = 1
    assert border_colour(Image.fromarray(image)) == (90, 90, 90)


def test_opaque_alpha_is_ignored() -> None:
    assert in_colour(Image.new("RGBA", (3, 3), (1, 2, 3, 255))).mode == "RGB"
    assert in_colour(Image.new("RGBA", (3, 3), (1, 2, 3, 9))).mode == "RGBA"


def test_missing_images_and_texts_are_masked(tmp_path: Path) -> None:
    processor = small_processor(tmp_path)
    batch = processor(images=[drawing(), None, drawing()], text=["a red ball", None, "  "])
    assert batch["has_image"].tolist() == [True, False, True]
    assert batch["has_text"].tolist() == [True, False, False]
    assert torch.all(batch["pixel_values"][1] == 0)
    assert batch["attention_mask"].sum(dim=1).tolist() == [5, 0, 0]
    assert torch.equal(batch["pixel_values"][0], batch["pixel_values"][2])
    assert set(processor(images=[None])) == {"pixel_values", "has_image"}
    assert set(processor(text="a ball")) == {"input_ids", "attention_mask", "has_text"}


def test_text_of_ten_megabytes_is_cut_before_tokenising(tmp_path: Path) -> None:
    import time

    processor = small_processor(tmp_path)
    start = time.perf_counter()
    batch = processor(text=["a red ball " * 1_000_000, "x" * 10_000_000])
    assert time.perf_counter() - start < 1
    assert batch["input_ids"].shape == (2, 11)
    assert torch.equal(batch["input_ids"][0], processor(text=["a red ball " * 20])["input_ids"][0])


def test_half_of_a_surrogate_pair_and_control_characters_are_accepted(tmp_path: Path) -> None:
    processor = small_processor(tmp_path)
    batch = processor(text=["a red\ud800 ball", "\x00\x07", "\ud83d"])
    assert batch["input_ids"].shape[0] == 3
    assert batch["has_text"].tolist() == [True, False, True], "controls alone are no text"


def test_saved_and_loaded_processor_gives_equal_tensors(tmp_path: Path) -> None:
    processor = small_processor(tmp_path)
    processor.save_pretrained(tmp_path / "both")
    again = AutoProcessor.from_pretrained(tmp_path / "both")
    assert type(again) is OclearProcessor
    assert again.max_length == 11
    inputs = {"images": [drawing("blue")], "text": ["a blue cup"]}
    assert all(torch.equal(value, again(**inputs)[name]) for name, value in processor(**inputs).items())
    options = OclearImageProcessor(size=9, crop_to_subject=False, resample="lanczos", max_image_pixels=99_999)
    OclearQueryProcessor(options).save_pretrained(tmp_path / "query")
    query = AutoProcessor.from_pretrained(tmp_path / "query")
    assert type(query) is OclearQueryProcessor
    assert query.image_processor.to_dict() == options.to_dict()
    options.save_pretrained(tmp_path / "images")
    assert OclearImageProcessor.from_pretrained(tmp_path / "images").to_dict() == options.to_dict()
    assert AutoImageProcessor.from_pretrained(tmp_path / "query").size == 9


def test_damaged_and_huge_images_are_rejected_with_their_row(tmp_path: Path) -> None:
    broken = Image.open(io.BytesIO(encode(Image.effect_noise((64, 64), 90).convert("RGB"))[:2000]))
    processor = small_processor(tmp_path)
    with pytest.raises(ValueError, match=r"images\[1\]: image cannot be decoded \(.*; replace this file"):
        processor(images=[drawing(), broken])
    large = Image.new("1", (50_000, 1100))
    with pytest.raises(ValueError, match=r"images\[0\]: image of 50000 x 1100 is over 50000000 pixels; scale it down"):
        processor(images=[large])
    with pytest.raises(ValueError, match=r"it has 0 x 4 pixels"):
        processor(images=[Image.new("RGB", (0, 4))])
    with pytest.raises(ValueError, match=r"images\[0\] is a str; give PIL images"):
        processor(images=["photo.png"])


def test_invalid_calls_are_rejected(tmp_path: Path) -> None:
    processor = small_processor(tmp_path)
    for call, reason in (
        ({}, "both missing"),
        ({"images": [drawing()], "text": ["a", "b"]}, "1 images and 2 texts"),
        ({"text": [3]}, r"text\[0\] is a int"),
        ({"text": []}, "empty list"),
        ({"text": ["a"], "size": 3}, "size is not an argument"),
        ({"images": [], "text": None}, "empty list"),
    ):
        with pytest.raises(ValueError, match=reason):
            processor(**call)
    query = OclearQueryProcessor(processor.image_processor)
    with pytest.raises(ValueError, match="reads images only"):
        query(images=drawing(), text="a ball")
    with pytest.raises(ValueError, match="images is missing"):
        query()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"size": 0}, "size is 0"),
        ({"size": 64.0}, "size is 64.0; a whole number"),
        ({"sise": 64}, "unknown image option sise"),
        ({"image_std": (1.0, 0.0, 1.0)}, "std above 0"),
        ({"image_mean": (0.5,)}, "three values"),
        ({"resample": "magic"}, "resample is 'magic'"),
        ({"crop_tolerance": 300}, "crop_tolerance is 300"),
        ({"max_image_pixels": 0}, "max_image_pixels is 0"),
        ({"max_image_pixels": 178_956_971}, "from 1 to 178956970"),
    ],
)
def test_invalid_options_are_rejected(options: dict[str, object], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        OclearImageProcessor(**options)  # type: ignore[arg-type]
