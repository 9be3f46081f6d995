"""Cached features: content of every row, when the cache is reused, and rejected inputs."""

import io
import multiprocessing
import os
import tempfile
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from transformers import ViTConfig, ViTModel

from modeling_oclear import OclearImageProcessor, OclearModel
from runtime.map_store import store_key
from tests.support.images import encode
from tests.support.synthetic_governed import FEATURES, rows
from train.encoders.backbones import build_model
from train.inputs.augment import keyed_generator, style_view
from train.inputs.cache import FeatureCache, cache_features
from train.inputs.composites import composite_image, white_pixel
from train.inputs.feature_keys import FeatureExtraction, cache_keys
from train.inputs.sample_table import SampleTable
from train.inputs.views import Views, decode, decode_workers
from train.recipes.emoji import tiny
from train.recipes.recipe import Recipe

SEED = 4
RECIPE = tiny().with_changes({"image.query_views": 1, "image.document_views": 2})
NO_IMAGE, NO_TEXT = 1, 24  # document rows of made_governed.py


@pytest.fixture(autouse=True, scope="module")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    before = datasets.config.HF_DATASETS_CACHE
    datasets.config.HF_DATASETS_CACHE = tmp_path_factory.mktemp("datasets")
    yield
    datasets.config.HF_DATASETS_CACHE = before


def table(samples: list[dict[str, object]] | None = None) -> SampleTable:
    """The samples in a folder of their own, in two shards of small row groups."""
    folder = Path(tempfile.mkdtemp(dir=datasets.config.HF_DATASETS_CACHE))
    whole = datasets.Dataset.from_list(rows() if samples is None else samples, features=FEATURES)
    middle = len(whole) // 2
    for shard, part in enumerate((range(middle), range(middle, len(whole)))):
        whole.select(part).to_parquet(folder / f"{shard}.parquet", batch_size=7)
    return SampleTable(sorted(folder.iterdir()))


@pytest.fixture(scope="module")
def start() -> Any:
    model, processor = build_model(RECIPE, seed=0)
    return types.SimpleNamespace(model=model, processor=processor, table=table())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("features")


def extraction(start: Any, *, recipe: Recipe = RECIPE, seed: int = SEED) -> FeatureExtraction:
    return FeatureExtraction(start.model, start.processor, start.table, recipe=recipe, seed=seed)


def compute(start: Any, folder: Path, *, recipe: Recipe = RECIPE, workers: int | None = 0) -> FeatureCache:
    return cache_features(extraction(start, recipe=recipe), folder, workers=workers)


@pytest.fixture(scope="module")
def cache(start: Any, folder: Path) -> FeatureCache:
    return compute(start, folder)


def side(name: str) -> list[Any]:
    return [row for row in rows() if row["side"] == name]


