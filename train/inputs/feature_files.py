"""Arrays on disk that several processes fill and a later run can complete.

Each rank writes its own rows of the same file. Rows are counted in blocks; a block is marked as done after its rows are
on the disk. Blocks that are done are never computed again, by this run or the next, with any number of ranks. A file
lock, which ends with its process, keeps two runs from filling the same arrays at once.
"""

import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from train.parallel.collectives import barrier, on_main, rank, world_size

logger = logging.getLogger(__name__)

ROWS_PER_BLOCK = 128  # a multiple of every batch, so that a row shares its batch with the same rows in any layout
SECONDS_BETWEEN_CHECKS = 0.2


class WorkerGroup:
    """Processes that fill a folder: only this one, or all ranks, which then make the same calls.

    Args:
        together: all ranks call every function that takes this group.
    """

    def __init__(self, *, together: bool) -> None:
        self.together = together
        self.size = world_size() if together else 1
        self.rank = rank() if together else 0

    def on_main(self, function: Callable[[], Any]) -> Any:
        """Result of `function` on the main process."""
        return on_main(function) if self.together else function()

    def barrier(self) -> None:
        """Wait for all."""
        if self.together:
            barrier()

    def part_of(self, blocks: np.ndarray) -> np.ndarray:
        """Contiguous part of the blocks for this process."""
        return blocks[self.rank * len(blocks) // self.size : (self.rank + 1) * len(blocks) // self.size]


class RowFile:
    """Array of N rows on disk, written by ranges of rows; not mapped, so memory does not grow with the file.

    Args:
        path: the `.npy` file. shape: (N, ...). dtype: of the array.
    """

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: Any) -> None:
        self.path, self.shape, self.dtype = path, shape, np.dtype(dtype)
        self.row_bytes = int(np.prod(shape[1:], dtype=np.int64)) * self.dtype.itemsize

    def create(self) -> bool:
        """Create the file, filled with zeros; True if one of this shape exists, which keeps its content."""
        if self._fits():
            return True
        if 0 in self.shape:  # an empty file cannot be mapped
            np.save(self.path, np.zeros(self.shape, self.dtype))
        else:
            np.lib.format.open_memmap(self.path, mode="w+", dtype=self.dtype, shape=self.shape)
        return False

    def _fits(self) -> bool:
        try:
            found = np.load(self.path, mmap_mode="r")
        except (OSError, ValueError):
            return False
        return found.shape == self.shape and found.dtype == self.dtype

    @contextmanager
    def writer(self) -> Iterator[Callable[[int, np.ndarray], None]]:
        """Function (first row, rows) that writes; at the end of the block the rows are on the disk."""
        if 0 in self.shape:
            yield lambda first, rows: None
            return
        start = self.path.stat().st_size - self.shape[0] * self.row_bytes
        with self.path.open("r+b", buffering=0) as file:

            def write(first: int, rows: np.ndarray) -> None:
                data = np.ascontiguousarray(rows, dtype=self.dtype).reshape(-1).view(np.uint8).data
                place = start + first * self.row_bytes
                with write_errors_explained(self.path.parent):
                    while len(data):
                        written = os.pwrite(file.fileno(), data, place)
                        data, place = data[written:], place + written

            yield write
            with write_errors_explained(self.path.parent):
                os.fsync(file.fileno())


