"""The state that the text stage reads and changes."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from train.inputs.cache import FeatureCache
from train.inputs.samples import Labels
from train.recipes.recipe import Recipe


@dataclass(frozen=True)
class TextStage:
    """A model with its trained image stage, and what its text is fitted to.

    Attributes:
        model: an `OclearModel` in float32, eval mode; its text encoder and fusion are changed in place.
        cache: features of the encoders as they are.
        labels: category of every row. prototypes: (categories, D); None only without text
            (class_weights/published_size.py).
    """

    model: Any
    cache: FeatureCache
    labels: Labels
    prototypes: Tensor | None
    recipe: Recipe
    seed: int
