"""Softmax over very many categories with a margin, exact on whichever classes take part.

Why: queries and documents are samples of the same categories, so that retrieval can be learned as classification. The
loss is split into three numbers per sample and class range (largest logit, sum of exponentials, logit of the positive),
so that classes may be spread over machines without any machine seeing all logits. Pure functions of tensors: no rank,
no optimiser.

    loss = -log  exp(s phi(cos_y)) / ( exp(s phi(cos_y)) + sum_{j in S, j != y} exp(s cos_j + c_j) )
    batch: sum_i w_i loss_i / sum_i w_i

with prototypes stored at any length and normalised here, in at least fp32, the gradient passing through the norm.
Margins: CosFace (Wang et al., 2018), ArcFace (Deng et al., 2019) continued beyond pi - m (ours). Sampling and c: see
class_sampling_oclear.py.

In: unit embeddings, labels, prototype rows. Out: a scalar loss, or the numbers to reduce it from. Next: train/ sums
over ranks; classification_oclear.py uses it in one process.

Letters: B batch, D width, N classes, S classes that take part, R parts.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from .class_sampling_oclear import SampledClasses, sample_classes

__all__ = [
    "ArcFace",
    "ClassScalars",
    "CosFace",
    "SampledClasses",
    "class_logits",
    "class_scalars",
    "loss_from_scalars",
    "merge_scalars",
    "partial_softmax_loss",
    "sample_classes",
]


@dataclass(frozen=True)
class CosFace:
    """phi(cos) = cos - m."""

    m: float = 0.2

    def __post_init__(self) -> None:
        if not 0 <= self.m <= 1:
            raise ValueError(f"the CosFace margin is {self.m}; it must be from 0 to 1, such as 0.2.")

    def phi(self, cos_B: torch.Tensor) -> torch.Tensor:
        """Cosine of the positive -> the same with its margin."""
        return cos_B - self.m


@dataclass(frozen=True)
class ArcFace:
    """phi = cos(t + m) for t <= pi - m, beyond it -2 - cos(t + m); t = arccos(cos), m in radians.

    The continuation is continuous with its slope and falls all the way to t = pi; plain cos(t + m) would rise again
    there, and reward the worst samples for getting worse.
    """

    m: float = 0.3

    def __post_init__(self) -> None:
        if not 0 <= self.m < math.pi / 2:
            raise ValueError(f"the ArcFace margin is {self.m}; it must be from 0 to below pi / 2, such as 0.3.")

    def phi(self, cos_B: torch.Tensor) -> torch.Tensor:
        """Cosine of the positive -> the same with its margin."""
        # The slope of the root is infinite at cos = 1; below the rounding of 1 it is held at 0.
        sin_B = (1 - cos_B * cos_B).clamp(min=torch.finfo(cos_B.dtype).eps).sqrt()
        moved_B = cos_B * math.cos(self.m) - sin_B * math.sin(self.m)
        return torch.where(cos_B >= -math.cos(self.m), moved_B, -2 - moved_B)


class ClassScalars(NamedTuple):
    """What a range of classes contributes: largest logit (detached), sum of exp(logit - largest), positive's logit.

    All (B,). Without classes: -inf, 0, 0. `positive` is 0 where the label's class is not in the range.
    """

    max: torch.Tensor
    sum_exp: torch.Tensor
    positive: torch.Tensor


def class_logits(embeds_BD: torch.Tensor, rows_ND: torch.Tensor, *, scale: float) -> torch.Tensor:
    """scale x cosine (B, N) in at least fp32, for unit `embeds_BD` and prototypes of any length."""
    embeds_BD, rows_ND = _same_precision(embeds_BD, rows_ND)
    with torch.autocast(embeds_BD.device.type, enabled=False):
        return scale * (embeds_BD @ functional.normalize(rows_ND, dim=1).T)


def _same_precision(embeds_BD: torch.Tensor, rows_SD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Both in fp32, or both in fp64; half precision is widened, a mixture of the two wide ones is a mistake."""
    wide = [torch.float64 if x.dtype == torch.float64 else torch.float32 for x in (embeds_BD, rows_SD)]
    for name, tensor in (("embeddings", embeds_BD), ("prototypes", rows_SD)):
        if not tensor.is_floating_point() or tensor.ndim != 2:
            raise ValueError(
                f"{name} have dtype {tensor.dtype} and shape {tuple(tensor.shape)}; rows of floats are needed."
            )
    if wide[0] != wide[1]:
        raise ValueError(
            f"embeddings are {embeds_BD.dtype}, but prototypes {rows_SD.dtype}: convert one, so that both are "
            "float64 or neither is."
        )
    if embeds_BD.shape[1] != rows_SD.shape[1]:
        raise ValueError(
            f"embeddings are {embeds_BD.shape[1]} wide, but prototypes {rows_SD.shape[1]}: make them equal."
        )
    return embeds_BD.to(wide[0]), rows_SD.to(wide[0])


