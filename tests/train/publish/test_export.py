"""Every category gets a prototype, and the text side is asked for only where the recipe has text."""

from pathlib import Path

import pytest
import torch

from tests.support.synthetic_run import (
    CATEGORIES,
    TRAINED,
    small_cache,
    small_model,
    small_recipe,
    small_samples,
    train_small,
)
from train.encoders.backbones import build_model
from train.encoders.pair import EncoderPair
from train.image_stage.category_prototypes import category_prototypes
from train.publish.hub import calibration_queries
from train.recipes.registry import recipe_by_name
from train.text_stage.fit import fit_text_stage
from train.text_stage.stage import TextStage


def test_held_out_categories_get_the_mean_of_their_documents(tmp_path: Path) -> None:
    recipe, cache, samples = small_recipe({"image.steps": 1, "model.dtype": "float32"}), small_cache(), small_samples()
    encoders = EncoderPair(small_model(recipe), frozen_stages=recipe.model.frozen_stages)
    weights = train_small(recipe, tmp_path).class_weights
    found = category_prototypes(encoders, cache, samples, weights)
    torch.testing.assert_close(found[list(TRAINED)], weights)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(CATEGORIES))
    inputs = torch.from_numpy(cache.document_inputs[[3, 10, 17], 0]).float()
    mean = encoders.embed(inputs, side="document").mean(0)
    torch.testing.assert_close(found[3], (mean / mean.norm()).detach())


def test_calibration_takes_evenly_spaced_training_queries() -> None:
    recipe, cache, samples = small_recipe(), small_cache(), small_samples()
    encoders = EncoderPair(small_model(recipe), frozen_stages=recipe.model.frozen_stages)
    found = calibration_queries(encoders, cache.query_inputs, samples, most=10)
    every = calibration_queries(encoders, cache.query_inputs, samples, most=1000)
    assert found.shape == (10, 6)
    assert every.shape == (20, 6)
    torch.testing.assert_close(found, every[::2])
    assert calibration_queries(encoders, cache.query_inputs, samples, most=0).shape == (0, 6)


def test_without_text_nothing_is_fitted() -> None:
    samples = small_samples()
    stage = TextStage(None, small_cache(), samples.labels, prototypes=None, recipe=small_recipe(), seed=0)
    assert fit_text_stage(stage, samples).report == {"text": False, "strength": 0.0}


def test_the_same_seed_builds_the_same_model_and_leaves_torchs_generator_alone() -> None:
    before = torch.get_rng_state()
    first, _ = build_model(recipe_by_name("tiny"), seed=3)
    second, _ = build_model(recipe_by_name("tiny"), seed=3)
    other, _ = build_model(recipe_by_name("tiny"), seed=4)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True))


def test_a_backbone_that_cannot_be_loaded_is_named(tmp_path: Path) -> None:
    recipe = recipe_by_name("tiny").with_changes({"model.vision": str(tmp_path / "nowhere")})
    with pytest.raises(ValueError, match="nowhere.*cannot be loaded.*give a folder"):
        build_model(recipe, seed=0)
