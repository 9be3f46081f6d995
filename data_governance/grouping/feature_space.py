"""Learn a content space from clicks, and find the sources (styles) of documents.

Drawings in different styles have distant features whatever they show. Differences within clicked pairs, most of them
right, give the directions of style: the ratio of total to within-pair scatter (linear discriminant analysis, Fisher
1936; with shrinkage, Friedman 1989) suppresses them. The remaining gap between two sources of documents is the
direction along which documents of one category differ.

Letters: N queries, M documents, F features, W width of the learned space.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.linalg import cholesky, eigh, solve_triangular

# Shrinkage when sources are sought: their direction is broad, while noise in few pairs is narrow.
SOURCE_SHRINKAGE = 0.5
SOURCE_STARTS = 8
SOURCE_STEPS = 30


def prepared(features: np.ndarray, has_image: np.ndarray, blocks: list[int], rooted: list[bool]) -> np.ndarray:
    """Features of one side: roots of the blocks in `rooted`, centred over rows with an image, blocks scaled alike.

    Non-negative pooled activations have long tails, which the root reduces (Hellinger map; Arandjelovic, Zisserman
    2012). A row without an image is 0.
    """
    parts = []
    for block, root in zip(np.split(features, np.cumsum(blocks)[:-1], axis=1), rooted, strict=True):
        values = np.sqrt(np.maximum(block, 0)) if root else block
        if not has_image.any():
            parts.append(np.zeros_like(values, dtype=np.float32))
            continue
        values = (values - values[has_image].mean(axis=0)).astype(np.float32)
        values[~has_image] = 0
        strength = float(np.sqrt((values[has_image] ** 2).sum(axis=1).mean()))
        parts.append(values / max(strength, 1e-9))
    return np.concatenate(parts, axis=1)


def non_negative_blocks(queries_NF: np.ndarray, documents_MF: np.ndarray, blocks: list[int]) -> list[bool]:
    """Per block, whether all values of both sides are at least 0."""
    sides = [np.split(side, np.cumsum(blocks)[:-1], axis=1) for side in (queries_NF, documents_MF)]
    return [bool(q.min(initial=0) >= 0 and d.min(initial=0) >= 0) for q, d in zip(*sides, strict=True)]


def principal_axes(queries_NF: np.ndarray, documents_MF: np.ndarray, *, width: int) -> np.ndarray | None:
    """(F, width): leading common principal axes of both sides; None if there are at most `width` features."""
    size = queries_NF.shape[1]
    if size <= width:
        return None
    scatter = queries_NF.T @ queries_NF + documents_MF.T @ documents_MF
    axes = eigh(scatter, subset_by_index=[size - width, size - 1])[1][:, ::-1].astype(np.float32)
    return np.asarray(axes)


def reduced(values_NF: np.ndarray, axes_FR: np.ndarray | None) -> np.ndarray:
    """Rows projected on the axes; unchanged without axes."""
    return values_NF if axes_FR is None else values_NF @ axes_FR


def recentred(values_MF: np.ndarray, source_M: np.ndarray, has_image: np.ndarray) -> np.ndarray:
    """Documents centred per source."""
    values = values_MF.copy()
    for source in np.unique(source_M[has_image]):
        rows = has_image & (source_M == source)
        values[rows] -= values[rows].mean(axis=0)
    return values


def shrunk(scatter_FF: np.ndarray, share: float) -> np.ndarray:
    """(1 - share) S + share * mean variance * I."""
    size = len(scatter_FF)
    ridge = max(share * float(np.trace(scatter_FF)) / size, 1e-8)
    return (1 - share) * scatter_FF + ridge * np.eye(size, dtype=scatter_FF.dtype)


@dataclass(frozen=True)
class Space:
    """Unit rows of both sides in the learned space; 0 without an image.

    Attributes:
        axes_RW: projection of the reduced features.
    """

    queries_NW: np.ndarray
    documents_MW: np.ndarray
    axes_RW: np.ndarray | None = None


def concatenated(spaces: Sequence[Space], shares: Sequence[float]) -> Space:
    """The spaces side by side, each times the root of its share, so that cosines are averaged by the shares."""
    if len(spaces) == 1:
        return spaces[0]
    root = np.sqrt(np.asarray(shares, dtype=np.float32))
    sides = (
        [part.queries_NW * factor for part, factor in zip(spaces, root, strict=True)],
        [part.documents_MW * factor for part, factor in zip(spaces, root, strict=True)],
    )
    return Space(*(np.ascontiguousarray(np.concatenate(side, axis=1)) for side in sides))


def learned_space(
    queries_NF: np.ndarray,
    documents_MF: np.ndarray,
    pairs_P2: np.ndarray,
    weight_P: np.ndarray,
    *,
    shrinkage: float,
    width: int,
) -> Space:
    """Project both sides on the directions with the largest ratio of total to within-pair scatter.

    within = 1/2 sum_p w_p (q_p - d_p)(q_p - d_p)' / sum_p w_p, shrunk; total over all rows of both sides. The
    eigenvectors of total v = lambda within v with the largest lambda, scaled to unit within-scatter, give the axes.
    """
    both = np.concatenate([queries_NF, documents_MF])
    total = both.T @ both / len(both)
    difference = (queries_NF[pairs_P2[:, 0]] - documents_MF[pairs_P2[:, 1]]) * np.sqrt(weight_P)[:, None]
    within = shrunk(difference.T @ difference / (2 * weight_P.sum()), shrinkage)
    size = len(total)
    kept = min(width, size)
    # Generalised eigenvectors come in ascending order of the ratio: the last ones are kept, largest first.
    axes = eigh(total, within, subset_by_index=[size - kept, size - 1])[1][:, ::-1].astype(np.float32)
    return Space(unit_rows(queries_NF @ axes), unit_rows(documents_MF @ axes), axes)


def reciprocal_rank(space: Space, pairs_P2: np.ndarray, leaf_M: np.ndarray) -> float:
    """Mean over pairs (q, d) of 1 / (1 + number of documents of d's leaf closer to q than d); ties count in favour."""
    total = 0.0
    for leaf in np.unique(leaf_M[pairs_P2[:, 1]]):
        mine = pairs_P2[leaf_M[pairs_P2[:, 1]] == leaf]
        score = space.queries_NW[mine[:, 0]] @ space.documents_MW[leaf_M == leaf].T
        own = (space.queries_NW[mine[:, 0]] * space.documents_MW[mine[:, 1]]).sum(axis=1)
        total += float((1 / (1 + (score > own[:, None] + 1e-6).sum(axis=1))).sum())
    return total / len(pairs_P2)


def unit_rows(values: np.ndarray) -> np.ndarray:
    """Rows of length 1; a zero row stays 0."""
    norm = np.linalg.norm(values, axis=1, keepdims=True)
    return np.ascontiguousarray(np.divide(values, norm, out=np.zeros_like(values), where=norm > 0), dtype=np.float32)


def source_direction(documents_MF: np.ndarray, pairs_P2: np.ndarray) -> np.ndarray:
    """(F,): the direction along which paired documents differ most, whatever their order in the pair.

    In coordinates whitened by the (shrunk) total scatter, maximise |mean_p s_p (x_p - y_p)| over signs s and pairs p:
    a maximum cut by a hyperplane. Alternate s = sign(w . d), w = mean s d, from the leading eigenvectors of the
    differences; keep the best of them.
    """
    root = cholesky(shrunk(documents_MF.T @ documents_MF / len(documents_MF), SOURCE_SHRINKAGE), lower=True)
    difference = documents_MF[pairs_P2[:, 0]] - documents_MF[pairs_P2[:, 1]]
    white = solve_triangular(root, difference.T, lower=True).T
    size = white.shape[1]
    starts = eigh(white.T @ white, subset_by_index=[max(size - SOURCE_STARTS, 0), size - 1])[1].T[::-1]
    best, best_length = starts[0], -1.0
    for direction in starts:
        for _ in range(SOURCE_STEPS):
            direction = (np.where(white @ direction >= 0, 1.0, -1.0)[:, None] * white).mean(axis=0)
        length = float(np.linalg.norm(direction))
        if length > best_length + 1e-6:
            best, best_length = direction, length
    return np.asarray(solve_triangular(root.T, best, lower=False))


def document_sources(
    documents_MF: np.ndarray, pairs_P2: np.ndarray, *, seed: int, min_share: float
) -> tuple[np.ndarray, float]:
    """(source 0 or 1 of every document, share of held-out pairs across sources); all 0 when the share is too low.

    The direction is fitted on half of the pairs and tested on the others: chance pairs, or a catalogue with one source,
    give a share near one half.
    """
    none = np.zeros(len(documents_MF), dtype=np.int64)
    if len(pairs_P2) < 20:
        return none, 0.0
    order = np.random.default_rng(seed).permutation(len(pairs_P2))
    fitted, tested = pairs_P2[order[::2]], pairs_P2[order[1::2]]
    side = documents_MF @ source_direction(documents_MF, fitted) > 0
    share = float((side[tested[:, 0]] != side[tested[:, 1]]).mean())
    if share < min_share:
        return none, share
    return (documents_MF @ source_direction(documents_MF, pairs_P2) > 0).astype(np.int64), share
