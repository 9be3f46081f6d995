"""From content and clicks to groups of documents: shares of queries, affinities, one-to-one matches, Leiden.

Letters: N queries, M documents, W width. Sparse throughout: no N x M and no M x M array is ever made.

In: the learned space, clicks, leaves, sources. Out: a group per document, shares per query. Next: organise.py.
"""

from collections import Counter
from dataclasses import dataclass

import faiss
import igraph
import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.sparse import coo_array, csr_array
from scipy.sparse.csgraph import connected_components

from data_governance.content import Space
from data_governance.policy import Policy

# A block with more documents on one side than this is matched by mutual best instead: the exact method is cubic.
MAX_ASSIGNMENT = 3_000
# Pseudo-queries added to the size of every document, so that two documents with one query each are not yet equal.
SIZE_PRIOR = 0.5
NEIGHBOURS = 5
# With one source no match is one to one: a category may hold many documents, so more and weaker pairs enter the graph
# and the resolutions reach further down (the affinity of two of n equally clicked documents is about 1 / n).
NEIGHBOURS_OF_ONE_SOURCE = 15
LEAST_AFFINITY_OF_ONE_SOURCE = 0.002
RESOLUTIONS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.4)
RESOLUTIONS_OF_ONE_SOURCE = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05)


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


def neighbours(base: np.ndarray, rows: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """(cosine, index), each (rows, count), exact inner product search; index -1 where there are fewer."""
    index = faiss.IndexFlatIP(base.shape[1])
    index.add(base)
    cosine, found = index.search(rows, min(count, len(base)))
    return cosine, found


def pooling(space: Space, nodes: Nodes, *, policy: Policy) -> csr_array:
    """(N, N) sparse, rows sum to 1: how much query i listens to query j.

    Proportional to exp((cos_ij - 1) / `pool_temperature`) over the nearest queries of the same leaf with
    cos >= `pool_cosine`; the query itself counts 1. Renderings of one drawing so share their clicks.
    """
    count = len(space.queries_NW)
    cosine, found = neighbours(space.queries_NW, space.queries_NW, policy.pool_neighbours)
    row = np.repeat(np.arange(count), found.shape[1])
    column, cosine = found.ravel(), cosine.ravel()
    keep = (cosine >= policy.pool_cosine) & same_leaf(nodes.query_leaf[row], nodes.query_leaf[column]) & (row != column)
    say = np.exp((np.minimum(cosine[keep], 1) - 1) / policy.pool_temperature)
    own = np.arange(count)
    data = np.concatenate([say, np.ones(count)])
    matrix = csr_array(
        (data, (np.concatenate([row[keep], own]), np.concatenate([column[keep], own]))), shape=(count, count)
    )
    return csr_array(matrix.multiply(1 / matrix.sum(axis=1)[:, None]))


def same_leaf(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """True where two leaf codes are equal or one is unknown."""
    return (a == b) | (a < 0) | (b < 0)


def query_shares(space: Space, nodes: Nodes, source: np.ndarray, *, policy: Policy) -> csr_array:
    """(N, M) sparse: how a query divides itself over the documents; a row sums to 1 for each source that it meets.

    logit = cos(pooled query, document) / `content_temperature` + `click_weight` * pooled click share, softmax over the
    documents of one source among the nearest by content and the clicked ones, inside the query's leaf.
    """
    pool = pooling(space, nodes, policy=policy)
    pooled = np.ascontiguousarray(pool @ space.queries_NW, dtype=np.float32)
    voted = csr_array(pool @ nodes.clicks).tocoo()
    content_row, content_column = _content_candidates(pooled, space, nodes, source, policy)
    row = np.concatenate([voted.row, content_row])
    column = np.concatenate([voted.col, content_column])
    vote = np.concatenate([voted.data, np.zeros(len(content_row))])
    keep = same_leaf(nodes.query_leaf[row], nodes.document_leaf[column])
    # Duplicate entries add up: a document both voted for and near by content becomes one entry with its vote.
    votes = coo_array((vote[keep], (row[keep], column[keep])), shape=nodes.clicks.shape).tocsr().tocoo()
    cosine = np.einsum("pw,pw->p", pooled[votes.row], space.documents_MW[votes.col])
    logit = cosine / policy.content_temperature + policy.click_weight * votes.data
    group = votes.row.astype(np.int64) * 2 + source[votes.col]
    return csr_array((grouped_softmax(logit, group), (votes.row, votes.col)), shape=nodes.clicks.shape)


def _content_candidates(
    pooled: np.ndarray, space: Space, nodes: Nodes, source: np.ndarray, policy: Policy
) -> tuple[np.ndarray, np.ndarray]:
    """The nearest documents of each source that have an image and lie in the query's leaf: (query, document) pairs."""
    rows, columns = [], []
    for leaf in np.unique(nodes.query_leaf):
        asked = np.flatnonzero(nodes.query_leaf == leaf)
        for which in np.unique(source):
            fits = nodes.has_image & (source == which) & same_leaf(nodes.document_leaf, np.array(leaf))
            known = np.flatnonzero(fits)
            if len(known):
                found = neighbours(space.documents_MW[known], pooled[asked], policy.content_candidates)[1]
                rows.append(np.repeat(asked, found.shape[1]))
                columns.append(known[found.ravel()])
    return (np.concatenate(rows), np.concatenate(columns)) if rows else (np.zeros(0, int), np.zeros(0, int))


def grouped_softmax(logit: np.ndarray, group: np.ndarray) -> np.ndarray:
    """softmax of `logit` within each value of `group`."""
    codes = np.unique(group, return_inverse=True)[1]
    top = np.full(codes.max(initial=-1) + 1, -np.inf)
    np.maximum.at(top, codes, logit)
    weight = np.exp(logit - top[codes])
    return np.asarray(weight / np.bincount(codes, weight)[codes])


def document_affinity(shares: csr_array, source: np.ndarray, leaf: np.ndarray, *, policy: Policy) -> csr_array:
    """(M, M) sparse, zero diagonal: a_ij = sum_n s_ni s_nj / sqrt(size_i size_j), size = sum of shares + prior.

    Two documents that the same queries divide themselves over are of one category. Within one source it counts only
    `same_source_weight`, once sources are believed: there, queries hesitate between look-alikes.
    """
    size = np.asarray(shares.sum(axis=0)).ravel() + SIZE_PRIOR
    kept = shares.copy()
    kept.data[kept.data < 1e-3] = 0
    kept.eliminate_zeros()
    product = csr_array(kept.T @ kept).tocoo()
    keep = (product.row != product.col) & same_leaf(leaf[product.row], leaf[product.col])
    row, column = product.row[keep], product.col[keep]
    value = product.data[keep] / np.sqrt(size[row] * size[column])
    if source.any():
        value = np.where(source[row] == source[column], policy.same_source_weight * value, value)
    return csr_array((value, (row, column)), shape=product.shape)


def mutual_pairs(affinity: csr_array, *, count: int, least: float) -> np.ndarray:
    """(P, 2) pairs i < j that are among each other's `count` largest affinities, each at least `least`."""
    rows = np.repeat(np.arange(affinity.shape[0]), np.diff(affinity.indptr))
    order = np.lexsort((affinity.indices, -affinity.data, rows))
    row, column, value = rows[order], affinity.indices[order], affinity.data[order]
    place = np.arange(len(row)) - np.repeat(affinity.indptr[:-1], np.diff(affinity.indptr))
    top = (place < count) & (value >= least)
    chosen = set(zip(row[top].tolist(), column[top].tolist(), strict=True))
    return np.array(sorted((i, j) for i, j in chosen if i < j and (j, i) in chosen), dtype=np.int64).reshape(-1, 2)


def matched_pairs(affinity: csr_array, source: np.ndarray, *, least: float) -> np.ndarray:
    """(P, 2): each document of source 0 with one of source 1, so that the affinities add up to the most.

    Solved exactly in each connected component (Hungarian method); pairs below `least` are dropped.
    """
    across = affinity.tocoo()
    keep = source[across.row] != source[across.col]
    graph = csr_array((across.data[keep], (across.row[keep], across.col[keep])), shape=affinity.shape)
    _, component = connected_components(graph, directed=False)
    order = np.argsort(component, kind="stable")
    found = []
    for members in np.split(order, np.flatnonzero(np.diff(component[order])) + 1):
        left, right = members[source[members] == 0], members[source[members] == 1]
        if not len(left) or not len(right):
            continue
        if max(len(left), len(right)) > MAX_ASSIGNMENT:
            part = mutual_pairs(graph[members][:, members], count=1, least=least)
            found += [(members[i], members[j]) for i, j in part]
            continue
        gain = graph[left][:, right].toarray()
        i, j = linear_sum_assignment(gain, maximize=True)
        strong = gain[i, j] >= max(least, 1e-9)
        found += list(zip(left[i[strong]], right[j[strong]], strict=True))
    return np.array(sorted((min(p), max(p)) for p in found), dtype=np.int64).reshape(-1, 2)


def resolutions(source: np.ndarray) -> tuple[float, ...]:
    """Those to choose from, fine last; the middle one is taken before a choice is made."""
    return RESOLUTIONS if source.any() else RESOLUTIONS_OF_ONE_SOURCE


def leiden_groups(affinity: csr_array, pairs: np.ndarray, *, resolution: float, seed: int) -> np.ndarray:
    """(M,) group of each document: Leiden (Traag, Waltman, van Eck 2019), constant Potts model, on the given pairs.

    Components are only a blocker: one false edge would join two categories.
    """
    weights = np.asarray(affinity[pairs[:, 0], pairs[:, 1]]).ravel()
    graph = igraph.Graph(n=affinity.shape[0], edges=pairs.tolist())
    igraph.set_random_number_generator(_Draws(seed))
    try:
        found = graph.community_leiden(
            objective_function="CPM", weights=weights.tolist(), resolution=resolution, n_iterations=10
        )
    finally:
        igraph.set_random_number_generator(None)
    return np.array(found.membership, dtype=np.int64)


class _Draws:
    """A seeded generator with the three methods that igraph asks for."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)

    def random(self) -> float:
        return float(self._rng.random())

    def randint(self, low: int, high: int) -> int:
        return int(self._rng.integers(low, high + 1))

    def gauss(self, mean: float, deviation: float) -> float:
        return float(self._rng.normal(mean, deviation))


def group_shares(shares: csr_array, group: np.ndarray) -> csr_array:
    """(N, G): shares of documents added up per group, rows scaled to sum 1."""
    count = int(group.max(initial=-1)) + 1
    member = csr_array((np.ones(len(group)), (np.arange(len(group)), group)), shape=(len(group), count))
    per_group = csr_array(shares @ member)
    total = per_group.sum(axis=1)
    return csr_array(per_group.multiply((1 / np.where(total > 0, total, 1))[:, None]))


def best_two(per_group: csr_array) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(best group or -1, its share, second group or -1, its share) per row; ties go to the smaller group."""
    count = per_group.shape[0]
    best, second = np.full(count, -1), np.full(count, -1)
    share, next_share = np.zeros(count), np.zeros(count)
    rows = np.repeat(np.arange(count), np.diff(per_group.indptr))
    order = np.lexsort((per_group.indices, -per_group.data, rows))
    column, value = per_group.indices[order], per_group.data[order]
    for target, values, place in ((best, share, 0), (second, next_share, 1)):
        has = np.flatnonzero(np.diff(per_group.indptr) > place)
        at = per_group.indptr[has] + place
        target[has], values[has] = column[at], value[at]
    return best, share, second, next_share


def click_fit(edges_P2: np.ndarray, best: np.ndarray, group: np.ndarray, leaf: np.ndarray) -> float:
    """Share of clicks that land inside their query's group, beyond what chance within the leaf gives.

    The bipartite modularity of Barber (2007) with a null model per leaf: joining two unrelated groups of a leaf
    catches wrong clicks, but no more of them than chance.

        mean over edges (q, d) of [group d = best q] - (clicks on the leaf of d in best q) / (clicks on the leaf of d)
    """
    asked, clicked = edges_P2[:, 0], edges_P2[:, 1]
    per_leaf = Counter(leaf[clicked].tolist())
    per_group = Counter(zip(leaf[clicked].tolist(), group[clicked].tolist(), strict=True))
    inside = float((group[clicked] == best[asked]).mean())
    drawn = zip(leaf[clicked].tolist(), best[asked].tolist(), strict=True)
    return inside - float(np.mean([per_group[code, own] / per_leaf[code] for code, own in drawn]))
