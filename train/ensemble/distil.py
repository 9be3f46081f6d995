"""Ensemble distillation: one student learns the summed embeddings of several models.

Models trained from one start with other draws err differently on unseen categories, and the sum of their embeddings is
right far more often than any of them, at several times the cost. The student learns that sum (Hinton et al. 2015,
1503.02531), without labels:

    target = unit(sum_m u_m),  loss = mean over both sides of 1 - <u, target>

The teachers agree on their training images, so those teach little. Inputs are therefore mixed at the cached stage with
a uniform share (mixup, Zhang et al. 2018, 1710.09412; of hidden maps, Verma et al. 2019, 1806.05236), and the teachers
embed the mixture itself (Beyer et al. 2022, 2106.05237). The student starts as the mean of the teachers' weights and
all of it behind the frozen stages is trained.

Letters: B batch, D width.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from train.encoders.pair import EncoderPair, rows_of
from train.image_stage.schedule import warmed_half_cosine
from train.recipes.recipe import Recipe

WARMUP = 20  # steps
_DISTIL = 19  # keeps these draws apart from those of training


@dataclass(frozen=True)
class DistilRows:
    """Inputs and training rows of each side, by "query" and "document"."""

    inputs: dict[str, Any]
    rows: dict[str, np.ndarray]


def distil(
    student: EncoderPair, teachers: Sequence[EncoderPair], seen: DistilRows, *, recipe: Recipe, seed: int
) -> float:
    """Train the student in place; returns the mean loss of the last tenth of the steps.

    Raises:
        ValueError: the loss is not finite.
    """
    student.requires_grad_(False)
    groups = [_trainable_group(student.image_head, recipe.image.projection_learning_rate)]
    if student.vision is not None:
        groups.append(_trainable_group(_trained_part(student), recipe.ensemble.distil_learning_rate))
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
    losses = []
    for step in tqdm(range(recipe.ensemble.distil_steps), desc="distillation", unit="step"):
        for group in optimizer.param_groups:
            factor = warmed_half_cosine(step, steps=recipe.ensemble.distil_steps, warmup_steps=WARMUP)
            group["lr"] = group["initial_lr"] * factor
        mixed = {side: _mixed(seen, side, student, recipe=recipe, key=(seed, step)) for side in ("query", "document")}
        loss = distil_loss(student, teachers, mixed)
        losses.append(float(loss.detach()))
        if not math.isfinite(losses[-1]):
            raise ValueError(f"the distillation's loss is {losses[-1]} at step {step}; lower distil_learning_rate")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return sum(losses[-max(1, len(losses) // 10) :]) / max(1, len(losses) // 10)


def cut_short(recipe: Recipe, max_steps: int | None) -> Recipe:
    """The recipe with at most `max_steps` of distillation: a shortened run trains a shortened student."""
    steps = recipe.ensemble.distil_steps if max_steps is None else min(max_steps, recipe.ensemble.distil_steps)
    return recipe.with_changes({"ensemble.distil_steps": steps})


def distil_loss(student: EncoderPair, teachers: Sequence[EncoderPair], mixed: dict[str, Tensor]) -> Tensor:
    """The loss defined at the top of this file, for (B, ...) inputs of each side."""
    parts = []
    for side, inputs in mixed.items():
        with torch.no_grad():
            answers_MBD = torch.stack([one.embed(inputs, side=side) for one in teachers])
            target_BD = functional.normalize(answers_MBD.sum(0), dim=1)
        parts.append((1 - (student.embed(inputs, side=side) * target_BD).sum(1)).mean())
    return torch.stack(parts).mean()


def _mixed(seen: DistilRows, side: str, student: EncoderPair, *, recipe: Recipe, key: tuple[int, int]) -> Tensor:
    """(B, ...) inputs of one side, each mixed with another of the batch."""
    count = recipe.image.queries_per_step if side == "query" else recipe.image.documents_per_step
    rng = np.random.default_rng([key[0], _DISTIL, key[1], int(side == "query")])
    rows = rng.choice(seen.rows[side], count)
    views = rng.integers(0, seen.inputs[side].shape[1], count)
    inputs = rows_of(seen.inputs[side], rows, views, like=next(student.image_head.parameters()))
    share = torch.from_numpy(rng.random(count)).to(inputs).view(-1, *[1] * (inputs.ndim - 1))
    return share * inputs + (1 - share) * inputs[torch.from_numpy(rng.permutation(count)).to(inputs.device)]


def _trainable_group(module: nn.Module, rate: float) -> dict[str, Any]:
    """A group of the optimiser with all parameters of a module, which learn from now on."""
    values = list(module.requires_grad_(True).parameters())
    return {"params": values, "lr": rate, "initial_lr": rate}


def _trained_part(encoders: EncoderPair) -> nn.Module:
    """What lies behind the frozen stages."""
    vision: Any = encoders.vision
    if not encoders.frozen_stages:
        return nn.ModuleList([vision])
    return nn.ModuleList([*vision.stages[encoders.frozen_stages :], vision.head])