class Progress:
    """One byte per block of `rows` rows: 1 once its rows are on the disk."""

    def __init__(self, path: Path, rows: int) -> None:
        self.path, self.rows = path, rows
        self.blocks = -(-rows // ROWS_PER_BLOCK)

    def create(self, *, anew: bool) -> None:
        """Create the file with no block done; keep an existing one, unless `anew`."""
        if anew or not self.path.exists() or self.path.stat().st_size != self.blocks:
            self.path.write_bytes(bytes(self.blocks))

    def missing(self) -> np.ndarray:
        """Numbers of the blocks that are not done."""
        return np.flatnonzero(np.frombuffer(self.path.read_bytes(), np.uint8) == 0)

    def rows_of(self, blocks: np.ndarray) -> np.ndarray:
        """The rows of these blocks."""
        parts = [np.arange(self.first(block), self.end(block)) for block in blocks.tolist()]
        return np.concatenate([np.empty(0, np.int64), *parts])

    def first(self, block: int) -> int:
        """First row of a block."""
        return block * ROWS_PER_BLOCK

    def end(self, block: int) -> int:
        """One past the last row of a block."""
        return min((block + 1) * ROWS_PER_BLOCK, self.rows)

    def mark(self, block: int) -> None:
        """This block's rows are on the disk."""
        with self.path.open("r+b", buffering=0) as file:
            os.pwrite(file.fileno(), b"\x01", block)

    def wait(self) -> None:
        """Return when every block is done, by whatever process."""
        while len(self.missing()):
            time.sleep(SECONDS_BETWEEN_CHECKS)


def fill_rows(
    files: dict[str, RowFile],
    progress: Progress,
    *,
    group: WorkerGroup,
    batches: Callable[[np.ndarray], Iterator[dict[str, np.ndarray]]],
) -> None:
    """Fill the missing rows of arrays of equal length; every process of the group calls it.

    Args:
        files: by name. progress: of all of them together.
        batches: rows -> their values by name, in order, batch by batch; no batch crosses the end of a block.

    Raises:
        ValueError: the disk cannot be written, or other ranks do not see the folder.
    """
    group.on_main(lambda: _create(files, progress))
    group.barrier()
    if not progress.path.exists():
        folder = progress.path.parent
        raise ValueError(f"rank {group.rank} does not see {folder}; name a folder with --features that all ranks share")
    mine = group.part_of(np.array(group.on_main(lambda: progress.missing().tolist()), np.int64))
    found = batches(progress.rows_of(mine)) if len(mine) else iter(())
    for block in mine.tolist():
        _fill_block(files, found, first=progress.first(block), end=progress.end(block))
        progress.mark(block)
    progress.wait()
    group.barrier()


def _create(files: dict[str, RowFile], progress: Progress) -> None:
    with write_errors_explained(progress.path.parent):
        kept = [file.create() for file in files.values()]
        progress.create(anew=not all(kept))


def _fill_block(files: dict[str, RowFile], batches: Iterator[dict[str, np.ndarray]], *, first: int, end: int) -> None:
    row = first
    with ExitStack() as stack:
        writers = {name: stack.enter_context(file.writer()) for name, file in files.items()}
        while row < end:
            values = next(batches)
            for name, write in writers.items():
                write(row, values[name])
            row += len(next(iter(values.values())))
    assert row == end, "a batch ends where its block ends"


@contextmanager
def write_errors_explained(folder: Path) -> Iterator[None]:
    """Turn a full disk or a folder that is not writable into a one-line ValueError."""
    try:
        yield
    except OSError as error:
        raise ValueError(
            f"cannot write features to {folder} ({error.strerror or error}); free space there, name another folder "
            "with --features, or set feature_storage to 'stream' in the recipe"
        ) from error


@contextmanager
def locked(folder: Path, *, group: WorkerGroup) -> Iterator[None]:
    """Hold the folder's lock, which ends with the process; log a message while waiting for another run."""
    lock = FileLock(folder.with_name(f".{folder.name}.lock"))
    if group.rank == 0:
        folder.parent.mkdir(parents=True, exist_ok=True)

    def acquired() -> bool:
        try:
            lock.acquire(blocking=False)
        except Timeout:
            return False
        return True

    logged = False
    try:
        while not group.on_main(acquired):
            if group.rank == 0 and not logged:
                logger.info("another run fills %s; waiting for it", folder.name)
            logged = True
            time.sleep(SECONDS_BETWEEN_CHECKS)
        yield
    finally:
        lock.release()
