"""Members of an ensemble: the image side trained several times from one start, and the mean of their weights.

Why: runs that begin at the same weights and differ in what they draw end in one valley, so the mean of their weights is
a good model itself (model soups, Wortsman et al. 2022, 2203.05482). It is where distillation begins (distil.py).

Adapters: the mean of W + s B_m A_m over M members is W + s [B_1 ... B_M] / M [A_1; ...; A_M], so adapters of M times
the rank hold it exactly. With `lora_alpha` the factor s is alpha / rank, which has the 1 / M already; without, s is 1.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from train.recipes.recipe import Recipe

STRIDE = 2**32  # above every --seed: no member of one run draws what another run draws


def member_seed(seed: int, member: int) -> int:
    """Key of a member's draws; those of the first are the ones of a run without others.

    >>> member_seed(5, 0), member_seed(5, 2) - 2 * STRIDE
    (5, 5)
    """
    return seed + STRIDE * member


def member_folder(run: Path, member: int) -> Path:
    """Where a member has its checkpoints and its journal; those of the first are the run's."""
    return run if member == 0 else run / "members" / str(member)


def mean_weights(members: Sequence[dict[str, Tensor]], recipe: Recipe) -> dict[str, Tensor]:
    """The soup of states with equal names; adapters side by side, as at the top of this file.

    A tensor that is no floating-point number (a counter) is the first member's.
    """
    if len(members) == 1:
        return members[0]
    share = 1 / len(members) if recipe.image.lora.alpha is None else 1.0
    return {name: _mean(name, [state[name] for state in members], share) for name in members[0]}


def _mean(name: str, values: list[Tensor], share: float) -> Tensor:
    if not values[0].is_floating_point():
        return values[0]
    if ".lora_A." in name:
        return torch.cat(values)
    if ".lora_B." in name:
        return torch.cat(values, dim=1) * share
    return torch.stack([value.double() for value in values]).mean(0).to(values[0].dtype)


def soup_recipe(recipe: Recipe) -> Recipe:
    """The recipe with adapters as the soup has them: their ranks add up."""
    return recipe.with_changes({"image.lora.rank": recipe.image.lora.rank * recipe.ensemble.num_members})
