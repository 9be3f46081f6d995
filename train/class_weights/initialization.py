"""Initial class rows: the mean embedding of the class's samples.

Random prototypes converge slowly and disturb neighbouring classes. Rows are initialised at the beginning of a run, and
when a resumed run has a new category.

Letters: B batch, C classes of a block, D width, K rows per class, W = K x D.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from train.class_weights.shard import ClassShard
from train.encoders.pair import EncoderPair, embed_rows, rows_of

CLASSES_AT_ONCE = 2**16  # whose sums are held at once
ROWS_AT_ONCE = 256
SPREAD = 0.3  # distance of further sub-centres from the first, in lengths of the mean: equal ones would stay equal
Embed = Callable[[str, np.ndarray], Iterator[tuple[np.ndarray, Tensor]]]


@dataclass(frozen=True)
class SideRowsOfClass:
    """Training rows of one side: `rows` into the side's arrays, `labels` class index, `weights`."""

    rows: np.ndarray
    labels: np.ndarray
    weights: np.ndarray

    def as_tuple(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(rows, labels, weights)."""
        return self.rows, self.labels, self.weights


def first_rows(part: SideRowsOfClass, *, most: int | None) -> SideRowsOfClass:
    """The first `most` rows of every class; all with None."""
    if most is None:
        return part
    order = np.argsort(part.labels, kind="stable")
    firsts = np.append(0, np.cumsum(np.bincount(part.labels)))
    kept = np.sort(np.concatenate([order[low : min(low + most, high)] for low, high in itertools.pairwise(firsts)]))
    return SideRowsOfClass(part.rows[kept], part.labels[kept], part.weights[kept])


def at_start(encoders: EncoderPair, inputs: dict[str, Any]) -> Embed:
    """Embedding function of unprepared encoders: each rank embeds the rows of its own classes."""
    return lambda side, rows: embed_rows(encoders, inputs[side], rows, side=side)


def while_running(encoders: Any, inputs: dict[str, Any], *, like: Tensor, width: int) -> Embed:
    """Embedding function through `forward` of prepared encoders, as FSDP needs; every rank must embed the same rows."""

    def embed(side: str, rows: np.ndarray) -> Iterator[tuple[np.ndarray, Tensor]]:
        for start in range(0, len(rows), ROWS_AT_ONCE):
            part = rows[start : start + ROWS_AT_ONCE]
            rows_by_side = {name: part if name == side else part[:0] for name in ("query", "document")}
            values = {
                name: rows_of(inputs[name], kept, np.zeros_like(kept), like=like) for name, kept in rows_by_side.items()
            }
            ones = {name: like.new_ones(len(value), width) for name, value in values.items()}
            with torch.no_grad():
                both = encoders(values["query"], values["document"], ones["query"], ones["document"])
            yield part, both[0] if side == "query" else both[1]

    return embed


def start_from_means(
    shard: ClassShard,
    embed: Embed,
    rows: dict[str, SideRowsOfClass],
    *,
    only: np.ndarray | None = None,
    on_every_rank: bool = False,
) -> None:
    """Set each class row to the mean of its documents' embeddings, or of its queries' if it has no document.

    Args:
        only: (N,) bool over all classes: classes to initialise. None = all.
        on_every_rank: embed the rows of all ranks' classes on each of them (see `while_running`).
    """
    first, end = (0, shard.num_classes) if on_every_rank else (shard.start, shard.end)
    for low in range(first, end, CLASSES_AT_ONCE):
        high = min(low + CLASSES_AT_ONCE, end)
        wanted = np.ones(high - low, bool) if only is None else only[low:high]
        if not wanted.any():
            continue
        means_CD = _means(shard, embed, rows, low, wanted)
        mine = np.flatnonzero(wanted & (np.arange(low, high) >= shard.start) & (np.arange(low, high) < shard.end))
        places = torch.from_numpy(mine)
        shard.put_rows(places + low, _spread(shard, places + low, means_CD[places.to(means_CD.device)]))


def _means(shard: ClassShard, embed: Embed, rows: dict[str, SideRowsOfClass], low: int, wanted: np.ndarray) -> Tensor:
    """(C, D) means of the wanted classes from `low` on."""
    totals_CD = shard.like.new_zeros(len(wanted), shard.hidden_size)
    counts_C = totals_CD.new_zeros(len(totals_CD))
    for side in ("document", "query"):
        part = rows[side]
        needed = wanted & (counts_C == 0).cpu().numpy()
        mine = (part.labels >= low) & (part.labels < low + len(wanted))
        mine[mine] = needed[part.labels[mine] - low]
        rows_of_block, place = part.rows[mine], part.labels[mine] - low
        order = np.argsort(rows_of_block, kind="stable")
        for chunk, embeds_BD in embed(side, rows_of_block):
            at = order[np.searchsorted(rows_of_block, chunk, sorter=order)]
            index = torch.from_numpy(place[at]).to(totals_CD.device)
            totals_CD.index_add_(0, index, embeds_BD.to(totals_CD.dtype))
            counts_C.index_add_(0, index, counts_C.new_ones(len(index)))
    assert bool((counts_C[torch.from_numpy(wanted).to(counts_C.device)] > 0).all()), "every trained class has a row"
    return totals_CD / counts_C[:, None].clamp_min(1)


def _spread(shard: ClassShard, class_ids: Tensor, means_CD: Tensor) -> Tensor:
    """(C, W): the mean; for further sub-centres the mean plus keyed noise."""
    if shard.sub_centres == 1:
        return means_CD
    noise_CKD = shard.random_rows(class_ids).to(means_CD).view(len(class_ids), shard.sub_centres, -1)
    noise_CKD[:, 0] = 0  # the first sub-centre is the mean
    length_C1 = means_CD.norm(dim=1, keepdim=True)
    return (means_CD[:, None] + SPREAD * length_C1[:, None] * noise_CKD).flatten(1)
