"""Chunked logits with non-negatives masked.

The forward and the backward pass of `class_scalars` both need the logits of one chunk of classes against all samples:
scaled cosines, the log correction, only the best of K sub-centres, and -inf for positives and filtered conflicts.

Letters: B batch, Y positives of a sample, D width, S local classes, K sub-centres, R = S K rows, N rows of a chunk, P
positives whose class is local.
"""

import itertools
import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .margins_oclear import SoftmaxForm

__all__ = ["LN_2", "ChunkSlices", "ChunkedLogits", "Leaves", "LocalPositives"]

# Logits are computed in base 2: exp2 is as exact as exp, and stays fast where it underflows. exp on CPUs does not: with
# MKL it is 100 times slower when a third of the values underflow.
LOG2_E, LN_2 = 1 / math.log(2), math.log(2)
# Bytes of the logits of one chunk: the level-2 cache of a CPU core, or enough work for one kernel launch on a GPU.
CHUNK_BYTES = {"cpu": 2**20, "other": 2**26}


class Leaves(NamedTuple):
    """Coarse categories for label smoothing: of the local classes (S,) and of the labels, in the shape of the labels.

    int64; below 0 = unknown.
    """

    of_classes: Tensor
    of_labels: Tensor


class ChunkSlices(NamedTuple):
    """One chunk, as slices of the local classes, of their rows and of `LocalPositives`."""

    classes: slice
    rows: slice
    positives: slice


class LocalPositives(NamedTuple):
    """Labels whose class is local, ordered by class: index of the class, sample, column of the label."""

    class_P: Tensor
    sample_P: Tensor
    column_P: Tensor

    @classmethod
    def of(cls, labels_BY: Tensor, class_ids_S: Tensor) -> "LocalPositives":
        """Look the labels up among ascending class ids; labels of other classes are left out."""
        if not len(class_ids_S):
            none = labels_BY.new_empty(0)
            return cls(none, none, none)
        class_BY = torch.searchsorted(class_ids_S, labels_BY.contiguous()).clamp(max=len(class_ids_S) - 1)
        sample_P, column_P = torch.nonzero(class_ids_S[class_BY] == labels_BY, as_tuple=True)
        class_P, order_P = class_BY[sample_P, column_P].sort(stable=True)
        return cls(class_P, sample_P[order_P], column_P[order_P])

    def cosines(self, embeds_BD: Tensor, rows_RD: Tensor, *, sub_centres: int) -> tuple[Tensor, Tensor]:
        """(P,) largest cosine with the K rows of the class, and (P,) the index of that row."""
        row_PK = self.class_P[:, None] * sub_centres + torch.arange(sub_centres, device=rows_RD.device)
        rows_PKD = rows_RD[row_PK]
        with torch.autocast(rows_RD.device.type, enabled=False):
            dot_PK = (rows_PKD * embeds_BD[self.sample_P][:, None]).sum(dim=2)
            cos_PK = dot_PK / torch.linalg.vector_norm(rows_PKD, dim=2)
        cos_P, best_P = cos_PK.max(dim=1)
        return cos_P, row_PK.gather(1, best_P[:, None])[:, 0]


