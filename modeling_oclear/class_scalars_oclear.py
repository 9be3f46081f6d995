"""Per-sample sums of the partial softmax over a range of classes.

The loss needs a few numbers per sample and class range, never all logits. Classes are processed in chunks that stay in
the cache, against a running largest logit (online softmax, Milakov and Gimelshein, 1805.02867). The hand-written
gradient costs two matrix products and a few passes over the rows.

    l_jb = s cos_jb + c_j       max_b, sum_b = max and sum_j exp(l_jb - max_b) over NEGATIVES j of sample b
    d l_jb / d row_j = s / |row_j| (z_b - cos_jb u_j),   u_j = row_j / |row_j|,   d l_jb / d z_b = s u_j

Positives are returned as cosines: their margin is applied with ordinary autograd on (B, Y) numbers.

Letters: B batch, Y positives of a sample, D width, S local classes, R = S K rows of K sub-centres, N rows of a chunk, P
positives whose class is local, C chunks.
"""

import functools
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .chunk_logits_oclear import LN_2, ChunkedLogits, Leaves, LocalPositives
from .margins_oclear import SoftmaxForm
from .softmax_inputs_oclear import ClassRange, check_classes, check_lengths, checked_labels, same_precision

__all__ = ["ClassRange", "ClassScalars", "Leaves", "class_scalars", "positive_cosines"]


class ClassScalars(NamedTuple):
    """Contribution of a range of classes to the softmax of each sample.

    Attributes:
        max: (B,) largest logit of a negative, detached; -inf without any.
        sum_exp: (B,) sum over negatives of exp(logit - max); 0 without any.
        positive: (B, Y) cosines of the positives whose class is in the range, 0 for the others.
        leaf_sum, leaf_count: (B, Y) sum of logits, and number, of the negatives of the positive's leaf; None without
            label smoothing.
    """

    max: Tensor
    sum_exp: Tensor
    positive: Tensor
    leaf_sum: Tensor | None = None
    leaf_count: Tensor | None = None


def class_scalars(
    embeds_BD: Tensor,
    labels: Tensor,
    classes: ClassRange,
    *,
    form: SoftmaxForm,
    best_positive_B: Tensor | None = None,
    leaves: Leaves | None = None,
) -> ClassScalars:
    """Compute the sums of each sample over the local classes (all of a step's, or one rank's range of them).

    Args:
        embeds_BD: unit rows; half precision is converted to float32.
        labels: (B,) int64, or (B, Y) padded with -1; a label that is not among the ids of `classes` has no positive
            here.
        best_positive_B: largest cosine of each sample's positives over ALL class ranges; `form.conflict_delta` needs
            it. See `positive_cosines`.
        leaves: for label smoothing; None = all classes are of one leaf.

    Raises:
        ValueError: for embeddings or prototypes that are not finite, prototypes of length 0, labels, dtypes and shapes
            that do not fit.
    """
    labels_BY = checked_labels(embeds_BD, labels)
    check_classes(classes, sub_centres=form.sub_centres)
    embeds_BD, rows_RD = same_precision(embeds_BD, classes.rows_RD)
    ceiling_B = _ceiling(form, best_positive_B, embeds_BD)
    if leaves is not None:
        leaves = Leaves(leaves.of_classes.to(rows_RD.device), leaves.of_labels.to(rows_RD.device).view_as(labels_BY))
    logits = ChunkedLogits(
        form=form,
        class_ids_S=classes.class_ids_S,
        labels_shape=labels_BY.shape,
        positives=LocalPositives.of(labels_BY, classes.class_ids_S),
        ceiling_B=ceiling_B,
        leaves=leaves if form.label_smoothing else None,
        chunk=ChunkedLogits.chunk_size(embeds_BD, form),
    )
    keep = _keeps_exponentials(embeds_BD, rows_RD, form)
    sums = _Scalars.apply(embeds_BD, rows_RD, classes.log_correction_S.to(rows_RD), logits, keep)
    return ClassScalars(*sums) if form.label_smoothing else ClassScalars(*sums[:3])


def positive_cosines(
    embeds_BD: Tensor, labels: Tensor, rows_RD: Tensor, class_ids_S: Tensor, *, form: SoftmaxForm
) -> Tensor:
    """(B, Y) cosines of the positives whose class is local, detached, 0 for the others; their sum over ranks has all.

    Args and errors: as in `class_scalars`.
    """
    labels_BY = checked_labels(embeds_BD, labels)
    embeds_BD, rows_RD = same_precision(embeds_BD.detach(), rows_RD.detach())
    positives = LocalPositives.of(labels_BY, class_ids_S)
    cos_P, _ = positives.cosines(embeds_BD, rows_RD, sub_centres=form.sub_centres)
    cos_BY = embeds_BD.new_zeros(labels_BY.shape)
    cos_BY[positives.sample_P, positives.column_P] = cos_P
    return cos_BY


