"""The gate of the text: how much a document's text counts, by its agreement with the image.

Texts are unequally informative and some are wrong (of another product, in another language). The gate is fitted in
closed form on training documents: the agreement of their image with their own text, mapped out of fold, against the
agreement with the text of a document of another category. So no text meets a label that it could be a shortcut to.

    gate = sigmoid(STEEPER (logit P(right | cosine) - log COST))                                                 (ours)

It is 1/2 where a right text is COST times as likely as a wrong one. STEEPER > 1 makes it steeper than Bayes' rule, so
that a text counts almost fully or hardly at all.

Letters: R documents with image and text, D width.
"""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

LEAST_VARIANCE = 1e-9  # of cosines: below it they are rounding
LEAST_PAIRS = 2
# Chosen on validation categories (docs/log.md). COST: harm of a wrong text in units of the gain of a right one.
STEEPER, COST = 3.0, 0.6


def agreements(images_RD: Tensor, concepts_RD: Tensor) -> Tensor:
    """(R,) cosine of every image embedding with its mapped text."""
    return (images_RD * functional.normalize(concepts_RD, dim=1)).sum(1)


def two_gaussians(right_R: Tensor, other_R: Tensor) -> tuple[float, float]:
    """(slope, centre) of P(right | c) = sigmoid(slope (c - centre)) for two Gaussians of one variance, as likely.

    slope = (mean right - mean other) / variance within, centre = half-way between the means (Fisher, *The use of
    multiple measurements in taxonomic problems*, 1936; two classes, one dimension). (0, 0) where right texts agree no
    better than others, or where nothing varies.
    """
    if min(len(right_R), len(other_R)) < LEAST_PAIRS:
        return 0.0, 0.0
    right, other = float(right_R.mean()), float(other_R.mean())
    squares = float((right_R - right).square().sum() + (other_R - other).square().sum())
    within = squares / (len(right_R) + len(other_R))
    if right <= other or within < LEAST_VARIANCE:
        return 0.0, 0.0
    return (right - other) / within, (right + other) / 2


def sharper(slope: float, centre: float) -> tuple[float, float]:
    """(slope, centre) of the gate, from those of P(right | c); (0, 0) stays.

    >>> [round(value, 5) for value in sharper(10.0, 0.05)]
    [30.0, -0.00108]
    """
    return (STEEPER * slope, centre + math.log(COST) / slope) if slope > 0 else (0.0, 0.0)


@torch.no_grad()
def fit_gate(
    fusion: Any, images_RD: Tensor, concepts_RD: Tensor, labels_R: np.ndarray, *, seed: int
) -> dict[str, float]:
    """Make the text's gate a function of agreement alone; the gate of the evidence stays.

    At gate 1 the whole concept is added. Nothing changes when agreement does not separate right from wrong texts.

    Args:
        images_RD: unit rows. concepts_RD: out of fold. labels_R: categories.
        seed: of the draw of texts of other categories.

    Returns:
        {"slope", "centre"}, for the report.
    """
    order = np.random.default_rng([seed, 17]).permutation(len(labels_R))
    is_wrong = labels_R[order] != labels_R
    other_R = agreements(images_RD[is_wrong], concepts_RD[order][is_wrong])
    slope, centre = sharper(*two_gaussians(agreements(images_RD, concepts_RD), other_R))
    if slope > 0:
        fusion.gate.weight[1].zero_()
        fusion.gate.bias[1] = -slope * centre
        fusion.agreement[1] = slope
        fusion.concept_projection.weight.copy_(torch.eye(concepts_RD.shape[1]))
    return {"slope": round(slope, 4), "centre": round(centre, 4)}
