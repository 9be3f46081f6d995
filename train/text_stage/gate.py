"""The gate of the text: how likely a text and an image are of the same thing, by how well they agree.

Why: texts are unequally informative and some are wrong (another product's, another language's). A text that speaks of
what the image shows may move it; one that does not must leave it alone. How far right and wrong texts agree with
images is read off the training documents: their own text through the map that never saw their category, against the
text of a document of another category. So the gate is fitted out of fold, in closed form, and without the text ever
meeting a label that it could be a shortcut to.

Bayes' rule for the two alone would be half open where a text is as likely wrong as right. The gate is sharper (ours):

    gate = sigmoid(STEEPER (logit P(right | c) - log COST))

half open where right is COST times as likely as wrong, and steeper, so that a text counts whole or hardly at all.


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
# Both chosen on validation categories (docs/log.md). COST: what a wrong text takes, in units of what a right one gives.
STEEPER, COST = 3.0, 0.6


def agreements(images_RD: Tensor, concepts_RD: Tensor) -> Tensor:
    """(R,) cosine of every image embedding with what its text says."""
    return (images_RD * functional.normalize(concepts_RD, dim=1)).sum(1)


def two_gaussians(right_R: Tensor, other_R: Tensor) -> tuple[float, float]:
    """(slope, centre) of P(right | c) = sigmoid(slope (c - centre)) for two Gaussians of one variance, as likely.

    slope = (mean right - mean other) / variance within, centre = half-way between the means (Fisher, *The use of
    multiple measurements in taxonomic problems*, 1936; two classes, one dimension). (0, 0) where right texts agree no
    better than others, or where nothing varies: agreement says nothing then.
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
    """Let the text's gate listen to agreement alone; the gate of the evidence stays.

    The gate then opens up to 1, where the whole concept is added. Nothing changes when agreement says nothing.

    Args:
        images_RD: unit rows. concepts_RD: out of fold. labels_R: categories. seed: of the strangers' texts.

    Returns:
        {"slope", "centre"}, for the report.
    """
    order = np.random.default_rng([seed, 17]).permutation(len(labels_R))
    strange = labels_R[order] != labels_R
    other_R = agreements(images_RD[strange], concepts_RD[order][strange])
    slope, centre = sharper(*two_gaussians(agreements(images_RD, concepts_RD), other_R))
    if slope > 0:
        fusion.gate.weight[1].zero_()
        fusion.gate.bias[1] = -slope * centre
        fusion.agreement[1] = slope
        fusion.concept_projection.weight.copy_(torch.eye(concepts_RD.shape[1]))
    return {"slope": round(slope, 4), "centre": round(centre, 4)}
