"""Whether the prototypes of all categories fit into the published folder.

A model file is loaded whole by whoever publishes or uses it; a hundred million categories of width 512 are 191 GiB.
Above `runtime.hub_prototypes_gib` the published folder holds the retriever alone, and the prototypes are written beside
it in shards (prototypes.py), which the recipe has to ask for.
"""

import math

from train.recipes.recipe import Recipe

BYTES = 4  # of a published number
COPIES = 3  # that the main process holds at most: the trained prototypes, those of all categories, bytes to be written


def prototypes_gib(recipe: Recipe, *, categories: int) -> float:
    """Size of the prototypes of all categories in float32."""
    return categories * recipe.model.hidden_size * BYTES / 2**30


def is_head_published(recipe: Recipe, *, categories: int) -> bool:
    """Whether the published folder holds the prototypes."""
    return prototypes_gib(recipe, categories=categories) <= recipe.runtime.hub_prototypes_gib


def check_head(recipe: Recipe, *, categories: int) -> None:
    """Stop before features are computed when the prototypes do not fit and the recipe has no other place for them.

    Raises:
        ValueError: they are above the limit, and the recipe has a text stage, which is fitted to them in memory, or
            writes no `prototypes/`.
    """
    if is_head_published(recipe, categories=categories):
        return
    if recipe.runtime.publish_prototypes and recipe.text.encoder is None:
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
