"""ProxyAnchor over very many categories: each prototype against the samples of a batch, on whichever classes take part.

Why: the softmax weighs, for each sample, the classes against each other; ProxyAnchor (Kim et al., 2020, 2003.13911,
equation 4) weighs, for each class, the samples of the batch, so that hard samples move a prototype together. What a
range of classes adds are four sums, so classes spread over machines as easily as for the softmax.

    pull = 1 / |P+| sum_{p in P+} log(1 + sum_{b of p}     exp(-a (cos_pb - d)))     P+: classes with a sample here
    push = 1 / sum_p w_p sum_p w_p log(1 + sum_{b not of p} exp( a (cos_pb + d)))    w_p = 1 / (p's chance to take part)
    loss = pull + push

With every class taking part w is 1 and this is the published loss; the weights of drawn classes (ours) keep the push
that of all classes, up to the noise of the draw. A chunk of classes is computed again in the backward pass, so that the
(S, B) cosines are never held whole.


Letters: B batch, D width, S classes at hand, N classes of a chunk.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from .softmax_inputs_oclear import check_classes, check_lengths, checked_labels, same_precision

__all__ = ["AnchorSums", "anchor_loss", "anchor_sums"]

CHUNK_COSINES = 2**22


class AnchorSums(NamedTuple):
    """What a range of classes contributes; those of several ranges add up.

    Attributes:
        pull, classes: sum over the classes with a sample, and their number. push, weight: weighted sum over all classes
            at hand, and the sum of the weights.
    """

    pull: Tensor
    classes: Tensor
    push: Tensor
    weight: Tensor


def anchor_sums(
    embeds_BD: Tensor,
    labels: Tensor,
    rows_SD: Tensor,
    class_ids_S: Tensor,
    log_correction_S: Tensor,
    *,
    scale: float,
    margin: float,
    chunk: int | None = None,
) -> AnchorSums:
    """The sums at the top of this file for the classes at hand (all of a step's, or one rank's range of them).

    Args:
        embeds_BD: unit rows. labels: (B,) int64; one that is not among `class_ids_S` has its class elsewhere.
        rows_SD: prototypes as stored, of any length above 0. class_ids_S: ascending, no repeats.
        log_correction_S: negative log of each class's chance to take part, from `sample_classes`.
        scale: a. margin: d. chunk: classes of one chunk; None = so many that their cosines are a few million.

    Raises:
        ValueError: for embeddings that are not finite, prototypes of length 0, labels, dtypes and shapes that do not
            fit.
    """
    labels_BY = checked_labels(embeds_BD, labels)
    if labels_BY.shape[1] > 1:
        raise ValueError(f"labels have shape {tuple(labels.shape)}; ProxyAnchor takes one label per row.")
    check_classes(rows_SD, class_ids_S, log_correction_S, sub_centres=1)
    embeds_BD, rows_SD = same_precision(embeds_BD, rows_SD)
    check_lengths(torch.linalg.vector_norm(rows_SD.detach(), dim=1), class_ids_S, 1)
    weight_S, labels_B = log_correction_S.to(rows_SD).exp(), labels_BY[:, 0].to(class_ids_S.device)
    # A rank without a class in this step takes part in the backward pass all the same.
    total = rows_SD.new_zeros(3) + embeds_BD[:0].sum() + rows_SD[:0].sum()
    step = chunk or max(1, CHUNK_COSINES // len(embeds_BD))
    for start in range(0, len(class_ids_S), step):
        part = slice(start, start + step)
        given = (embeds_BD, rows_SD[part], class_ids_S[part], labels_B, weight_S[part])
        total = total + checkpoint(_chunk, *given, scale=scale, margin=margin, use_reentrant=False)
    return AnchorSums(total[0], total[1].detach(), total[2], weight_S.sum())


def _chunk(
    embeds_BD: Tensor,
    rows_ND: Tensor,
    class_ids_N: Tensor,
    labels_B: Tensor,
    weight_N: Tensor,
    *,
    scale: float,
    margin: float,
) -> Tensor:
    """(3,): pull, classes, push of a chunk."""
    own_NB = class_ids_N[:, None] == labels_B
    with torch.autocast(embeds_BD.device.type, enabled=False):
        cos_NB = functional.normalize(rows_ND, dim=1) @ embeds_BD.T
        pull_N = _soft_sum((-scale * (cos_NB - margin)).masked_fill(~own_NB, -math.inf))
        push_N = _soft_sum((scale * (cos_NB + margin)).masked_fill(own_NB, -math.inf))
        has_sample_N = own_NB.any(1).to(pull_N)
        return torch.stack([(has_sample_N * pull_N).sum(), has_sample_N.sum(), (weight_N * push_N).sum()])


def _soft_sum(logit_NB: Tensor) -> Tensor:
    """log(1 + sum_b exp(logit)), (N,); 0 for a row of -inf."""
    return torch.cat([logit_NB, logit_NB.new_zeros(len(logit_NB), 1)], dim=1).logsumexp(dim=1)


def anchor_loss(sums: AnchorSums) -> Tensor:
    """The loss from sums over all class ranges.

    Raises:
        ValueError: no class has a sample.
    """
    if not bool(sums.classes > 0):
        raise ValueError("no class of the batch is among those that take part: pass all labels as positives.")
    return sums.pull / sums.classes + sums.push / sums.weight
