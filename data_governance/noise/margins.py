"""Leave-one-out margins of labels, weighted by label confidence.

    margin = cos(z, own prototype without z) / rel(n_own) - max_other cos(z, prototype without z) / rel(n_other)
    rel(n) = sqrt(n rho / (1 + (n - 1) rho)),  rho = mean cosine within categories, clipped to .02 .. .98

rel is the correlation of a mean of n members with the true centre (Spearman 1910; Brown 1910); without it, small
categories would be flagged for their size. Wrong members distort the prototypes that should reveal them, so margins are
computed again: a mixture of margins gives the probability p that each label is right; the row then counts p for its own
category and 1 - p for the best other one (expectation maximisation for label noise, as in Lawrence, Schoelkopf 2001),
until the flags do not change. n is the effective number of members, (sum a)^2 / sum a^2 over their weights a (Kish
1965).

Letters: N rows, E further members (documents), K categories, W width, C candidates per row. No N x K array is made.
"""

from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array

from data_governance.noise import neighbours, threshold

NEAREST_PROTOTYPES = 10
CHUNK = 32_768
# Least label confidence, so that a small category with doubtful rows keeps its direction.
LEAST_CONFIDENCE = 0.02
# Rounds end when a smaller share of the rows changes its flag.
STABLE = 0.001


@dataclass(frozen=True)
class Margins:
    """Result for every row.

    Attributes:
        margin: NaN for a category of one row.
        other: best other category.
        confidence: probability that the label is right.
        near: nearest prototypes, as indices into `filled`.
        filled: categories with a prototype.
        low_share_by_round: share of rows that each round flagged.
    """

    margin: np.ndarray
    other: np.ndarray
    confidence: np.ndarray
    rho: float
    cut: threshold.Cut
    near: neighbours.Found
    prototype_KW: np.ndarray
    filled: np.ndarray
    low_share_by_round: list[float]


@dataclass(frozen=True)
class Centres:
    """Sums of weighted members (K, W), of their weights and of the squared weights (K,), and rho."""

    total_KW: np.ndarray
    mass_K: np.ndarray
    square_K: np.ndarray
    rho: float


@dataclass(frozen=True)
class SoftLabels:
    """Labels with a doubt: a row counts `confidence` for `label` and the rest for `other`; all (N,)."""

    label: np.ndarray
    confidence: np.ndarray
    other: np.ndarray


def reliability(size: np.ndarray, rho: float) -> np.ndarray:
    """rel(n) of the module's docstring; 0 for n = 0."""
    return np.asarray(np.sqrt(size * rho / np.maximum(1 + (size - 1) * rho, 1e-9)))


def margins(
    rows_NW: np.ndarray, label_N: np.ndarray, members_EW: np.ndarray, member_label_E: np.ndarray, *, most: float
) -> Margins:
    """One round with full confidence. `most`: largest share of rows that Otsu's cut may flag."""
    return refined(rows_NW, label_N, members_EW, member_label_E, most=most, rounds=1)


def refined(
    rows_NW: np.ndarray,
    label_N: np.ndarray,
    members_EW: np.ndarray,
    member_label_E: np.ndarray,
    *,
    most: float,
    rounds: int,
) -> Margins:
    """Rounds until the flags do not change, at most `rounds`; one round if the margins do not have two modes."""
    count = int(max(label_N.max(initial=-1), member_label_E.max(initial=-1))) + 1
    confidence, other = np.ones(len(label_N), dtype=np.float32), np.zeros(len(label_N), dtype=np.int64)
    near: neighbours.Found | None = None
    flags, shares = np.zeros(len(label_N), dtype=bool), list[float]()
    for number in range(rounds):
        labels = SoftLabels(label_N, confidence, other)
        centres = weighted_centres(rows_NW, labels, members_EW, member_label_E, count)
        if near is None:  # later rounds move the prototypes too little to change the nearest ones
            filled = np.flatnonzero(centres.mass_K > 0)
            length = np.linalg.norm(centres.total_KW[filled], axis=1, keepdims=True)
            prototype = centres.total_KW[filled] / np.maximum(length, 1e-9)
            near = neighbours.nearest(prototype, rows_NW, NEAREST_PROTOTYPES)
        margin, best = scored(rows_NW, labels, filled[near.index], centres)
        has_margin = np.isfinite(margin)
        cut = threshold.Cut(0.0, "none", None)
        if has_margin.sum() >= 10:
            cut = threshold.cut(margin[has_margin], most=most)
        low = has_margin & (margin < cut.at)
        changed, flags = (low != flags).mean() if len(low) else 0.0, low
        shares.append(round(float(low.mean()), 4) if len(low) else 0.0)
        other = best
        if cut.mixture is not None:
            probability = np.where(has_margin, cut.mixture.right(np.where(has_margin, margin, 0)), 1)
            confidence = np.maximum(probability, LEAST_CONFIDENCE).astype(np.float32)
        if cut.mixture is None or (number and changed < STABLE):
            break
    assert near is not None
    return Margins(margin, other, confidence, centres.rho, cut, near, prototype, filled, shares)


