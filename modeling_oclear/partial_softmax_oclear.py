"""Partial softmax: margin softmax over sampled classes, optionally sharded.

    loss = -log  exp(s phi(cos_y)) / ( exp(s phi(cos_y)) + sum_{j in S, j not in Y} exp(s cos_j + c_j) )
    several positives Y of a sample: mean over y in Y;      batch: sum_i w_i loss_i / sum_i w_i

S are the sampled classes (Partial FC, An et al., 2203.15565), c_j the log correction of sampling, see
class_sampling_oclear.py. Prototypes are stored at any length and normalised in at least fp32; the gradient passes
through the norm. Margins phi, label smoothing, sub-centres and the conflict filter: `SoftmaxForm`.

The loss is computed from a few numbers per sample and class range (`class_scalars`), so that no rank needs all logits:
reduce them over ranks (`reduce_scalars`), then call `loss_from_scalars`. One process: `partial_softmax_loss`.

Letters: B batch, Y positives of a sample, D width, N classes, S sampled classes, K sub-centres.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from .class_sampling_oclear import SampledClasses, sample_classes
from .class_scalars_oclear import ClassRange, ClassScalars, Leaves, class_scalars, positive_cosines
from .margins_oclear import ArcFace, CombinedMargin, CosFace, Margin, SoftmaxForm, margin_by_name
from .softmax_inputs_oclear import checked_labels, same_precision

__all__ = [
    "ArcFace",
    "ClassRange",
    "ClassScalars",
    "CombinedMargin",
    "CosFace",
    "Leaves",
    "Margin",
    "SampledClasses",
    "SoftmaxForm",
    "best_positive",
    "class_logits",
    "class_scalars",
    "loss_from_scalars",
    "margin_by_name",
    "merge_scalars",
    "partial_softmax_loss",
    "positive_cosines",
    "reduce_scalars",
    "sample_classes",
]


def class_logits(embeds_BD: Tensor, rows_ND: Tensor, *, scale: float, sub_centres: int = 1) -> Tensor:
    """scale x cosine (B, N) in at least fp32, for unit `embeds_BD` and prototypes of any length.

    With `sub_centres` K, `rows_ND` has K rows per class and the largest of the K cosines is used.
    """
    embeds_BD, rows_ND = same_precision(embeds_BD, rows_ND)
    if len(rows_ND) % sub_centres:
        raise ValueError(f"{len(rows_ND)} prototypes are not a multiple of the {sub_centres} sub-centres per class.")
    with torch.autocast(embeds_BD.device.type, enabled=False):
        logit_BN = scale * (embeds_BD @ functional.normalize(rows_ND, dim=1).T)
    return logit_BN if sub_centres == 1 else logit_BN.unflatten(1, (-1, sub_centres)).amax(dim=2)


def reduce_scalars(
    local: ClassScalars, *, max_of: Callable[[Tensor], Tensor], sum_of: Callable[[Tensor], Tensor]
) -> ClassScalars:
    """Scalars of one class range -> scalars of all ranges, with two reductions.

    Args:
        max_of: elementwise maximum of a detached (B,) over the ranges. sum_of: differentiable sum of a (B, n).
    """
    max_B = max_of(local.max)
    columns = [_rescaled(local, max_B)[:, None], *(part for part in local[2:] if part is not None)]
    total = sum_of(torch.cat(columns, dim=1)).split([column.shape[1] for column in columns], dim=1)
    return ClassScalars(max_B, total[0][:, 0], *total[1:])


def _rescaled(scalars: ClassScalars, max_B: Tensor) -> Tensor:
    """The sum of exponentials relative to a larger maximum; both maxima are -inf without any negative."""
    return scalars.sum_exp * (scalars.max - torch.where(max_B == -math.inf, 0.0, max_B)).exp()


def merge_scalars(parts: Sequence[ClassScalars]) -> ClassScalars:
    """Scalars of several class ranges -> scalars of their union."""
    max_B = torch.stack([part.max for part in parts]).amax(dim=0)
    sums = [
        torch.stack(column).sum(dim=0)
        for column in zip(*(part[2:] for part in parts), strict=True)
        if all(part is not None for part in column)
    ]
    return ClassScalars(max_B, torch.stack([_rescaled(part, max_B) for part in parts]).sum(dim=0), *sums)


def best_positive(cosine_BY: Tensor, labels: Tensor) -> Tensor:
    """(B,) largest positive cosine of each sample, from `positive_cosines` summed over class ranges."""
    labels_BY = labels.view(len(labels), -1)
    return torch.where(labels_BY >= 0, cosine_BY, -math.inf).amax(dim=1)


def loss_from_scalars(
    scalars: ClassScalars,
    labels: Tensor,
    *,
    form: SoftmaxForm,
    weights_B: Tensor | None = None,
    total_weight: Tensor | float | None = None,
) -> Tensor:
    """Weighted mean of the losses of the samples, from scalars reduced over all class ranges.

    Args:
        labels: as passed to `class_scalars`; needed to tell positives from padding.
        weights_B: one per sample, not negative; None = all 1.
        total_weight: divisor where these samples are only a part of the batch; None = the sum of their weights.

    Raises:
        ValueError: for negative or missing weights, or weights that sum to 0.
    """
    # Not `> 0`: nan must propagate, not count as a row without negatives.
    has_negative_B = scalars.sum_exp != 0
    logsum_B = scalars.max + torch.where(has_negative_B, scalars.sum_exp, 1.0).log()
    logsum_B1 = torch.where(has_negative_B, logsum_B, -math.inf)[:, None]
    positive_BY = form.scale * form.margin.phi(scalars.positive)
    loss_BY = torch.logaddexp(logsum_B1 - positive_BY, torch.zeros_like(positive_BY))
    if form.label_smoothing:
        assert scalars.leaf_sum is not None, "computed with the same form"
        assert scalars.leaf_count is not None, "computed with the same form"
        even_BY = (positive_BY + scalars.leaf_sum) / (1 + scalars.leaf_count)
        loss_BY = loss_BY + form.label_smoothing * (positive_BY - even_BY)
    is_label_BY = labels.view(len(labels), -1) >= 0
    loss_B = torch.where(is_label_BY, loss_BY, 0.0).sum(dim=1) / is_label_BY.sum(dim=1)
    if weights_B is None:
        weights_B = torch.ones_like(loss_B)
    weights_B = weights_B.to(loss_B.dtype)
    if weights_B.shape != loss_B.shape or not bool((weights_B >= 0).all()):
        raise ValueError(f"weights of shape {tuple(weights_B.shape)} for {len(loss_B)} samples; one each, at least 0.")
    divisor = weights_B.sum() if total_weight is None else total_weight
    if not divisor > 0:
        raise ValueError("the weights of the batch sum to 0: at least one sample must count.")
    return (weights_B * loss_B).sum() / divisor


def partial_softmax_loss(
    embeds_BD: Tensor,
    labels: Tensor,
    weight_ND: Tensor,
    *,
    form: SoftmaxForm,
    sampled: SampledClasses | None = None,
    weights_B: Tensor | None = None,
    leaf_N: Tensor | None = None,
) -> Tensor:
    """Loss in one process that holds all prototypes; equation at the top of this file.

    Args:
        labels: (B,) int64, or (B, Y) padded with -1.
        weight_ND: every prototype, as stored; row k of class j at j K + k.
        sampled: from `sample_classes`, with all labels of the batch among the positives; None = all classes.
        weights_B: weight of each sample; None = all equal.
        leaf_N: int64, coarse category of each class for label smoothing, below 0 where unknown; None = all unknown.

    Raises:
        ValueError: for labels that are not classes or not among the sampled ones, and as in `class_scalars`.
    """
    labels_BY, k = checked_labels(embeds_BD, labels), form.sub_centres
    num_classes = _count_classes(labels_BY, weight_ND, leaf_N, k)
    class_ids_S, correction_S = _ids_and_corrections(num_classes, labels_BY, sampled, weight_ND.device)
    rows_RD = weight_ND
    if len(class_ids_S) < num_classes:
        rows_RD = weight_ND.unflatten(0, (num_classes, k))[class_ids_S].flatten(0, 1)
    best_B = None
    if form.conflict_delta is not None:
        best_B = best_positive(positive_cosines(embeds_BD, labels_BY, rows_RD, class_ids_S, form=form), labels_BY)
    leaves = None if leaf_N is None else Leaves(leaf_N[class_ids_S], leaf_N[labels_BY.clamp(min=0)])
    classes = ClassRange(rows_RD, class_ids_S, correction_S)
    scalars = class_scalars(embeds_BD, labels_BY, classes, form=form, best_positive_B=best_B, leaves=leaves)
    return loss_from_scalars(scalars, labels_BY, form=form, weights_B=weights_B)


def _count_classes(labels_BY: Tensor, weight_ND: Tensor, leaf_N: Tensor | None, sub_centres: int) -> int:
    """Number of classes of the prototypes, after checking that labels and leaves fit it."""
    if not len(weight_ND) or len(weight_ND) % sub_centres:
        raise ValueError(f"{len(weight_ND)} prototypes are not a multiple of the {sub_centres} sub-centres per class.")
    num_classes = len(weight_ND) // sub_centres
    is_outside_BY = labels_BY >= num_classes
    if bool(is_outside_BY.any()):
        wrong = int(labels_BY[is_outside_BY][0])
        raise ValueError(f"label {wrong} is not a class: labels run from 0 to {num_classes - 1}.")
    if leaf_N is not None and leaf_N.shape != (num_classes,):
        raise ValueError(f"leaf_N has shape {tuple(leaf_N.shape)}; one leaf for each of {num_classes} classes.")
    return num_classes


def _ids_and_corrections(
    num_classes: int, labels_BY: Tensor, sampled: SampledClasses | None, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Ids and log corrections of the sampled classes, on the device of the prototypes."""
    if sampled is None:
        return torch.arange(num_classes, device=device), torch.zeros(num_classes, dtype=torch.float64, device=device)
    class_ids_S, correction_S = sampled.class_ids.to(device), sampled.log_correction.to(device)
    is_missing_BY = ~torch.isin(labels_BY, class_ids_S) & (labels_BY >= 0)
    if bool(is_missing_BY.any()):
        raise ValueError(
            f"label {int(labels_BY[is_missing_BY][0])} is not among the sampled classes: pass all labels of the batch "
            "to sample_classes as positives."
        )
    return class_ids_S, correction_S
