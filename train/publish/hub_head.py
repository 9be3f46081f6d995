"""The prototypes of all categories within `hub/`: whether they fit there, and the model that carries them.

Why a limit: a model file is loaded whole, by whoever publishes it and by whoever uses it. A hundred million categories
of width 512 are 191 GiB. Above the limit `hub/` holds the retriever alone, and the prototypes lie beside it in shards
that nobody needs to hold (prototypes.py). Nothing is left out in silence: the recipe has to ask for that.
"""

import copy
import math
from typing import Any

from torch import Tensor, nn

from modeling_oclear import OclearForCategoryClassification
from train.recipes.recipe import Recipe, SoftmaxLoss

BYTES = 4  # of a published number
COPIES = 3  # of the prototypes that the main process holds at most: the trained ones, all of them, bytes to be written


def prototypes_gib(recipe: Recipe, *, categories: int) -> float:
    """Size of the prototypes of all categories in float32."""
    return categories * recipe.model.hidden_size * BYTES / 2**30


def is_head_published(recipe: Recipe, *, categories: int) -> bool:
    """Whether `hub/` holds the prototypes."""
    return prototypes_gib(recipe, categories=categories) <= recipe.runtime.hub_prototypes_gib


def check_head(recipe: Recipe, *, categories: int) -> None:
    """Stop before features are computed when the prototypes fit neither `hub/` nor the way that the recipe ends.

    Raises:
        ValueError: they are above the limit, and the recipe asks for a text side, which is fitted to them in memory, or
            for no `prototypes/`, so that they would be nowhere.
    """
    if is_head_published(recipe, categories=categories) or (
        recipe.runtime.publish_prototypes and recipe.text.encoder is None
    ):
        return
    size = prototypes_gib(recipe, categories=categories)
    raise ValueError(
        f"the prototypes of {categories:,} categories of width {recipe.model.hidden_size} are {size:.3g} GiB, but hub/ "
        f"takes {recipe.runtime.hub_prototypes_gib:g} (recipe.runtime.hub_prototypes_gib). Raise it to "
        f"{_rounded_up(size):g} where the main process has memory for {COPIES} times as much; or set "
        "runtime.publish_prototypes to true and text.encoder to null: the prototypes of the trained classes are then "
        "written into prototypes/, in shards, and hub/ holds the encoder alone"
    )


def _rounded_up(size: float) -> float:
    """Three significant digits, none below."""
    step = 10.0 ** (math.floor(math.log10(size)) - 2)
    return math.ceil(size / step) * step


def with_head(model: Any, prototypes: Tensor, recipe: Recipe) -> Any:
    """The classification model around `model`; its class weights are the tensor `prototypes` itself, not a copy."""
    config = copy.deepcopy(model.config)
    config.num_classes = 1  # the head of as many rows as there are categories would be made only to be thrown away
    loss = recipe.head.loss
    config.head_scale, config.head_sample_rate = loss.scale, recipe.head.sample_rate
    if isinstance(loss, SoftmaxLoss):
        config.head_margin, config.head_margin_type = loss.margin_value, loss.margin
        config.head_label_smoothing = loss.label_smoothing
        config.head_conflict_delta, config.head_conflict_tau = loss.conflict_delta, loss.conflict_tau
    else:
        config.head_margin = loss.margin
    head = OclearForCategoryClassification(config)
    head.oclear.load_state_dict(model.state_dict())
    head.config.num_classes = head.head.out_features = len(prototypes)
    head.head.weight = nn.Parameter(prototypes)
    return head.eval()
