"""What fields of a recipe must be to each other: the checks that look at more than one number and its range.

Why apart: recipe.py is what people read to see what a recipe can say; this is what they read when it says no.

In: a `Recipe` under construction. Out: nothing, or a ValueError that names value, limit and remedy. Next: recipe.py.
"""

from typing import Any


def check_margin(recipe: Any) -> None:
    """The margin has as many numbers as it needs, and the filters of negatives are within range."""
    is_triple = isinstance(recipe.margin_value, tuple)
    if is_triple != (recipe.margin == "combined") or (is_triple and len(recipe.margin_value) != 3):
        raise ValueError(
            f"recipe.margin_value is {recipe.margin_value!r} with margin {recipe.margin!r}; give one number to cosface "
            "and arcface, and (m1, m2, m3) to combined"
        )
    if min(recipe.margin_value if isinstance(recipe.margin_value, tuple) else (recipe.margin_value,)) < 0:
        raise ValueError(f"recipe.margin_value is {recipe.margin_value}; it must be at least 0")
    if recipe.conflict_delta is not None and not recipe.conflict_delta >= 0:
        raise ValueError(f"recipe.conflict_delta is {recipe.conflict_delta}; it must be at least 0, or null for off")
    if recipe.conflict_tau is not None and not -1 <= recipe.conflict_tau <= 1:
        raise ValueError(f"recipe.conflict_tau is {recipe.conflict_tau}; it is a cosine: -1 to 1, or null for off")


def check_encoders(recipe: Any) -> None:
    """Settings of the encoders that would silently do nothing, or not what they say, are refused."""
    if recipe.mixed_precision != "no" and recipe.dtype != "float32":
        raise ValueError(
            f"recipe.mixed_precision is {recipe.mixed_precision} with dtype {recipe.dtype}; autocast leaves "
            "double precision as it is: use float32, or mixed_precision no"
        )
    if recipe.layer_decay is not None and not 0 < recipe.layer_decay <= 1:
        raise ValueError(f"recipe.layer_decay is {recipe.layer_decay}; it must be above 0 and at most 1, or null")
    if recipe.ema_decay is not None and not 0 <= recipe.ema_decay < 1:
        raise ValueError(f"recipe.ema_decay is {recipe.ema_decay}; it must be at least 0 and below 1, or null")
    if recipe.lora_dropout != 0:
        raise ValueError(
            f"recipe.lora_dropout is {recipe.lora_dropout}; only 0 is taken, because its draws would differ with the "
            "number of ranks: use embed_dropout, which is keyed"
        )
    if recipe.text_lora_rank > 0:
        raise ValueError(
            f"recipe.text_lora_rank is {recipe.text_lora_rank}; only 0 is taken: the text side is fitted out of fold "
            "on fixed token features, no gradient reaches the text encoder. Adapters on it train with peft and "
            "the Trainer of transformers on OclearForCategoryClassification, see README"
        )