def trunk(start: Any, pixels: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    with torch.inference_mode():
        hidden, stages = start.model.vision_model.forward_trunk(pixels, 6)
    return hidden.numpy(), stages[3].flatten(2).transpose(1, 2).numpy()


def close(found: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(np.asarray(found, np.float64), expected, rtol=2e-3, atol=1e-3)


def test_rows_follow_the_samples_and_have_every_view(start: Any, cache: FeatureCache) -> None:
    assert cache.query_inputs.shape[:2] == (48, 2)
    assert cache.document_inputs.shape[:2] == (36, 3)
    for name, row in (("query", 17), ("query", 47), ("document", 5), ("document", 35)):
        sample = side(name)[row]
        image = Image.open(io.BytesIO(sample["image"]["bytes"]))
        inputs = getattr(cache, f"{name}_inputs")[row]
        views = [image] + [
            style_view(image, keyed_generator(SEED, sample["sample_id"], view)) for view in range(1, len(inputs))
        ]
        hidden, cells = trunk(start, start.processor(images=views)["pixel_values"])
        close(inputs, hidden)
        if name == "document":
            close(cache.document_cells[row], cells[0])


def test_missing_image_is_zeros_and_marked(cache: FeatureCache) -> None:
    assert np.flatnonzero(~cache.document_has_image).tolist() == [NO_IMAGE]
    assert not cache.document_inputs[NO_IMAGE].any()
    assert not cache.document_cells[NO_IMAGE].any()
    assert all(cache.document_inputs[row].any() for row in range(36) if row != NO_IMAGE)


def test_text_features_equal_those_of_one_text_and_missing_text_is_masked(start: Any, cache: FeatureCache) -> None:
    assert not cache.document_mask[NO_TEXT : NO_TEXT + 12].any()
    assert cache.document_mask[:NO_TEXT].any(1).all()
    for row in (0, NO_IMAGE, 23):
        batch = start.processor(text=[side("document")[row]["text"]])
        with torch.inference_mode():
            tokens, mask = start.model.encode_text(batch["input_ids"], batch["attention_mask"])
        length = int(mask.sum())
        assert cache.document_mask[row].sum() == length
        close(cache.document_tokens[row, :length], tokens[0, :length].numpy())


def test_composites_combine_the_two_documents_of_their_layout(start: Any, cache: FeatureCache) -> None:
    layouts = cache.composite_layouts
    assert len(cache.page_cells) == len(layouts.named) == 23
    assert not {NO_IMAGE, *range(NO_TEXT, 36)} & set(layouts.named.tolist())
    images = start.processor.image_processor
    white = white_pixel(images.image_mean, images.image_std)
    for page in (0, 22):
        pixels = [
            images(Image.open(io.BytesIO(side("document")[row]["image"]["bytes"])))["pixel_values"][0]
            for row in (layouts.named[page], layouts.other[page])
        ]
        expected = composite_image(pixels[0], pixels[1], int(layouts.place[page]), white_C=white)[None]
        close(cache.page_cells[page], trunk(start, expected)[1][0])
    assert cache.grid == (10, 10)
    assert cache.page_cells.shape[1] == 100


def test_second_call_reuses_the_cache(start: Any, tmp_path: Path) -> None:
    first = compute(start, tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/*")}
    again = compute(start, tmp_path)
    assert len(before) == 8  # 3 arrays of images, 3 of pages and texts, 2 markers
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/*")} == before
    for name in ("query_inputs", "document_inputs", "document_tokens", "page_cells"):
        assert (np.asarray(getattr(again, name)) == np.asarray(getattr(first, name))).all(), name


def test_worker_processes_compute_the_same(start: Any, cache: FeatureCache, tmp_path: Path) -> None:
    found = compute(start, tmp_path, workers=None)
    for name in ("query_inputs", "document_inputs", "document_cells", "page_cells"):
        assert (np.asarray(getattr(found, name)) == np.asarray(getattr(cache, name))).all(), name


@pytest.mark.parametrize(("name", "field"), [("query_inputs", "query_inputs"), ("tokens", "document_tokens")])
def test_incomplete_folder_is_computed_again(start: Any, tmp_path: Path, name: str, field: str) -> None:
    recipe = RECIPE.with_changes({"image.query_views": 0, "image.document_views": 0})
    true = np.array(getattr(compute(start, tmp_path, recipe=recipe), field))
    (path,) = tmp_path.glob(f"*/{name}.npy")
    np.save(path, np.zeros_like(true))
    assert not getattr(compute(start, tmp_path, recipe=recipe), field).any()  # a finished cache is reused as it is
    (path.parent / "whole").unlink()
    assert (np.asarray(getattr(compute(start, tmp_path, recipe=recipe), field)) == true).all()
    assert (path.parent / "whole").exists()


def keys(start: Any, **changes: Any) -> tuple[str, str]:
    """(key of the images, key of pages and texts) after changes of the recipe."""
    return cache_keys(extraction(start, recipe=RECIPE.with_changes(changes)))


def changed(first: tuple[str, str], second: tuple[str, str]) -> str:
    """Which of the two keys differ."""
    names = ("images", "texts")
    return " ".join(name for name, one, two in zip(names, first, second, strict=True) if one != two)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"model.frozen_stages": 5}, "images texts"),
        ({"image.query_views": 2}, "images texts"),
        ({"image.document_views": 1}, "images texts"),
        ({"model.feature_dtype": "bfloat16"}, "images texts"),
        ({"text.max_tokens": 9}, "texts"),
        ({"image.steps": 9, "image.projection_learning_rate": 0.5}, ""),
    ],
)
def test_keys_depend_on_the_relevant_recipe_fields(start: Any, changes: dict[str, Any], expected: str) -> None:
    assert changed(keys(start), keys(start, **changes)) == expected


def test_changed_seed_or_image_size_changes_the_keys(start: Any) -> None:
    other = cache_keys(extraction(start, seed=SEED + 1))
    assert changed(keys(start), other) == "images texts"
    model, processor = build_model(RECIPE.with_changes({"model.image_size": 38}), seed=0)
    there = types.SimpleNamespace(model=model, processor=processor, table=start.table)
    assert changed(keys(start), keys(there)) == "images texts"


