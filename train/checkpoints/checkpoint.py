"""Checkpoints of the image side: whole or not there, and readable by any number of ranks.

Why: a long run must survive a kill at any moment. A checkpoint is written under a temporary name and renamed when every
file is in place (checkpoint_folder.py). A disk that is full stops the run and leaves the checkpoints before it whole.
Tensors go through torch.distributed.checkpoint: class weights and their optimiser rows in blocks along the classes
(row_blocks.py), which any number of ranks can read. Beside them lies the table of the classes, so that a run can go on
with other categories (category_changes.py). No random state is kept beyond (seed, step): every draw is keyed by them.

torch's reader unpickles its metadata: resume from folders of your own only.
"""

import contextlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from train.checkpoints.folder import clear, put_in_place, read_state
from train.checkpoints.row_blocks import (
    BlockLoadPlanner,
    BlockSavePlanner,
    RowBlocks,
    saved_tensors,
    without_group_warning,
)
from train.class_weights.class_table import ClassTable
from train.class_weights.shard import ClassShard
from train.image_stage.step import ImageStage
from train.parallel.collectives import barrier, on_main
from train.recipes.flat import is_flat, recipe_from_flat
from train.recipes.recipe import difference, recipe_from_json

CLASSES_FILE = "classes.parquet"
DEFAULT_KEEP = 2


def save_checkpoint(
    side: ImageStage,
    folder: Path,
    *,
    step: int,
    identity: dict[str, Any],
    classes: ClassTable,
    figure: float | None = None,
    keep: int = DEFAULT_KEEP,
) -> None:
    """Write `folder/step-NNNNNNNN`, of which `step` steps are done; all ranks call it.

    Args:
        identity: what must be equal at resume (see `check_identity`). classes: what each row stands for.
        figure: how good the weights are, larger is better; None = not measured.
        keep: how many of the newest stay; the one with the best figure stays beside them.

    Raises:
        ValueError: it cannot be written, on every rank; the checkpoints before it are as they were.
    """
    partial = partial_name(folder, step)
    with told_if_not_written(partial):
        on_main(lambda: begin(partial))
        with without_group_warning():
            state = tensors_to_save(side, side.shard.history())
            save(state, checkpoint_id=partial, planner=BlockSavePlanner(class_blocks(side.shard)))
        barrier()
        on_main(lambda: finish(partial, {"step": step, "figure": figure, **identity}, classes, keep=keep))