def class_scalars(
    embeds_BD: torch.Tensor,
    labels_B: torch.Tensor,
    rows_SD: torch.Tensor,
    class_ids_S: torch.Tensor,
    log_correction_S: torch.Tensor,
    *,
    margin: CosFace | ArcFace,
    scale: float,
    chunk_size: int | None = None,
) -> ClassScalars:
    """The three numbers per sample for the classes at hand (all of a step's, or one rank's range of them).

    Args:
        embeds_BD: unit rows.
        labels_B: int64; a label that is not among `class_ids_S` has no positive here.
        rows_SD: prototypes of `class_ids_S`, as stored.
        class_ids_S: sorted, no repeats.
        log_correction_S: added to the logit of a class where it is a negative.
        chunk_size: classes whose logits are in memory at once; the backward pass computes them again. None = all.

    Raises:
        ValueError: for embeddings that are not finite, or dtypes and shapes that do not fit.
    """
    _check_samples(embeds_BD, labels_B)
    if len(class_ids_S) != len(rows_SD) or len(log_correction_S) != len(rows_SD):
        raise ValueError(
            f"{len(rows_SD)} prototypes, {len(class_ids_S)} class ids and {len(log_correction_S)} corrections were "
            "given: one of each per class is needed."
        )
    if not 0 < scale < math.inf:
        raise ValueError(f"scale is {scale}; it must be a positive number, such as 32.")
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size is {chunk_size}; it must be at least 1, or None for all classes at once.")
    embeds_BD, rows_SD = _same_precision(embeds_BD, rows_SD)
    if chunk_size is None or chunk_size >= len(rows_SD):
        return _scalars(embeds_BD, labels_B, rows_SD, class_ids_S, log_correction_S, margin, scale)
    parts = []
    for start in range(0, len(rows_SD), chunk_size):
        part = slice(start, start + chunk_size)
        inputs = (embeds_BD, labels_B, rows_SD[part], class_ids_S[part], log_correction_S[part], margin, scale)
        parts.append(ClassScalars(*checkpoint(_scalars, *inputs, use_reentrant=False, preserve_rng_state=False)))
    return merge_scalars(parts)


def _scalars(
    embeds_BD: torch.Tensor,
    labels_B: torch.Tensor,
    rows_SD: torch.Tensor,
    class_ids_S: torch.Tensor,
    log_correction_S: torch.Tensor,
    margin: CosFace | ArcFace,
    scale: float,
) -> ClassScalars:
    if not len(rows_SD):
        # Still a function of both inputs, so that every rank has a gradient to send.
        zero_B = embeds_BD.sum(dim=1) * 0 + rows_SD.sum() * 0
        return ClassScalars(zero_B.detach() - math.inf, zero_B, zero_B)
    with torch.autocast(embeds_BD.device.type, enabled=False):
        cos_BS = embeds_BD @ _unit_prototypes(rows_SD, class_ids_S).T
        place_B = torch.searchsorted(class_ids_S, labels_B).clamp(max=len(class_ids_S) - 1)
        is_here_B = class_ids_S[place_B] == labels_B
        positive_B = scale * margin.phi(cos_BS.gather(1, place_B[:, None])[:, 0])
        logit_BS = scale * cos_BS + log_correction_S.to(cos_BS.dtype)
        own_B = torch.where(is_here_B, positive_B, logit_BS.gather(1, place_B[:, None])[:, 0])
        logit_BS = logit_BS.scatter(1, place_B[:, None], own_B[:, None])
        max_B = logit_BS.detach().amax(dim=1)
        sum_exp_B = (logit_BS - max_B[:, None]).exp().sum(dim=1)
        return ClassScalars(max_B, sum_exp_B, torch.where(is_here_B, positive_B, 0.0))


