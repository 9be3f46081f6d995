"""Save and load checkpoints of the image stage, for any number of ranks.

A checkpoint is written under a temporary name and renamed when it is complete (folder.py), so a run can be killed at
any moment; a full disk stops the run and leaves the earlier checkpoints complete. Tensors go through
torch.distributed.checkpoint: class weights and their optimiser rows in blocks along the classes (row_blocks.py), which
any number of ranks can read. The table of classes is saved too, so that a run can be resumed with other categories
(image_stage/remap.py). There is no random state beyond (seed, step): every draw is keyed by them.

torch's reader unpickles its metadata: resume only from folders that you trust.
"""

import contextlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import torch
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from train.checkpoints.folder import clear_partial, publish_checkpoint, read_state
from train.checkpoints.row_blocks import (
    BlockLoadPlanner,
    BlockSavePlanner,
    RowBlocks,
    saved_tensors,
    without_group_warning,
)
from train.class_weights.class_table import ClassTable
from train.class_weights.shard import ClassShard
from train.encoders.ema import WeightAverage
from train.parallel.collectives import barrier, on_main
from train.recipes.flat import is_flat, recipe_from_flat
from train.recipes.recipe import difference, recipe_from_json

CLASSES_FILE = "classes.parquet"
DEFAULT_KEEP = 2


class TrainingState(Protocol):
    """What a checkpoint holds of a run: prepared encoders, their optimizer and average, this rank's class weights."""

    @property
    def encoders(self) -> Any: ...

    @property
    def optimizer(self) -> Any: ...

    @property
    def shard(self) -> ClassShard: ...

    @property
    def average(self) -> WeightAverage | None: ...


def save_checkpoint(
    training: TrainingState, folder: Path, state: dict[str, Any], classes: ClassTable, *, keep: int = DEFAULT_KEEP
) -> None:
    """Write `folder/step-NNNNNNNN`, of which `state["step"]` steps are done; all ranks call it.

    Args:
        state: see `checkpoint_state`. classes: table of the rows.
        keep: how many of the newest to keep, beside the one with the best metric.

    Raises:
        ValueError: it cannot be written, on every rank; earlier checkpoints are unchanged.
    """
    partial = partial_name(folder, state["step"])
    with write_errors_explained(partial):
        on_main(lambda: begin_checkpoint(partial))
        with without_group_warning():
            tensors = tensors_to_save(training, training.shard.history())
            save(tensors, checkpoint_id=partial, planner=BlockSavePlanner(class_blocks(training.shard)))
        barrier()
        on_main(lambda: finish_checkpoint(partial, state, classes, keep=keep))


def checkpoint_state(step: int, *, metric: float | None, identity: dict[str, Any]) -> dict[str, Any]:
    """The JSON-able part of a checkpoint.

    Args:
        step: steps done. identity: what must be equal at resume (see `check_identity`).
        metric: validation metric of the weights, larger is better; None = not measured.
    """
    return {"step": step, "figure": metric, **identity}


def partial_name(folder: Path, step: int) -> Path:
    """Folder that the checkpoint of a step is written to before it is complete."""
    return folder / f".step-{step:08d}.partial"


