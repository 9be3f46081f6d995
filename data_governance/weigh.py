"""Stage 3, weigh: clicks become smoothed, position-corrected rates on edges from query entity to document entity.

In: admitted behaviour, entities. Out: table edges (query, doc, clicks, shown, rate). Next: organise.py.
"""

import numpy as np
import pyarrow as pa

from data_governance.engine import Engine
from data_governance.policy import Policy
from data_governance.relations import aggregated, ranked
from data_governance.stage import StageResult, Workspace


def weigh(workspace: Workspace, *, policy: Policy, engine: Engine) -> StageResult:
    """Aggregate clicks per pair of entities, correct, smooth, and drop weak edges.

    rate = (clicks + k base) / (shown + k), shown = sum of impressions * position ** -power, k = `click_prior`,
    base = all clicks / all shown. A row without impressions counts as shown as often as it was clicked (once at
    least); one without a position as shown at position 1.
    """
    behaviour = workspace.table("admit", "behaviour")
    power = policy.position_power if policy.position_power >= 0 else estimated_power(behaviour)
    entities = {
        key: engine.load(workspace.table("dedupe", name).select([key, "entity"]))
        for key, name in (("query_id", "queries"), ("doc_id", "documents"))
    }
    edges = aggregated(engine.load(behaviour), entities, power=power)
    # A total sum in another order differs in its last bits; rounding makes runs equal.
    totals = engine.fetch(edges.aggregate(clicks=edges.clicks.sum().cast("float64"), shown=edges.shown.sum()))
    base = round(totals.column("clicks")[0].as_py() / max(totals.column("shown")[0].as_py(), 1e-9), 6)
    table = engine.fetch(ranked(edges, base=base, policy=policy).order_by(["query", "doc"]))
    return _result(behaviour, table, workspace, {"position_power": round(power, 4), "base_rate": base})


def _result(behaviour: pa.Table, edges: pa.Table, workspace: Workspace, notes: dict[str, float]) -> StageResult:
    result = StageResult(notes=dict(notes))
    strong = edges.column("strong").to_numpy()
    result.tables["edges"] = edges.filter(pa.array(strong)).select(["query", "doc", "clicks", "shown", "rate"])
    names = ("query", "doc", "clicks", "rate", "strong")
    weak = {
        (q, d): ("no_click" if c == 0 else "weak_edge", r)
        for q, d, c, r, s in zip(*(edges.column(n).to_pylist() for n in names), strict=True)
        if not s
    }
    query = _mapping(workspace.table("dedupe", "queries"), "query_id")
    doc = _mapping(workspace.table("dedupe", "documents"), "doc_id")
    ids = zip(*(behaviour.column(n).to_pylist() for n in ("row_id", "query_id", "doc_id")), strict=True)
    gone = [(row_id, *weak[key]) for row_id, q, d in ids if (key := (query[q], doc[d])) in weak]
    result.decide("behaviour", [g[0] for g in gone], "dropped", [g[1] for g in gone], rate=[g[2] for g in gone])
    result.counts["behaviour"] = (behaviour.num_rows, behaviour.num_rows - len(gone))
    return result


def _mapping(table: pa.Table, key: str) -> dict[str, str]:
    return dict(zip(table.column(key).to_pylist(), table.column("entity").to_pylist(), strict=True))


def estimated_power(behaviour: pa.Table) -> float:
    """Slope of log clicks over log position, by least squares over positions with clicks; 0 with fewer than two.

    It takes clicks per position as examination, which is right when the order shown is not already by relevance.
    """
    position = behaviour.column("position").to_numpy(zero_copy_only=False).astype(np.float64)
    known = np.isfinite(position)
    count = np.bincount(
        np.rint(position[known]).astype(np.int64).clip(1, 1000), behaviour.column("clicks").to_numpy()[known]
    )
    seen = np.flatnonzero(count)
    if len(seen) < 2:
        return 0.0
    slope = np.polyfit(np.log(seen), np.log(count[seen]), 1, w=np.sqrt(count[seen]))[0]
    return float(np.clip(-slope, 0.0, 2.0))
