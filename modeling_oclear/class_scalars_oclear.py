"""What a range of classes adds to the softmax of each sample, with an exact hand-written gradient.

Why: logits of all samples against all classes fit no memory, and three numbers per sample are enough to form the loss
from any number of class ranges. Classes pass by in chunks that stay in the cache, each multiplied, scaled and
exponentiated in place against a running largest logit (online softmax: Milakov and Gimelshein, 2018). The gradient is
formed the same way, so that its cost is two matrix products and a few passes over the rows.

    l_jb = s cos_jb + c_j       max_b, sum_b = max and sum_j exp(l_jb - max_b) over NEGATIVES j of sample b
    d l_jb / d row_j = s / |row_j| (z_b - cos_jb u_j),   u_j = row_j / |row_j|,   d l_jb / d z_b = s u_j

Positives are handed out as cosines: their margin is ordinary autograd on (B, Y) numbers.


Letters: B batch, Y positives of a sample, D width, S classes at hand, R = S K rows of K sub-centres, P positives held.
"""

import functools
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .chunk_logits_oclear import LN_2, Leaves, Plan, chunk_classes, held_positives, nearest_positives
from .margins_oclear import SoftmaxForm
from .softmax_inputs_oclear import check_classes, check_lengths, checked_labels, same_precision

__all__ = ["ClassScalars", "Leaves", "class_scalars", "positive_cosines"]


class ClassScalars(NamedTuple):
    """What a range of classes contributes.

    Attributes:
        max: (B,) largest logit of a negative, detached; -inf without any.
        sum_exp: (B,) sum over negatives of exp(logit - max); 0 without any.
        positive: (B, Y) cosines of the positives held here, 0 for those that are not.
        leaf_sum, leaf_count: (B, Y) sum of logits, and number, of the negatives that share the positive's leaf; None
            without label smoothing.
    """

    max: Tensor
    sum_exp: Tensor
    positive: Tensor
    leaf_sum: Tensor | None = None
    leaf_count: Tensor | None = None


def class_scalars(
    embeds_BD: Tensor,
    labels: Tensor,
    rows_RD: Tensor,
    class_ids_S: Tensor,
    log_correction_S: Tensor,
    *,
    form: SoftmaxForm,
    best_positive_B: Tensor | None = None,
    leaves: Leaves | None = None,
) -> ClassScalars:
    """The numbers of each sample for the classes at hand (all of a step's, or one rank's range of them).

    Args:
        embeds_BD: unit rows; half precision is widened to float32.
        labels: (B,) int64, or (B, Y) padded with -1; a label that is not among `class_ids_S` has no positive here.
        rows_RD: prototypes as stored, of any length above 0; row k of the i-th class at i K + k.
        class_ids_S: ascending, no repeats. log_correction_S: added to the logit of a class where it is a negative.
        best_positive_B: largest cosine of each sample's positives over ALL class ranges; `form.conflict_delta` needs
            it. See `positive_cosines`.
        leaves: for label smoothing; None = every class may share.

    Raises:
        ValueError: for embeddings or prototypes that are not finite, prototypes of length 0, labels, dtypes and shapes
            that do not fit.
    """
    labels_BY = checked_labels(embeds_BD, labels)
    check_classes(rows_RD, class_ids_S, log_correction_S, sub_centres=form.sub_centres)
    embeds_BD, rows_RD = same_precision(embeds_BD, rows_RD)
    ceiling_B = _ceiling(form, best_positive_B, embeds_BD)
    if leaves is not None:
        leaves = Leaves(leaves.of_classes.to(rows_RD.device), leaves.of_labels.to(rows_RD.device).view_as(labels_BY))
    plan = Plan(
        form=form,
        held=held_positives(labels_BY, class_ids_S),
        ceiling_B=ceiling_B,
        leaves=leaves if form.label_smoothing else None,
        chunk=chunk_classes(embeds_BD, form),
    )
    keep = _keeps(embeds_BD, rows_RD, form)
    parts = _Scalars.apply(embeds_BD, rows_RD, log_correction_S.to(rows_RD), class_ids_S, labels_BY.shape, plan, keep)
    return ClassScalars(*parts) if form.label_smoothing else ClassScalars(*parts[:3])


