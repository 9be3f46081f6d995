"""Checkpoints of the image side: whole or not there, and readable by any number of ranks.

Why: a long run must survive a kill at any moment. A checkpoint is written under a temporary name and renamed when every
file is in place; its `state.json` lists the files with their sizes, so that a torn copy is told from a whole one.
Tensors go through torch.distributed.checkpoint: class weights and their optimiser rows as shards along the classes,
which it moves to any number of ranks. No random state is kept beyond (seed, step): every draw is keyed by them.

torch's reader unpickles its metadata: resume from folders of your own only.

In: encoders, optimiser, shard. Out: `checkpoints/step-00000100/`. Next: image_side.py resumes from it.
"""

import contextlib
import json
import os
import shutil
import warnings
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard

from train.collectives import barrier, on_main, world_size
from train.journal import write_json
from train.recipe import difference
from train.shard import ClassShard
from train.step import ImageSide

STATE_FILE = "state.json"
KEPT = 2


def save_checkpoint(side: ImageSide, folder: Path, *, step: int, identity: dict[str, Any]) -> None:
    """Write `folder/step-NNNNNNNN`, of which `step` steps are done; all ranks call it.

    Args:
        identity: what must be equal at resume (see `check_identity`).
    """
    whole = folder / f"step-{step:08d}"
    partial = folder / f".step-{step:08d}.partial"
    on_main(lambda: _clear(partial))
    with _lone_process():
        save(_tensors(side), checkpoint_id=partial)
    barrier()
    on_main(lambda: _finish(partial, whole, {"step": step, **identity}))


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


def check_identity(path: Path, identity: dict[str, Any], *, ignored: Collection[str] = ()) -> int:
    """Number of steps done in the checkpoint, once it is the same run.

    Args:
        identity: {"recipe": fields, "categories": fingerprint and counts, "seed": int}.
        ignored: fields that may differ.

    Raises:
        ValueError: naming every field that differs.
    """
    state = json.loads((path / STATE_FILE).read_text())
    for part, ours in identity.items():
        theirs = state.get(part)
        if isinstance(ours, dict) and isinstance(theirs, dict):
            ours, theirs = ({key: said[key] for key in said if key not in ignored} for said in (ours, theirs))
        if ours == theirs:
            continue
        said = difference(ours, theirs) if isinstance(ours, dict) and isinstance(theirs, dict) else f"{ours}, {theirs}"
        raise ValueError(
            f"the checkpoint {path.name} is of another run: {part} differs ({said}); resume with the {part} it was "
            "started with, or give another --out"
        )
    return int(state["step"])


def load_checkpoint(side: ImageSide, path: Path) -> None:
    """Take over encoders, optimiser and class weights; all ranks call it, in any number."""
    state = _tensors(side)
    with _lone_process():
        load(state, checkpoint_id=path)
    set_state_dict(
        side.encoders,
        side.optimizer.optimizer,
        model_state_dict=state["encoders"],
        optim_state_dict=state["optimizer"],
    )
    side.shard.load_state({name: _local(value) for name, value in state["classes"].items()})


@contextlib.contextmanager
def _lone_process() -> Iterator[None]:
    """Without a process group torch warns each time that it saves or loads in one process, which is what is meant."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")
        yield


def _tensors(side: ImageSide) -> dict[str, Any]:
    encoders, optimizer = get_state_dict(side.encoders, side.optimizer.optimizer)
    return {"encoders": encoders, "optimizer": optimizer, "classes": _sharded(side.shard)}


def _sharded(shard: ClassShard) -> dict[str, Tensor]:
    """The shard's tensors as slices of whole ones along the classes."""
    state = shard.state()
    if world_size() == 1:
        return state
    mesh = init_device_mesh(shard.weight.device.type, (world_size(),))
    return {
        name: DTensor.from_local(
            value,
            mesh,
            [Shard(0)],
            run_check=False,
            shape=torch.Size((shard.num_classes, *value.shape[1:])),
            stride=value.stride(),
        )
        for name, value in state.items()
    }


def _local(value: Tensor) -> Tensor:
    return value.to_local() if isinstance(value, DTensor) else value


def _clear(partial: Path) -> None:
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)


def _finish(partial: Path, whole: Path, state: dict[str, Any]) -> None:
    """List the files, rename, and drop all but the newest checkpoints."""
    files = {str(path.relative_to(partial)): path.stat().st_size for path in partial.rglob("*") if path.is_file()}
    write_json(partial / STATE_FILE, {**state, "files": files})
    shutil.rmtree(whole, ignore_errors=True)
    os.replace(partial, whole)
    for old in sorted(whole.parent.glob("step-*"))[:-KEPT]:
        shutil.rmtree(old)
