"""Stage 3, click_rates: smoothed, position-corrected rate of every clicked pair.

The log stays on disk: the engine reads its shards and returns the rows of weak edges in the order of the log, and each
shard is then filtered. Edges are held in memory: at most `max_documents_per_query` for every query.
"""

import json
from collections.abc import Iterable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_governance.context import GovernanceContext
from data_governance.inputs import shards
from data_governance.inputs.engine import Engine
from data_governance.inputs.relations import aggregated, ranked, weak_rows
from data_governance.policy import Policy
from data_governance.stage import LOG, LOG_DROPPED, StageResult, Workspace
from data_governance.stages.admit_log import log_decisions

# Larger positions are counted as this one.
MOST_POSITION = 1_000


def run(context: GovernanceContext) -> StageResult:
    """Stage 3 in the folder of the run.

    Raises:
        ValueError: fewer than two different documents keep a click.
    """
    result = click_rates(context.workspace, policy=context.policy, engine=context.engine)
    documents = pc.unique(result.tables["edges"].column("doc"))
    if len(documents) < 2:
        raise ValueError(
            f"behaviour: clicks remain on {len(documents)} document(s) after merging copies, and two categories "
            "are the least. Add clicks on other documents."
        )
    return result


def click_rates(workspace: Workspace, *, policy: Policy, engine: Engine) -> StageResult:
    """Aggregate clicks per pair of entities, correct, smooth, and drop weak edges.

    rate = (clicks + k base) / (shown + k), shown = sum of impressions * position ** -power, k = `click_prior`,
    base = all clicks / all shown. A row without impressions counts as shown as often as it was clicked, at least once;
    one without a position as shown at position 1.
    """
    log = workspace.shards("admit", LOG)
    power = policy.position_power
    if power < 0:
        power = estimated_power(shards.batches(log, ["position", "clicks"]))
    entities = {
        key: engine.load(workspace.table("dedupe", name).select([key, "entity"]))
        for key, name in (("query_id", "queries"), ("doc_id", "documents"))
    }
    rows = engine.read(workspace.folder("admit") / LOG)
    # Kept as Parquet, because the totals and the ranks both read it.
    edges = engine.keep(aggregated(rows, entities, power=power))
    # The order of a floating point sum changes its last bits; rounding makes runs equal.
    totals = engine.fetch(edges.aggregate(clicks=edges.clicks.sum().cast("float64"), shown=edges.shown.sum()))
    base = round(totals.column("clicks")[0].as_py() / max(totals.column("shown")[0].as_py(), 1e-9), 6)
    rated = engine.keep(ranked(edges, base=base, policy=policy))
    result = StageResult(
        notes={"position_power": round(power, 4), "base_rate": base}, folder=workspace.begin("click_rates")
    )
    strong = rated.filter(rated.strong).select("query", "doc", "clicks", "shown", "rate")
    result.tables["edges"] = engine.fetch(strong.order_by(["query", "doc"]))
    rows_in, gone = shards.count(log), 0
    for path, weak in shards.by_shard(engine.stream(weak_rows(rows, entities, rated)), log):
        result.add_shard(LOG_DROPPED, _dropped(pq.read_table(path), weak), first=shards.first_row(path))
        gone += weak.num_rows
    result.counts[LOG] = (rows_in, rows_in - gone)
    return result


def _dropped(rows: pa.Table, weak: pa.Table) -> pa.Table:
    """The rows of one shard on weak edges, with the reason and the rate of the edge."""
    rate = weak.column("rate").combine_chunks().dictionary_encode()
    figures = pa.array([json.dumps({"rate": round(value, 6)}) for value in rate.dictionary.to_pylist()], pa.string())
    why = pc.if_else(weak.column("no_click"), "no_click", "weak_edge")
    mine = rows.filter(pa.array(shards.picked(rows, weak)))
    return log_decisions(mine, "click_rates", why, figures.take(rate.indices))


def estimated_power(log: Iterable[pa.Table]) -> float:
    """Negative slope of log clicks over log position, by least squares; 0 with fewer than two positions clicked.

    Clicks per position estimate examination only when the results were not already ordered by relevance.
    """
    count = np.zeros(MOST_POSITION + 1)
    for rows in log:
        position = rows.column("position").to_numpy(zero_copy_only=False).astype(np.float64)
        has_position = np.isfinite(position)
        place = np.rint(position[has_position]).astype(np.int64).clip(1, MOST_POSITION)
        count += np.bincount(place, rows.column("clicks").to_numpy()[has_position], len(count))
    clicked = np.flatnonzero(count)
    if len(clicked) < 2:
        return 0.0
    slope = np.polyfit(np.log(clicked), np.log(count[clicked]), 1, w=np.sqrt(count[clicked]))[0]
    return float(np.clip(-slope, 0.0, 2.0))
