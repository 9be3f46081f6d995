"""Soft assignment of queries to documents, by content and pooled clicks.

Letters: N queries, M documents, W width, P pairs of a query and a document. Sparse throughout: no N x M array is made.
"""

from dataclasses import dataclass

import faiss
import numpy as np
from scipy.sparse import coo_array, csr_array

from data_governance.grouping.feature_space import Space
from data_governance.policy import Policy

# Largest number of query pairs searched together; beyond, each leaf is searched with the queries that have no leaf, so
# that the work grows with the size of the leaves and not with the square of all queries.
SEARCH_ALL = 10**9
# Pairs whose vectors are copied at once: 2 x 4 MB at width 64.
CHUNK = 16_384


@dataclass(frozen=True)
class ClickGraph:
    """Clicks and leaves of the entities.

    Attributes:
        clicks: (N, M) sparse, 1 where a query has an edge to a document.
        query_leaf, document_leaf: int codes; -1: unknown, compatible with every leaf.
        has_image: (M,) bool.
    """

    clicks: csr_array
    query_leaf: np.ndarray
    document_leaf: np.ndarray
    has_image: np.ndarray


@dataclass(frozen=True)
class Candidates:
    """Pairs (P,) of a query and a document that it may be assigned to, ordered by query.

    Attributes:
        clicked: pooled click share, 0..1.
        cosine: of the pooled query and the document.
        shape: (N, M).
    """

    query: np.ndarray
    document: np.ndarray
    clicked: np.ndarray
    cosine: np.ndarray
    shape: tuple[int, int]


def neighbours(base: np.ndarray, rows: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """(cosine, index), each (rows, count), by exact inner product search; index -1 beyond the last."""
    index = faiss.IndexFlatIP(base.shape[1])
    index.add(base)
    cosine, found = index.search(rows, min(count, len(base)))
    return cosine, found


def same_leaf(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """True where two leaf codes are equal or one is unknown."""
    return (a == b) | (a < 0) | (b < 0)


def pooling(space: Space, graph: ClickGraph, *, policy: Policy, products: int = SEARCH_ALL) -> csr_array:
    """(N, N) sparse, rows sum to 1: weight of query j in the pooled clicks of query i.

    Proportional to exp((cos_ij - 1) / `pool_temperature`) over the nearest queries of the same leaf with
    cos >= `pool_cosine`; the query itself has weight 1. So renderings of one drawing share their clicks.
    """
    count = len(space.queries_NW)
    row, column, cosine = _nearest_queries(space.queries_NW, graph.query_leaf, policy.pool_neighbours, products)
    keep = (cosine >= policy.pool_cosine) & same_leaf(graph.query_leaf[row], graph.query_leaf[column]) & (row != column)
    weight = np.exp((np.minimum(cosine[keep], 1) - 1) / policy.pool_temperature)
    own = np.arange(count)
    data = np.concatenate([weight, np.ones(count)])
    matrix = csr_array(
        (data, (np.concatenate([row[keep], own]), np.concatenate([column[keep], own]))), shape=(count, count)
    )
    return csr_array(matrix.multiply(1 / matrix.sum(axis=1)[:, None]))


def _nearest_queries(
    queries_NW: np.ndarray, leaf: np.ndarray, nearest: int, products: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(query, near query, cosine) among all queries, or among those of one leaf when all are too many."""
    everyone = np.arange(len(queries_NW))
    parts = [(everyone, everyone)]
    if len(queries_NW) ** 2 > products:
        parts = [(np.flatnonzero(leaf == one), np.flatnonzero(same_leaf(leaf, one))) for one in np.unique(leaf)]
    rows, columns, cosines = [], [], []
    for own, searched in parts:
        cosine, found = neighbours(queries_NW[searched], queries_NW[own], nearest)
        rows.append(np.repeat(own, found.shape[1]))
        columns.append(searched[found.ravel()])
        cosines.append(cosine.ravel())
    return np.concatenate(rows), np.concatenate(columns), np.concatenate(cosines)


def candidates(space: Space, graph: ClickGraph, source: np.ndarray, *, policy: Policy) -> Candidates:
    """Documents of each query's leaf with a pooled click, or among the nearest by content."""
    pool = pooling(space, graph, policy=policy)
    # Vectors are averaged with the same weights as clicks.
    pooled = np.ascontiguousarray(pool @ space.queries_NW, dtype=np.float32)
    clicked = csr_array(pool @ graph.clicks).tocoo()
    fits = same_leaf(graph.query_leaf[clicked.row], graph.document_leaf[clicked.col])
    near_row, near_column = _content_candidates(pooled, space, graph, source, policy)
    row = np.concatenate([clicked.row[fits], near_row])
    column = np.concatenate([clicked.col[fits], near_column])
    share = np.concatenate([clicked.data[fits], np.zeros(len(near_row))])
    # Duplicate entries are summed: a document found both ways becomes one entry with its click share.
    both = coo_array((share, (row, column)), shape=graph.clicks.shape).tocsr().tocoo()
    cosine = np.empty(len(both.data), dtype=np.float32)
    for start in range(0, len(cosine), CHUNK):
        part = slice(start, start + CHUNK)
        np.einsum("pw,pw->p", pooled[both.row[part]], space.documents_MW[both.col[part]], out=cosine[part])
    return Candidates(both.row, both.col, both.data, cosine, graph.clicks.shape)


def query_assignments(found: Candidates, source: np.ndarray, *, policy: Policy) -> csr_array:
    """(N, M) sparse soft assignment; a row sums to 1 over the documents of each source among its candidates.

    logit = cos(pooled query, document) / `content_temperature` + `click_weight` * pooled click share, softmax over the
    candidates of one source.
    """
    logit = found.cosine / policy.content_temperature + policy.click_weight * found.clicked
    # One softmax per query and source (0 or 1): an assignment to one source does not compete with the other.
    group = found.query.astype(np.int64) * 2 + source[found.document]
    return csr_array((grouped_softmax(logit, group), (found.query, found.document)), shape=found.shape)


def _content_candidates(
    pooled: np.ndarray, space: Space, graph: ClickGraph, source: np.ndarray, policy: Policy
) -> tuple[np.ndarray, np.ndarray]:
    """(query, document) pairs: the nearest documents of each source with an image in the query's leaf."""
    rows, columns = [np.zeros(0, dtype=np.int64)], [np.zeros(0, dtype=np.int64)]
    for leaf in np.unique(graph.query_leaf):
        queries = np.flatnonzero(graph.query_leaf == leaf)
        for which in np.unique(source):
            fits = graph.has_image & (source == which) & same_leaf(graph.document_leaf, np.array(leaf))
            documents = np.flatnonzero(fits)
            if len(documents):
                found = neighbours(space.documents_MW[documents], pooled[queries], policy.content_candidates)[1]
                rows.append(np.repeat(queries, found.shape[1]))
                columns.append(documents[found.ravel()])
    return np.concatenate(rows), np.concatenate(columns)


def grouped_softmax(logit: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Softmax of `logit` within each value of `group` (small non-negative integers)."""
    top = np.full(int(group.max(initial=-1)) + 1, -np.inf)
    np.maximum.at(top, group, logit)
    weight = np.exp(logit - top[group])
    return np.asarray(weight / np.bincount(group, weight)[group])