def test_changed_code_of_the_decoder_changes_the_keys(start: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    before, processor = keys(start), start.processor.image_processor
    kept = store_key(start.model.vision_model, processor, stages=None, patch_stage=6, dtype="float32")
    monkeypatch.setattr(OclearImageProcessor, "pixel_code", "other")
    assert changed(before, keys(start)) == "images texts"
    assert store_key(start.model.vision_model, processor, stages=None, patch_stage=6, dtype="float32") != kept


@pytest.mark.parametrize(
    ("part", "expected"),
    [("vision_model", "images texts"), ("text_model", "texts"), ("fusion", ""), ("image_head", "")],
)
def test_changed_encoder_weight_changes_the_key(start: Any, part: str, expected: str) -> None:
    model, processor = build_model(RECIPE, seed=0)
    with torch.no_grad():
        next(getattr(model, part).parameters()).view(-1)[0] += 1e-3
    there = types.SimpleNamespace(model=model, processor=processor, table=start.table)
    assert changed(keys(start), keys(there)) == expected


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("text", "texts"),
        ("category_id", "texts"),
        ("sample_id", "images texts"),
        ("image", "images texts"),
        ("order", "images texts"),
    ],
)
def test_changed_samples_change_the_keys(start: Any, change: str, expected: str) -> None:
    samples: list[Any] = rows()
    if change == "order":
        samples[60], samples[61] = samples[61], samples[60]
    elif change == "image":
        samples[60]["image"] = samples[61]["image"]
    else:
        samples[60][change] = {"text": "another", "sample_id": "another", "category_id": 11}[change]
    there = types.SimpleNamespace(model=start.model, processor=start.processor, table=table(samples))
    assert changed(keys(start), keys(there)) == expected


def test_recipe_without_text_shares_the_images_of_one_with_text(start: Any, folder: Path, cache: FeatureCache) -> None:
    recipe = RECIPE.with_changes({"text.encoder": None})
    model, processor = build_model(recipe, seed=0)
    there = types.SimpleNamespace(model=model, processor=processor, table=start.table)
    before = {path: path.stat().st_mtime_ns for path in cache.home.iterdir()}
    found = compute(there, folder, recipe=recipe)
    assert found.home == cache.home
    assert {path: path.stat().st_mtime_ns for path in cache.home.iterdir()} == before
    assert found.document_mask.shape == (36, 1)


@pytest.mark.parametrize("stage", [None, 7])
def test_patches_of_a_trained_stage_are_rejected(start: Any, tmp_path: Path, stage: int | None) -> None:
    recipe = RECIPE.with_changes({"model.vision_feature_stage": stage})
    model, processor = build_model(recipe, seed=0)
    start = types.SimpleNamespace(model=model, processor=processor, table=start.table)
    with pytest.raises(ValueError, match=f"vision_feature_stage is {stage}, but only .* 0 to 6 .* set it to 6 or less"):
        compute(start, tmp_path, recipe=recipe)
    assert not list(tmp_path.iterdir())


def generic(start: Any) -> Any:
    """The same samples before a transformer of 4 x 4 patches that cannot be cut into stages."""
    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=20,
        image_size=37,
        patch_size=9,
    )
    text = start.model.text_model
    model = OclearModel.from_encoders(ViTModel(config), text, hidden_size=RECIPE.model.hidden_size).eval()
    return types.SimpleNamespace(model=model, processor=start.processor, table=start.table)


def test_backbone_without_stages_is_frozen_or_trained_completely(start: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="frozen_stages is 3, but ViTModel cannot be cut into stages; use None"):
        compute(generic(start), tmp_path, recipe=RECIPE.with_changes({"model.frozen_stages": 3}))


@pytest.mark.parametrize("kind", ["vit", "efficientnet"])
def test_completely_trained_backbone_caches_pixels_and_no_patches(start: Any, tmp_path: Path, kind: str) -> None:
    there = generic(start) if kind == "vit" else start
    found = compute(there, tmp_path, recipe=RECIPE.with_changes({"model.frozen_stages": 0}))
    assert found.query_inputs.shape == (48, 2, 3, 37, 37)
    image = Image.open(io.BytesIO(side("document")[7]["image"]["bytes"]))
    close(found.document_inputs[7, 0], start.processor(images=image)["pixel_values"][0].numpy())
    assert found.document_cells.shape[:2] == (36, 0)
    assert len(found.page_cells) == 0