@dataclass(frozen=True)
class ChunkedLogits:
    """Computes the logits of one chunk; holds what is the same for all chunks.

    Attributes:
        labels_shape: (B, Y).
        ceiling_B: cosine above which a negative is masked as a likely label conflict; None = no filter.
        leaves: for label smoothing; None = every negative counts as of the same leaf.
        chunk: classes of one chunk, but for the last.
    """

    form: SoftmaxForm
    class_ids_S: Tensor
    labels_shape: torch.Size
    positives: LocalPositives
    ceiling_B: Tensor | None
    leaves: Leaves | None
    chunk: int

    @staticmethod
    def chunk_size(embeds_BD: Tensor, form: SoftmaxForm) -> int:
        """Classes per chunk: `form.chunk_size`, or as many as fit the cache."""
        if form.chunk_size is not None:
            return form.chunk_size
        kind = embeds_BD.device.type
        # A chunk is used with (N, B) logits and (N, D) rows: the larger of the two has to fit.
        bytes_per_class = embeds_BD.element_size() * max(embeds_BD.shape) * form.sub_centres
        return max(64, CHUNK_BYTES.get(kind, CHUNK_BYTES["other"]) // bytes_per_class)

    def chunks(self) -> list[ChunkSlices]:
        """Cut the local classes into chunks."""
        edges = [*range(0, len(self.class_ids_S), self.chunk), len(self.class_ids_S)]
        class_P = self.positives.class_P
        first = torch.searchsorted(class_P, torch.tensor(edges, device=class_P.device)).tolist()
        k = self.form.sub_centres
        return [
            ChunkSlices(slice(low, high), slice(k * low, k * high), slice(first[i], first[i + 1]))
            for i, (low, high) in enumerate(itertools.pairwise(edges))
            if low < high
        ]

    def rows_of_chunk(self, rows_RD: Tensor) -> int:
        """Rows of the largest chunk."""
        return min(self.chunk * self.form.sub_centres, len(rows_RD))

    def write(
        self,
        embeds_BD: Tensor,
        rows_ND: Tensor,
        length_N: Tensor,
        correction_S: Tensor,
        part: ChunkSlices,
        out_NB: Tensor,
    ) -> None:
        """Write logits / ln 2 of the rows of one chunk into `out_NB`; -inf where a row is no negative of a sample.

        Args:
            length_N: lengths of the rows. part: from `chunks`.
        """
        classes, _, positives = part
        torch.mm(rows_ND, embeds_BD.t(), out=out_NB)
        out_NB.mul_((self.form.scale * LOG2_E / length_N)[:, None])
        k, batch = self.form.sub_centres, len(embeds_BD)
        if k > 1:
            _keep_largest(out_NB.view(-1, k, batch))
        if self.ceiling_B is not None:
            above_NB = (out_NB - self.form.scale * LOG2_E * self.ceiling_B).clamp_(min=0)
            out_NB.sub_(_to_infinity(above_NB))
        out_SKB = out_NB.view(-1, k, batch)
        out_SKB.add_(LOG2_E * correction_S[classes, None, None])
        if positives.start < positives.stop:
            class_P, sample_P = self.positives.class_P[positives], self.positives.sample_P[positives]
            out_SKB[class_P - classes.start, :, sample_P] = -math.inf

    def same_leaf(self, logit_NB: Tensor, classes: slice, column: int) -> Tensor:
        """(N, B) 1 where a negative is of the leaf of positive `column` of the sample, else 0."""
        same_NB = logit_NB > -math.inf
        if self.leaves is not None:
            of_label_B = self.leaves.of_labels[:, column]
            of_row_N = self.leaves.of_classes[classes].repeat_interleave(self.form.sub_centres)
            same_NB &= (of_row_N[:, None] == of_label_B) | (of_label_B < 0)
        return same_NB.to(logit_NB)


def _to_infinity(tensor: Tensor) -> Tensor:
    """In place: 0 stays, every other value becomes infinite with its sign. 10 times faster than a boolean mask."""
    most = torch.finfo(tensor.dtype).max
    return tensor.mul_(most).mul_(most)


def _keep_largest(logit_SKB: Tensor) -> None:
    """In place: -inf for all but the largest of the K rows of a class; the first of equals, so that it counts once."""
    below_SKB = logit_SKB - logit_SKB.amax(dim=1, keepdim=True)
    # Without ties exactly one row per class and sample is at 0, and the arithmetic mask is enough.
    if int(torch.count_nonzero(below_SKB)) == below_SKB.numel() - below_SKB[:, 0].numel():
        logit_SKB.add_(_to_infinity(below_SKB))
        return
    best_S1B = logit_SKB.argmax(dim=1, keepdim=True)
    best = logit_SKB.gather(1, best_S1B)
    logit_SKB.fill_(-math.inf).scatter_(1, best_S1B, best)