def positive_cosines(
    embeds_BD: Tensor, labels: Tensor, rows_RD: Tensor, class_ids_S: Tensor, *, form: SoftmaxForm
) -> Tensor:
    """(B, Y) cosines of the positives held here, detached, 0 for the others: their sum over ranks is global.

    Args and errors: as in `class_scalars`.
    """
    labels_BY = checked_labels(embeds_BD, labels)
    embeds_BD, rows_RD = same_precision(embeds_BD.detach(), rows_RD.detach())
    held = held_positives(labels_BY, class_ids_S)
    cos_BY = embeds_BD.new_zeros(labels_BY.shape)
    cos_BY[held.sample_P, held.column_P] = nearest_positives(embeds_BD, rows_RD, held, form.sub_centres)[0]
    return cos_BY


def _ceiling(form: SoftmaxForm, best_positive_B: Tensor | None, embeds_BD: Tensor) -> Tensor | None:
    """(B,) cosine above which a negative leaves its row; None = no filter."""
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


def _keeps(embeds_BD: Tensor, rows_RD: Tensor, form: SoftmaxForm) -> bool:
    """Whether exponentials are kept: smoothing would need the logits beside them, so that it computes both again."""
    has_backward = torch.is_grad_enabled() and (embeds_BD.requires_grad or rows_RD.requires_grad)
    needed = len(rows_RD) * len(embeds_BD) * embeds_BD.element_size()
    return has_backward and needed <= form.logit_bytes and not form.label_smoothing


def _without_autocast(method: Any) -> Any:
    """Sums of exponentials need the precision of their inputs, whatever the model around them computes in."""

    @functools.wraps(method)
    def plain(ctx: Any, first: Tensor, *others: Any) -> Any:
        with torch.autocast(first.device.type, enabled=False):
            return method(ctx, first, *others)

    return plain


class _Scalars(torch.autograd.Function):
    """(embeds, rows) -> max, sum_exp, positive, leaf_sum, leaf_count; see the top of this file."""

    @staticmethod
    @_without_autocast
    def forward(
        ctx: Any,
        embeds_BD: Tensor,
        rows_RD: Tensor,
        correction_S: Tensor,
        class_ids_S: Tensor,
        shape_BY: torch.Size,
        plan: Plan,
        keep: bool,
    ) -> tuple[Tensor, ...]:
        (batch, columns), parts = shape_BY, plan.chunks(len(class_ids_S))
        length_R = rows_RD.new_empty(len(rows_RD))
        kept_RB = rows_RD.new_empty(len(rows_RD) if keep else 0, batch)
        buffer_NB = rows_RD.new_empty(0 if keep else plan.rows_of_chunk(rows_RD), batch)
        reference_CB = rows_RD.new_zeros(len(parts), batch)
        max_B, sum_B = rows_RD.new_full((batch,), -math.inf), rows_RD.new_zeros(batch)
        leaf_sum_BY = rows_RD.new_zeros(batch, columns if plan.form.label_smoothing else 0)
        leaf_count_BY = torch.zeros_like(leaf_sum_BY)
        for index, part in enumerate(parts):
            classes, rows, _ = part
            torch.linalg.vector_norm(rows_RD[rows], dim=1, out=length_R[rows])
            chunk_NB = kept_RB[rows] if keep else buffer_NB[: rows.stop - rows.start]
            plan.logits(embeds_BD, rows_RD[rows], length_R[rows], correction_S, part, chunk_NB)
            for column in range(leaf_sum_BY.shape[1]):
                shares_NB = plan.shares_leaf(chunk_NB, classes, column)
                leaf_sum_BY[:, column] += chunk_NB.clamp(min=torch.finfo(chunk_NB.dtype).min).mul_(shares_NB).sum(dim=0)
                leaf_count_BY[:, column] += shares_NB.sum(dim=0)
            before_B, max_B = max_B, torch.maximum(max_B, chunk_NB.amax(dim=0))
            # Without a negative so far the largest logit is -inf, which cannot be subtracted.
            reference_B = torch.where(max_B == -math.inf, 0.0, max_B)
            sum_B = sum_B * (before_B - reference_B).exp2() + chunk_NB.sub_(reference_B).exp2_().sum(dim=0)
            reference_CB[index] = reference_B
        check_lengths(length_R, class_ids_S, plan.form.sub_centres)
        cos_P, row_P = nearest_positives(embeds_BD, rows_RD, plan.held, plan.form.sub_centres)
        positive_BY = rows_RD.new_zeros(batch, columns)
        positive_BY[plan.held.sample_P, plan.held.column_P] = cos_P
        ctx.plan, ctx.parts, ctx.keep = plan, parts, keep
        ctx.save_for_backward(embeds_BD, rows_RD, correction_S, length_R, kept_RB, reference_CB, max_B, row_P)
        natural_B = LN_2 * max_B
        ctx.mark_non_differentiable(natural_B, leaf_count_BY)
        return natural_B, sum_B, positive_BY, LN_2 * leaf_sum_BY, leaf_count_BY

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        with torch.autocast(gradients[0].device.type, enabled=False):
            return *_gradients(ctx, gradients), None, None, None, None, None


