"""Stage 5, clean: a query that its category's other members do not support is relabelled or dropped.

margins.py says how much better each row fits its own category than the next one, threshold.py where that is too little.
A row below the cut needs a second vote, its nearest queries: where both name the same other category it is relabelled,
where the neighbours merely disagree it is dropped. Without two clear modes of margins nothing is relabelled, and the
ledger says so.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from data_governance.inputs.tables import feature_matrix
from data_governance.noise import neighbours
from data_governance.noise.margins import Margins, refined
from data_governance.noise.threshold import share_interval
from data_governance.policy import Policy
from data_governance.stage import StageResult, Workspace

# Of learning the margins again from what is believed; three to five are enough where they help.
MOST_ROUNDS = 6
# Products of voting and asked rows up to which every row is compared, beyond only those in near cells.
EXACT_VOTE = 10**9


@dataclass(frozen=True)
class Verdict:
    """Per row: flagged by the margin and not upheld by its neighbours; of those relabelled to `voted`, or dropped."""

    flagged: np.ndarray
    relabel: np.ndarray
    drop: np.ndarray
    voted: np.ndarray
    margins: Margins
    notes: dict[str, Any]


def judge(
    rows_NW: np.ndarray, label_N: np.ndarray, members_EW: np.ndarray, member_label_E: np.ndarray, *, policy: Policy
) -> Verdict:
    """Both votes on unit rows whose categories also have further members (documents, with or without any).

    Labels are ints from 0. Memory grows with N x W and K x W, never with N x K or N x N.
    """
    most = policy.max_dropped_share
    found = refined(rows_NW, label_N, members_EW, member_label_E, most=most, rounds=MOST_ROUNDS)
    known = np.isfinite(found.margin)
    low = np.flatnonzero(known & (found.margin < found.cut.at))
    voted = label_N.copy()
    voted[low], recall = neighbour_vote(rows_NW, label_N, found, low, count=policy.clean_neighbours)
    flagged = voted != label_N
    separated = found.cut.mixture is not None and found.cut.separation >= policy.min_separation
    relabel = flagged & (voted == found.other) & separated
    drop = flagged & ~relabel
    order = np.argsort(np.where(drop, found.margin, np.inf), kind="stable")
    drop[order[int(most * len(label_N)) :]] = False
    mixture = found.cut.mixture
    interval = share_interval(found.margin[known], mixture) if mixture else None
    notes: dict[str, Any] = {
        "rho": round(found.rho, 4),
        "threshold": round(found.cut.at, 4),
        "method": found.cut.method,
        "separation": round(found.cut.separation, 3),
        "relabelling": "on" if separated else "refused: the margins do not separate",
        "low_share": round(len(low) / max(int(known.sum()), 1), 4),
        "low_share_by_round": found.low_share_by_round,
        "wrong_labels": round(mixture.share, 4) if mixture else None,
        "wrong_labels_interval": [round(end, 4) for end in interval] if interval else None,
        "prototype_search": found.near.method,
        "prototype_recall": round(found.near.recall, 4),
        "neighbour_recall": round(recall, 4),
    }
    return Verdict(flagged, relabel, drop, voted, found, notes)


def neighbour_vote(
    rows_NW: np.ndarray, label_N: np.ndarray, margins: Margins, asking: np.ndarray, *, count: int
) -> tuple[np.ndarray, float]:
    """(category with the largest sum of cosines among the `count` nearest other rows, recall of the neighbours).

    A neighbour says its own category as far as it is believed, and its best other one for the rest. Ties go to the
    smaller number; without a neighbour the row keeps its label.
    """
    if not len(asking):
        return label_N[asking], 1.0
    rows = np.ascontiguousarray(rows_NW[asking])
    if len(rows_NW) * len(asking) <= EXACT_VOTE:
        found = neighbours.nearest(rows_NW, rows, count + 1)
    else:
        near = neighbours.Found(
            margins.near.cosine[asking], margins.near.index[asking], margins.near.recall, margins.near.method
        )
        cells = margins.near.index[:, 0]
        found = neighbours.nearest_in_cells(rows_NW, cells, margins.prototype_KW, rows, near, count + 1)
    asked, place = np.nonzero((found.index >= 0) & (found.index != asking[:, None]))
    told = found.index[asked, place]
    say = np.maximum(found.cosine[asked, place], 0)
    right = margins.right[told]
    who = np.concatenate([asked, asked])
    what = np.concatenate([label_N[told], margins.other[told]]).astype(np.int64)
    pair, at = np.unique(who * (int(what.max(initial=0)) + 1) + what, return_inverse=True)
    total = np.bincount(at, np.concatenate([say * right, say * (1 - right)]), len(pair))
    who, what = np.divmod(pair, int(what.max(initial=0)) + 1)
    order = np.lexsort((what, -np.round(total, 9), who))
    voter, first = np.unique(who[order], return_index=True)
    voted = label_N[asking].copy()
    voted[voter] = what[order[first]]
    return voted, found.recall


def clean(workspace: Workspace, *, policy: Policy) -> StageResult:
    """Relabel where prototype and neighbours agree, drop where neither supports the label."""
    queries, documents = workspace.table("organise", "queries"), workspace.table("organise", "documents")
    vectors = feature_matrix(queries.column("vector"))
    label = queries.column("category").to_numpy()
    shown = documents.filter(documents.column("has_image"))
    members, member_label = feature_matrix(shown.column("vector")), shown.column("category").to_numpy()
    verdict = judge(vectors, label, members, member_label, policy=policy)
    result = StageResult(notes=verdict.notes)
    _record(result, workspace, queries, verdict)
    new = np.where(verdict.relabel, verdict.voted, label)
    table = queries.set_column(queries.column_names.index("category"), "category", pa.array(new))
    table = table.append_column("margin", pa.array(np.nan_to_num(verdict.margins.margin, nan=0.0)))
    result.tables = {"queries": table.filter(pa.array(~verdict.drop)), "documents": documents}
    return result


def _record(result: StageResult, workspace: Workspace, queries: pa.Table, verdict: Verdict) -> None:
    """Decisions are by row, so every member of an entity is named."""
    entities = queries.column("query").to_pylist()
    members = members_of(workspace, entities)
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


def members_of(
    workspace: Workspace, entities: list[str], *, table: str = "queries", key: str = "query_id"
) -> dict[str, list[str]]:
    """Entity -> ids of the rows that it stands for."""
    rows = workspace.table("dedupe", table)
    members: dict[str, list[str]] = {entity: [] for entity in entities}
    for row_id, entity in zip(rows.column(key).to_pylist(), rows.column("entity").to_pylist(), strict=True):
        if entity in members:
            members[entity].append(row_id)
    return members
