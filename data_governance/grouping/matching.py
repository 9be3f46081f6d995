"""Group documents by the queries assigned to them: affinity, matching, Leiden.

Letters: N queries, M documents, G groups. Sparse throughout: no N x M or M x M array is built.
"""

from collections import Counter
from itertools import chain

import igraph
import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from data_governance.grouping.assignments import same_leaf
from data_governance.policy import Policy

# Components with more documents on one side are matched by mutual best: the exact method is cubic.
MAX_ASSIGNMENT = 3_000
# Pseudo-queries added to the size of every document, so that one common query does not give affinity 1.
SIZE_PRIOR = 0.5
NEIGHBOURS = 5
WORDS_AT_ONCE = 4_096
# Factor on the affinity of two documents that no query has clicked both of, with one source. Content alone makes them
# alike, and where content is weak such pairs are hardly ever right; without any, sparse logs lose right ones.
UNSHARED_WEIGHT = 0.3
# With one source a category may hold many documents, so more and weaker pairs enter the graph, and lower resolutions
# are tried: the affinity of two of n equally clicked documents is about 1 / n.
NEIGHBOURS_OF_ONE_SOURCE = 15
LEAST_AFFINITY_OF_ONE_SOURCE = 0.002
RESOLUTIONS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.4)
RESOLUTIONS_OF_ONE_SOURCE = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1)


def document_affinity(assignments: csr_array, source: np.ndarray, leaf: np.ndarray, *, policy: Policy) -> csr_array:
    """(M, M) sparse, zero diagonal: a_ij = sum_n s_ni s_nj / sqrt(size_i size_j), size = sum of assignments + prior.

    Documents that the same queries are assigned to belong to one category. With two sources, pairs of one source are
    multiplied by `same_source_weight`: there, queries are often split between similar documents.
    """
    size = np.asarray(assignments.sum(axis=0)).ravel() + SIZE_PRIOR
    # Tiny assignments add little affinity but many entries to the product.
    kept = assignments.copy()
    kept.data[kept.data < 1e-3] = 0
    kept.eliminate_zeros()
    product = csr_array(kept.T @ kept).tocoo()
    keep = (product.row != product.col) & same_leaf(leaf[product.row], leaf[product.col])
    row, column = product.row[keep], product.col[keep]
    value = product.data[keep] / np.sqrt(size[row] * size[column])
    if source.any():
        value = np.where(source[row] == source[column], policy.same_source_weight * value, value)
    return csr_array((value, (row, column)), shape=product.shape)


def weakened_without_shared_query(affinity: csr_array, clicks: csr_array) -> csr_array:
    """(M, M): pairs of documents that no query has clicked both of are multiplied by `UNSHARED_WEIGHT`.

    Only where one could have: a pair stays as it is if all queries of both clicked a single document.

    Args:
        clicks: (N, M), non-zero where a query has clicked a document.
    """
    clicked = csr_array((np.ones_like(clicks.data, np.float64), clicks.indices, clicks.indptr), shape=clicks.shape)
    shared = csr_array(clicked.T @ clicked)
    of_several = np.asarray(clicked.sum(axis=1)).ravel() > 1
    could_share = np.asarray(clicked[of_several].sum(axis=0)).ravel() > 0
    pairs = affinity.tocoo()
    is_shared = np.asarray(shared[pairs.row, pairs.col]).ravel() > 0
    weak = ~is_shared & (could_share[pairs.row] | could_share[pairs.col])
    value = np.where(weak, UNSHARED_WEIGHT * pairs.data, pairs.data)
    return csr_array((value, (pairs.row, pairs.col)), shape=affinity.shape)


def mutual_pairs(affinity: csr_array, *, count: int, least: float) -> np.ndarray:
    """(P, 2) pairs i < j, each among the `count` largest affinities of the other and at least `least`."""
    size = affinity.shape[0]
    strong = affinity.data >= least
    row = np.repeat(np.arange(size), np.diff(affinity.indptr))[strong]
    column, value = affinity.indices[strong].astype(np.int64), affinity.data[strong]
    order = np.lexsort((column, -value, row))
    start = np.searchsorted(row, np.arange(size))
    # Rank of each entry within its row; a pair is mutual if its reverse is among the kept entries too.
    top = order[np.arange(len(order)) - start[row[order]] < count]
    name, back = row[top] * size + column[top], column[top] * size + row[top]
    chosen = np.unique(name[(row[top] < column[top]) & np.isin(name, back)])
    return np.stack(np.divmod(chosen, size), axis=1)


def matched_pairs(affinity: csr_array, source: np.ndarray, *, least: float) -> np.ndarray:
    """(P, 2): each document of source 0 with one of source 1, with the largest sum of affinities.

    Solved exactly in each connected component (Hungarian method); pairs below `least` are dropped.
    """
    across = affinity.tocoo()
    keep = source[across.row] != source[across.col]
    graph = csr_array((across.data[keep], (across.row[keep], across.col[keep])), shape=affinity.shape)
    _, component = connected_components(graph, directed=False)
    order = np.argsort(component, kind="stable")
    found = []
    # Components are independent problems, so the cubic method sees small matrices.
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
    """Resolutions to choose from, the finest last."""
    return RESOLUTIONS if source.any() else RESOLUTIONS_OF_ONE_SOURCE


