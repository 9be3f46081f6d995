"""Stage 6, merge and split: categories that clicks and content call one are joined; one with two modes is parted.

A merge needs both: prototypes closer than `merge_cosine`, and clicks that cross in both directions. A split needs both:
two parts of a category's queries that lie apart, and clicks of the parts that go to different documents.
"""

import igraph
import numpy as np
import pyarrow as pa

from data_governance.grouping.assignments import neighbours
from data_governance.inputs.tables import feature_matrix
from data_governance.policy import Policy
from data_governance.stage import StageResult, Workspace
from data_governance.stages.clean import members_of

NEAREST = 10
LEAST_CLICKS = 4
# Of the clicks of a part, the share that must go to its own documents for a split.
OWN_SHARE = 0.8


def merge_split(workspace: Workspace, *, policy: Policy) -> StageResult:
    """Join, then part; a document or query whose category changed is recorded."""
    queries, documents = workspace.table("clean", "queries"), workspace.table("clean", "documents")
    query_label = queries.column("category").to_numpy()
    document_label = documents.column("category").to_numpy()
    vectors = feature_matrix(queries.column("vector"))
    edges = _edges(workspace, queries, documents)
    prototype, filled = _prototypes(vectors, query_label, documents)
    touched = np.unique(document_label[documents.column("touched").to_numpy(zero_copy_only=False)])
    joined = merges(prototype, filled, edges, query_label, document_label, policy=policy, touched=touched)
    new_query, new_document = joined[query_label], joined[document_label]
    new_query, new_document, parted = splits(
        vectors, new_query, new_document, edges, policy=policy, touched=np.unique(joined[touched])
    )
    result = StageResult(notes={"merged": int((joined != np.arange(len(joined))).sum()), "split": parted})
    for name, table, key, old, new in (
        ("queries", queries, "query", query_label, new_query),
        ("documents", documents, "doc", document_label, new_document),
    ):
        at = table.column_names.index("category")
        result.tables[name] = table.set_column(at, "category", pa.array(new))
        moved = np.flatnonzero(old != new)
        ids = table.column(key).to_pylist()
        source, row_key, kind = (name, "query_id", "queries") if key == "query" else (name, "doc_id", "catalogue")
        members = members_of(workspace, [ids[i] for i in moved], table=source, key=row_key)
        rows = [(row, i) for i in moved for row in members[ids[i]]]
        places = np.array([i for _, i in rows], dtype=np.int64)
        figures = {"old": old[places], "new": new[places]}
        result.decide(kind, [row for row, _ in rows], "relabelled", "category_joined_or_parted", **figures)
    return result


def _edges(workspace: Workspace, queries: pa.Table, documents: pa.Table) -> np.ndarray:
    """(P, 2) rows of queries and documents that an edge connects."""
    query = {row_id: i for i, row_id in enumerate(queries.column("query").to_pylist())}
    doc = {row_id: i for i, row_id in enumerate(documents.column("doc").to_pylist())}
    edges = workspace.table("weigh", "edges")
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


def merges(
    prototype: np.ndarray,
    filled: np.ndarray,
    edges: np.ndarray,
    query_label: np.ndarray,
    document_label: np.ndarray,
    *,
    policy: Policy,
    touched: np.ndarray | None = None,
) -> np.ndarray:
    """(categories,): the category that each one joins (itself when it stays).

    a and b, one of them in `touched` (None: any two), join when cos(prototypes) >= `merge_cosine` and of the clicks of
    either's queries at least `merge_click_share` go to the other's documents, with `LEAST_CLICKS` clicks on each side.
    """
    count = int(max(query_label.max(initial=0), document_label.max(initial=0))) + 1
    crossing: dict[tuple[int, int], int] = {}
    made = np.bincount(query_label[edges[:, 0]], minlength=count)
    for a, b in zip(query_label[edges[:, 0]].tolist(), document_label[edges[:, 1]].tolist(), strict=True):
        crossing[a, b] = crossing.get((a, b), 0) + 1
    cosine, found = neighbours(prototype, prototype, NEAREST + 1)
    graph = igraph.Graph(n=count)
    is_open = np.ones(count, dtype=bool) if touched is None else np.isin(np.arange(count), touched)
    chosen = []
    for i in range(len(filled)):
        for score, j in zip(cosine[i], found[i], strict=True):
            a, b = int(filled[i]), int(filled[j])
            if j <= i or score < policy.merge_cosine or min(made[a], made[b]) < LEAST_CLICKS:
                continue
            if not is_open[a] and not is_open[b]:
                continue
            ways = crossing.get((a, b), 0) / made[a], crossing.get((b, a), 0) / made[b]
            if min(ways) >= policy.merge_click_share:
                chosen.append((a, b))
    graph.add_edges(chosen)
    membership = np.array(graph.connected_components().membership)
    smallest = np.full(membership.max() + 1, count)
    np.minimum.at(smallest, membership, np.arange(count))
    return np.asarray(smallest[membership])


def splits(
    vectors: np.ndarray,
    query_label: np.ndarray,
    document_label: np.ndarray,
    edges: np.ndarray,
    *,
    policy: Policy,
    touched: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray, int]:
    """(query labels, document labels, number of categories parted), all of them in `touched` (None: any)."""
    query_label, document_label = query_label.copy(), document_label.copy()
    nodes = int(max(query_label.max(initial=0), document_label.max(initial=0))) + 1
    clicks_of: dict[int, list[tuple[int, int]]] = {}
    inside = query_label[edges[:, 0]] == document_label[edges[:, 1]]
    for q, d in edges[inside].tolist():
        clicks_of.setdefault(int(query_label[q]), []).append((q, d))
    parted = 0
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
        query_label[rows[side]] = nodes
        document_label[[d for d, which in owner.items() if which]] = nodes
        nodes, parted = nodes + 1, parted + 1
    return query_label, document_label, parted


def two_modes(rows_NW: np.ndarray, *, gap: float) -> np.ndarray | None:
    """(N,) bool parts when mean cosine inside the parts exceeds the mean across by `gap`; None otherwise.

    The parts are the signs along the first principal axis, the row furthest along it deciding which part is False.
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
    """Document -> part, when each part's clicks go to documents of its own (at least `OWN_SHARE` of them)."""
    count: dict[int, list[int]] = {}
    for part, document in clicks:
        count.setdefault(document, [0, 0])[part] += 1
    owner = {document: both[1] > both[0] for document, both in count.items()}
    if len(set(owner.values())) < 2:
        return None
    for part in (False, True):
        own = sum(both[part] for document, both in count.items() if owner[document] is part)
        made = sum(both[part] for both in count.values())
        if made < LEAST_CLICKS or own < OWN_SHARE * made:
            return None
    return owner
