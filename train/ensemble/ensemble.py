"""Training the image side as often as the recipe's ensemble has members, and making one model of them.

One member is a plain run. Otherwise the first lies in the run folder as a plain run does, the others in `members/1`,
...; each has its checkpoints, and `--resume` goes on with the member that was being trained. What becomes of them is
decided on the main process: the mean of their weights (soup.py), and, with `distil_steps`, a student that starts there
and learns to answer as they do together (distil.py). A finished student is kept in `members/student.safetensors`, so
that a resumed run, or one that takes the image side over, does not train it again.
"""

import functools
import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from runtime.files import atomic_file
from train.encoders.backbones import build_model, with_image_weights
from train.encoders.pair import EncoderPair
from train.ensemble.distil import DistilRows, cut_short, distil
from train.ensemble.soup import mean_weights, member_folder, soup_recipe
from train.image_stage.loop import ImageResult, train_image_side, trained_rows
from train.inputs.samples import GovernedSamples
from train.parallel.collectives import on_main, rank
from train.recipes.recipe import Recipe, image_stage_settings

STUDENT = "student.safetensors"


def train_members(
    model: Any,
    cache: Any,
    samples: GovernedSamples,
    *,
    recipe: Recipe,
    accelerator: Accelerator,
    folder: Path,
    seed: int,
    trained: Path | None = None,
    **given: Any,
) -> ImageResult:
    """Train every member and make one model of them; all ranks call it.

    Args:
        model: at its start; the members after the first train one of their own that starts equal.
        folder: the run. trained: another run whose finished members are taken over.
        given: what else `train_image_side` takes.

    Returns:
        The result whose weights load under `recipe_of_weights(recipe)`.

    Raises:
        ValueError: see `train_image_side` and `distil`.
    """
    members = []
    for member in range(recipe.ensemble.num_members):
        if member:
            accelerator.free_memory()
            model, _ = build_model(recipe, seed=seed)
            on_main(functools.partial(member_folder(folder, member).mkdir, parents=True, exist_ok=True))
        if recipe.ensemble.num_members > 1 and rank() == 0:
            print(f"member {member + 1} of {recipe.ensemble.num_members}", flush=True)
        given |= {"recipe": recipe, "accelerator": accelerator, "seed": seed, "member": member}
        given |= {"folder": member_folder(folder, member), "trained": trained and member_folder(trained, member)}
        members.append(train_image_side(model, cache, samples, **given))
    if recipe.ensemble.num_members == 1:
        return members[0]
    weights: dict[str, Tensor] = {}
    if rank() == 0:
        states = [one.weights for one in members]
        weights = mean_weights(states, recipe)
        if recipe.ensemble.distil_steps:
            short = cut_short(recipe, given.get("max_steps"))
            weights = _student(states, weights, cache, samples, recipe=short, seed=seed, homes=(folder, trained))
    class_weights = _mean_rows([one.class_weights for one in members])
    seconds = sum(one.seconds for one in members)
    # Evaluations while training are of single members, not of what is published.
    return ImageResult(weights, class_weights, steps=members[0].steps, seconds=seconds)


def recipe_of_weights(recipe: Recipe) -> Recipe:
    """How the weights of the result load: a student has no adapters, a soup those of all members."""
    if recipe.ensemble.num_members > 1 and recipe.ensemble.distil_steps:
        return recipe.with_changes({"image.lora.rank": 0, "image.lora.targets": None})
    return soup_recipe(recipe)


def _mean_rows(members: list[Tensor]) -> Tensor:
    """(C, D) unit rows: the prototypes of embeddings that are summed."""
    return functional.normalize(torch.stack(members).mean(0), dim=1)


def _student(
    states: list[dict[str, Tensor]],
    soup: dict[str, Tensor],
    cache: Any,
    samples: GovernedSamples,
    *,
    recipe: Recipe,
    seed: int,
    homes: tuple[Path, Path | None],
) -> dict[str, Tensor]:
    """State of the distilled `EncoderPair`: read where a run has it, trained and kept otherwise. Main process only."""
    key = _key(states, recipe, seed=seed)
    for home in homes:
        found = None if home is None else _kept(home / "members" / STUDENT, key)
        if found is not None:
            return found

    def pair(weights: dict[str, Tensor], loads: Recipe) -> EncoderPair:
        model, _ = with_image_weights(loads, weights, seed=seed)
        return EncoderPair(model, frozen_stages=recipe.model.frozen_stages).eval()

    teachers = [pair(state, recipe).requires_grad_(False) for state in states]
    student = pair(soup, soup_recipe(recipe))
    rows = {side: part.rows for side, part in trained_rows(samples).items()}
    inputs = {"query": cache.query_inputs, "document": cache.document_inputs}
    distil(student, teachers, DistilRows(inputs, rows), recipe=recipe, seed=seed)
    weights = {name: value.detach().contiguous() for name, value in student.state_dict().items()}
    _keep(homes[0] / "members" / STUDENT, weights, key)
    return weights


def _key(states: list[dict[str, Tensor]], recipe: Recipe, *, seed: int) -> str:
    """What a student depends on."""
    ours = image_stage_settings(recipe.to_json())
    digest = hashlib.sha256(json.dumps([ours, seed], sort_keys=True).encode())
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


def _keep(path: Path, weights: dict[str, Tensor], key: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as partial:
        save_file(weights, partial, metadata={"key": key})
