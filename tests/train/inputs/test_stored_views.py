"""Training reads the clean views that governance has embedded, and gets what it would compute itself."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_governance.__main__ import main
from runtime.map_store import FOLDER, MapStore
from tests.support.synthetic_shop import write_shop
from train.encoders.backbones import build_model
from train.inputs import frozen_part
from train.inputs.cache import FeatureCache, cache_features
from train.inputs.feature_keys import FeatureExtraction
from train.inputs.samples import read_samples
from train.inputs.stored_views import open_store
from train.recipes.emoji import emoji_single
from train.recipes.recipe import Recipe

RECIPE = emoji_single().with_changes({"text.encoder": None, "image.query_views": 0, "image.document_views": 1})
# Fused kernels of two different graphs differ by rounding; the values are kept in half precision.
CLOSE = 2e-2


@pytest.fixture(scope="module")
def governed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shop")
    shop = write_shop(folder, categories=4, queries=2, noise=0.0)
    assert main(["run", *shop.arguments, "--out", str(folder / "out")]) == 0
    return folder / "out"


def features(folder: Path, governed: Path, recipe: Recipe, *, given: Path | None) -> FeatureCache:
    samples = read_samples(governed)
    model, processor = build_model(recipe, seed=0)
    extraction = FeatureExtraction(model, processor, samples.table, recipe=recipe, seed=0)
    return cache_features(extraction, folder, workers=0, trained=samples.is_trained(), governed=given)


def test_stored_views_are_those_that_training_computes(governed: Path, tmp_path: Path) -> None:
    computed = features(tmp_path / "computed", governed, RECIPE, given=None)
    stored = features(tmp_path / "stored", governed, RECIPE, given=governed)
    for name in ("query_inputs", "document_inputs", "document_cells"):
        ours, theirs = (np.asarray(getattr(one, name), np.float32) for one in (stored, computed))
        np.testing.assert_allclose(ours, theirs, rtol=CLOSE, atol=CLOSE)
        assert np.abs(ours).max() > 0.1


def test_a_stored_query_is_neither_decoded_nor_embedded(
    governed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts: list[int] = []
    usual = frozen_part.FrozenPart.__call__

    def counting(self: Any, pixels: Any) -> Any:
        counts.append(len(pixels))
        return usual(self, pixels)

    monkeypatch.setattr(frozen_part.FrozenPart, "__call__", counting)
    still = RECIPE.with_changes({"image.document_views": 0})
    features(tmp_path / "stored", governed, still, given=governed)
    assert sum(counts) == 2, "one image of zeros a side, for the shapes"


def test_another_network_size_or_cut_is_not_read(governed: Path) -> None:
    model, processor = build_model(RECIPE, seed=0)
    assert open_store(governed, model, processor, RECIPE) is not None
    assert open_store(governed, model, processor, RECIPE.with_changes({"model.frozen_stages": 5})) is None
    assert open_store(governed, model, processor, RECIPE.with_changes({"model.frozen_stages": None})) is None
    processor.image_processor.size = 96
    assert open_store(governed, model, processor, RECIPE) is None


def test_a_store_finds_pictures_again_and_keeps_the_first(tmp_path: Path) -> None:
    store = MapStore(tmp_path / FOLDER / "key")
    store.add(["a", "b"], {"x": np.arange(6.0).reshape(2, 3)})
    store.add(["c"], {"x": np.full((1, 3), 7.0)})
    again = MapStore(tmp_path / FOLDER / "key")
    assert len(again) == 3
    assert "b" in again
    assert "d" not in again
    np.testing.assert_array_equal(again.read("x", ["c", "a", "c"]), [[7, 7, 7], [0, 1, 2], [7, 7, 7]])
