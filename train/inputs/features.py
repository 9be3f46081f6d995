"""Features of all samples: cached on disk, or streamed while training runs."""

from pathlib import Path
from typing import Any

from train.inputs.cache import FeatureCache, cache_features
from train.inputs.feature_keys import FeatureExtraction
from train.inputs.feature_stream import stream_features
from train.inputs.samples import GovernedSamples
from train.recipes.recipe import Recipe


def features_of(
    model: Any, processor: Any, samples: GovernedSamples, *, recipe: Recipe, folder: Path, seed: int
) -> FeatureCache:
    """Features of every sample, cached by all ranks together or streamed, as the recipe says; all ranks call it."""
    extraction = FeatureExtraction(model, processor, samples.table, recipe=recipe, seed=seed)
    if recipe.runtime.feature_storage == "stream":
        return stream_features(extraction, folder)
    return cache_features(extraction, folder, together=True, trained=samples.is_trained(), governed=samples.folder)
