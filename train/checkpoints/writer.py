"""Decide when to write a checkpoint, and write it, optionally in the background.

A checkpoint is due every n steps, which bounds the work that may be lost, and every n minutes, which bounds the time.
With `checkpoint_async` the tensors are copied to main memory and written by a thread over a process group of its own;
on the main process the same thread then renames the complete checkpoint. At most one is being written: the next one,
and the end of training, wait for it.
"""

import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol, cast

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.checkpoint.state_dict_saver import save

from train.checkpoints.checkpoint import (
    TrainingState,
    begin_checkpoint,
    checkpoint_state,
    class_blocks,
    finish_checkpoint,
    partial_name,
    save_checkpoint,
    tensors_to_save,
    write_errors_explained,
)
from train.checkpoints.row_blocks import BlockSavePlanner, RowBlocks, without_group_warning
from train.class_weights.class_table import ClassTable
from train.class_weights.hard_classes import HardClasses
from train.parallel.collectives import barrier, on_main, rank
from train.parallel.topology import group_timeout
from train.recipes.recipe import Recipe


class Run(TrainingState, Protocol):
    """Training state with the recipe and the hard classes of the run."""

    @property
    def recipe(self) -> Recipe: ...

    @property
    def hard(self) -> HardClasses | None: ...


class Checkpointer:
    """Writes the checkpoints of a run; every rank has one and makes the same calls.

    Args:
        folder: `checkpoints/` of the run. identity: see `check_identity`. classes: table of the rows.
    """

    def __init__(self, training: Run, folder: Path, *, identity: dict[str, Any], classes: ClassTable) -> None:
        self.training, self.folder, self.identity, self.classes = training, folder, identity, classes
        self.recipe = training.recipe
        self.saved_at = time.monotonic()
        self.last = -1
        self.written: Future[Any] | None = None
        self.renamed: Future[None] | None = None
        self.partial = folder
        self.group: Any = None
        if self.recipe.runtime.checkpoint_async:
            self.pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
            self.group = dist.new_group(backend="gloo", timeout=group_timeout()) if dist.is_initialized() else None

    def due(self, done: int, *, end: int) -> bool:
        """Whether to write a checkpoint now that `done` of `end` steps are done; equal on every rank."""
        minutes = self.recipe.runtime.checkpoint_minutes
        # The clock of the main process decides: ranks that disagree would wait for each other for ever.
        old = minutes is not None and on_main(lambda: time.monotonic() - self.saved_at >= 60 * minutes)
        return done == end or done % self.recipe.image.checkpoint_every == 0 or old

    def save(self, done: int, *, metric: float | None = None) -> None:
        """Write the checkpoint of `done` steps, unless it is the last one that was written.

        Args:
            metric: see `checkpoint_state`.

        Raises:
            ValueError: this one, or the one before it, cannot be written.
        """
        self.wait()
        if done == self.last:
            return
        state = checkpoint_state(done, metric=metric, identity=self.identity)
        if self.recipe.runtime.checkpoint_async:
            self._save_in_background(state)
        else:
            keep = self.recipe.runtime.checkpoint_keep
            save_checkpoint(self.training, self.folder, state, self.classes, keep=keep)
        if self.training.hard is not None:
            self.training.hard.renew()
        self.last, self.saved_at = done, time.monotonic()

    def forget(self) -> None:
        """Wait, then forget what was written last: the run goes back to an earlier step."""
        self.wait()
        self.last = -1

    def wait(self) -> None:
        """Return when no checkpoint is being written any more.

        Raises:
            ValueError: it could not be written.
        """
        if self.written is None:
            return
        with write_errors_explained(self.partial):
            self.written.result()
        renamed, self.written, self.renamed = self.renamed, None, None
        on_main(lambda: None if renamed is None else renamed.result())

    def _save_in_background(self, state: dict[str, Any]) -> None:
        partial = self.partial = partial_name(self.folder, state["step"])
        on_main(lambda: begin_checkpoint(partial))
        barrier()
        # Not `async_save`: its thread cannot be kept from warning where there is no process group.
        stager = DefaultStager(StagingOptions(False, False, False, False))
        tensors = cast("dict[str, Any]", stager.stage(tensors_to_save(self.training, self.training.shard.history())))
        stager.close()
        blocks = _copied(class_blocks(self.training.shard))
        written = self.written = self.pool.submit(self._write, tensors, blocks, partial)
        if rank() == 0:
            self.renamed = self.pool.submit(self._finish, written, partial, state)

    def _write(self, tensors: dict[str, Any], blocks: dict[str, RowBlocks], partial: Path) -> None:
        """Write this rank's part; returns when every rank has written its own."""
        with without_group_warning():
            save(tensors, checkpoint_id=partial, planner=BlockSavePlanner(blocks), process_group=self.group)

    def _finish(self, written: "Future[Any]", partial: Path, state: dict[str, Any]) -> None:
        """Rename the checkpoint once every rank's part is written."""
        if written.exception() is not None:  # raised by `wait`
            return
        finish_checkpoint(partial, state, self.classes, keep=self.recipe.runtime.checkpoint_keep)


def _copied(blocks: dict[str, RowBlocks]) -> dict[str, RowBlocks]:
    """The same blocks with copies of their rows in main memory."""
    return {
        name: RowBlocks(torch.empty_like(part.rows, device="cpu").copy_(part.rows), first=part.first, total=part.total)
        for name, part in blocks.items()
    }
