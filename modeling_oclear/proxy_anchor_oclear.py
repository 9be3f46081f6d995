"""ProxyAnchor loss over sampled classes that may be sharded over ranks.

ProxyAnchor (Kim et al., 2003.13911, equation 4) weighs, for each class, the samples of the batch; the softmax weighs,
for each sample, the classes. A range of classes contributes four sums, so that classes can be sharded as for the
softmax.

    pull = 1 / |P+| sum_{p in P+} log(1 + sum_{b of p}     exp(-a (cos_pb - d)))     P+: classes with a sample here
    push = 1 / sum_p w_p sum_p w_p log(1 + sum_{b not of p} exp( a (cos_pb + d)))    w_p = 1 / (inclusion prob. of p)
    loss = pull + push

If all classes are included, w is 1 and this is the published loss. The weights of sampled classes (ours) make the push
an estimate of the push of all classes.

Letters: B batch, D width, S local classes, N classes of a chunk.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from .softmax_inputs_oclear import ClassRange, check_classes, check_lengths, checked_labels, same_precision

__all__ = ["AnchorSums", "anchor_loss", "anchor_sums"]

CHUNK_COSINES = 2**22  # cosines of one chunk: 16 MiB in fp32


class AnchorSums(NamedTuple):
    """Contribution of a range of classes; the sums of several ranges add up.

    Attributes:
        pull, classes: sum over the local classes with a sample, and their number.
        push, weight: weighted sum over all local classes, and the sum of the weights.
    """

    pull: Tensor
    classes: Tensor
    push: Tensor
    weight: Tensor


def anchor_sums(
    embeds_BD: Tensor,
    labels: Tensor,
    classes: ClassRange,
    *,
    scale: float,
    margin: float,
    chunk: int | None = None,
) -> AnchorSums:
    """Compute the sums for the local classes (all of a step's, or one rank's range of them).

    Args:
        embeds_BD: unit rows.
        labels: (B,) int64; a label that is not among the ids of `classes` belongs to another range.
        scale: a. margin: d. chunk: classes of one chunk; None = as many as give 4 million cosines.

    Raises:
        ValueError: for embeddings that are not finite, prototypes of length 0, labels, dtypes and shapes that do not
            fit.
    """
    labels_BY = checked_labels(embeds_BD, labels)
    if labels_BY.shape[1] > 1:
        raise ValueError(f"labels have shape {tuple(labels.shape)}; ProxyAnchor takes one label per row.")
    check_classes(classes, sub_centres=1)
    embeds_BD, rows_SD = same_precision(embeds_BD, classes.rows_RD)
    check_lengths(torch.linalg.vector_norm(rows_SD.detach(), dim=1), classes.class_ids_S, 1)
    weight_S, labels_B = classes.log_correction_S.to(rows_SD).exp(), labels_BY[:, 0].to(classes.class_ids_S.device)

    def chunk_sums(embeds_BD: Tensor, rows_ND: Tensor, class_ids_N: Tensor, weight_N: Tensor) -> Tensor:
        """(3,): pull, classes, push of a chunk."""
        own_NB = class_ids_N[:, None] == labels_B
        with torch.autocast(embeds_BD.device.type, enabled=False):
            cos_NB = functional.normalize(rows_ND, dim=1) @ embeds_BD.T
            pull_N = _log_one_plus_sum((-scale * (cos_NB - margin)).masked_fill(~own_NB, -math.inf))
            push_N = _log_one_plus_sum((scale * (cos_NB + margin)).masked_fill(own_NB, -math.inf))
            has_sample_N = own_NB.any(1).to(pull_N)
            return torch.stack([(has_sample_N * pull_N).sum(), has_sample_N.sum(), (weight_N * push_N).sum()])

    # The empty sums let a rank without a class in this step take part in the backward pass, which communicates.
    total = rows_SD.new_zeros(3) + embeds_BD[:0].sum() + rows_SD[:0].sum()
    step = chunk or max(1, CHUNK_COSINES // len(embeds_BD))
    for start in range(0, len(rows_SD), step):
        part = slice(start, start + step)
        inputs = (embeds_BD, rows_SD[part], classes.class_ids_S[part], weight_S[part])
        # Computed again in the backward pass, so that the (S, B) cosines are never in memory at once.
        total = total + checkpoint(chunk_sums, *inputs, use_reentrant=False)
    return AnchorSums(total[0], total[1].detach(), total[2], weight_S.sum())


def _log_one_plus_sum(logit_NB: Tensor) -> Tensor:
    """log(1 + sum_b exp(logit)), (N,); 0 for a row of -inf."""
    return torch.cat([logit_NB, logit_NB.new_zeros(len(logit_NB), 1)], dim=1).logsumexp(dim=1)


def anchor_loss(sums: AnchorSums) -> Tensor:
    """Loss from sums added up over all class ranges.

    Raises:
        ValueError: no class has a sample.
    """
    if not bool(sums.classes > 0):
        raise ValueError("no class of the batch is among the sampled classes: pass all labels as positives.")
    return sums.pull / sums.classes + sums.push / sums.weight
