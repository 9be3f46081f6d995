"""What organise reads: entities in a fixed order, the edges between them, features as one or two encoders see them.

A trained model of ours has learned from the very clicks that it is to judge. So it is a second view beside the packaged
network's, never the only one: each view divides the queries by itself, and documents are paired in the first alone.

Letters: N queries, M documents, P edges, F features, R reduced features.
"""

from dataclasses import dataclass, replace

import numpy as np
from scipy.sparse import coo_array, csr_array

from data_governance.grouping.assignments import Nodes
from data_governance.grouping.feature_space import never_negative, prepared, principal_axes, reduced
from data_governance.grouping.projection import Scale, scale
from data_governance.inputs.tables import feature_matrix
from data_governance.stage import Workspace
from data_governance.stages.admit import leaf_of

FEATURE_WIDTH = 1_000


@dataclass(frozen=True)
class View:
    """Features of both sides as one encoder sees them.

    Attributes:
        share: of dividing the queries; the shares of all views add up to 1.
        shrinkage: of the scatter that the clicks teach in this view.
    """

    queries_NF: np.ndarray
    documents_MF: np.ndarray
    share: float = 1.0
    shrinkage: float = 0.5


@dataclass(frozen=True)
class Evidence:
    """Entities in a fixed order with all that speaks about them; arrays follow `query_ids` and `doc_ids`."""

    query_ids: list[str]
    doc_ids: list[str]
    views: tuple[View, ...]
    edges_P2: np.ndarray
    nodes: Nodes


@dataclass(frozen=True)
class Preparation:
    """What turned raw features into those of a view: scales of both sides, axes (None where all were kept)."""

    query: Scale
    document: Scale
    axes_FR: np.ndarray | None


def gather(workspace: Workspace, *, second_share: float) -> Evidence:
    """Entities (representatives only), their raw features and the edges between them, in the order of the ids.

    Args:
        second_share: of the second view, where the encoder gave two.
    """
    rows = {}
    for name, key in (("queries", "query_id"), ("documents", "doc_id")):
        table = workspace.table("dedupe", name)
        own = np.array(table.column(key).to_pylist(), dtype=object) == np.array(
            table.column("entity").to_pylist(), dtype=object
        )
        ids = np.array(table.column(key).to_pylist(), dtype=object)
        order = np.array(sorted(np.flatnonzero(own), key=lambda i: ids[i]), dtype=np.int64)
        features = feature_matrix(workspace.table("admit", f"{name}_features").column("features"))[order]
        rows[name] = (ids[order].tolist(), features, table.take(order))
    query_ids, query_features, _ = rows["queries"]
    doc_ids, doc_features, documents = rows["documents"]
    has_image = documents.column("has_image").to_numpy(zero_copy_only=False)
    edges = workspace.table("weigh", "edges")
    place = {row_id: i for i, row_id in enumerate(query_ids)}, {row_id: i for i, row_id in enumerate(doc_ids)}
    pairs = np.array(
        [
            (place[0][q], place[1][d])
            for q, d in zip(*(edges.column(c).to_pylist() for c in ("query", "doc")), strict=True)
        ],
        dtype=np.int64,
    ).reshape(-1, 2)
    clicks = click_matrix(pairs, (len(query_ids), len(doc_ids)))
    names = np.array(leaf_of(documents))
    codes = np.unique(names, return_inverse=True)[1]
    document_leaf = np.where(names == "", -1, codes)
    nodes = Nodes(clicks, query_leaf(clicks, document_leaf), document_leaf, has_image)
    widths = [sum(blocks) for blocks in view_blocks(workspace)]
    views = split_views(query_features, doc_features, widths, second_share=second_share)
    return Evidence(query_ids, doc_ids, views, pairs, nodes)


def view_blocks(workspace: Workspace) -> list[list[int]]:
    """Widths of the encoder's blocks, view by view."""
    notes = workspace.record("admit")["notes"]
    blocks, first = notes["blocks"], notes["views"][0]
    return [part for part in (blocks[:first], blocks[first:]) if part]


def split_views(
    queries_NF: np.ndarray, documents_MF: np.ndarray, widths: list[int], *, second_share: float
) -> tuple[View, ...]:
    """One view with all of the say, or two, the second with `second_share` of it."""
    parts = [np.split(side, np.cumsum(widths)[:-1], axis=1) for side in (queries_NF, documents_MF)]
    say = [1.0] if len(widths) == 1 else [1 - second_share, second_share]
    return tuple(View(q, d, share) for q, d, share in zip(*parts, say, strict=True))


def prepared_evidence(entities: Evidence, blocks: list[list[int]]) -> tuple[list[Preparation], Evidence]:
    """(how each view was prepared, the same entities with features centred, scaled, reduced)."""
    everywhere, has_image = np.ones(len(entities.query_ids), dtype=bool), entities.nodes.has_image
    how, views = [], []
    for view, widths in zip(entities.views, blocks, strict=True):
        rooted = never_negative(view.queries_NF, view.documents_MF, widths)
        sides = ((view.queries_NF, everywhere), (view.documents_MF, has_image))
        queries, documents = (prepared(features, seen, widths, rooted) for features, seen in sides)
        axes = principal_axes(queries, documents, width=FEATURE_WIDTH)
        query, document = (scale(features, seen, widths, rooted) for features, seen in sides)
        how.append(Preparation(query, document, axes))
        views.append(replace(view, queries_NF=reduced(queries, axes), documents_MF=reduced(documents, axes)))
    return how, replace(entities, views=tuple(views))


def query_leaf(clicks: csr_array, document_leaf: np.ndarray) -> np.ndarray:
    """The leaf most clicked by each query; -1 without clicks on a known leaf. Ties go to the smaller code."""
    count = max(int(document_leaf.max(initial=-1)) + 1, 1)
    known = document_leaf >= 0
    member = csr_array(
        (known.astype(float), (np.arange(len(document_leaf)), document_leaf.clip(0))), shape=(len(known), count)
    )
    votes = coo_array(clicks @ member)
    leaf = np.full(clicks.shape[0], -1)
    order = np.lexsort((votes.col, -votes.data, votes.row))
    row, first = np.unique(votes.row[order], return_index=True)
    chosen = order[first]
    leaf[row] = np.where(votes.data[chosen] > 0, votes.col[chosen], -1)
    return leaf


def click_matrix(edges_P2: np.ndarray, shape: tuple[int, int]) -> csr_array:
    return csr_array((np.ones(len(edges_P2)), (edges_P2[:, 0], edges_P2[:, 1])), shape=shape)
