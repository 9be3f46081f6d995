"""How a query divides itself over the documents: by content and by the clicks of queries that look like it.

Letters: N queries, M documents, W width, P pairs of a query and a document. Sparse throughout: no N x M array is made.
"""

from dataclasses import dataclass

import faiss
import numpy as np
from scipy.sparse import coo_array, csr_array

from data_governance.grouping.feature_space import Space
from data_governance.policy import Policy

# Products of queries up to which all of them are searched for those alike; beyond, only the leaf's own and those
# without a leaf, so that the work grows with the size of the leaves and no longer with the square of the queries.
SEARCH_ALL = 10**9
# Pairs whose vectors are gathered at once: 2 x 4 MB at width 64.
CHUNK = 16_384


@dataclass(frozen=True)
class Nodes:
    """What matching knows beside content.

    Attributes:
        clicks: (N, M) sparse, 1 where a query has an edge to a document.
        query_leaf, document_leaf: int codes; -1 = unknown, fits every leaf.
        has_image: (M,) bool.
    """

    clicks: csr_array
    query_leaf: np.ndarray
    document_leaf: np.ndarray
    has_image: np.ndarray


@dataclass(frozen=True)
class Votes:
    """Pairs (P,) that a query may share itself over, ordered by query: pooled click share 0..1, and cosine."""

    query: np.ndarray
    document: np.ndarray
    clicked: np.ndarray
    cosine: np.ndarray
    shape: tuple[int, int]


def neighbours(base: np.ndarray, rows: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """(cosine, index), each (rows, count), exact inner product search; index -1 where there are fewer."""
    index = faiss.IndexFlatIP(base.shape[1])
    index.add(base)
    cosine, found = index.search(rows, min(count, len(base)))
    return cosine, found


def same_leaf(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """True where two leaf codes are equal or one is unknown."""
    return (a == b) | (a < 0) | (b < 0)


def pooling(space: Space, nodes: Nodes, *, policy: Policy, products: int = SEARCH_ALL) -> csr_array:
    """(N, N) sparse, rows sum to 1: how much query i listens to query j.

    Proportional to exp((cos_ij - 1) / `pool_temperature`) over the nearest queries of the same leaf with
    cos >= `pool_cosine`; the query itself counts 1. Renderings of one drawing so share their clicks.
    """
    count = len(space.queries_NW)
    row, column, cosine = _alike(space.queries_NW, nodes.query_leaf, policy.pool_neighbours, products)
    keep = (cosine >= policy.pool_cosine) & same_leaf(nodes.query_leaf[row], nodes.query_leaf[column]) & (row != column)
    say = np.exp((np.minimum(cosine[keep], 1) - 1) / policy.pool_temperature)
    own = np.arange(count)
    data = np.concatenate([say, np.ones(count)])
    matrix = csr_array(
        (data, (np.concatenate([row[keep], own]), np.concatenate([column[keep], own]))), shape=(count, count)
    )
    return csr_array(matrix.multiply(1 / matrix.sum(axis=1)[:, None]))


def _alike(
    queries_NW: np.ndarray, leaf: np.ndarray, nearest: int, products: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(query, near query, cosine): the nearest of all queries, or of those that share the leaf where all are many."""
    everyone = np.arange(len(queries_NW))
    parts = [(everyone, everyone)]
    if len(queries_NW) ** 2 > products:
        parts = [(np.flatnonzero(leaf == one), np.flatnonzero(same_leaf(leaf, one))) for one in np.unique(leaf)]
    rows, columns, cosines = [], [], []
    for asked, known in parts:
        cosine, found = neighbours(queries_NW[known], queries_NW[asked], nearest)
        rows.append(np.repeat(asked, found.shape[1]))
        columns.append(known[found.ravel()])
        cosines.append(cosine.ravel())
    return np.concatenate(rows), np.concatenate(columns), np.concatenate(cosines)


def votes(space: Space, nodes: Nodes, source: np.ndarray, *, policy: Policy) -> Votes:
    """The documents of each query's leaf that its pool clicked, or that are among the nearest by content."""
    pool = pooling(space, nodes, policy=policy)
    pooled = np.ascontiguousarray(pool @ space.queries_NW, dtype=np.float32)
    voted = csr_array(pool @ nodes.clicks).tocoo()
    fits = same_leaf(nodes.query_leaf[voted.row], nodes.document_leaf[voted.col])
    near_row, near_column = _content_candidates(pooled, space, nodes, source, policy)
    row = np.concatenate([voted.row[fits], near_row])
    column = np.concatenate([voted.col[fits], near_column])
    vote = np.concatenate([voted.data[fits], np.zeros(len(near_row))])
    # Duplicate entries add up: a document both voted for and near by content becomes one entry with its vote.
    both = coo_array((vote, (row, column)), shape=nodes.clicks.shape).tocsr().tocoo()
    cosine = np.empty(len(both.data), dtype=np.float32)
    for start in range(0, len(cosine), CHUNK):
        part = slice(start, start + CHUNK)
        np.einsum("pw,pw->p", pooled[both.row[part]], space.documents_MW[both.col[part]], out=cosine[part])
    return Votes(both.row, both.col, both.data, cosine, nodes.clicks.shape)


def query_shares(found: Votes, source: np.ndarray, *, policy: Policy) -> csr_array:
    """(N, M) sparse: how a query divides itself over the documents; a row sums to 1 for each source that it meets.

    logit = cos(pooled query, document) / `content_temperature` + `click_weight` * pooled click share, softmax over the
    documents of one source among the nearest by content and the clicked ones, inside the query's leaf.
    """
    logit = found.cosine / policy.content_temperature + policy.click_weight * found.clicked
    group = found.query.astype(np.int64) * 2 + source[found.document]
    return csr_array((grouped_softmax(logit, group), (found.query, found.document)), shape=found.shape)


def _content_candidates(
    pooled: np.ndarray, space: Space, nodes: Nodes, source: np.ndarray, policy: Policy
) -> tuple[np.ndarray, np.ndarray]:
    """The nearest documents of each source that have an image and lie in the query's leaf: (query, document) pairs."""
    rows, columns = [np.zeros(0, dtype=np.int64)], [np.zeros(0, dtype=np.int64)]
    for leaf in np.unique(nodes.query_leaf):
        asked = np.flatnonzero(nodes.query_leaf == leaf)
        for which in np.unique(source):
            fits = nodes.has_image & (source == which) & same_leaf(nodes.document_leaf, np.array(leaf))
            known = np.flatnonzero(fits)
            if len(known):
                found = neighbours(space.documents_MW[known], pooled[asked], policy.content_candidates)[1]
                rows.append(np.repeat(asked, found.shape[1]))
                columns.append(known[found.ravel()])
    return np.concatenate(rows), np.concatenate(columns)


def grouped_softmax(logit: np.ndarray, group: np.ndarray) -> np.ndarray:
    """softmax of `logit` within each value of `group` (whole numbers from 0, not far apart)."""
    top = np.full(int(group.max(initial=-1)) + 1, -np.inf)
    np.maximum.at(top, group, logit)
    weight = np.exp(logit - top[group])
    return np.asarray(weight / np.bincount(group, weight)[group])
