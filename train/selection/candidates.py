"""Candidates for the published image encoder: frozen, trained, and points between the two.

The frozen encoder is what a user has without training: features standardised per side, at their full width. Weights on
the line between the start of training and its end often serve unseen categories better than the end itself (WiSE-FT,
Wortsman et al. 2021, 2109.01903), and cost no training.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from train.context import RunContext
from train.encoders.backbones import build_model, with_image_weights
from train.encoders.pair import EncoderPair, start_image_head
from train.ensemble.ensemble import recipe_of_result
from train.image_stage.loop import ImageResult, trained_rows
from train.inputs.cache import FeatureCache
from train.inputs.samples import GovernedSamples
from train.recipes.recipe import Lora, Recipe
from train.selection.verdict import FROZEN

TRAINED = "trained"
SHARES = (0.75, 0.5, 0.25)


@dataclass(frozen=True)
class Candidate:
    """Image weights that may be published.

    Attributes:
        name: "frozen", "trained", or "50% trained" for a point between the two.
        recipe: the weights load under it.
        weights: state of the `EncoderPair`, adapters not merged.
        class_weights: (C, D) rows of the trained classes; None where prototypes are means of embeddings.
    """

    name: str
    recipe: Recipe
    weights: dict[str, Tensor]
    class_weights: Tensor | None

    def encoders(self, *, seed: int) -> tuple[Any, Any, EncoderPair]:
        """Model, processor and encoder pair with these weights."""
        model, processor = with_image_weights(self.recipe, self.weights, seed=seed)
        return model, processor, EncoderPair(model, frozen_stages=self.recipe.model.frozen_stages).eval()


def frozen_candidate(context: RunContext, cache: FeatureCache, samples: GovernedSamples) -> Candidate:
    """The frozen encoder: its features standardised per side, nothing else."""
    recipe = frozen_recipe(context.recipe, width=_pooled_width(context.recipe, seed=context.seed))
    return Candidate(FROZEN, recipe, _start(recipe, cache, samples, seed=context.seed), None)


def frozen_recipe(recipe: Recipe, *, width: int) -> Recipe:
    """The recipe with the frozen encoder's full width and no training."""
    return recipe.with_changes(
        {
            "model.hidden_size": width,
            "image.projection": "identity",
            "image.lora": Lora(),
            "image.steps": 0,
            "ensemble.num_members": 1,
        }
    )


def candidates(
    context: RunContext, image: ImageResult | None, cache: FeatureCache, samples: GovernedSamples
) -> Iterator[Candidate]:
    """The frozen encoder; then, after training, the trained one and points on the line between its start and it."""
    yield frozen_candidate(context, cache, samples)
    if image is None:
        return
    recipe = recipe_of_result(context.recipe)
    yield Candidate(TRAINED, recipe, image.weights, image.class_weights)
    start = _start(recipe.with_changes({"image.lora": Lora()}), cache, samples, seed=context.seed)
    for share in SHARES:
        weights = between(start, image.weights, share)
        yield Candidate(f"{share:.0%} {TRAINED}", recipe, weights, image.class_weights)


def between(start: dict[str, Tensor], trained: dict[str, Tensor], share: float) -> dict[str, Tensor]:
    """Weights at `share` of the way from `start` to `trained`.

    Adapters start at a product B A of 0, so B alone is scaled. A counter, and a weight that `start` lacks because an
    adapter wraps its layer, stays as trained.
    """
    found = {}
    for name, value in trained.items():
        if ".lora_B." in name:
            found[name] = value * share
        elif name in start and value.is_floating_point():
            found[name] = torch.lerp(start[name].to(value), value, share)
        else:
            found[name] = value
    return found


def _start(recipe: Recipe, cache: FeatureCache, samples: GovernedSamples, *, seed: int) -> dict[str, Tensor]:
    """State of the untrained encoder pair."""
    model, _ = build_model(recipe, seed=seed)
    encoders = EncoderPair(model, frozen_stages=recipe.model.frozen_stages).eval()
    inputs = {"query": cache.query_inputs, "document": cache.document_inputs}
    start_image_head(encoders, inputs=inputs, rows=statistics_rows(samples), projection=recipe.image.projection)
    return {name: value.detach().clone() for name, value in encoders.state_dict().items()}


def statistics_rows(samples: GovernedSamples) -> dict[str, np.ndarray]:
    """Rows whose mean and deviation standardise each side: those that are trained on, or all without any."""
    found = {side: part.rows for side, part in trained_rows(samples).items()}
    every = {
        "query": np.flatnonzero(~samples.labels.query_validation),
        "document": np.flatnonzero(samples.document_has_image),
    }
    return {side: rows if len(rows) else every[side] for side, rows in found.items()}


def _pooled_width(recipe: Recipe, *, seed: int) -> int:
    model, _ = build_model(recipe, seed=seed)
    return int(model.image_head.projection.weight.shape[1])
