"""Stage 4, organise: group documents into categories and assign each query to one.

Ambiguous queries are dropped. Categories do not depend on catalogue ids or leaf names.
"""

import numpy as np
import pyarrow as pa

from data_governance.context import GovernanceContext
from data_governance.grouping import matching
from data_governance.inputs.tables import feature_column
from data_governance.policy import Policy
from data_governance.stage import StageResult, Workspace
from data_governance.stages.organise_full import Outcome, organise_full
from data_governance.stages.organise_incremental import organise_incremental, previous_run


def run(context: GovernanceContext) -> StageResult:
    """Stage 4: organise all documents, or with --incremental those that new rows touch."""
    previous = Workspace(context.previous) if context.incremental and context.previous else None
    return organise(context.workspace, previous, policy=context.policy)


def organise(workspace: Workspace, previous: Workspace | None, *, policy: Policy) -> StageResult:
    """Group documents into categories, assign queries, drop queries that are ambiguous or without evidence."""
    if previous is None:
        outcome = organise_full(workspace, policy=policy)
    else:
        outcome = organise_incremental(workspace, previous_run(previous), policy=policy)
    evidence, found, touched = outcome.evidence, outcome.found, outcome.touched
    result = StageResult(notes=outcome.notes)
    lead = found.share - found.next_share
    category = np.where(found.best < 0, -1, found.best)
    # A small lead: two categories fit almost equally well.
    reason = np.where(category < 0, "no_evidence", np.where(lead < policy.min_query_margin, "ambiguous", ""))
    _drop_queries(result, workspace, outcome, reason, lead)
    kept = np.flatnonzero(reason == "")
    result.tables["queries"] = pa.table(
        {
            "query": [evidence.query_ids[i] for i in kept],
            "category": category[kept],
            "share": found.share[kept],
            "lead": lead[kept],
            "second": found.second[kept],
            "vector": feature_column(found.space.queries_NW[kept]),
        }
    )
    result.tables["documents"] = pa.table(
        {
            "doc": evidence.doc_ids,
            "category": found.group,
            "source": found.source,
            "has_image": evidence.graph.has_image,
            "touched": np.ones(len(evidence.doc_ids), dtype=bool) if touched is None else touched,
            "vector": feature_column(found.space.documents_MW),
        }
    )
    result.notes["categories"] = int(found.group.max()) + 1
    result.notes |= matching.clicks_outside(evidence.edges_P2, found.best, found.group)
    for number, one in enumerate(outcome.projections):
        result.tables |= one.tables(number)
    return result


def _drop_queries(
    result: StageResult, workspace: Workspace, outcome: Outcome, reason: np.ndarray, lead: np.ndarray
) -> None:
    """Record the queries that have a reason as dropped, each with the two categories that it may belong to."""
    evidence, found = outcome.evidence, outcome.found
    of_query = {row_id: i for i, row_id in enumerate(evidence.query_ids)}
    rows = workspace.table("dedupe", "queries")
    ids, entities = rows.column("query_id").to_pylist(), rows.column("entity").to_pylist()
    at = np.array([of_query[entity] for entity in entities])
    gone = np.flatnonzero(reason[at] != "")
    first = _representatives(evidence.doc_ids, found.group)
    candidates = [[first.get(int(found.best[at[i]]), ""), first.get(int(found.second[at[i]]), "")] for i in gone]
    result.decide(
        "queries",
        [ids[i] for i in gone],
        "dropped",
        [str(reason[at[i]]) for i in gone],
        lead=lead[at[gone]],
        share=found.share[at[gone]],
        candidate=[pair[0] for pair in candidates],
        other_candidate=[pair[1] for pair in candidates],
    )
    result.counts["queries"] = (len(ids), len(ids) - len(gone))


def _representatives(doc_ids: list[str], group: np.ndarray) -> dict[int, str]:
    """Group -> its first document."""
    first: dict[int, str] = {}
    for doc_id, number in zip(doc_ids, group.tolist(), strict=True):
        first.setdefault(number, doc_id)
    return first
