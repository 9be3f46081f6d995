"""Logits of one chunk of classes against all samples of a batch, with what is no negative of a sample left out.

Why: the sum over negatives, and its gradient, pass over the classes in chunks that stay in the cache; what a chunk
holds is decided here once for both: products, scale, correction, the nearest of K sub-centres, the conflict filter, and
that a positive is no negative.


Letters: B batch, Y positives of a sample, D width, S classes, K sub-centres, R = S K rows, N rows of a chunk, P
positives at hand.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .margins_oclear import SoftmaxForm

__all__ = ["LN_2", "Held", "Leaves", "Part", "Plan", "chunk_classes", "held_positives", "nearest_positives"]

# Logits are held in base 2: exp2 is as exact as exp, and does not slow down where it underflows, as exp does on
# processors (100 times with MKL, where a third of the values do).
LOG2_E, LN_2 = 1 / math.log(2), math.log(2)
# Logits of one chunk: a processor's second-level cache, or enough work for one launch on an accelerator.
CHUNK_BYTES = {"cpu": 2**20, "other": 2**26}


class Leaves(NamedTuple):
    """Coarse categories for label smoothing: of the classes at hand (S,) and of the labels, shaped as they are.

    int64; below 0 = unknown.
    """

    of_classes: Tensor
    of_labels: Tensor


class Part(NamedTuple):
    """One chunk: its classes, its rows, its positives, each as a slice of all."""

    classes: slice
    rows: slice
    held: slice


class Held(NamedTuple):
    """Positives whose class is at hand, ordered by class: place of the class, sample, column of the label."""

    place_P: Tensor
    sample_P: Tensor
    column_P: Tensor


def held_positives(labels_BY: Tensor, class_ids_S: Tensor) -> Held:
    """Where the positives of these labels stand among ascending class ids; those elsewhere are left out."""
    if not len(class_ids_S):
        none = labels_BY.new_empty(0)
        return Held(none, none, none)
    place_BY = torch.searchsorted(class_ids_S, labels_BY.contiguous()).clamp(max=len(class_ids_S) - 1)
    sample_P, column_P = torch.nonzero(class_ids_S[place_BY] == labels_BY, as_tuple=True)
    place_P, order_P = place_BY[sample_P, column_P].sort(stable=True)
    return Held(place_P, sample_P[order_P], column_P[order_P])


def nearest_positives(embeds_BD: Tensor, rows_RD: Tensor, held: Held, sub_centres: int) -> tuple[Tensor, Tensor]:
    """(P,) cosines of the held positives, and which row of theirs it is."""
    row_PK = held.place_P[:, None] * sub_centres + torch.arange(sub_centres, device=rows_RD.device)
    part_PKD = rows_RD[row_PK]
    with torch.autocast(rows_RD.device.type, enabled=False):
        cos_PK = (part_PKD * embeds_BD[held.sample_P][:, None]).sum(dim=2) / torch.linalg.vector_norm(part_PKD, dim=2)
    cos_P, which_P = cos_PK.max(dim=1)
    return cos_P, row_PK.gather(1, which_P[:, None])[:, 0]


def chunk_classes(embeds_BD: Tensor, form: SoftmaxForm) -> int:
    """Classes of one chunk: as the form says, or as many as fit the cache."""
    if form.chunk_size is not None:
        return form.chunk_size
    kind = embeds_BD.device.type
    of_one = embeds_BD.element_size() * max(embeds_BD.shape) * form.sub_centres
    return max(64, CHUNK_BYTES.get(kind, CHUNK_BYTES["other"]) // of_one)


@dataclass(frozen=True)
class Plan:
    """What is the same for every chunk, and the logits of one.

    Attributes:
        ceiling_B: cosine above which a negative leaves its row; None = no filter.
        leaves: for label smoothing; None = every negative shares the leaf.
        chunk: classes of one chunk, but for the last.
    """

    form: SoftmaxForm
    held: Held
    ceiling_B: Tensor | None
    leaves: Leaves | None
    chunk: int

    def chunks(self, num_classes: int) -> list[Part]:
        """Slices of each chunk: its classes, its rows, its held positives."""
        edges = [*range(0, num_classes, self.chunk), num_classes]
        held = torch.searchsorted(self.held.place_P, torch.tensor(edges, device=self.held.place_P.device)).tolist()
        k = self.form.sub_centres
        return [
            Part(slice(edges[i], edges[i + 1]), slice(k * edges[i], k * edges[i + 1]), slice(held[i], held[i + 1]))
            for i in range(len(edges) - 1)
            if edges[i] < edges[i + 1]
        ]

    def rows_of_chunk(self, rows_RD: Tensor) -> int:
        """The most rows that a chunk has."""
        return min(self.chunk * self.form.sub_centres, len(rows_RD))

    def logits(
        self,
        embeds_BD: Tensor,
        rows_ND: Tensor,
        length_N: Tensor,
        correction_S: Tensor,
        part: Part,
        out_NB: Tensor,
    ) -> None:
        """Logits / ln 2 of the rows of one chunk into `out_NB`; -inf for what is no negative of the sample.

        Args:
            length_N: of the rows. part: from `chunks`.
        """
        classes, _, held = part
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
        if held.start < held.stop:
            out_SKB[self.held.place_P[held] - classes.start, :, self.held.sample_P[held]] = -math.inf

    def shares_leaf(self, logit_NB: Tensor, classes: slice, column: int) -> Tensor:
        """(N, B) 1 where a negative shares the leaf of positive `column` of the sample, else 0."""
        shares_NB = logit_NB > -math.inf
        if self.leaves is not None:
            of_label_B = self.leaves.of_labels[:, column]
            of_row_N = self.leaves.of_classes[classes].repeat_interleave(self.form.sub_centres)
            shares_NB &= (of_row_N[:, None] == of_label_B) | (of_label_B < 0)
        return shares_NB.to(logit_NB)


def _to_infinity(tensor: Tensor) -> Tensor:
    """In place: 0 stays, all else becomes infinite with its sign: masks by arithmetic, 10 times faster than by bool."""
    most = torch.finfo(tensor.dtype).max
    return tensor.mul_(most).mul_(most)


def _keep_largest(logit_SKB: Tensor) -> None:
    """In place: -inf for all but the largest of each class's K; the first of equals, so that none counts twice."""
    below_SKB = logit_SKB - logit_SKB.amax(dim=1, keepdim=True)
    if int(torch.count_nonzero(below_SKB)) == below_SKB.numel() - below_SKB[:, 0].numel():
        logit_SKB.add_(_to_infinity(below_SKB))
        return
    best_S1B = logit_SKB.argmax(dim=1, keepdim=True)
    best = logit_SKB.gather(1, best_S1B)
    logit_SKB.fill_(-math.inf).scatter_(1, best_S1B, best)