def _gradients(ctx: Any, gradients: tuple[Tensor, ...]) -> tuple[Tensor | None, Tensor | None]:
    """Of embeddings and rows, chunk by chunk; None for one that nobody asks for."""
    embeds_BD, rows_RD, correction_S, length_R, kept_RB, reference_CB, max_B, row_P = ctx.saved_tensors
    _, of_sum_B, of_positive_BY, of_leaf_BY, _ = gradients
    plan, (wants_embeds, wants_rows) = ctx.plan, ctx.needs_input_grad[:2]
    of_embeds_BD = torch.zeros_like(embeds_BD)
    of_rows_RD = torch.empty_like(rows_RD) if wants_rows else None
    buffer_NB = rows_RD.new_empty(0 if ctx.keep else plan.rows_of_chunk(rows_RD), len(embeds_BD))
    unit_buffer_ND, work_buffer_ND = rows_RD.new_empty(2, plan.rows_of_chunk(rows_RD), rows_RD.shape[1])
    max_B = torch.where(max_B == -math.inf, 0.0, max_B)
    for index, part in enumerate(ctx.parts):
        rows = part.rows
        # d loss / d logit = exp(logit - reference) x this, where nothing is smoothed.
        by_sample_B = (reference_CB[index] - max_B).exp2() * of_sum_B
        if ctx.keep:
            chunk_NB = kept_RB[rows]
        else:
            chunk_NB = buffer_NB[: rows.stop - rows.start]
            plan.logits(embeds_BD, rows_RD[rows], length_R[rows], correction_S, part, chunk_NB)
            shares = [plan.shares_leaf(chunk_NB, part.classes, column) for column in range(of_leaf_BY.shape[1])]
            chunk_NB.sub_(reference_CB[index]).exp2_()
            if shares:
                chunk_NB.mul_(by_sample_B)
                by_sample_B = torch.ones_like(by_sample_B)
            for column, shares_NB in enumerate(shares):
                chunk_NB.addcmul_(shares_NB, of_leaf_BY[:, column])
        unit_ND = torch.div(rows_RD[rows], length_R[rows, None], out=unit_buffer_ND[: len(chunk_NB)])
        if wants_embeds:
            of_embeds_BD.addcmul_(by_sample_B[:, None], chunk_NB.t() @ unit_ND)
        if of_rows_RD is not None:
            torch.mm(chunk_NB, embeds_BD * (plan.form.scale * by_sample_B)[:, None], out=of_rows_RD[rows])
            _project(of_rows_RD[rows], unit_ND, length_R[rows], work_ND=work_buffer_ND[: len(chunk_NB)])
    of_embeds_BD.mul_(plan.form.scale)
    unit_PD = rows_RD[row_P] / length_R[row_P, None]
    of_cos_P1 = of_positive_BY[plan.held.sample_P, plan.held.column_P][:, None]
    of_embeds_BD.index_add_(0, plan.held.sample_P, of_cos_P1 * unit_PD)
    if of_rows_RD is not None:
        of_row_PD = _project(
            of_cos_P1 * embeds_BD[plan.held.sample_P], unit_PD, length_R[row_P], work_ND=torch.empty_like(unit_PD)
        )
        of_rows_RD.index_add_(0, row_P, of_row_PD)
    return of_embeds_BD if wants_embeds else None, of_rows_RD


def _project(of_unit_ND: Tensor, unit_ND: Tensor, length_N: Tensor, *, work_ND: Tensor) -> Tensor:
    """In place: gradient of unit rows -> of the rows as stored: what lies along a row cannot turn it."""
    along_N1 = torch.mul(of_unit_ND, unit_ND, out=work_ND).sum(dim=1, keepdim=True)
    return of_unit_ND.addcmul_(unit_ND, along_N1, value=-1).div_(length_N[:, None])
