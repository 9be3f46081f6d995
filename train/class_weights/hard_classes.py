"""Hard negative classes of a step: those easily confused with its positives.

Of a million classes a uniform sample of one in a hundred seldom contains the few that a sample could be confused with,
and those define the decision boundary. Two methods:

- `NearestClasses`: prototypes nearest to those of the positives, by a FAISS index that is rebuilt every few steps (Song
  et al., Large-Scale Training System for 100-Million Classification at Alibaba, KDD 2020).
- `LeafClasses`: classes of the same coarse category as a positive, from the governed table; drawn by `sample_classes`.

Letters: P positives, D width, K neighbours, H hard classes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import faiss
import numpy as np
import torch
from torch import Tensor

from train.class_weights.nearest_index import ROWS_PER_CELL, NearestIndex, cells_for, empty_index
from train.class_weights.shard import ClassShard, class_range
from train.inputs.samples import leaf_ids
from train.parallel.collectives import gather_rows, on_main, sum_over_ranks, world_size

EXACT_BELOW = 20_000  # classes: below, the search is exact


@dataclass(frozen=True)
class HardSet:
    """Hard classes of a step.

    Attributes:
        class_ids: (H,) int64, ascending. draws: how many of them are drawn; None = all are used.
    """

    class_ids: Tensor
    draws: int | None


class Index(Protocol):
    """Search for the nearest classes of a rank."""

    def search(self, query_PD: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """(P, K) cosines, best first, and class ids, -1 where there are fewer than K."""


class HardClasses(Protocol):
    """Search for hard classes."""

    def find(self, positives: Tensor, *, step: int) -> HardSet:
        """Hard classes of the distinct positives (P,) of a step's global batch; equal on every rank."""

    def renew(self) -> None:
        """Drop the state that a checkpoint does not hold, so that a resumed run equals the uninterrupted one."""


class LeafClasses:
    """Classes that share a coarse category with a positive.

    Args:
        leaves: coarse category of each class, "" = unknown. per_positive: classes to draw per positive.
    """

    def __init__(self, leaves: Sequence[str], *, per_positive: int) -> None:
        if not any(leaves):
            raise ValueError(
                'no class has a leaf, so that hard_classes "leaf" finds none; use "nearest" or "none", or give the '
                "catalogue a column leaf and govern again"
            )
        self.leaf_N = leaf_ids(leaves).numpy()
        self.order = np.argsort(self.leaf_N, kind="stable")
        self.sorted = self.leaf_N[self.order]
        self.per_positive = per_positive

    def find(self, positives: Tensor, *, step: int) -> HardSet:
        """All classes of the positives' leaves, and to draw `per_positive` of them for each positive."""
        found = np.unique(self.leaf_N[positives.cpu().numpy()])
        found = found[found >= 0]
        low, high = (np.searchsorted(self.sorted, found, side=side) for side in ("left", "right"))
        parts = [self.order[a:b] for a, b in zip(low.tolist(), high.tolist(), strict=True)]
        ids = np.sort(np.concatenate([np.empty(0, np.int64), *parts]))
        return HardSet(torch.from_numpy(ids), self.per_positive * len(positives))

    def renew(self) -> None:
        """Nothing: there is no state."""


