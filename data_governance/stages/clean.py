"""Stage 5, clean: relabel or drop queries that their category does not support.

margins.py computes how much better each row fits its own category than the next one; threshold.py finds the cut. A row
below the cut gets a second vote, by its nearest queries: if both name the same other category it is relabelled, if the
neighbours only disagree with its label it is dropped. Nothing is relabelled when the margins do not have two modes.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from data_governance.context import GovernanceContext
from data_governance.entities import QUERY, rows_of_entities
from data_governance.inputs.tables import feature_matrix
from data_governance.noise import neighbours
from data_governance.noise.margins import Margins, refined
from data_governance.noise.threshold import share_interval
from data_governance.policy import Policy
from data_governance.stage import StageResult, Workspace

# Of computing the margins again with updated label confidence; three to five are enough where they help.
MOST_ROUNDS = 6
# Largest number of row pairs compared exactly in the vote; beyond, only rows in near prototype cells are compared.
EXACT_VOTE = 10**9


@dataclass(frozen=True)
class Verdict:
    """Outcome per row.

    Attributes:
        flagged: low margin, and the neighbours do not support the label.
        relabel: flagged rows that move to category `voted`.
        drop: flagged rows that are removed.
    """

    flagged: np.ndarray
    relabel: np.ndarray
    drop: np.ndarray
    voted: np.ndarray
    margins: Margins
    notes: dict[str, Any]


def judge(
    rows_NW: np.ndarray, label_N: np.ndarray, members_EW: np.ndarray, member_label_E: np.ndarray, *, policy: Policy
) -> Verdict:
    """Both votes on unit rows; `members_EW` are further members of the categories (documents), or none.

    Labels are ints from 0. Memory grows with N x W and K x W, never with N x K or N x N.
    """
    most = policy.max_dropped_share
    found = refined(rows_NW, label_N, members_EW, member_label_E, most=most, rounds=MOST_ROUNDS)
    has_margin = np.isfinite(found.margin)
    low = np.flatnonzero(has_margin & (found.margin < found.cut.at))
    voted = label_N.copy()
    voted[low], recall = neighbour_vote(rows_NW, label_N, found, low, count=policy.clean_neighbours)
    flagged = voted != label_N
    separated = found.cut.mixture is not None and found.cut.separation >= policy.min_separation
    relabel = flagged & (voted == found.other) & separated
    drop = flagged & ~relabel
    # At most `max_dropped_share` of all rows, those with the lowest margins.
    order = np.argsort(np.where(drop, found.margin, np.inf), kind="stable")
    drop[order[int(most * len(label_N)) :]] = False
    mixture = found.cut.mixture
    interval = share_interval(found.margin[has_margin], mixture) if mixture else None
    notes: dict[str, Any] = {
        "rho": round(found.rho, 4),
        "threshold": round(found.cut.at, 4),
        "method": found.cut.method,
        "separation": round(found.cut.separation, 3),
        "relabelling": "on" if separated else "refused: the margins do not separate",
        "low_share": round(len(low) / max(int(has_margin.sum()), 1), 4),
        "low_share_by_round": found.low_share_by_round,
        "wrong_labels": round(mixture.share, 4) if mixture else None,
        "wrong_labels_interval": [round(end, 4) for end in interval] if interval else None,
        "prototype_search": found.near.method,
        "prototype_recall": round(found.near.recall, 4),
        "neighbour_recall": round(recall, 4),
    }
    return Verdict(flagged, relabel, drop, voted, found, notes)


def neighbour_vote(
    rows_NW: np.ndarray, label_N: np.ndarray, margins: Margins, chosen: np.ndarray, *, count: int
) -> tuple[np.ndarray, float]:
    """(category with the largest sum of cosines among the `count` nearest other rows, recall of the neighbours).

    A neighbour votes for its own category in proportion to its label confidence, and for its best other category with
    the rest. Ties go to the smaller number; without a neighbour the row keeps its label.

    Args:
        chosen: rows to vote on.
    """
    if not len(chosen):
        return label_N[chosen], 1.0
    rows = np.ascontiguousarray(rows_NW[chosen])
    if len(rows_NW) * len(chosen) <= EXACT_VOTE:
        found = neighbours.nearest(rows_NW, rows, count + 1)  # one more, because a row finds itself
    else:
        near = neighbours.Found(
            margins.near.cosine[chosen], margins.near.index[chosen], margins.near.recall, margins.near.method
        )
        cells = margins.near.index[:, 0]
        found = neighbours.nearest_in_cells(rows_NW, cells, margins.prototype_KW, rows, near, count + 1)
    row, place = np.nonzero((found.index >= 0) & (found.index != chosen[:, None]))
    neighbour = found.index[row, place]
    cosine = np.maximum(found.cosine[row, place], 0)
    confidence = margins.confidence[neighbour]
    row = np.concatenate([row, row])
    category = np.concatenate([label_N[neighbour], margins.other[neighbour]]).astype(np.int64)
    # Sum the votes of each (row, category) pair, encoded as one integer.
    num_categories = int(category.max(initial=0)) + 1
    pair, at = np.unique(row * num_categories + category, return_inverse=True)
    total = np.bincount(at, np.concatenate([cosine * confidence, cosine * (1 - confidence)]), len(pair))
    row, category = np.divmod(pair, num_categories)
    order = np.lexsort((category, -np.round(total, 9), row))
    with_vote, first = np.unique(row[order], return_index=True)
    voted = label_N[chosen].copy()
    voted[with_vote] = category[order[first]]
    return voted, found.recall


def run(context: GovernanceContext) -> StageResult:
    """Stage 5 in the folder of the run."""
    return clean(context.workspace, policy=context.policy)


def clean(workspace: Workspace, *, policy: Policy) -> StageResult:
    """Relabel queries whose prototype and neighbour votes agree; drop those whose neighbours only disagree."""
    queries, documents = workspace.table("organise", "queries"), workspace.table("organise", "documents")
    vectors = feature_matrix(queries.column("vector"))
    label = queries.column("category").to_numpy()
    with_image = documents.filter(documents.column("has_image"))
    members, member_label = feature_matrix(with_image.column("vector")), with_image.column("category").to_numpy()
    verdict = judge(vectors, label, members, member_label, policy=policy)
    result = StageResult(notes=verdict.notes)
    _record(result, workspace, queries, verdict)
    new = np.where(verdict.relabel, verdict.voted, label)
    table = queries.set_column(queries.column_names.index("category"), "category", pa.array(new))
    table = table.append_column("margin", pa.array(np.nan_to_num(verdict.margins.margin, nan=0.0)))
    result.tables = {"queries": table.filter(pa.array(~verdict.drop)), "documents": documents}
    return result


def _record(result: StageResult, workspace: Workspace, queries: pa.Table, verdict: Verdict) -> None:
    """Record decisions by row: one for every member of an entity."""
    entities = queries.column("query").to_pylist()
    members = rows_of_entities(workspace, entities, QUERY)
    for mask, decision, reason in (
        (verdict.drop, "dropped", "unsupported_by_category"),
        (verdict.relabel, "relabelled", "prototype_and_neighbours_agree"),
    ):
        rows = [(row, i) for i in np.flatnonzero(mask) for row in members[entities[i]]]
        at = np.array([i for _, i in rows], dtype=np.int64)
        figures = {
            "margin": verdict.margins.margin[at],
            "other": verdict.margins.other[at],
            "neighbours": verdict.voted[at],
        }
        result.decide("queries", [row for row, _ in rows], decision, reason, **figures)
    total = sum(len(members[entity]) for entity in entities)
    gone = sum(len(members[entities[i]]) for i in np.flatnonzero(verdict.drop))
    result.counts["queries"] = (total, total - gone)
