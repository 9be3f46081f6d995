"""Save and load class rows in blocks with torch.distributed.checkpoint.

A table of 100 million rows is one tensor per rank for the library, which would read all of it beside the table that it
fills. In blocks, a checkpoint of any size needs the memory of one block, any range of classes can be read separately,
and the number of ranks that wrote it does not matter.
"""

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType
from torch.distributed.checkpoint.state_dict_loader import load

BYTES_PER_BLOCK = 2**25


class RowBlocks:
    """Rows first .. first + len(rows) of a table of `total` rows; the double underscores are torch's protocol.

    Args:
        rows: contiguous; read or filled in place, block by block.
    """

    def __init__(self, rows: Tensor, *, first: int, total: int) -> None:
        assert 0 <= first <= first + len(rows) <= max(total, first)
        self.rows, self.first, self.total = rows, first, total
        row_bytes = rows[:1].numel() * rows.element_size() if len(rows) else 1
        self.at_once = max(1, BYTES_PER_BLOCK // row_bytes)

    def size(self) -> torch.Size:
        """Size of the complete table."""
        return torch.Size((self.total, *self.rows.shape[1:]))

    def block(self, index: MetadataIndex) -> Tensor:
        """The block that starts at the offset of `index`."""
        assert index.offset is not None
        start = index.offset[0] - self.first
        return self.rows[start : start + self.at_once]

    def __create_chunk_list__(self) -> list[ChunkStorageMetadata]:
        zeros = (0,) * (self.rows.ndim - 1)
        return [
            ChunkStorageMetadata(
                offsets=torch.Size((self.first + start, *zeros)), sizes=self.rows[start : start + self.at_once].shape
            )
            for start in range(0, len(self.rows), self.at_once)
        ]

    def __create_write_items__(self, fqn: str, object: Any) -> list[WriteItem]:
        properties = TensorProperties.create_from_tensor(self.rows)
        return [
            WriteItem(
                index=MetadataIndex(fqn, chunk.offsets),
                type=WriteItemType.SHARD,
                tensor_data=TensorWriteData(chunk=chunk, properties=properties, size=self.size()),
            )
            for chunk in self.__create_chunk_list__()
        ]


class BlockSavePlanner(DefaultSavePlanner):
    """torch's planner that also saves `blocks` by name."""

    def __init__(self, blocks: dict[str, RowBlocks]) -> None:
        super().__init__()
        self.blocks = blocks

    def set_up_planner(self, state_dict: Any, storage_meta: Any = None, is_coordinator: bool = False) -> None:
        super().set_up_planner(state_dict, storage_meta, is_coordinator)
        self.state_dict = {**self.state_dict, **self.blocks}

    def lookup_object(self, index: MetadataIndex) -> Any:
        if index.fqn in self.blocks:
            return self.blocks[index.fqn].block(index)
        return super().lookup_object(index)


class BlockLoadPlanner(DefaultLoadPlanner):
    """torch's planner that also fills `blocks` by name."""

    def __init__(self, blocks: dict[str, RowBlocks]) -> None:
        super().__init__()
        self.blocks = blocks

    def set_up_planner(self, state_dict: Any, metadata: Any = None, is_coordinator: bool = False) -> None:
        # torch would replace values that are no tensors by None, so the blocks are added later.
        super().set_up_planner(state_dict, metadata, is_coordinator)
        self.state_dict = {**self.state_dict, **self.blocks}

    def lookup_tensor(self, index: MetadataIndex) -> Tensor:
        if index.fqn in self.blocks:
            return self.blocks[index.fqn].block(index)
        return super().lookup_tensor(index)


def saved_tensors(path: Path) -> dict[str, TensorStorageMetadata]:
    """Size and type of every tensor in a checkpoint, by name."""
    described = FileSystemReader(path).read_metadata().state_dict_metadata
    return {name: value for name, value in described.items() if isinstance(value, TensorStorageMetadata)}


def read_rows(path: Path, name: str, *, first: int, end: int) -> Tensor:
    """Rows first..end of a saved table, read by this process alone."""
    described = saved_tensors(path)[name]
    rows = torch.empty((end - first, *described.size[1:]), dtype=described.properties.dtype)
    blocks = {name: RowBlocks(rows, first=first, total=described.size[0])}
    with without_group_warning():
        load({}, checkpoint_id=path, planner=BlockLoadPlanner(blocks), no_dist=True)
    return rows


@contextlib.contextmanager
def without_group_warning() -> Iterator[None]:
    """Suppress torch's warning that it saves or loads in a single process, where there is no process group.

    `warnings.catch_warnings` replaces the filters of the whole process while the block runs, so two threads can restore
    each other's filters in the wrong order. At worst this warning appears, or stays suppressed: nothing else is
    filtered. With a process group torch gives no such warning, and nothing is replaced.
    """
    if dist.is_initialized():
        yield
        return
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")
        yield