def test_frozen_generic_backbone_caches_pooled_features_and_patches(start: Any, tmp_path: Path) -> None:
    there = generic(start)
    found = compute(there, tmp_path, recipe=RECIPE.with_changes({"model.frozen_stages": None}))
    assert found.query_inputs.shape == (48, 2, 16)
    assert found.grid == (4, 4)
    image = Image.open(io.BytesIO(side("document")[7]["image"]["bytes"]))
    with torch.inference_mode():
        cells, pooled, _ = there.model.encode_image(start.processor(images=image)["pixel_values"])
    close(found.document_inputs[7, 0], pooled[0].numpy())
    close(found.document_cells[7], cells[0].numpy())
    assert not found.document_inputs[NO_IMAGE].any()


def test_model_without_text_has_one_masked_token_and_no_composites(start: Any, tmp_path: Path) -> None:
    recipe = RECIPE.with_changes({"text.encoder": None, "image.query_views": 0, "image.document_views": 0})
    model, processor = build_model(recipe, seed=0)
    there = types.SimpleNamespace(model=model, processor=processor, table=start.table)
    found = compute(there, tmp_path, recipe=recipe)
    assert found.document_mask.shape == (36, 1)
    assert not found.document_mask.any()
    assert len(found.page_cells) == 0


@pytest.mark.parametrize("workers", [0, 2] if "fork" in multiprocessing.get_all_start_methods() else [0])
@pytest.mark.parametrize("damage", ["not an image", "cut off"])
def test_error_names_the_undecodable_image_in_one_line(start: Any, tmp_path: Path, workers: int, damage: str) -> None:
    samples: list[Any] = rows()
    data = samples[40]["image"]["bytes"]
    samples[40]["image"] = {"bytes": b"no image" if damage == "not an image" else data[: len(data) // 2], "path": None}
    start = types.SimpleNamespace(model=start.model, processor=start.processor, table=table(samples))
    with pytest.raises(ValueError, match="sample 'q3x4' cannot be read .*; replace this image or leave") as caught:
        compute(start, tmp_path, workers=workers)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob("*/whole"))


def test_an_image_that_is_larger_than_the_processor_reads_is_refused() -> None:
    data = encode(Image.new("RGB", (6, 5)))
    assert decode(data, sample_id="a", processor=OclearImageProcessor(max_image_pixels=30)).size == (6, 5)
    with pytest.raises(ValueError, match=r"sample 'a' cannot be read \(image of 6 x 5 is over 29 pixels\)"):
        decode(data, sample_id="a", processor=OclearImageProcessor(max_image_pixels=29))


def test_every_view_of_a_photograph_is_upright() -> None:
    lying = Image.new("RGB", (8, 4), "white")
    lying.paste((0, 0, 0), (0, 0, 4, 4))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise
    upright = decode(encode(lying, exif=exif.tobytes()), sample_id="a", processor=OclearImageProcessor())
    assert upright.size == (4, 8)
    assert upright.getpixel((0, 0)) == (0, 0, 0)
    assert upright.getpixel((0, 7)) == (255, 255, 255)


def test_transparency_is_kept_and_sixteen_bits_are_not_clipped() -> None:
    clear = Image.new("RGBA", (3, 3), (1, 2, 3, 0))
    assert decode(encode(clear), sample_id="a", processor=OclearImageProcessor()).getpixel((0, 0)) == (1, 2, 3, 0)
    grey = Image.fromarray(np.full((3, 3), 0x4000, np.uint16))
    assert decode(encode(grey), sample_id="a", processor=OclearImageProcessor()).getpixel((0, 0)) == (64, 64, 64)


def test_number_of_workers_is_that_of_cores_up_to_four_or_none(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for cores in (1, 2, 3, 64):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, cores=cores: set(range(cores)))
        found.append(decode_workers())
    assert found == [0, 2, 3, 4]
    monkeypatch.setattr(multiprocessing, "get_all_start_methods", lambda: ["spawn"])
    assert decode_workers() == 0


def test_a_missing_image_has_pixel_values_of_zero(start: Any) -> None:
    missing: Any = types.SimpleNamespace(image=lambda row: ("a", None))
    pixels = Views(missing, start.processor, views=2, seed=0)[0]
    assert isinstance(pixels, torch.Tensor)
    assert pixels.shape == (3, 3, 37, 37)
    assert not pixels.any()
