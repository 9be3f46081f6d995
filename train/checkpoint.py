"""Checkpoints of the image side: whole or not there, and readable by any number of ranks.

Why: a long run must survive a kill at any moment. A checkpoint is written under a temporary name and renamed when every
file is in place; its `state.json` lists the files with their sizes, so that a torn copy is told from a whole one.
Tensors go through torch.distributed.checkpoint: class weights and their optimiser rows in blocks along the classes
(row_blocks.py), which any number of ranks can read. Beside them lies the table of the classes, so that a run can go on
with other categories (category_changes.py). No random state is kept beyond (seed, step): every draw is keyed by them.

torch's reader unpickles its metadata: resume from folders of your own only.

In: encoders, optimiser, shard. Out: `checkpoints/step-00000100/`. Next: image_side.py resumes from it.
"""

import json
import os
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from train.class_table import ClassTable
from train.collectives import barrier, on_main
from train.journal import write_json
from train.recipe import difference
from train.row_blocks import BlockLoadPlanner, BlockSavePlanner, RowBlocks, saved_tensors, without_group_warning
from train.shard import ClassShard
from train.step import ImageSide

STATE_FILE, CLASSES_FILE = "state.json", "classes.parquet"
KEPT = 2


def save_checkpoint(side: ImageSide, folder: Path, *, step: int, identity: dict[str, Any], classes: ClassTable) -> None:
    """Write `folder/step-NNNNNNNN`, of which `step` steps are done; all ranks call it.

    Args:
        identity: what must be equal at resume (see `check_identity`). classes: what each row stands for.
    """
    whole = folder / f"step-{step:08d}"
    partial = folder / f".step-{step:08d}.partial"
    on_main(lambda: _clear(partial))
    with without_group_warning():
        state = _tensors(side, side.shard.history())
        save(state, checkpoint_id=partial, planner=BlockSavePlanner(class_blocks(side.shard)))
    barrier()
    on_main(lambda: _finish(partial, whole, {"step": step, **identity}, classes))


def newest_checkpoint(folder: Path) -> Path | None:
    """The whole checkpoint with the most steps, or None; torn ones are passed over."""
    found = sorted((path for path in folder.glob("step-*") if is_whole(path)), reverse=True)
    return found[0] if found else None


def is_whole(path: Path) -> bool:
    """Whether every file that the checkpoint's list names is there in its full size."""
    try:
        listed = json.loads((path / STATE_FILE).read_text())["files"]
    except (OSError, json.JSONDecodeError, KeyError):
        return False
    return all((path / name).is_file() and (path / name).stat().st_size == size for name, size in listed.items())


def same_categories(path: Path, identity: dict[str, Any]) -> bool:
    """Whether the checkpoint was written with the same governed data."""
    saved: dict[str, Any] = json.loads((path / STATE_FILE).read_text())
    return bool(saved.get("categories") == identity["categories"])


def check_identity(
    path: Path, identity: dict[str, Any], *, ignored: Collection[str] = (), other_categories: bool = False
) -> int:
    """Number of steps done in the checkpoint, once it is the same run.

    Args:
        identity: {"recipe": fields, "categories": fingerprint and counts, "seed": int}.
        ignored: fields that may differ. other_categories: the governed data may differ, too.

    Raises:
        ValueError: naming every field that differs.
    """
    state = json.loads((path / STATE_FILE).read_text())
    for part, ours in identity.items():
        theirs = state.get(part)
        if isinstance(ours, dict) and isinstance(theirs, dict):
            ours, theirs = ({key: said[key] for key in said if key not in ignored} for said in (ours, theirs))
        if ours == theirs or (other_categories and part == "categories"):
            continue
        said = difference(ours, theirs) if isinstance(ours, dict) and isinstance(theirs, dict) else f"{ours}, {theirs}"
        raise ValueError(
            f"the checkpoint {path.name} is of another run: {part} differs ({said}); resume with the {part} it was "
            "started with, or give another --out"
        )
    return int(state["step"])


def load_checkpoint(side: ImageSide, path: Path, *, with_classes: bool = True) -> None:
    """Take over encoders, optimiser and class weights; all ranks call it, in any number.

    Args:
        with_classes: False leaves the rows of the classes as they are, for category_changes.py to fill.

    Raises:
        ValueError: class weights of another width, type or number; nothing has changed then.
    """
    history = check_rows(path, side.shard, with_classes=with_classes)
    state = _tensors(side, history)
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


def _tensors(side: ImageSide, history: dict[str, torch.Tensor]) -> dict[str, Any]:
    encoders, optimizer = get_state_dict(side.encoders, side.optimizer.optimizer)
    return {"encoders": encoders, "optimizer": optimizer, "history": history}


def class_blocks(shard: ClassShard) -> dict[str, RowBlocks]:
    """The tensors of a shard by the names that a checkpoint gives them."""
    return {
        f"classes.{name}": RowBlocks(value, first=shard.start, total=shard.num_classes)
        for name, value in shard.state().items()
    }


def _clear(partial: Path) -> None:
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)


def _finish(partial: Path, whole: Path, state: dict[str, Any], classes: ClassTable) -> None:
    """Add the table of classes, list the files, rename, and drop all but the newest checkpoints."""
    classes.write(partial / CLASSES_FILE)
    files = {str(path.relative_to(partial)): path.stat().st_size for path in partial.rglob("*") if path.is_file()}
    write_json(partial / STATE_FILE, {**state, "files": files})
    shutil.rmtree(whole, ignore_errors=True)
    os.replace(partial, whole)
    for old in sorted(whole.parent.glob("step-*"))[:-KEPT]:
        shutil.rmtree(old)
