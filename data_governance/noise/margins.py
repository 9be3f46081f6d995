"""How much better a row fits its own category than the next best, with what the rows of each category are believed.

    margin = cos(z, own prototype without z) / rel(n_own) - max_other cos(z, prototype without z) / rel(n_other)
    rel(n) = sqrt(n rho / (1 + (n - 1) rho)),  rho = mean cosine within categories, clipped to .02 .. .98

rel is the correlation of a mean of n members with the true centre (Spearman 1910; Brown 1910): without it small
categories are flagged for being small. Wrong members bend the prototypes that are to find them, so the margins are
taken again: a mixture of margins says how probably each row is right, p; the row then counts p for its own category
and 1 - p for the best other one (expectation maximisation for label noise, as in Lawrence, Schoelkopf 2001), until
the flags stay. n is the effective number of members, (sum a)^2 / sum a^2 over their weights a (Kish 1965).

Letters: N rows, E further members (documents), K categories, W width, C candidates per row. No N x K array is made.
"""

from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array

from data_governance.noise import neighbours, threshold

NEAREST_PROTOTYPES = 10
CHUNK = 32_768
# Nobody is disbelieved entirely, so that a doubtful category of few rows keeps its direction.
LEAST_BELIEF = 0.02
# Rounds end when fewer of the rows change sides.
STABLE = 0.001


@dataclass(frozen=True)
class Margins:
    """Per row: margin (NaN for a category of one), best other category, probability `right` of its label.

    `near` holds the nearest prototypes (cells of the neighbours' vote), named in `filled`; `low_share_by_round` is how
    many rows each round flagged.
    """

    margin: np.ndarray
    other: np.ndarray
    right: np.ndarray
    rho: float
    cut: threshold.Cut
    near: neighbours.Found
    prototype_KW: np.ndarray
    filled: np.ndarray
    low_share_by_round: list[float]


@dataclass(frozen=True)
class Centres:
    """Sums of weighted members (K, W), the sums of their weights and of the squares of these, and rho."""

    total_KW: np.ndarray
    mass_K: np.ndarray
    square_K: np.ndarray
    rho: float


def reliability(size: np.ndarray, rho: float) -> np.ndarray:
    """rel(n) of the module's docstring; 0 for n = 0."""
    return np.asarray(np.sqrt(size * rho / np.maximum(1 + (size - 1) * rho, 1e-9)))


def margins(
    rows_NW: np.ndarray, label_N: np.ndarray, members_EW: np.ndarray, member_label_E: np.ndarray, *, most: float
) -> Margins:
    """One round: every row believed. `most`: largest share of rows that Otsu's cut may flag."""
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
    """Rounds until the flags stay, at most `rounds`; only the first one when the margins do not show two modes.

    The nearest prototypes are searched once: later rounds move prototypes, not who is near.
    """
    count = int(max(label_N.max(initial=-1), member_label_E.max(initial=-1))) + 1
    right, other = np.ones(len(label_N), dtype=np.float32), np.zeros(len(label_N), dtype=np.int64)
    near: neighbours.Found | None = None
    flags, shares = np.zeros(len(label_N), dtype=bool), list[float]()
    for number in range(rounds):
        centres = weighted_centres(rows_NW, label_N, right, other, members_EW, member_label_E, count)
        if near is None:
            filled = np.flatnonzero(centres.mass_K > 0)
            length = np.linalg.norm(centres.total_KW[filled], axis=1, keepdims=True)
            prototype = centres.total_KW[filled] / np.maximum(length, 1e-9)
            near = neighbours.nearest(prototype, rows_NW, NEAREST_PROTOTYPES)
        margin, best = scored(rows_NW, label_N, right, other, filled[near.index], centres)
        known = np.isfinite(margin)
        cut = threshold.Cut(0.0, "none", None)
        if known.sum() >= 10:
            cut = threshold.cut(margin[known], most=most)
        low = known & (margin < cut.at)
        changed, flags = (low != flags).mean() if len(low) else 0.0, low
        shares.append(round(float(low.mean()), 4) if len(low) else 0.0)
        other = best
        if cut.mixture is not None:
            belief = np.where(known, cut.mixture.right(np.where(known, margin, 0)), 1)
            right = np.maximum(belief, LEAST_BELIEF).astype(np.float32)
        if cut.mixture is None or (number and changed < STABLE):
            break
    assert near is not None
    return Margins(margin, other, right, centres.rho, cut, near, prototype, filled, shares)