def _ceiling(form: SoftmaxForm, best_positive_B: Tensor | None, embeds_BD: Tensor) -> Tensor | None:
    """(B,) cosine above which a negative is masked as a likely label conflict; None = no filter."""
    if form.conflict_delta is not None and best_positive_B is None:
        raise ValueError(
            f"conflict_delta is {form.conflict_delta}, but no best_positive_B was given: reduce `positive_cosines` "
            "over the class ranges first, or leave conflict_delta None."
        )
    ceiling_B = None
    if form.conflict_delta is not None and best_positive_B is not None:
        ceiling_B = best_positive_B.detach().to(embeds_BD) + form.conflict_delta
    if form.conflict_tau is not None:
        tau_B = embeds_BD.new_full((len(embeds_BD),), form.conflict_tau)
        ceiling_B = tau_B if ceiling_B is None else torch.minimum(ceiling_B, tau_B)
    return ceiling_B


def _keeps_exponentials(embeds_BD: Tensor, rows_RD: Tensor, form: SoftmaxForm) -> bool:
    """Whether the forward pass keeps the exponentials for the backward pass; otherwise they are computed again."""
    has_backward = torch.is_grad_enabled() and (embeds_BD.requires_grad or rows_RD.requires_grad)
    needed = len(rows_RD) * len(embeds_BD) * embeds_BD.element_size()
    # The gradient of label smoothing needs the logits too: keeping both would cost twice the memory.
    return has_backward and needed <= form.logit_bytes and not form.label_smoothing


def _without_autocast(method: Any) -> Any:
    """Decorator of `forward`: sums of exponentials keep the precision of their inputs under autocast."""

    @functools.wraps(method)
    def plain(ctx: Any, first: Tensor, *others: Any) -> Any:
        with torch.autocast(first.device.type, enabled=False):
            return method(ctx, first, *others)

    return plain


class _Scalars(torch.autograd.Function):
    """(embeds, rows) -> max, sum_exp, positive, leaf_sum, leaf_count; equations at the top of this file."""

    @staticmethod
    @_without_autocast
    def forward(
        ctx: Any,
        embeds_BD: Tensor,
        rows_RD: Tensor,
        correction_S: Tensor,
        logits: ChunkedLogits,
        keep: bool,
    ) -> tuple[Tensor, ...]:
        (batch, columns), parts = logits.labels_shape, logits.chunks()
        sub_centres, positives = logits.form.sub_centres, logits.positives
        length_R = rows_RD.new_empty(len(rows_RD))
        kept_RB = rows_RD.new_empty(len(rows_RD) if keep else 0, batch)
        buffer_NB = rows_RD.new_empty(0 if keep else logits.rows_of_chunk(rows_RD), batch)
        reference_CB = rows_RD.new_zeros(len(parts), batch)
        max_B, sum_B = rows_RD.new_full((batch,), -math.inf), rows_RD.new_zeros(batch)
        leaf_sum_BY = rows_RD.new_zeros(batch, columns if logits.form.label_smoothing else 0)
        leaf_count_BY = torch.zeros_like(leaf_sum_BY)
        for index, part in enumerate(parts):
            classes, rows, _ = part
            torch.linalg.vector_norm(rows_RD[rows], dim=1, out=length_R[rows])
            chunk_NB = kept_RB[rows] if keep else buffer_NB[: rows.stop - rows.start]
            logits.write(embeds_BD, rows_RD[rows], length_R[rows], correction_S, part, chunk_NB)
            for column in range(leaf_sum_BY.shape[1]):
                same_NB = logits.same_leaf(chunk_NB, classes, column)
                # Clamped, because 0 x -inf is nan.
                leaf_sum_BY[:, column] += chunk_NB.clamp(min=torch.finfo(chunk_NB.dtype).min).mul_(same_NB).sum(dim=0)
                leaf_count_BY[:, column] += same_NB.sum(dim=0)
            before_B, max_B = max_B, torch.maximum(max_B, chunk_NB.amax(dim=0))
            # Without any negative so far the largest logit is -inf, and -inf - -inf is nan.
            reference_B = torch.where(max_B == -math.inf, 0.0, max_B)
            sum_B = sum_B * (before_B - reference_B).exp2() + chunk_NB.sub_(reference_B).exp2_().sum(dim=0)
            reference_CB[index] = reference_B
        check_lengths(length_R, logits.class_ids_S, sub_centres)
        cos_P, row_P = positives.cosines(embeds_BD, rows_RD, sub_centres=sub_centres)
        positive_BY = rows_RD.new_zeros(batch, columns)
        positive_BY[positives.sample_P, positives.column_P] = cos_P
        ctx.logits, ctx.parts, ctx.keep = logits, parts, keep
        ctx.save_for_backward(embeds_BD, rows_RD, correction_S, length_R, kept_RB, reference_CB, max_B, row_P)
        natural_B = LN_2 * max_B
        ctx.mark_non_differentiable(natural_B, leaf_count_BY)
        return natural_B, sum_B, positive_BY, LN_2 * leaf_sum_BY, leaf_count_BY

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        with torch.autocast(gradients[0].device.type, enabled=False):
            return *_gradients(ctx, gradients), None, None, None