def leiden_groups(affinity: csr_array, pairs: np.ndarray, *, resolution: float, seed: int) -> np.ndarray:
    """(M,) group of each document: Leiden (Traag, Waltman, van Eck 2019), constant Potts model, on the given pairs.

    Connected components would not do: one false pair would merge two categories.
    """
    if not len(pairs):
        return np.arange(affinity.shape[0])
    weights = np.asarray(affinity[pairs[:, 0], pairs[:, 1]]).ravel()
    graph = igraph.Graph(n=affinity.shape[0], edges=pairs.tolist())
    igraph.set_random_number_generator(_IgraphRandom(seed))
    try:
        found = graph.community_leiden(
            objective_function="CPM", weights=weights.tolist(), resolution=resolution, n_iterations=10
        )
    finally:
        igraph.set_random_number_generator(None)
    return np.array(found.membership, dtype=np.int64)


class _IgraphRandom:
    """A seeded generator with the three methods that igraph needs.

    Leiden draws a few numbers per node, each through a call from C, so 64-bit words of numpy's default generator are
    drawn in blocks. Each word is used as numpy does: as two integers of 32 bits, the low half first, or as one fraction
    of 53 bits.
    """

    def __init__(self, seed: int) -> None:
        self._bits = np.random.PCG64(seed)
        blocks = iter(lambda: self._bits.random_raw(WORDS_AT_ONCE).tolist(), None)
        self._next_word = chain.from_iterable(blocks).__next__
        self._half = -1

    def random(self) -> float:
        return float((self._next_word() >> 11) * 2.0**-53)

    def randint(self, low: int, high: int) -> int:
        found = self._half
        if found < 0:
            word = self._next_word()
            found, self._half = word & 0xFFFFFFFF, word >> 32
        else:
            self._half = -1
        return low + (found * (high - low + 1) >> 32)

    def gauss(self, mean: float, deviation: float) -> float:
        return float(np.random.Generator(self._bits).normal(mean, deviation))


def group_assignments(assignments: csr_array, group: np.ndarray) -> csr_array:
    """(N, G): assignments summed per group, rows scaled to sum 1."""
    count = int(group.max(initial=-1)) + 1
    member = csr_array((np.ones(len(group)), (np.arange(len(group)), group)), shape=(len(group), count))
    per_group = csr_array(assignments @ member)
    total = per_group.sum(axis=1)
    return csr_array(per_group.multiply((1 / np.where(total > 0, total, 1))[:, None]))


def best_two(per_group: csr_array) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(best group or -1, its share, second group or -1, its share) per row; ties go to the smaller group."""
    rows = np.repeat(np.arange(per_group.shape[0]), np.diff(per_group.indptr))
    column, value = per_group.indices, per_group.data
    best, share = _largest(rows, column, value, per_group.shape)
    rest = column != best[rows]
    second, next_share = _largest(rows[rest], column[rest], value[rest], per_group.shape)
    return best, share, second, next_share


def _largest(
    rows: np.ndarray, column: np.ndarray, value: np.ndarray, shape: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """(column of the largest value or -1, that value or 0) per row; `rows` ascend, ties go to the smaller column."""
    place, largest = np.full(shape[0], -1), np.zeros(shape[0])
    start = np.flatnonzero(np.diff(rows, prepend=-1))
    if len(start):
        named = rows[start]
        largest[named] = np.maximum.reduceat(value, start)
        tied = np.where(value == largest[rows], column, shape[1])
        place[named] = np.minimum.reduceat(tied, start)
    return place, largest


def click_fit(edges_P2: np.ndarray, best: np.ndarray, group: np.ndarray, leaf: np.ndarray) -> float:
    """Share of clicks inside their query's group, minus the share expected by chance within the leaf.

    Bipartite modularity (Barber 2007) with a null model per leaf: merging two unrelated groups of a leaf captures wrong
    clicks, but no more than chance.

        mean over edges (q, d) of [group d = best q] - (clicks on the leaf of d in best q) / (clicks on the leaf of d)
    """
    query, clicked = edges_P2[:, 0], edges_P2[:, 1]
    per_leaf = Counter(leaf[clicked].tolist())
    per_group = Counter(zip(leaf[clicked].tolist(), group[clicked].tolist(), strict=True))
    inside = float((group[clicked] == best[query]).mean())
    pairs = zip(leaf[clicked].tolist(), best[query].tolist(), strict=True)
    return inside - float(np.mean([per_group[code, own] / per_leaf[code] for code, own in pairs]))


def clicks_outside(edges_P2: np.ndarray, best: np.ndarray, group: np.ndarray) -> dict[str, object]:
    """Share of clicked pairs (q, d) with d outside the category of q, and its 95% interval.

    It estimates the share of wrong clicks, if the categories are right. The clicks of a query are dependent, so
    queries are the sampling unit: r = sum of outside / sum of clicks, deviation
    sqrt(sum over q of (outside - r clicks)^2) / sum of clicks (the ratio estimator; Cochran 1977, chapter 6).
    """
    query, clicked = edges_P2[:, 0], edges_P2[:, 1]
    outside = np.bincount(query, group[clicked] != best[query], len(best))
    clicks = np.bincount(query, minlength=len(best))
    share = outside.sum() / max(clicks.sum(), 1)
    deviation = float(np.sqrt(((outside - share * clicks) ** 2).sum()) / max(clicks.sum(), 1))
    ends = [round(float(np.clip(share + side * 1.96 * deviation, 0, 1)), 4) for side in (-1, 1)]
    return {"clicks_outside": round(float(share), 4), "clicks_outside_interval": ends}
