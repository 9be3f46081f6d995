"""Trains the image stage several times from one start and makes one model of the members.

One member is a plain run. The first member lies in the run folder as a plain run does, the others in `members/1`, ...;
each has its checkpoints, and `--resume` continues the member that was being trained. The main process then averages
the weights (model soups, Wortsman et al. 2022, 2203.05482: runs from equal weights end in one basin, so their mean is a
good model) and, with `distil_steps`, trains a student that starts there (distil.py). A finished student is kept in
`members/student.safetensors`, so that a resumed run does not train it again.

Adapters: the mean of W + s B_m A_m over M members is W + s [B_1 ... B_M] / M [A_1; ...; A_M], so adapters of M times
the rank hold it exactly. With `alpha` the factor s is alpha / rank, which has the 1 / M already; without, s is 1.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from runtime.files import atomic_file
from train.context import RunContext
from train.encoders.backbones import build_model, with_image_weights
from train.encoders.pair import EncoderPair
from train.ensemble.distil import DistilRows, cut_short, distil
from train.image_stage.loop import ImageResult, train_image_stage, trained_rows
from train.inputs.samples import GovernedSamples
from train.parallel.collectives import on_main, rank
from train.recipes.recipe import Lora, Recipe, image_stage_settings

logger = logging.getLogger(__name__)

STUDENT = "student.safetensors"


def train_ensemble(
    context: RunContext,
    model: Any,
    cache: Any,
    samples: GovernedSamples,
    *,
    when_saved: Callable[[], None] = lambda: None,
) -> ImageResult:
    """Train every member and make one model of them; all ranks call it.

    Args:
        model: untrained; the members after the first train one of their own that starts equal.

    Returns:
        The result, whose weights load under `recipe_of_result(recipe)`.

    Raises:
        ValueError: see `train_image_stage` and `distil`.
    """
    recipe, members = context.recipe, list[ImageResult]()
    for member in range(recipe.ensemble.num_members):
        mine = context.of_member(member)
        if member:
            context.accelerator.free_memory()
            model, _ = build_model(recipe, seed=context.seed)
            on_main(lambda folder=mine.folder: folder.mkdir(parents=True, exist_ok=True))  # type: ignore[misc]
        if recipe.ensemble.num_members > 1 and rank() == 0:
            logger.info("member %d of %d", member + 1, recipe.ensemble.num_members)
        members.append(train_image_stage(mine, model, cache, samples, when_saved=when_saved))
    if len(members) == 1:
        return members[0]
    weights: dict[str, Tensor] = {}
    if rank() == 0:
        states = [one.weights for one in members]
        weights = mean_weights(states, recipe)
        if recipe.ensemble.distil_steps:
            weights = _student(context, states, weights, cache, samples)
    prototypes = functional.normalize(torch.stack([one.class_weights for one in members]).mean(0), dim=1)
    # Evaluations while training are of single members, not of what is published, so none is returned.
    return ImageResult(weights, prototypes, steps=members[0].steps, seconds=sum(one.seconds for one in members))


def mean_weights(members: Sequence[dict[str, Tensor]], recipe: Recipe) -> dict[str, Tensor]:
    """The mean of states with equal names; adapters side by side, as at the top of this file.

    A tensor that holds no floating-point numbers (a counter) is the first member's.
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


def recipe_of_mean(recipe: Recipe) -> Recipe:
    """The recipe under which the mean of the members loads: the ranks of their adapters add up."""
    return recipe.with_changes({"image.lora.rank": recipe.image.lora.rank * recipe.ensemble.num_members})


def recipe_of_result(recipe: Recipe) -> Recipe:
    """The recipe under which the published weights load: a student has no adapters, a mean those of all members."""
    if recipe.ensemble.num_members > 1 and recipe.ensemble.distil_steps:
        return recipe.with_changes({"image.lora": Lora()})
    return recipe_of_mean(recipe)


def _student(
    context: RunContext, states: list[dict[str, Tensor]], mean: dict[str, Tensor], cache: Any, samples: GovernedSamples
) -> dict[str, Tensor]:
    """State of the distilled `EncoderPair`: read where a run has it, trained and kept otherwise. Main process only."""
    recipe, seed = cut_short(context.recipe, context.max_steps), context.seed
    key = _key(states, recipe, seed=seed)
    for folder in (context.folder, context.reused_run):
        found = None if folder is None else _kept(folder / "members" / STUDENT, key)
        if found is not None:
            return found

    def pair(weights: dict[str, Tensor], loaded_under: Recipe) -> EncoderPair:
        model, _ = with_image_weights(loaded_under, weights, seed=seed)
        return EncoderPair(model, frozen_stages=recipe.model.frozen_stages).eval()

    teachers = [pair(state, recipe).requires_grad_(False) for state in states]
    student = pair(mean, recipe_of_mean(recipe))
    rows = {side: part.rows for side, part in trained_rows(samples).items()}
    inputs = {"query": cache.query_inputs, "document": cache.document_inputs}
    distil(student, teachers, DistilRows(inputs, rows), recipe=recipe, seed=seed)
    weights = {name: value.detach().contiguous() for name, value in student.state_dict().items()}
    path = context.folder / "members" / STUDENT
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as partial:
        save_file(weights, partial, metadata={"key": key})
    return weights


def _key(states: list[dict[str, Tensor]], recipe: Recipe, *, seed: int) -> str:
    """Digest of everything that a student depends on."""
    digest = hashlib.sha256(json.dumps([image_stage_settings(recipe.to_json()), seed], sort_keys=True).encode())
    for state in states:
        for _, value in sorted(state.items()):
            digest.update(value.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _kept(path: Path, key: str) -> dict[str, Tensor] | None:
    """Weights of a student of that key; None where there is none."""
    if not path.is_file():
        return None
    with safe_open(path, framework="pt") as file:
        if (file.metadata() or {}).get("key") != key:
            return None
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
