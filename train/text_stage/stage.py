"""Features before, text after: how the two neighbours of the image side are called.

Why apart: features are computed by all ranks together, or on demand; the text side runs on the main process alone, on a
whole model, and needs a prototype of EVERY category, held-out ones included.
"""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from train.encoders.backbones import build_model
from train.encoders.pair import EncoderPair, embed_rows
from train.inputs.cache import FeatureCache, cache_features, cache_texts
from train.inputs.feature_stream import stream_features
from train.inputs.frozen_part import cells_are_trained
from train.inputs.samples import GovernedSamples
from train.inputs.views import Side
from train.recipes.recipe import Recipe
from train.text_stage.adapters import adapt_text
from train.text_stage.fit import fit_text_side


def features_of(
    model: Any, processor: Any, samples: GovernedSamples, *, recipe: Recipe, folder: Path, seed: int
) -> FeatureCache:
    """Features of every sample, cached by all ranks together or streamed, as the recipe says; all ranks call it."""
    if recipe.runtime.feature_storage == "stream":
        return stream_features(model, processor, samples.table, recipe=recipe, folder=folder, seed=seed)
    return cache_features(model, processor, samples.table, recipe=recipe, folder=folder, seed=seed, together=True)


def category_prototypes(
    encoders: EncoderPair, cache: FeatureCache, samples: GovernedSamples, class_weights: Tensor
) -> Tensor:
    """(N, D) unit rows: trained class weights, and for every other category the mean of its embeddings.

    The mean is that of its documents with images, or of its queries without such; a category without any image keeps a
    row of zeros, which no embedding is near to.
    """
    found = torch.zeros(samples.num_categories, class_weights.shape[1])
    found[torch.from_numpy(samples.classes)] = class_weights
    known = np.zeros(samples.num_categories, dtype=bool)
    known[samples.classes] = True
    labels = samples.labels
    for side, category_ids, usable, inputs in (
        ("document", labels.document, samples.document_has_image, cache.document_inputs),
        ("query", labels.query, np.ones(len(labels.query), dtype=bool), cache.query_inputs),
    ):
        rows = np.flatnonzero(usable & ~known[category_ids])
        for chunk, embeds_BD in embed_rows(encoders, inputs, rows, side=side):
            found.index_add_(0, torch.from_numpy(category_ids[chunk]), embeds_BD.float().cpu())
        known[category_ids[rows]] = True
    return torch.nn.functional.normalize(found, dim=1, out=found)


@dataclasses.dataclass(frozen=True)
class TextResult:
    """The text side's report, and the adapters of the text encoder by their names behind "text."."""

    report: dict[str, Any]
    adapters: dict[str, Tensor]


def fit_text(
    model: Any, cache: FeatureCache, samples: GovernedSamples, prototypes: Tensor | None, *, recipe: Recipe, seed: int
) -> TextResult:
    """Adapt the text encoder where the recipe says so, then fit the text side, in place. Main process only.

    Args:
        model: the whole model with its trained image side, float32.
        cache: what the image side was trained on. prototypes: None only without text (hub_head.py).
    """
    if recipe.text.encoder is None:
        return TextResult({"text": False, "strength": 0.0}, {})
    assert prototypes is not None
    folder = cache.home.parent
    adapters: dict[str, Tensor] = {}
    said: dict[str, Any] = {}
    is_streamed, is_trained = recipe.runtime.feature_storage == "stream", cells_are_trained(model, recipe)
    if is_streamed or is_trained:
        # The text looks at cells, of a backbone trained whole or not cached before; clean views are enough.
        frozen = None if is_trained else recipe.model.frozen_stages
        recipe = recipe.with_changes({"model.frozen_stages": frozen, "image.query_views": 0, "image.document_views": 0})
        _, processor = build_model(recipe, seed=seed)
        cache = cache_features(model, processor, samples.table, recipe=recipe, folder=folder, seed=seed)
    if recipe.text.lora.rank or recipe.text.tune_layers:
        cache, adapters, said = _adapted(model, cache, samples, prototypes, recipe=recipe, folder=folder, seed=seed)
    report = fit_text_side(model, cache, labels=samples.labels, prototypes=prototypes, recipe=recipe, seed=seed)
    return TextResult({**report, **said}, adapters)


def _adapted(
    model: Any, cache: FeatureCache, samples: GovernedSamples, prototypes: Tensor, *, recipe: Recipe, folder: Path,
    seed: int,
) -> tuple[FeatureCache, dict[str, Tensor], dict[str, Any]]:  # fmt: skip
    """The cache with the tokens of the adapted text encoder, its adapters and what there is to report."""
    _, processor = build_model(recipe, seed=seed)
    texts = Side(samples.table, "document").texts()
    labels = samples.labels
    found = adapt_text(
        model, processor, texts, cache, labels=labels, prototypes=prototypes, recipe=recipe, seed=seed
    )  # fmt: skip
    if found is None:
        return cache, {}, {"encoder": {"documents": 0, "reason": "fewer than two categories have text"}}
    tokens, mask = cache_texts(model, processor, samples.table, recipe=recipe, folder=folder, seed=seed)
    adapters = {f"text.{name}": value for name, value in found.adapters.items()}
    return dataclasses.replace(cache, document_tokens=tokens, document_mask=mask), adapters, {"encoder": found.report}