def _gradients(ctx: Any, gradients: tuple[Tensor, ...]) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of embeddings and rows, chunk by chunk; None for an input that needs none."""
    embeds_BD, rows_RD, correction_S, length_R, kept_RB, reference_CB, max_B, row_P = ctx.saved_tensors
    _, of_sum_B, of_positive_BY, of_leaf_BY, _ = gradients
    logits, positives = ctx.logits, ctx.logits.positives
    needs_embeds, needs_rows = ctx.needs_input_grad[:2]
    of_embeds_BD = torch.zeros_like(embeds_BD)
    of_rows_RD = torch.empty_like(rows_RD) if needs_rows else None
    buffer_NB = rows_RD.new_empty(0 if ctx.keep else logits.rows_of_chunk(rows_RD), len(embeds_BD))
    unit_buffer_ND, work_buffer_ND = rows_RD.new_empty(2, logits.rows_of_chunk(rows_RD), rows_RD.shape[1])
    max_B = torch.where(max_B == -math.inf, 0.0, max_B)
    for index, part in enumerate(ctx.parts):
        rows = part.rows
        # Without label smoothing, d loss / d logit = exp(logit - reference) x by_sample_B.
        by_sample_B = (reference_CB[index] - max_B).exp2() * of_sum_B
        if ctx.keep:
            chunk_NB = kept_RB[rows]
        else:
            chunk_NB = buffer_NB[: rows.stop - rows.start]
            logits.write(embeds_BD, rows_RD[rows], length_R[rows], correction_S, part, chunk_NB)
            same_leaf = [logits.same_leaf(chunk_NB, part.classes, column) for column in range(of_leaf_BY.shape[1])]
            chunk_NB.sub_(reference_CB[index]).exp2_()
            if same_leaf:
                chunk_NB.mul_(by_sample_B)
                by_sample_B = torch.ones_like(by_sample_B)
            for column, same_NB in enumerate(same_leaf):
                chunk_NB.addcmul_(same_NB, of_leaf_BY[:, column])
        unit_ND = torch.div(rows_RD[rows], length_R[rows, None], out=unit_buffer_ND[: len(chunk_NB)])
        if needs_embeds:
            of_embeds_BD.addcmul_(by_sample_B[:, None], chunk_NB.t() @ unit_ND)
        if of_rows_RD is not None:
            torch.mm(chunk_NB, embeds_BD * (logits.form.scale * by_sample_B)[:, None], out=of_rows_RD[rows])
            _project(of_rows_RD[rows], unit_ND, length_R[rows], work_ND=work_buffer_ND[: len(chunk_NB)])
    of_embeds_BD.mul_(logits.form.scale)
    unit_PD = rows_RD[row_P] / length_R[row_P, None]
    of_cos_P1 = of_positive_BY[positives.sample_P, positives.column_P][:, None]
    of_embeds_BD.index_add_(0, positives.sample_P, of_cos_P1 * unit_PD)
    if of_rows_RD is not None:
        of_row_PD = _project(
            of_cos_P1 * embeds_BD[positives.sample_P], unit_PD, length_R[row_P], work_ND=torch.empty_like(unit_PD)
        )
        of_rows_RD.index_add_(0, row_P, of_row_PD)
    return of_embeds_BD if needs_embeds else None, of_rows_RD


def _project(of_unit_ND: Tensor, unit_ND: Tensor, length_N: Tensor, *, work_ND: Tensor) -> Tensor:
    """In place: gradient of unit rows -> gradient of the rows as stored.

    The component along a row changes only its length, which the cosine does not depend on; it is removed.
    """
    along_N1 = torch.mul(of_unit_ND, unit_ND, out=work_ND).sum(dim=1, keepdim=True)
    return of_unit_ND.addcmul_(unit_ND, along_N1, value=-1).div_(length_N[:, None])
