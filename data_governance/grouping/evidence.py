"""Load the input of organise: entities, click edges, features in views.

An OCLEAR encoder was trained on the clicks that are judged here, so it is a second view beside the packaged network and
never the only one: each view assigns the queries by itself, and documents are linked by the first view alone.

Letters: N queries, M documents, P edges, F features, R reduced features.
"""

from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from scipy.sparse import coo_array, csr_array

from data_governance.entities import DOCUMENT, QUERY, Side
from data_governance.grouping.assignments import ClickGraph
from data_governance.grouping.feature_space import non_negative_blocks, prepared, principal_axes, reduced
from data_governance.grouping.projection import Preparation, fit_scale
from data_governance.inputs.tables import feature_matrix
from data_governance.stage import Workspace

FEATURE_WIDTH = 1_000


@dataclass(frozen=True)
class View:
    """Features of both sides from one encoder.

    Attributes:
        share: weight of this view in assigning queries; the shares of all views sum to 1.
        shrinkage: of the within-pair scatter in this view.
    """

    queries_NF: np.ndarray
    documents_MF: np.ndarray
    share: float = 1.0
    shrinkage: float = 0.5


@dataclass(frozen=True)
class Evidence:
    """Entities in a fixed order with their features and clicks; arrays follow `query_ids` and `doc_ids`.

    `edges_P2` are the clicked pairs, `weights_P` their weights (`click_weights`).
    """

    query_ids: list[str]
    doc_ids: list[str]
    views: tuple[View, ...]
    edges_P2: np.ndarray
    weights_P: np.ndarray
    graph: ClickGraph


def load_evidence(workspace: Workspace, *, second_share: float) -> Evidence:
    """Entities (representatives only), their raw features and the edges between them, in the order of the ids.

    Args:
        second_share: weight of the second view, if the encoder has two.
    """
    query_ids, query_features, _ = _entities(workspace, QUERY)
    doc_ids, doc_features, documents = _entities(workspace, DOCUMENT)
    has_image = documents.column("has_image").to_numpy(zero_copy_only=False)
    edges = workspace.table("click_rates", "edges")
    place = {row_id: i for i, row_id in enumerate(query_ids)}, {row_id: i for i, row_id in enumerate(doc_ids)}
    pairs = np.array(
        [
            (place[0][q], place[1][d])
            for q, d in zip(*(edges.column(c).to_pylist() for c in ("query", "doc")), strict=True)
        ],
        dtype=np.int64,
    ).reshape(-1, 2)
    weights = click_weights(pairs, edges.column("clicks").to_numpy())
    clicks = click_matrix(pairs, (len(query_ids), len(doc_ids)), weights)
    names = np.array(leaf_of(documents))
    codes = np.unique(names, return_inverse=True)[1]
    document_leaf = np.where(names == "", -1, codes)
    graph = ClickGraph(clicks, query_leaf(clicks, document_leaf), document_leaf, has_image)
    widths = [sum(blocks) for blocks in view_blocks(workspace)]
    views = split_views(query_features, doc_features, widths, second_share=second_share)
    return Evidence(query_ids, doc_ids, views, pairs, weights, graph)


def _entities(workspace: Workspace, side: Side) -> tuple[list[str], np.ndarray, pa.Table]:
    """(sorted ids, features, rows of dedupe) of the representatives of one side."""
    table = workspace.table("dedupe", side.table)
    ids = np.array(table.column(side.key).to_pylist(), dtype=object)
    is_entity = ids == np.array(table.column("entity").to_pylist(), dtype=object)
    order = np.array(sorted(np.flatnonzero(is_entity), key=lambda i: ids[i]), dtype=np.int64)
    features = feature_matrix(workspace.table("admit", f"{side.table}_features").column("features"))[order]
    return ids[order].tolist(), features, table.take(order)


def leaf_of(documents: pa.Table) -> list[str]:
    """The leaf of every document; "" where there is none."""
    return [value or "" for value in pc.fill_null(documents.column("leaf"), "").to_pylist()]


def view_blocks(workspace: Workspace) -> list[list[int]]:
    """Widths of the encoder's blocks in each view."""
    notes = workspace.record("admit")["notes"]
    widths, first = notes["blocks"], notes["views"][0]
    return [part for part in (widths[:first], widths[first:]) if part]


def split_views(
    queries_NF: np.ndarray, documents_MF: np.ndarray, widths: list[int], *, second_share: float
) -> tuple[View, ...]:
    """One view with share 1, or two, the second with `second_share`."""
    parts = [np.split(side, np.cumsum(widths)[:-1], axis=1) for side in (queries_NF, documents_MF)]
    shares = [1.0] if len(widths) == 1 else [1 - second_share, second_share]
    return tuple(View(q, d, share) for q, d, share in zip(*parts, shares, strict=True))


def prepared_evidence(entities: Evidence, blocks: list[list[int]]) -> tuple[list[Preparation], Evidence]:
    """(preparation of each view, the entities with centred, scaled and reduced features)."""
    everywhere, has_image = np.ones(len(entities.query_ids), dtype=bool), entities.graph.has_image
    preparations, views = [], []
    for view, widths in zip(entities.views, blocks, strict=True):
        rooted = non_negative_blocks(view.queries_NF, view.documents_MF, widths)
        sides = ((view.queries_NF, everywhere), (view.documents_MF, has_image))
        queries, documents = (prepared(features, mask, widths, rooted) for features, mask in sides)
        axes = principal_axes(queries, documents, width=FEATURE_WIDTH)
        query, document = (fit_scale(features, mask, widths, rooted) for features, mask in sides)
        preparations.append(Preparation(query, document, axes))
        views.append(replace(view, queries_NF=reduced(queries, axes), documents_MF=reduced(documents, axes)))
    return preparations, replace(entities, views=tuple(views))


def query_leaf(clicks: csr_array, document_leaf: np.ndarray) -> np.ndarray:
    """The leaf most clicked by each query; -1 without clicks on a document with a leaf. Ties go to the smaller code."""
    count = max(int(document_leaf.max(initial=-1)) + 1, 1)
    has_leaf = document_leaf >= 0
    member = csr_array(
        (has_leaf.astype(float), (np.arange(len(document_leaf)), document_leaf.clip(0))), shape=(len(has_leaf), count)
    )
    total = coo_array(clicks @ member)
    leaf = np.full(clicks.shape[0], -1)
    order = np.lexsort((total.col, -total.data, total.row))
    row, first = np.unique(total.row[order], return_index=True)
    chosen = order[first]
    leaf[row] = np.where(total.data[chosen] > 0, total.col[chosen], -1)
    return leaf


def click_weights(edges_P2: np.ndarray, clicks_P: np.ndarray) -> np.ndarray:
    """(P,) weight of each edge, 0 to 1: its clicks over those of its query's most clicked document, squared.

    Wrong clicks scatter over many documents while right ones come back to the same few. So a document with one of a
    query's eight clicks is weak evidence, and with the only one it is all there is: its weight is 1.
    """
    most = np.zeros(int(edges_P2[:, 0].max(initial=-1)) + 1)
    np.maximum.at(most, edges_P2[:, 0], clicks_P)
    return np.asarray((clicks_P / np.maximum(most[edges_P2[:, 0]], 1)) ** 2, dtype=np.float64)


def click_matrix(edges_P2: np.ndarray, shape: tuple[int, int], weights_P: np.ndarray) -> csr_array:
    """Sparse matrix with the weight of every edge."""
    return csr_array((weights_P, (edges_P2[:, 0], edges_P2[:, 1])), shape=shape)
