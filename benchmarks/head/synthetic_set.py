"""Synthetic data set of 100,000 categories with similar neighbours.

What sampling costs can only be measured with many categories (at rate 0.001 a set of 1,000 categories would sample
one), where a full softmax is affordable and where wrong labels are known. No public data set has all three at a size
that two cores can train.

A category has a leaf and a place in it. A sample observes both with noise, among features without information, all
mixed by a rotation R:

    leaf_l ~ N(0, 1)^24      place_c ~ 0.5 N(0, 1)^12      x = [(leaf, place) + 0.24 N(0, 1)^36, 0.5 N(0, 1)^28] R

The embedding is narrower than these 36 numbers, so it must choose. Leaves are easy to tell apart, which is enough for
most random negatives. The 50 categories of a leaf differ only in their place, which is learned only where neighbours
are among the negatives. A wrong label is another category, in a quarter of the cases of the same leaf.

Letters: N training samples, Q queries, C trained categories, U unseen ones, F features.
"""

import functools
import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.head.step import keyed

LEAF_WIDTH, PLACE_WIDTH, OTHER_WIDTH = 24, 12, 28
PLACE_SCALE, BLUR, OTHER_SCALE = 0.5, 0.24, 0.5
WRONG_IN_LEAF = 0.25
FEATURES = LEAF_WIDTH + PLACE_WIDTH + OTHER_WIDTH


@dataclass(frozen=True)
class SyntheticSize:
    """Size of the data set; leaves contain both trained and unseen categories."""

    classes: int = 100_000
    unseen: int = 25_000
    leaf_size: int = 50
    samples_per_class: int = 4
    queries_per_unseen: int = 2
    seed: int = 1

    def __post_init__(self) -> None:
        least = min(self.classes, self.unseen, self.samples_per_class, self.queries_per_unseen)
        if least < 1 or not 2 <= self.leaf_size <= self.classes:
            raise ValueError(f"{self}: counts must be at least 1, and leaf_size from 2 to the number of classes")


@dataclass(frozen=True)
class SyntheticSet:
    """Training samples, and queries and documents of unseen categories.

    Attributes:
        feature_NF, label_N, true_N: training samples with their labels and true categories.
        query_QF, query_class_Q: queries of unseen categories, numbered from 0. document_UF: one document of each.
        leaf_C: leaf of each trained category.
    """

    feature_NF: Tensor
    label_N: Tensor
    true_N: Tensor
    query_QF: Tensor
    query_class_Q: Tensor
    document_UF: Tensor
    leaf_C: Tensor

    @property
    def fingerprint(self) -> str:
        """First 16 digits of a SHA-256 over labels and, to a thousandth, the first features."""
        part = (self.feature_NF[:100] * 1000).round().to(torch.int32)
        digest = hashlib.sha256(self.label_N.numpy().tobytes())
        digest.update(part.numpy().tobytes())
        return digest.hexdigest()[:16]


@functools.lru_cache(maxsize=1)
def synthetic_set(size: SyntheticSize, noise: float) -> SyntheticSet:
    """Draw the data set with a share of wrong labels; features do not depend on that share.

    Raises:
        ValueError: for a share outside 0 to 1.
    """
    if not 0 <= noise <= 1:
        raise ValueError(f"the share of wrong labels is {noise}; it must be from 0 to 1")
    generator = keyed(size.seed)
    everything = size.classes + size.unseen
    leaves = max(1, everything // size.leaf_size)
    leaf = torch.arange(everything) % leaves
    centre = torch.cat(
        [
            torch.randn(leaves, LEAF_WIDTH, generator=generator)[leaf],
            PLACE_SCALE * torch.randn(everything, PLACE_WIDTH, generator=generator),
        ],
        dim=1,
    )
    rotation = torch.linalg.qr(torch.randn(FEATURES, FEATURES, generator=generator))[0]
    true_N = torch.arange(size.classes).repeat_interleave(size.samples_per_class)
    unseen = torch.arange(size.classes, everything)
    query_class_Q = torch.arange(size.unseen).repeat_interleave(size.queries_per_unseen)

    def observed(classes: Tensor) -> Tensor:
        informative = centre[classes] + BLUR * torch.randn(len(classes), centre.shape[1], generator=generator)
        other = OTHER_SCALE * torch.randn(len(classes), OTHER_WIDTH, generator=generator)
        return torch.cat([informative, other], dim=1) @ rotation

    feature_NF = observed(true_N)
    mean, deviation = feature_NF.mean(dim=0), feature_NF.std(dim=0)
    query_QF, document_UF = observed(size.classes + query_class_Q), observed(unseen)
    return SyntheticSet(
        feature_NF=(feature_NF - mean) / deviation,
        label_N=wrong_labels(true_N, leaf[: size.classes], noise, seed=size.seed + 1),
        true_N=true_N,
        query_QF=(query_QF - mean) / deviation,
        query_class_Q=query_class_Q,
        document_UF=(document_UF - mean) / deviation,
        leaf_C=leaf[: size.classes],
    )


def wrong_labels(true_N: Tensor, leaf_C: Tensor, noise: float, *, seed: int) -> Tensor:
    """Replace a share `noise` of the labels; the leaf of class c is c modulo the number of leaves."""
    generator, classes, leaves = keyed(seed), len(leaf_C), int(leaf_C.max()) + 1
    is_wrong_N = torch.rand(len(true_N), generator=generator) < noise
    stays_N = torch.rand(len(true_N), generator=generator) < WRONG_IN_LEAF
    anywhere_N = (true_N + torch.randint(1, max(2, classes), (len(true_N),), generator=generator)) % classes
    # Classes of a leaf are `leaves` apart: move by some of these steps, from the last one on to the first.
    in_leaf_N = (classes - 1 - leaf_C[true_N]) // leaves + 1
    steps_N = 1 + (torch.rand(len(true_N), generator=generator) * (in_leaf_N - 1)).long()
    place_N = (true_N // leaves + steps_N.clamp(max=(in_leaf_N - 1).clamp(min=1))) % in_leaf_N
    near_N = place_N * leaves + leaf_C[true_N]
    return torch.where(is_wrong_N, torch.where(stays_N & (in_leaf_N > 1), near_N, anywhere_N), true_N)