class NearestClasses:
    """Classes whose prototypes are nearest to those of the positives; all of them are used.

    Args:
        per_positive: K. refresh_every: steps between two indexes. also_every: steps at which checkpoints are written: a
            new index there makes a resumed run equal to the uninterrupted one.
    """

    def __init__(self, shard: ClassShard, *, per_positive: int, refresh_every: int, also_every: int, seed: int) -> None:
        self.shard, self.seed = shard, seed
        self.neighbours = min(per_positive + 1, shard.num_classes)
        self.refresh_every, self.also_every = refresh_every, also_every
        self.index: Index | None = None

    def find(self, positives: Tensor, *, step: int) -> HardSet:
        """The K nearest classes of each positive, without the positives."""
        if self.index is None or step % self.refresh_every == 0 or step % self.also_every == 0:
            self.index = self._build()
        query_PD = self._prototypes_of(positives)
        score_PK, id_PK = self.index.search(query_PD, self.neighbours)
        score_PK, id_PK = _best_of_ranks(score_PK, id_PK, device=self.shard.device)
        own = id_PK == positives.numpy()[:, None]
        # A positive is its own nearest class; where the index misses it, drop the last neighbour instead.
        own[~own.any(axis=1), -1] = True
        ids = np.setdiff1d(id_PK[~own & (id_PK >= 0)], positives.numpy())
        return HardSet(torch.from_numpy(ids.astype(np.int64)), None)

    def renew(self) -> None:
        """The next step builds a new index."""
        self.index = None

    def _prototypes_of(self, class_ids: Tensor) -> np.ndarray:
        """(P, D) unit rows of classes of any rank, equal on every rank."""
        mine = (class_ids >= self.shard.start) & (class_ids < self.shard.end)
        rows_PD = self.shard.like.new_zeros(len(class_ids), self.shard.hidden_size, dtype=torch.float32)
        if bool(mine.any()):
            rows_PD[mine.to(rows_PD.device)] = self.shard.prototypes(class_ids[mine])
        found: np.ndarray = sum_over_ranks(rows_PD).cpu().numpy()
        return found

    def _build(self) -> Index:
        """Index of this rank's classes: exact for few classes, else in the partition that all ranks share."""
        shard = self.shard
        if shard.num_classes < EXACT_BELOW:
            exact: Any = faiss.IndexIDMap2(faiss.IndexFlatIP(shard.hidden_size))
            ids = torch.arange(shard.start, shard.end)
            exact.add_with_ids(self._unit_rows(ids).numpy(), ids.numpy())
            found: Index = exact
            return found
        return NearestIndex(self._partition(), self._unit_rows, start=shard.start, end=shard.end, device=shard.device)

    def _unit_rows(self, class_ids: Tensor) -> Tensor:
        return self.shard.prototypes(class_ids).cpu()

    def _partition(self) -> Any:
        """Empty index, trained by the main process on a keyed sample of all classes."""
        total = self.shard.num_classes
        wanted = min(total, ROWS_PER_CELL * math.prod(cells_for(total)))
        stream = np.random.default_rng([self.seed, total])
        chosen = torch.from_numpy(np.sort(stream.choice(total, wanted, replace=False)))
        bounds = [class_range(total, part=part, parts=world_size()) for part in range(world_size())]
        counts = [int(((chosen >= start) & (chosen < end)).sum()) for start, end in bounds]
        mine = chosen[(chosen >= self.shard.start) & (chosen < self.shard.end)]
        sample = gather_rows(self.shard.prototypes(mine).to(self.shard.device), counts).cpu().numpy()
        # Shuffled, because the code book is trained on the first rows.
        sample = sample[stream.permutation(wanted)]
        return faiss.deserialize_index(on_main(lambda: faiss.serialize_index(empty_index(sample, classes=total))))


def _best_of_ranks(score_PK: np.ndarray, id_PK: np.ndarray, *, device: torch.device) -> tuple[np.ndarray, np.ndarray]:
    """The best K of the results of all ranks, best first, ties by class; equal on every rank."""
    positives, neighbours = score_PK.shape
    # Class ids are far below 2**53, so that float64 holds them exactly.
    local = torch.from_numpy(np.concatenate([score_PK.astype(np.float64), id_PK.astype(np.float64)], axis=1))
    gathered = (
        gather_rows(local.to(device), [positives] * world_size())
        .cpu()
        .numpy()
        .reshape(world_size(), positives, 2, neighbours)
    )
    score, ids = (gathered[:, :, part].transpose(1, 0, 2).reshape(positives, -1) for part in (0, 1))
    score = np.where(ids < 0, -np.inf, score)
    order = np.lexsort((ids, -score))[:, :neighbours]
    return np.take_along_axis(score, order, 1), np.take_along_axis(ids, order, 1).astype(np.int64)
