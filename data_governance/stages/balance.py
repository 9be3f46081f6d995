"""Stage 8, balance: cap categories, weight queries, list all members.

Queries of a category without documents are dropped: no document can answer them. A category without queries is kept,
because its documents are indexed anyway; training may skip it. No row is repeated: repetition is a weight.
"""

from typing import Any

import numpy as np
import pyarrow as pa

from data_governance.context import GovernanceContext
from data_governance.policy import Policy
from data_governance.stage import StageResult, Workspace


def run(context: GovernanceContext) -> StageResult:
    """Stage 8 in the folder of the run."""
    return balance(context.workspace, policy=context.policy)


def balance(workspace: Workspace, *, policy: Policy) -> StageResult:
    """Cap, weight and list the members of every category."""
    result = StageResult()
    doc_rows = _rows(workspace.table("overrides", "documents"))
    query_rows = _rows(workspace.table("overrides", "queries"))
    with_documents = {category for _, category, _ in doc_rows}
    answerable = [row for row in query_rows if row[1] in with_documents]
    orphans = [row[0] for row in query_rows if row[1] not in with_documents]
    result.decide("queries", orphans, "dropped", "category_without_documents")
    kept, over = capped(answerable, most=policy.max_queries_per_category)
    result.decide("queries", [row[0] for row in over], "dropped", "over_the_cap", category=[row[1] for row in over])
    result.counts["queries"] = (len(query_rows), len(kept))
    result.counts["catalogue"] = (len(doc_rows), len(doc_rows))
    weight = weights([row[1] for row in kept], policy=policy)
    result.tables["members"] = pa.table(
        {
            "side": ["query"] * len(kept) + ["document"] * len(doc_rows),
            "id": [row[0] for row in kept + doc_rows],
            "category": [row[1] for row in kept + doc_rows],
            "weight": np.concatenate([weight, np.ones(len(doc_rows))]),
        }
    )
    result.decide(
        "queries", [r[0] for r in kept], "kept", "member", category=[r[1] for r in kept], lead=[r[2] for r in kept]
    )
    result.decide("catalogue", [r[0] for r in doc_rows], "kept", "member", category=[r[1] for r in doc_rows])
    return result


def _rows(table: pa.Table) -> list[tuple[str, int, float]]:
    """(row id, category, lead) of every row."""
    return list(zip(*(table.column(c).to_pylist() for c in ("id", "category", "lead")), strict=True))


def capped(
    rows: list[tuple[str, int, float]], *, most: int
) -> tuple[list[tuple[str, int, float]], list[tuple[str, int, float]]]:
    """(kept, over the cap): per category the `most` rows with the largest lead, ties by id; order is preserved."""
    place: dict[str, int] = {}
    counted: dict[int, int] = {}
    for row in sorted(rows, key=lambda r: (r[1], -r[2], r[0])):
        place[row[0]] = counted[row[1]] = counted.get(row[1], 0) + 1
    return [r for r in rows if place[r[0]] <= most], [r for r in rows if place[r[0]] > most]


def weights(categories: list[int], *, policy: Policy) -> np.ndarray:
    """(N,): (median size / own size) ** `repeat_power`, clipped to the limits, scaled to mean 1; all 1 for power 0."""
    if not categories:
        return np.zeros(0)
    names, place, size = np.unique(np.array(categories), return_inverse=True, return_counts=True)
    factor = np.clip((np.median(size) / size) ** policy.repeat_power, policy.weight_low, policy.weight_high)
    return np.asarray(factor[place] / factor[place].mean())


def band(queries: int, *, policy: Policy) -> str:
    """head, body or tail by the number of queries."""
    if queries >= policy.min_queries_head:
        return "head"
    return "body" if queries >= policy.min_queries_body else "tail"


def sizes(members: pa.Table) -> dict[int, dict[str, Any]]:
    """Category -> {documents, queries: sorted ids}."""
    found: dict[int, dict[str, Any]] = {}
    for side, row_id, category in zip(
        *(members.column(c).to_pylist() for c in ("side", "id", "category")), strict=True
    ):
        entry = found.setdefault(category, {"document": [], "query": []})
        entry[side].append(row_id)
    for entry in found.values():
        entry["document"].sort()
        entry["query"].sort()
    return found
