"""Classes that a step should not miss: those that are easily taken for its positives.

Why: of a million classes a uniform draw of one in a hundred seldom holds the few that a sample could be confused with,
and those alone teach where the border runs. The nearest prototypes as active classes: Song et al., Large-Scale Training
System for 100-Million Classification at Alibaba (KDD 2020). Two choices:

- `NearestClasses`: prototypes nearest to those of the positives, by a FAISS index that is built again every few steps
  (nearest_index.py). Each rank indexes its own range with one shared partition, and the best of all ranks are merged,
  so that every rank knows the same classes.
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

# Below so many classes the search is exact.
EXACT_BELOW = 20_000


@dataclass(frozen=True)
class HardSet:
    """Hard classes of a step.

    Attributes:
        class_ids: (H,) int64, ascending. draws: how many of them take part; None = all.
    """

    class_ids: Tensor
    draws: int | None


class Index(Protocol):
    """What finds the nearest classes of a rank."""

    def search(self, query_PD: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """(P, K) cosines, best first, and class ids, -1 where nothing is left."""


class HardClasses(Protocol):
    """What finds hard classes."""

    def find(self, positives: Tensor, *, step: int) -> HardSet:
        """Hard classes of the distinct positives (P,) of a step's global batch; equal on every rank."""

    def renew(self) -> None:
        """Forget what a run resumed from a checkpoint written now would not know."""


class LeafClasses:
    """Classes that share a coarse category with a positive.

    Args:
        leaves: coarse category of each class, "" = unknown. per_positive: how many are drawn per positive.
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
        """All classes of the positives' leaves, of which `per_positive` per positive are to be drawn."""
        found = np.unique(self.leaf_N[positives.cpu().numpy()])
        found = found[found >= 0]
        low, high = (np.searchsorted(self.sorted, found, side=side) for side in ("left", "right"))
        parts = [self.order[a:b] for a, b in zip(low.tolist(), high.tolist(), strict=True)]
        ids = np.sort(np.concatenate([np.empty(0, np.int64), *parts]))
        return HardSet(torch.from_numpy(ids), self.per_positive * len(positives))

    def renew(self) -> None:
        """Nothing is remembered."""


class NearestClasses:
    """Classes whose prototypes are nearest to those of the positives; all of them take part.

    Args:
        per_positive: K. refresh_every: steps between two indexes. also_every: steps at which checkpoints are written:
            a new index there makes a resumed run see what the uninterrupted one saw.
    """

    def __init__(self, shard: ClassShard, *, per_positive: int, refresh_every: int, also_every: int, seed: int) -> None:
        self.shard, self.seed = shard, seed
        self.neighbours = min(per_positive + 1, shard.num_classes)
        self.refresh_every, self.also_every = refresh_every, also_every
        self.index: Index | None = None

    def find(self, positives: Tensor, *, step: int) -> HardSet:
        """The K nearest classes of each positive that are no positives themselves."""
        if self.index is None or step % self.refresh_every == 0 or step % self.also_every == 0:
            self.index = self._build()
        query_PD = self._prototypes_of(positives)
        score_PK, id_PK = self.index.search(query_PD, self.neighbours)
        score_PK, id_PK = _best_of_ranks(score_PK, id_PK, device=self.shard.device)
        own = id_PK == positives.numpy()[:, None]
        # A positive is its own nearest; where the coarse index misses it, the last neighbour goes.
        own[~own.any(axis=1), -1] = True
        ids = np.setdiff1d(id_PK[~own & (id_PK >= 0)], positives.numpy())
        return HardSet(torch.from_numpy(ids.astype(np.int64)), None)

    def renew(self) -> None:
        """The next step builds a new index."""
        self.index = None

    def _prototypes_of(self, class_ids: Tensor) -> np.ndarray:
        """(P, D) unit rows of classes of any rank, on every rank."""
        mine = (class_ids >= self.shard.start) & (class_ids < self.shard.end)
        rows_PD = self.shard.like.new_zeros(len(class_ids), self.shard.hidden_size, dtype=torch.float32)
        if bool(mine.any()):
            rows_PD[mine.to(rows_PD.device)] = self.shard.prototypes(class_ids[mine])
        found: np.ndarray = sum_over_ranks(rows_PD).cpu().numpy()
        return found

    def _build(self) -> Index:
        """This rank's classes: as they are where they are few, else in the partition that all ranks share."""
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
        """An empty index, trained by the main process on a keyed sample of all classes."""
        total = self.shard.num_classes
        wanted = min(total, ROWS_PER_CELL * math.prod(cells_for(total)))
        stream = np.random.default_rng([self.seed, total])
        chosen = torch.from_numpy(np.sort(stream.choice(total, wanted, replace=False)))
        bounds = [class_range(total, part=part, parts=world_size()) for part in range(world_size())]
        counts = [int(((chosen >= start) & (chosen < end)).sum()) for start, end in bounds]
        mine = chosen[(chosen >= self.shard.start) & (chosen < self.shard.end)]
        sample = gather_rows(self.shard.prototypes(mine).to(self.shard.device), counts).cpu().numpy()
        # In another order than that of the classes: the code book learns from the first rows.
        sample = sample[stream.permutation(wanted)]
        return faiss.deserialize_index(on_main(lambda: faiss.serialize_index(empty_index(sample, classes=total))))


def _best_of_ranks(score_PK: np.ndarray, id_PK: np.ndarray, *, device: torch.device) -> tuple[np.ndarray, np.ndarray]:
    """The best K of what all ranks found, best first, ties by class."""
    positives, neighbours = score_PK.shape
    # Class ids are far below 2**53, so that float64 holds them exactly.
    local = torch.from_numpy(np.concatenate([score_PK.astype(np.float64), id_PK.astype(np.float64)], axis=1))
    whole = (
        gather_rows(local.to(device), [positives] * world_size())
        .cpu()
        .numpy()
        .reshape(world_size(), positives, 2, neighbours)
    )
    score, ids = (whole[:, :, part].transpose(1, 0, 2).reshape(positives, -1) for part in (0, 1))
    score = np.where(ids < 0, -np.inf, score)
    order = np.lexsort((ids, -score))[:, :neighbours]
    return np.take_along_axis(score, order, 1), np.take_along_axis(ids, order, 1).astype(np.int64)
