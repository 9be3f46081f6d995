"""Pair documents without clicks by content, where this is reliable.

The least cosine is calibrated on clicked documents: they are paired by content in the same way, and the threshold is
the least cosine at which such pairs mostly share a category by their clicks. If content is too weak for that, nothing
is paired. Documents with a click, or already in a category with others, are not changed.

Letters: M documents, W width, P pairs.
"""

from typing import Any

import numpy as np
from scipy.sparse import csr_array

from data_governance.grouping import matching
from data_governance.grouping.assignments import ClickGraph, neighbours, same_leaf
from data_governance.grouping.feature_space import Space

# Least share of content pairs of clicked documents that share a category by clicks.
LEAST_PRECISION = 0.8
# Least number of pairs for a precision estimate.
LEAST_PAIRS = 20
NEAREST = 10


def with_content_pairs(
    space: Space, graph: ClickGraph, group: np.ndarray, source: np.ndarray, *, new: np.ndarray | None = None
) -> tuple[np.ndarray, dict[str, Any]]:
    """((M,) groups from 0 in which lone documents without a click are paired, notes).

    Args:
        new: (M,) bool; only pairs with at least one of these are joined, because an earlier run has already judged the
            others. None: all.
    """
    clicked = np.asarray(graph.clicks.sum(axis=0)).ravel() > 0
    size = np.bincount(group)
    lone = graph.has_image & ~clicked & (size[group] == 1)
    new = np.ones(len(group), dtype=bool) if new is None else new
    notes: dict[str, Any] = {"unclicked_alone": int(lone.sum())}
    if lone.sum() < 2 or not (lone & new).any():
        return group, notes
    calibration = graph.has_image & clicked
    pairs, cosine = content_pairs(space.documents_MW, np.flatnonzero(calibration), source, graph.document_leaf)
    right = group[pairs[:, 0]] == group[pairs[:, 1]]
    least = least_cosine(cosine, right)
    notes["content_pair_cosine"] = None if least is None else round(least, 4)
    notes["content_pairs_of_clicked_right"] = round(float(right.mean()), 4) if len(right) else None
    if least is None:
        return group, {**notes, "content_pairs": 0}
    pairs, cosine = content_pairs(space.documents_MW, np.flatnonzero(lone), source, graph.document_leaf)
    joined = group.copy()
    strong = pairs[(cosine >= least) & new[pairs].any(axis=1)]
    joined[strong[:, 1]] = joined[strong[:, 0]]
    return np.unique(joined, return_inverse=True)[1].astype(np.int64), {**notes, "content_pairs": len(strong)}


def content_pairs(
    documents_MW: np.ndarray, rows: np.ndarray, source: np.ndarray, leaf: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """((P, 2) rows paired by content alone, their cosines): one to one across two sources, else mutual nearest.

    Only the `NEAREST` rows with a compatible leaf, and of the other source if there are two, are considered.
    """
    found_row, found_column, found_cosine = [np.zeros(0, int)], [np.zeros(0, int)], [np.zeros(0)]
    for one in np.unique(leaf[rows]):
        mine = rows[leaf[rows] == one]
        for which in np.unique(source[mine]):
            own = mine[source[mine] == which]
            fits = same_leaf(leaf[rows], one) & ((source[rows] != which) | (not source.any()))
            near = rows[fits]
            if not len(near):
                continue
            cosine, place = neighbours(documents_MW[near], documents_MW[own], NEAREST + 1)
            at, column = np.nonzero((place >= 0) & (near[place] != own[:, None]) & (cosine > 0))
            found_row.append(own[at])
            found_column.append(near[place[at, column]])
            found_cosine.append(cosine[at, column])
    row, column, value = (np.concatenate(part) for part in (found_row, found_column, found_cosine))
    size = len(documents_MW)
    either = csr_array((value, (row, column)), shape=(size, size))
    affinity = csr_array(either.maximum(either.T))
    if source.any():
        pairs = matching.matched_pairs(affinity, source, least=0.0)
    else:
        pairs = matching.mutual_pairs(affinity, count=1, least=0.0)
    if not len(pairs):
        return pairs, np.zeros(0)
    return pairs, np.asarray(affinity[pairs[:, 0], pairs[:, 1]]).ravel()


def least_cosine(cosine_P: np.ndarray, right_P: np.ndarray) -> float | None:
    """Least cosine with a precision of `LEAST_PRECISION` among the pairs above it; None if there is none."""
    order = np.argsort(-cosine_P, kind="stable")
    precision = np.cumsum(right_P[order]) / np.arange(1, len(order) + 1)
    enough = np.flatnonzero((precision >= LEAST_PRECISION) & (np.arange(len(order)) >= LEAST_PAIRS - 1))
    return float(cosine_P[order[enough[-1]]]) if len(enough) else None
