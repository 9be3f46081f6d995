"""Stage 6, merge_split: merge equal categories, split those with two modes.

A merge needs prototypes closer than `merge_cosine` and clicks that cross in both directions. A split needs two distant
parts of a category's queries, whose clicks go to different documents.
"""

from dataclasses import dataclass

import igraph
import numpy as np
import pyarrow as pa

from data_governance.context import GovernanceContext
from data_governance.entities import DOCUMENT, QUERY, rows_of_entities
from data_governance.grouping.assignments import neighbours
from data_governance.inputs.tables import feature_matrix
from data_governance.policy import Policy
from data_governance.stage import StageResult, Workspace

NEAREST = 10
LEAST_CLICKS = 4
# For a split, the least share of the clicks of a part that go to its own documents.
OWN_SHARE = 0.8


def run(context: GovernanceContext) -> StageResult:
    """Stage 6 in the folder of the run."""
    return merge_split(context.workspace, policy=context.policy)


def merge_split(workspace: Workspace, *, policy: Policy) -> StageResult:
    """Merge, then split; record documents and queries whose category changed."""
    queries, documents = workspace.table("clean", "queries"), workspace.table("clean", "documents")
    query_label = queries.column("category").to_numpy()
    document_label = documents.column("category").to_numpy()
    vectors = feature_matrix(queries.column("vector"))
    edges = _edges(workspace, queries, documents)
    prototype, filled = _prototypes(vectors, query_label, documents)
    touched = np.unique(document_label[documents.column("touched").to_numpy(zero_copy_only=False)])
    before = Labels(query_label, document_label)
    merged = merges(prototype, filled, edges, before, policy=policy, touched=touched)
    after = Labels(merged[query_label], merged[document_label])
    after, num_split = splits(vectors, after, edges, policy=policy, touched=np.unique(merged[touched]))
    result = StageResult(notes={"merged": int((merged != np.arange(len(merged))).sum()), "split": num_split})
    for side, table, old, new in (
        (QUERY, queries, before.query, after.query),
        (DOCUMENT, documents, before.document, after.document),
    ):
        at = table.column_names.index("category")
        result.tables[side.table] = table.set_column(at, "category", pa.array(new))
        moved = np.flatnonzero(old != new)
        ids = table.column(side.entity).to_pylist()
        members = rows_of_entities(workspace, [ids[i] for i in moved], side)
        rows = [(row, i) for i in moved for row in members[ids[i]]]
        places = np.array([i for _, i in rows], dtype=np.int64)
        figures = {"old": old[places], "new": new[places]}
        result.decide(side.source, [row for row, _ in rows], "relabelled", "category_joined_or_parted", **figures)
    return result


def _edges(workspace: Workspace, queries: pa.Table, documents: pa.Table) -> np.ndarray:
    """(P, 2) rows of queries and documents connected by an edge."""
    query = {row_id: i for i, row_id in enumerate(queries.column("query").to_pylist())}
    doc = {row_id: i for i, row_id in enumerate(documents.column("doc").to_pylist())}
    edges = workspace.table("click_rates", "edges")
    both = zip(edges.column("query").to_pylist(), edges.column("doc").to_pylist(), strict=True)
    return np.array([(query[q], doc[d]) for q, d in both if q in query], dtype=np.int64).reshape(-1, 2)