def weighted_centres(
    rows_NW: np.ndarray,
    label_N: np.ndarray,
    right_N: np.ndarray,
    other_N: np.ndarray,
    members_EW: np.ndarray,
    member_label_E: np.ndarray,
    count: int,
) -> Centres:
    """Each row with `right` in its own category and the rest in `other`; further members count 1."""
    row = np.arange(len(label_N))
    weights = np.concatenate([right_N, 1 - right_N])
    shape = (count, len(label_N))
    where = np.concatenate([label_N, other_N]), np.concatenate([row, row])
    total = csr_array((weights, where), shape=shape) @ rows_NW
    if len(member_label_E):
        ones = np.ones(len(member_label_E), dtype=np.float32)
        shape = (count, len(member_label_E))
        total = total + csr_array((ones, (member_label_E, np.arange(len(ones)))), shape=shape) @ members_EW
    fixed = np.bincount(member_label_E, minlength=count)
    mass = np.bincount(where[0], weights, count) + fixed
    square = np.bincount(where[0], weights**2, count) + fixed
    length = np.einsum("kw,kw->k", total, total, dtype=np.float64)
    pairs = (mass**2 - square).sum()
    rho = float(np.clip((length - square).sum() / max(pairs, 1e-9), 0.02, 0.98)) if pairs > 1e-6 else 0.02
    return Centres(np.ascontiguousarray(total, dtype=np.float32), mass, square, rho)


def scored(
    rows_NW: np.ndarray,
    label_N: np.ndarray,
    right_N: np.ndarray,
    other_N: np.ndarray,
    near_NC: np.ndarray,
    centres: Centres,
) -> tuple[np.ndarray, np.ndarray]:
    """(margin, best other category), row by row without its own part in any prototype, in chunks."""
    margin, best = np.full(len(label_N), np.nan, dtype=np.float32), label_N.copy()
    length_K = np.einsum("kw,kw->k", centres.total_KW, centres.total_KW)
    for start in range(0, len(label_N), CHUNK):
        part = slice(start, start + CHUNK)
        own = label_N[part, None]
        place = np.concatenate([own, near_NC[part]], axis=1)
        right = right_N[part, None]
        part_own = np.where(place == own, right, 0) + np.where(place == other_N[part, None], 1 - right, 0)
        dot = np.stack([np.einsum("nw,nw->n", rows_NW[part], centres.total_KW[column]) for column in place.T], axis=1)
        length = np.maximum(length_K[place] - 2 * part_own * dot + part_own**2, 1e-9)
        mass = centres.mass_K[place] - part_own
        size = mass**2 / np.maximum(centres.square_K[place] - part_own**2, 1e-9)
        size = np.where(mass > 1e-3, size, 0)
        cosine = (dot - part_own) / np.sqrt(length) / np.maximum(reliability(size, centres.rho), 1e-9)
        cosine = np.where(size > 0.5, cosine, -np.inf)
        rival = np.where(place[:, 1:] == own, -np.inf, cosine[:, 1:])
        at = rival.argmax(axis=1)
        row = np.arange(len(at))
        both = np.isfinite(cosine[:, 0]) & np.isfinite(rival[row, at])
        margin[part] = np.where(both, cosine[:, 0] - np.where(both, rival[row, at], 0), np.nan)
        best[part] = np.where(np.isfinite(rival[row, at]), place[row, 1 + at], own[:, 0])
    return margin, best