def _unit_prototypes(rows_SD: torch.Tensor, class_ids_S: torch.Tensor) -> torch.Tensor:
    """Rows over their lengths; at length 0 there would be no direction, and a gradient without bound."""
    length_S1 = torch.linalg.vector_norm(rows_SD, dim=1, keepdim=True)
    is_wrong_S = ~((length_S1[:, 0] > 0) & torch.isfinite(length_S1[:, 0]))
    if bool(is_wrong_S.any()):
        wrong = int(torch.nonzero(is_wrong_S)[0])
        raise ValueError(
            f"the prototype of class {int(class_ids_S[wrong])} has length {length_S1[wrong].item()}: start it from the "
            "mean of its embeddings or at random, and look for a too high learning rate if it started well."
        )
    return rows_SD / length_S1


def merge_scalars(parts: Sequence[ClassScalars]) -> ClassScalars:
    """Scalars of several class ranges -> those of their union. At least one part must hold a class."""
    max_B = torch.stack([part.max for part in parts]).amax(dim=0)
    sum_exp_B = torch.stack([part.sum_exp * (part.max - max_B).exp() for part in parts]).sum(dim=0)
    return ClassScalars(max_B, sum_exp_B, torch.stack([part.positive for part in parts]).sum(dim=0))


def loss_from_scalars(
    max_B: torch.Tensor,
    sum_exp_B: torch.Tensor,
    positive_B: torch.Tensor,
    weights_B: torch.Tensor | None = None,
    *,
    total_weight: torch.Tensor | float | None = None,
) -> torch.Tensor:
    """Weighted mean of max + log(sum_exp) - positive.

    Args:
        weights_B: one per sample, not negative; None = all 1.
        total_weight: what to divide by where these samples are only a part of the batch; None = the sum of their
            weights.

    Raises:
        ValueError: for negative or missing weights, or weights that sum to 0.
    """
    loss_B = max_B + sum_exp_B.log() - positive_B
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
    embeds_BD: torch.Tensor,
    labels_B: torch.Tensor,
    weight_ND: torch.Tensor,
    *,
    margin: CosFace | ArcFace,
    scale: float,
    sampled: SampledClasses | None = None,
    weights_B: torch.Tensor | None = None,
    chunk_size: int | None = None,
) -> torch.Tensor:
    """The loss of one process that holds all prototypes; see the top of this file.

    Args:
        weight_ND: every prototype, as stored.
        sampled: from `sample_classes`, with all labels of the batch among the positives; None = all classes.

    Raises:
        ValueError: for labels that are no class or not among the sampled ones, and what `class_scalars` refuses.
    """
    _check_samples(embeds_BD, labels_B)
    num_classes = len(weight_ND)
    outside = (labels_B < 0) | (labels_B >= num_classes)
    if bool(outside.any()):
        raise ValueError(f"label {int(labels_B[outside][0])} is not a class: labels run from 0 to {num_classes - 1}.")
    if sampled is None:
        class_ids_S = torch.arange(num_classes, device=weight_ND.device)
        rows_SD, correction_S = weight_ND, torch.zeros(num_classes, dtype=torch.float64, device=weight_ND.device)
    else:
        class_ids_S, correction_S = (x.to(weight_ND.device) for x in (sampled.class_ids, sampled.log_correction))
        is_missing_B = ~torch.isin(labels_B, class_ids_S)
        if bool(is_missing_B.any()):
            raise ValueError(
                f"label {int(labels_B[is_missing_B][0])} is not among the sampled classes: pass all labels of the "
                "batch to sample_classes as positives."
            )
        rows_SD = weight_ND[class_ids_S]
    scalars = class_scalars(
        embeds_BD, labels_B, rows_SD, class_ids_S, correction_S, margin=margin, scale=scale, chunk_size=chunk_size
    )
    return loss_from_scalars(*scalars, weights_B)


def _check_samples(embeds_BD: torch.Tensor, labels_B: torch.Tensor) -> None:
    if labels_B.dtype != torch.int64 or labels_B.shape != embeds_BD.shape[:1] or not len(labels_B):
        raise ValueError(
            f"labels have dtype {labels_B.dtype} and shape {tuple(labels_B.shape)} for embeddings of shape "
            f"{tuple(embeds_BD.shape)}; one int64 label per row is needed, and at least one row."
        )
    if not bool(torch.isfinite(embeds_BD).all()):
        row = int(torch.nonzero(~torch.isfinite(embeds_BD).all(dim=1))[0])
        raise ValueError(
            f"row {row} of the embeddings is not finite: look for a division by 0 or a too high learning rate."
        )