@contextlib.contextmanager
def write_errors_explained(partial: Path) -> Iterator[None]:
    """Turn a failure to write into a one-line ValueError, and remove the partial checkpoint.

    Raises:
        ValueError: instead of the error of the library or the system.
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


def begin_checkpoint(partial: Path) -> None:
    """Create the empty folder; main process only.

    Raises:
        ValueError: it cannot be written.
    """
    with write_errors_explained(partial):
        clear_partial(partial)


def finish_checkpoint(partial: Path, state: dict[str, Any], classes: ClassTable, *, keep: int) -> None:
    """Add the table of classes and rename the complete checkpoint; main process only.

    Raises:
        ValueError: it cannot be written.
    """
    with write_errors_explained(partial):
        classes.write(partial / CLASSES_FILE)
        publish_checkpoint(partial, partial.with_name(partial.name.split(".")[1]), state, keep=keep)


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
    """Number of steps done in the checkpoint, after checking that it is of the same run.

    Args:
        identity: {"recipe": fields, "model": digests, "categories": fingerprint and counts, "seed": int}. What an older
            version did not write of model and recipe counts as equal, or as the current default.
        compared: the part of a recipe that must be equal. other_categories: the governed data may differ, too.

    Raises:
        ValueError: naming every field that differs.
    """
    state = read_state(path)
    for part, ours in identity.items():
        theirs = state.get(part, ours if part == "model" else None)
        if part == "recipe" and isinstance(theirs, dict):
            ours, theirs = compared(ours), compared(_in_current_form(theirs))
        if ours == theirs or (other_categories and part == "categories"):
            continue
        if isinstance(ours, dict) and isinstance(theirs, dict):
            differences = difference(ours, theirs)
        else:
            differences = f"{ours}, {theirs}"
        raise ValueError(
            f"the checkpoint {path.name} is of another run: {part} differs ({differences}); resume with the {part} it "
            "was started with, or give another --out"
        )
    return int(state["step"])


def _in_current_form(recipe: dict[str, Any]) -> dict[str, Any]:
    """Recipe of an earlier version in the current form, with defaults for missing fields; unchanged if that fails."""
    try:
        return (recipe_from_flat(recipe) if is_flat(recipe) else recipe_from_json(recipe)).to_json()
    except ValueError:
        return recipe


def load_checkpoint(training: TrainingState, path: Path, *, with_classes: bool = True) -> None:
    """Load encoders, optimiser and class weights; all ranks call it, in any number.

    Args:
        with_classes: False leaves the class rows unchanged, for image_stage/remap.py to fill.

    Raises:
        ValueError: class weights of another width, type or number; nothing has changed then.
    """
    history = check_rows(path, training.shard, with_classes=with_classes)
    state = tensors_to_save(training, history)
    blocks = class_blocks(training.shard) if with_classes else {}
    with without_group_warning():
        load(state, checkpoint_id=path, planner=BlockLoadPlanner(blocks))
    set_state_dict(
        training.encoders,
        training.optimizer.optimizer,
        model_state_dict=state["encoders"],
        optim_state_dict=state["optimizer"],
    )
    training.shard.load_history(state["history"])


def check_rows(path: Path, shard: ClassShard, *, with_classes: bool = True) -> dict[str, torch.Tensor]:
    """Empty tensors for the saved history, after checking that the saved rows fit the shard.

    Raises:
        ValueError: they do not fit; names the saved and the needed shape and type.
    """
    saved = saved_tensors(path)
    for name, tensor in shard.state().items():
        found = saved.get(f"classes.{name}")
        needed = (shard.num_classes if with_classes else "any", *tensor.shape[1:])
        if found is not None:
            first = found.size[0] if with_classes else "any"
            if (first, *found.size[1:]) == needed and found.properties.dtype == tensor.dtype:
                continue
        description = "missing" if found is None else f"{tuple(found.size)} in {found.properties.dtype}"
        raise ValueError(
            f"the checkpoint {path.name} cannot be loaded: its class rows {name} are {description}, this run needs "
            f"{needed} in {tensor.dtype}; use the hidden_size, head_optimizer and head_dtype that it was written with"
        )
    sizes = {name: saved[f"history.{name}"].size for name in shard.history()}
    return {name: torch.zeros(size, dtype=torch.float64) for name, size in sizes.items()}


def tensors_to_save(training: TrainingState, history: dict[str, torch.Tensor]) -> dict[str, Any]:
    """State that torch's planner saves and loads; class rows are saved in blocks beside it."""
    encoders, optimizer = get_state_dict(training.encoders, training.optimizer.optimizer)
    average = {} if training.average is None else {"average": training.average.state()}  # loaded in place
    return {"encoders": encoders, "optimizer": optimizer, "history": history, **average}


def class_blocks(shard: ClassShard) -> dict[str, RowBlocks]:
    """Tensors of a shard by their names in a checkpoint."""
    return {
        f"classes.{name}": RowBlocks(value, first=shard.start, total=shard.num_classes)
        for name, value in shard.state().items()
    }