def weighted_centres(
    rows_NW: np.ndarray, labels: SoftLabels, members_EW: np.ndarray, member_label_E: np.ndarray, count: int
) -> Centres:
    """Weighted sums per category; further members have weight 1."""
    row = np.arange(len(labels.label))
    weights = np.concatenate([labels.confidence, 1 - labels.confidence])
    shape = (count, len(row))
    where = np.concatenate([labels.label, labels.other]), np.concatenate([row, row])
    total = csr_array((weights, where), shape=shape) @ rows_NW
    if len(member_label_E):
        ones = np.ones(len(member_label_E), dtype=np.float32)
        shape = (count, len(member_label_E))
        total = total + csr_array((ones, (member_label_E, np.arange(len(ones)))), shape=shape) @ members_EW
    fixed = np.bincount(member_label_E, minlength=count)
    mass = np.bincount(where[0], weights, count) + fixed
    square = np.bincount(where[0], weights**2, count) + fixed
    length = np.einsum("kw,kw->k", total, total, dtype=np.float64)
    # |sum a x|^2 - sum a^2 = sum over pairs of a_i a_j cos(x_i, x_j), because rows have length 1.
    pairs = (mass**2 - square).sum()
    rho = float(np.clip((length - square).sum() / max(pairs, 1e-9), 0.02, 0.98)) if pairs > 1e-6 else 0.02
    return Centres(np.ascontiguousarray(total, dtype=np.float32), mass, square, rho)


def scored(
    rows_NW: np.ndarray, labels: SoftLabels, near_NC: np.ndarray, centres: Centres
) -> tuple[np.ndarray, np.ndarray]:
    """(margin, best other category); a row's own contribution is removed from every prototype."""
    margin, best = np.full(len(labels.label), np.nan, dtype=np.float32), labels.label.copy()
    length_K = np.einsum("kw,kw->k", centres.total_KW, centres.total_KW)
    for start in range(0, len(margin), CHUNK):
        part = slice(start, start + CHUNK)
        own = labels.label[part, None]
        place = np.concatenate([own, near_NC[part]], axis=1)
        confidence, other = labels.confidence[part, None], labels.other[part, None]
        # Weight of the row itself in each of its candidate prototypes.
        weight = np.where(place == own, confidence, 0) + np.where(place == other, 1 - confidence, 0)
        dot = np.stack([np.einsum("nw,nw->n", rows_NW[part], centres.total_KW[column]) for column in place.T], axis=1)
        # Squared length and sums of the prototypes without the row.
        length = np.maximum(length_K[place] - 2 * weight * dot + weight**2, 1e-9)
        mass = centres.mass_K[place] - weight
        size = mass**2 / np.maximum(centres.square_K[place] - weight**2, 1e-9)
        size = np.where(mass > 1e-3, size, 0)
        cosine = (dot - weight) / np.sqrt(length) / np.maximum(reliability(size, centres.rho), 1e-9)
        cosine = np.where(size > 0.5, cosine, -np.inf)
        other_cosine = np.where(place[:, 1:] == own, -np.inf, cosine[:, 1:])
        at = other_cosine.argmax(axis=1)
        row = np.arange(len(at))
        both = np.isfinite(cosine[:, 0]) & np.isfinite(other_cosine[row, at])
        margin[part] = np.where(both, cosine[:, 0] - np.where(both, other_cosine[row, at], 0), np.nan)
        best[part] = np.where(np.isfinite(other_cosine[row, at]), place[row, 1 + at], own[:, 0])
    return margin, best
