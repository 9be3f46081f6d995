"""Collectives of the class-sharded loss; identities without a process group.

Every rank scores ALL embeddings of a micro-step against ITS classes and then computes the same loss of the global
batch. So the gradient of a rank's class rows is complete on that rank, and the gradient of an embedding is the sum over
ranks.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


@dataclass(eq=False)
class CollectiveCounter:
    """Number of collectives of this module that this rank has entered since the counter was opened."""

    count: int = 0


# Open counters; only `counting` changes the list. It belongs to the module because autograd calls the collectives of a
# backward pass, on an accelerator from another thread, so no argument can carry a counter.
_counters: list[CollectiveCounter] = []


@contextlib.contextmanager
def counting() -> Iterator[CollectiveCounter]:
    """Count the collectives that this process enters inside the block, in whatever thread."""
    counter = CollectiveCounter()
    _counters.append(counter)
    try:
        yield counter
    finally:
        _counters.remove(counter)


def _count() -> None:
    for counter in _counters:
        counter.count += 1


def world_size() -> int:
    """Number of ranks, 1 without a process group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """This rank, 0 without a process group."""
    return dist.get_rank() if dist.is_initialized() else 0


def gather_rows(local_BD: Tensor, counts: Sequence[int]) -> Tensor:
    """Rows of all ranks, in rank order; the backward is reduce-scatter(SUM) times the number of ranks.

    DDP and FSDP average encoder gradients over W ranks. The gradient of an embedding is a sum over ranks, so its
    backward multiplies by W and the average restores the sum.

    Args:
        local_BD: (B, D) rows of this rank; B may differ between ranks.
        counts: rows of every rank; `counts[rank()]` must be B.

    Returns:
        (sum(counts), D), equal on every rank.

    Raises:
        ValueError: B differs from `counts[rank()]`, or `counts` has not one entry per rank.
    """
    if len(counts) != world_size() or counts[rank()] != len(local_BD):
        raise ValueError(f"{len(local_BD)} rows here, but the plan of {world_size()} ranks says {list(counts)}")
    if world_size() == 1:
        return local_BD
    gathered: Tensor = _GatherRows.apply(local_BD, tuple(counts))
    return gathered


def sum_over_ranks(value: Tensor) -> Tensor:
    """Sum over ranks of a tensor of equal shape; differentiable.

    Every rank computes the same loss from the sum, so the gradient of a rank's own term is the gradient of the sum:
    the backward is the identity, without communication.
    """
    if world_size() == 1:
        return value
    total: Tensor = _SumOverRanks.apply(value)
    return total


def max_over_ranks(value: Tensor) -> Tensor:
    """Element-wise maximum over ranks; without gradient."""
    value = value.detach().clone()
    if world_size() > 1:
        _count()
        dist.all_reduce(value, op=dist.ReduceOp.MAX)
    return value


def barrier() -> None:
    """Wait for every rank."""
    if world_size() > 1:
        _count()
        dist.barrier()


def on_main(function: Callable[[], T]) -> T:
    """Run `function` on rank 0 alone and return its (picklable) result on every rank.

    A ValueError of rank 0 is raised on every rank, so that a mistake of the caller ends the whole job with its message
    instead of leaving the other ranks in a collective.
    """
    outcome: list[Any] = [None, None]
    if rank() == 0:
        try:
            outcome[0] = function()
        except ValueError as error:
            outcome[1] = str(error)
    if world_size() > 1:
        _count()
        dist.broadcast_object_list(outcome, src=0)
    if outcome[1] is not None:
        raise ValueError(outcome[1])
    result: T = outcome[0]
    return result


def _padded(rows: Tensor, length: int) -> Tensor:
    if len(rows) == length:
        return rows.contiguous()
    return torch.cat([rows, rows.new_zeros(length - len(rows), *rows.shape[1:])])


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, local_BD: Tensor, counts: tuple[int, ...]) -> Tensor:
        ctx.counts = counts
        longest = max(counts)
        pieces = [local_BD.new_empty(longest, local_BD.shape[1]) for _ in counts]
        _count()
        dist.all_gather(pieces, _padded(local_BD.detach(), longest))
        return torch.cat([piece[:count] for piece, count in zip(pieces, counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        counts = ctx.counts
        longest = max(counts)
        parts = [_padded(part, longest) for part in gradients[0].split(counts)]
        mine = torch.empty_like(parts[0])
        _count()
        dist.reduce_scatter(mine, parts, op=dist.ReduceOp.SUM)
        return mine[: counts[rank()]] * len(counts), None


class _SumOverRanks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        total = value.detach().clone()
        _count()
        dist.all_reduce(total, op=dist.ReduceOp.SUM)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0]
