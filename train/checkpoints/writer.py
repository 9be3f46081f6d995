"""When a checkpoint is due, and writing it beside the training.

Why: every n steps says how much work may be redone, every n minutes how much time may be lost; one clock decides, that
of the main process, for ranks that disagree would wait for each other for ever. With `checkpoint_async` the tensors are
copied to main memory and written by a thread of torch.distributed.checkpoint over a process group of its own; on the
main process a second thread renames the checkpoint as soon as every rank has written its part. At most one is in the
making: the next one, and the end of training, wait for it.
"""

import time
import warnings
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.state_dict_saver import async_save

from train.checkpoints.checkpoint import (
    begin,
    class_blocks,
    finish,
    partial_name,
    save_checkpoint,
    tensors_to_save,
    told_if_not_written,
)
from train.checkpoints.row_blocks import BlockSavePlanner, RowBlocks
from train.class_weights.class_table import ClassTable
from train.image_stage.step import ImageStage
from train.parallel.collectives import barrier, on_main, rank
from train.parallel.topology import group_timeout

NO_GROUP = "torch.distributed is disabled, unavailable or uninitialized"


class Checkpointer:
    """Writes the checkpoints of a run; every rank has one and makes the same calls.

    Args:
        folder: `checkpoints/` of the run. identity, classes: see `save_checkpoint`.
    """

    def __init__(self, side: ImageStage, folder: Path, *, identity: dict[str, Any], classes: ClassTable) -> None:
        self.side, self.folder, self.identity, self.classes = side, folder, identity, classes
        self.recipe = side.recipe
        self.saved_at = time.monotonic()
        self.last = -1
        self.written: Future[Any] | None = None
        self.renamed: Future[None] | None = None
        self.partial = folder
        self.group: Any = None
        if self.recipe.runtime.checkpoint_async:
            self.pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
            # The thread cannot use a guard that belongs to the main thread (see `without_group_warning`).
            warnings.filterwarnings("ignore", message=NO_GROUP)
            self.group = dist.new_group(backend="gloo", timeout=group_timeout()) if dist.is_initialized() else None

    def due(self, done: int, *, end: int) -> bool:
        """Whether a checkpoint is to be written now that `done` of `end` steps are done; equal on every rank."""
        minutes = self.recipe.runtime.checkpoint_minutes
        old = minutes is not None and on_main(lambda: time.monotonic() - self.saved_at >= 60 * minutes)
        return done == end or done % self.recipe.image.checkpoint_every == 0 or old

    def save(self, done: int, *, figure: float | None = None) -> None:
        """Write the checkpoint of `done` steps; one of the same steps that is there already stays.

        Args:
            figure: see `save_checkpoint`.

        Raises:
            ValueError: this one, or the one before it, cannot be written.
        """
        self.wait()
        if done == self.last:
            return
        if self.recipe.runtime.checkpoint_async:
            self._begin(done, figure=figure)
        else:
            save_checkpoint(
                self.side,
                self.folder,
                step=done,
                identity=self.identity,
                classes=self.classes,
                figure=figure,
                keep=self.recipe.runtime.checkpoint_keep,
            )
        if self.side.hard is not None:
            self.side.hard.renew()
        self.last, self.saved_at = done, time.monotonic()

    def wait(self) -> None:
        """Return when nothing is being written any more.

        Raises:
            ValueError: it could not be written.
        """
        if self.written is None:
            return
        with told_if_not_written(self.partial):
            self.written.result()
        renamed, self.written, self.renamed = self.renamed, None, None
        on_main(lambda: None if renamed is None else renamed.result())

    def _begin(self, done: int, *, figure: float | None) -> None:
        partial = self.partial = partial_name(self.folder, done)
        on_main(lambda: begin(partial))
        barrier()
        state = tensors_to_save(self.side, self.side.shard.history())
        written = cast(
            "Future[Any]",
            async_save(
                state,
                checkpoint_id=partial,
                planner=BlockSavePlanner(_copied(class_blocks(self.side.shard))),
                process_group=self.group,
            ),
        )
        self.written = written
        if rank() == 0:
            said = {"step": done, "figure": figure, **self.identity}
            self.renamed = self.pool.submit(self._finish, written, partial, said)

    def _finish(self, written: "Future[Any]", partial: Path, state: dict[str, Any]) -> None:
        """Put the checkpoint in its place once this rank's part, and so every rank's, is written."""
        if written.exception() is not None:  # is raised, and told, by `wait`
            return
        finish(partial, state, self.classes, keep=self.recipe.runtime.checkpoint_keep)


def _copied(blocks: dict[str, RowBlocks]) -> dict[str, RowBlocks]:
    """The same blocks over copies of their rows in main memory."""
    return {
        name: RowBlocks(torch.empty_like(part.rows, device="cpu").copy_(part.rows), first=part.first, total=part.total)
        for name, part in blocks.items()
    }