def _prototypes(vectors: np.ndarray, label: np.ndarray, documents: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """(unit prototypes (K, W) of categories with any vector, their numbers (K,))."""
    member = np.concatenate([vectors, feature_matrix(documents.column("vector"))])
    names = np.concatenate([label, documents.column("category").to_numpy()])
    total = np.zeros((int(names.max()) + 1, member.shape[1]), dtype=np.float64)
    np.add.at(total, names, member)
    length = np.linalg.norm(total, axis=1)
    filled = np.flatnonzero(length > 0)
    return np.ascontiguousarray(total[filled] / length[filled][:, None], dtype=np.float32), filled


@dataclass(frozen=True)
class Labels:
    """Category number of every query and every document."""

    query: np.ndarray
    document: np.ndarray

    @property
    def num_categories(self) -> int:
        """Category numbers are below this."""
        return int(max(self.query.max(initial=0), self.document.max(initial=0))) + 1


def merges(
    prototype: np.ndarray,
    filled: np.ndarray,
    edges: np.ndarray,
    label: Labels,
    *,
    policy: Policy,
    touched: np.ndarray | None = None,
) -> np.ndarray:
    """(categories,): the category that each one is merged into, itself if it stays.

    a and b are merged if at least one is in `touched` (None: any two), cos(prototypes) >= `merge_cosine`, and of the
    clicks of either's queries at least `merge_click_share` go to the other's documents, with at least `LEAST_CLICKS`
    clicks on each side.

    Args:
        prototype: (K, W) of the categories `filled` (K,).
    """
    count = label.num_categories
    crossing: dict[tuple[int, int], int] = {}
    clicks = np.bincount(label.query[edges[:, 0]], minlength=count)
    for a, b in zip(label.query[edges[:, 0]].tolist(), label.document[edges[:, 1]].tolist(), strict=True):
        crossing[a, b] = crossing.get((a, b), 0) + 1
    cosine, found = neighbours(prototype, prototype, NEAREST + 1)
    graph = igraph.Graph(n=count)
    is_open = np.ones(count, dtype=bool) if touched is None else np.isin(np.arange(count), touched)
    chosen = []
    for i in range(len(filled)):
        for score, j in zip(cosine[i], found[i], strict=True):
            a, b = int(filled[i]), int(filled[j])
            # Each pair once (j > i); few clicks are no evidence.
            if j <= i or score < policy.merge_cosine or min(clicks[a], clicks[b]) < LEAST_CLICKS:
                continue
            if not is_open[a] and not is_open[b]:
                continue
            shares = crossing.get((a, b), 0) / clicks[a], crossing.get((b, a), 0) / clicks[b]
            if min(shares) >= policy.merge_click_share:
                chosen.append((a, b))
    graph.add_edges(chosen)
    membership = np.array(graph.connected_components().membership)
    smallest = np.full(membership.max() + 1, count)
    np.minimum.at(smallest, membership, np.arange(count))
    return np.asarray(smallest[membership])


def splits(
    vectors: np.ndarray, label: Labels, edges: np.ndarray, *, policy: Policy, touched: np.ndarray | None = None
) -> tuple[Labels, int]:
    """(new labels, number of categories split); only categories in `touched` are split (None: any)."""
    query_label, document_label = label.query.copy(), label.document.copy()
    free = label.num_categories
    clicks_of: dict[int, list[tuple[int, int]]] = {}
    inside = query_label[edges[:, 0]] == document_label[edges[:, 1]]
    for q, d in edges[inside].tolist():
        clicks_of.setdefault(int(query_label[q]), []).append((q, d))
    num_split = 0
    for category in sorted(set(clicks_of) & set(clicks_of if touched is None else touched.tolist())):
        clicks = clicks_of[category]
        rows = np.array(sorted({q for q, _ in clicks}))
        if len(rows) < 2 * LEAST_CLICKS or len({d for _, d in clicks}) < 2:
            continue
        side = two_modes(vectors[rows], gap=policy.split_gap)
        if side is None:
            continue
        part = dict(zip(rows.tolist(), side.tolist(), strict=True))
        owner = split_documents([(part[q], d) for q, d in clicks])
        if owner is None:
            continue
        query_label[rows[side]] = free
        document_label[[d for d, which in owner.items() if which]] = free
        free, num_split = free + 1, num_split + 1
    return Labels(query_label, document_label), num_split


def two_modes(rows_NW: np.ndarray, *, gap: float) -> np.ndarray | None:
    """(N,) bool parts if the mean cosine inside the parts exceeds the mean across by `gap`, else None.

    The parts are the signs along the first principal axis; the first row is in part False.
    """
    centred = rows_NW - rows_NW.mean(axis=0)
    axis = np.linalg.svd(centred, full_matrices=False)[2][0]
    side = np.asarray(centred @ axis > 0)
    side = side ^ side[0]
    if side.all() or not side.any():
        return None
    a, b = rows_NW[~side].sum(axis=0), rows_NW[side].sum(axis=0)
    n, m = int((~side).sum()), int(side.sum())
    pairs = n * (n - 1) + m * (m - 1)
    inside = (a @ a - n + b @ b - m) / max(pairs, 1)
    return side if pairs and inside - (a @ b) / (n * m) >= gap else None


def split_documents(clicks: list[tuple[bool, int]]) -> dict[int, bool] | None:
    """Document -> part, if at least `OWN_SHARE` of each part's clicks go to documents of its own, else None."""
    count: dict[int, list[int]] = {}
    for part, document in clicks:
        count.setdefault(document, [0, 0])[part] += 1
    owner = {document: both[1] > both[0] for document, both in count.items()}
    if len(set(owner.values())) < 2:
        return None
    for part in (False, True):
        own = sum(both[part] for document, both in count.items() if owner[document] is part)
        total = sum(both[part] for both in count.values())
        if total < LEAST_CLICKS or own < OWN_SHARE * total:
            return None
    return owner