def partial_name(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step is written before it is whole."""
    return folder / f".step-{step:08d}.partial"


@contextlib.contextmanager
def told_if_not_written(partial: Path) -> Iterator[None]:
    """Turn a failure to write into one line that says what is left.

    Raises:
        ValueError: instead of what the library or the system raises.
    """
    try:
        yield
    except (OSError, CheckpointException) as error:
        shutil.rmtree(partial, ignore_errors=True)
        failed = [failure[0] for failure in error.failures.values()] if isinstance(error, CheckpointException) else []
        raise ValueError(
            f"the checkpoint {partial.name.split('.')[1]} cannot be written: {[*failed, error][0]}; the checkpoints "
            f"before it in {partial.parent} are as they were: make room, then go on with --resume"
        ) from error


def begin(partial: Path) -> None:
    """Make the empty folder; main process only.

    Raises:
        ValueError: it cannot be written.
    """
    with told_if_not_written(partial):
        clear(partial)


def finish(partial: Path, state: dict[str, Any], classes: ClassTable, *, keep: int) -> None:
    """Add the table of classes and put the checkpoint in its place; main process only.

    Raises:
        ValueError: it cannot be written.
    """
    with told_if_not_written(partial):
        classes.write(partial / CLASSES_FILE)
        put_in_place(partial, partial.with_name(partial.name.split(".")[1]), state, keep=keep)


def same_categories(path: Path, identity: dict[str, Any]) -> bool:
    """Whether the checkpoint was written with the same governed data."""
    return bool(read_state(path).get("categories") == identity["categories"])


def check_identity(
    path: Path,
    identity: dict[str, Any],
    *,
    compared: Callable[[dict[str, Any]], dict[str, Any]] = dict,
    other_categories: bool = False,
) -> int:
    """Number of steps done in the checkpoint, once it is the same run.

    Args:
        identity: {"recipe": fields, "model": digests, "categories": fingerprint and counts, "seed": int}. What an older
            version did not write of model and recipe counts as equal, or as today's default.
        compared: the part of a recipe that must be equal. other_categories: the governed data may differ, too.

    Raises:
        ValueError: naming every field that differs.
    """
    state = read_state(path)
    for part, ours in identity.items():
        theirs = state.get(part, ours if part == "model" else None)
        if part == "recipe" and isinstance(theirs, dict):
            ours, theirs = compared(ours), compared(_as_written_today(theirs))
        if ours == theirs or (other_categories and part == "categories"):
            continue
        said = difference(ours, theirs) if isinstance(ours, dict) and isinstance(theirs, dict) else f"{ours}, {theirs}"
        raise ValueError(
            f"the checkpoint {path.name} is of another run: {part} differs ({said}); resume with the {part} it was "
            "started with, or give another --out"
        )
    return int(state["step"])


def _as_written_today(recipe: dict[str, Any]) -> dict[str, Any]:
    """The recipe of an earlier version in today's form, what it lacks at its default; as it is where that fails."""
    try:
        return (recipe_from_flat(recipe) if is_flat(recipe) else recipe_from_json(recipe)).to_json()
    except ValueError:
        return recipe


def load_checkpoint(side: ImageStage, path: Path, *, with_classes: bool = True) -> None:
    """Take over encoders, optimiser and class weights; all ranks call it, in any number.

    Args:
        with_classes: False leaves the rows of the classes as they are, for category_changes.py to fill.

    Raises:
        ValueError: class weights of another width, type or number; nothing has changed then.
    """
    history = check_rows(path, side.shard, with_classes=with_classes)
    state = tensors_to_save(side, history)
    blocks = class_blocks(side.shard) if with_classes else {}
    with without_group_warning():
        load(state, checkpoint_id=path, planner=BlockLoadPlanner(blocks))
    set_state_dict(
        side.encoders,
        side.optimizer.optimizer,
        model_state_dict=state["encoders"],
        optim_state_dict=state["optimizer"],
    )
    side.shard.load_history(state["history"])


def check_rows(path: Path, shard: ClassShard, *, with_classes: bool = True) -> dict[str, torch.Tensor]:
    """Empty tensors for the saved history, once the saved rows are those that the shard holds.

    Raises:
        ValueError: naming what is saved and what this run needs.
    """
    saved = saved_tensors(path)
    for name, tensor in shard.state().items():
        found = saved.get(f"classes.{name}")
        needed = (shard.num_classes if with_classes else "any", *tensor.shape[1:])
        if found is not None:
            first = found.size[0] if with_classes else "any"
            if (first, *found.size[1:]) == needed and found.properties.dtype == tensor.dtype:
                continue
        said = "missing" if found is None else f"{tuple(found.size)} in {found.properties.dtype}"
        raise ValueError(
            f"the checkpoint {path.name} cannot be taken over: its class rows {name} are {said}, this run needs "
            f"{needed} in {tensor.dtype}; use the hidden_size, head_optimizer and head_dtype that it was written with"
        )
    sizes = {name: saved[f"history.{name}"].size for name in shard.history()}
    return {name: torch.zeros(size, dtype=torch.float64) for name, size in sizes.items()}


def tensors_to_save(side: ImageStage, history: dict[str, torch.Tensor]) -> dict[str, Any]:
    """What torch's own planner saves and loads; the rows of classes go in blocks beside it."""
    encoders, optimizer = get_state_dict(side.encoders, side.optimizer.optimizer)
    average = {} if side.average is None else {"average": side.average.state()}  # is read into where it stands
    return {"encoders": encoders, "optimizer": optimizer, "history": history, **average}


def class_blocks(shard: ClassShard) -> dict[str, RowBlocks]:
    """The tensors of a shard by the names that a checkpoint gives them."""
    return {
        f"classes.{name}": RowBlocks(value, first=shard.start, total=shard.num_classes)
        for name, value in shard.state().items()
    }
