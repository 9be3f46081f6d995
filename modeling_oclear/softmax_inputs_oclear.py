"""Input validation for the partial softmax and ProxyAnchor losses.

Letters: B batch, Y positives of a sample, D width, S local classes (all of a step's, or one rank's range), R = S K
rows of K sub-centres.
"""

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["ClassRange", "check_classes", "check_lengths", "checked_labels", "same_precision"]


class ClassRange(NamedTuple):
    """Prototypes of some classes: all that take part in a step, or one rank's part of them.

    Attributes:
        rows_RD: prototypes as stored, of any length above 0; row k of the i-th class at i K + k.
        class_ids_S: int64, ascending, no repeats.
        log_correction_S: added to the logit of a class where it is a negative: the negative log of its inclusion
            probability, see `sample_classes`.
    """

    rows_RD: Tensor
    class_ids_S: Tensor
    log_correction_S: Tensor


def checked_labels(embeds_BD: Tensor, labels: Tensor) -> Tensor:
    """Check the labels of the embeddings and return them as (B, Y)."""
    if labels.dtype != torch.int64 or labels.shape[:1] != embeds_BD.shape[:1] or not labels.numel() or labels.ndim > 2:
        raise ValueError(
            f"labels have dtype {labels.dtype} and shape {tuple(labels.shape)} for embeddings of shape "
            f"{tuple(embeds_BD.shape)}; one int64 label per row is needed, or (B, Y) padded with -1, and at least one "
            "row."
        )
    if not bool(torch.isfinite(embeds_BD).all()):
        row = int(torch.nonzero(~torch.isfinite(embeds_BD).all(dim=1))[0])
        raise ValueError(
            f"row {row} of the embeddings is not finite: check for a division by 0 or a learning rate that is too high."
        )
    if labels.ndim == 1 or labels.shape[1] == 1:
        labels_BY = labels.view(-1, 1)
        if bool((labels_BY < 0).any()):
            raise ValueError(f"label {int(labels_BY.min())} is not a class: labels run from 0.")
        return labels_BY
    sorted_BY = labels.sort(dim=1).values
    is_twice_B = ((sorted_BY[:, 1:] == sorted_BY[:, :-1]) & (sorted_BY[:, 1:] >= 0)).any(dim=1)
    for is_wrong_B, what in (
        (sorted_BY[:, 0] < -1, "hold a number below -1; pad with -1"),
        (sorted_BY[:, -1] < 0, "hold no class; drop the sample, or give it at least one"),
        (is_twice_B, "name a class twice; give each once"),
    ):
        if bool(is_wrong_B.any()):
            row = int(torch.nonzero(is_wrong_B)[0])
            raise ValueError(f"the labels {labels[row].tolist()} of row {row} {what}.")
    return labels


def same_precision(embeds_BD: Tensor, rows_RD: Tensor) -> tuple[Tensor, Tensor]:
    """Return both tensors in fp32, or both in fp64: half precision is converted to fp32.

    Raises:
        ValueError: for one fp64 tensor and one that is not: a silent conversion would lose precision or cost memory.
    """
    wide = [torch.float64 if x.dtype == torch.float64 else torch.float32 for x in (embeds_BD, rows_RD)]
    for name, tensor in (("embeddings", embeds_BD), ("prototypes", rows_RD)):
        if not tensor.is_floating_point() or tensor.ndim != 2:
            raise ValueError(
                f"{name} have dtype {tensor.dtype} and shape {tuple(tensor.shape)}; rows of floats are needed."
            )
    if wide[0] != wide[1]:
        raise ValueError(
            f"embeddings are {embeds_BD.dtype}, but prototypes {rows_RD.dtype}: convert one, so that both are "
            "float64 or neither is."
        )
    if embeds_BD.shape[1] != rows_RD.shape[1]:
        raise ValueError(
            f"embeddings are {embeds_BD.shape[1]} wide, but prototypes {rows_RD.shape[1]}: make them equal."
        )
    return embeds_BD.to(wide[0]), rows_RD.to(wide[0])


def check_classes(classes: ClassRange, *, sub_centres: int) -> None:
    """Check that each class has one id, one correction and K rows, and that the ids ascend."""
    rows_RD, class_ids_S, log_correction_S = classes
    if len(class_ids_S) * sub_centres != len(rows_RD) or len(log_correction_S) != len(class_ids_S):
        raise ValueError(
            f"{len(rows_RD)} prototypes, {len(class_ids_S)} class ids and {len(log_correction_S)} corrections were "
            f"given: {sub_centres}, one and one per class are needed."
        )
    is_wrong = class_ids_S[1:] <= class_ids_S[:-1]
    if bool(is_wrong.any()):
        place = int(torch.nonzero(is_wrong)[0]) + 1
        raise ValueError(
            f"class id {int(class_ids_S[place])} follows {int(class_ids_S[place - 1])}: sort the classes, with their "
            "rows, and give each once."
        )


def check_lengths(length_R: Tensor, class_ids_S: Tensor, sub_centres: int) -> None:
    """Check that every prototype has a finite length above 0, below which cosine and gradient are undefined."""
    is_wrong_R = ~((length_R > 0) & torch.isfinite(length_R))
    if bool(is_wrong_R.any()):
        wrong = int(torch.nonzero(is_wrong_R)[0])
        raise ValueError(
            f"the prototype of class {int(class_ids_S[wrong // sub_centres])} has length {length_R[wrong].item()}: "
            "initialise it with the mean of its embeddings or at random; if it was finite before, check for a learning "
            "rate that is too high."
        )
