"""Write the ledger: one row per decision, and counts by stage and reason.

Decisions about the log are copied shard by shard, so the ledger is never held in memory.
"""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_governance.inputs import shards
from data_governance.policy import Policy
from data_governance.stage import DECISIONS, LOG_DROPPED, Workspace
from runtime.files import atomic_file, write_json

INPUTS = ("behaviour", "queries", "catalogue")
KEYS = ("stage", "table", "decision", "reason")
ROWS_PER_GROUP = 100_000


def write(workspace: Workspace, *, policy: Policy) -> dict[str, Any]:
    """Write ledger.parquet and ledger.json; returns the latter.

    ledger.json, written last: rows {table: {in, kept, dropped}}, decisions [{stage, table, decision, reason, rows}],
    stages [{stage, table, rows_in, kept, dropped, reasons {reason: rows not kept as they were}}], notes {stage:
    {seconds, ...}}, overrides {given, set_aside {reason: rows}}, categories {count, head, body, tail, validation},
    encoder, policy.
    """
    with atomic_file(workspace.out / "ledger.parquet") as part:
        counted = _written(workspace, part)
    records = {stage: workspace.record(stage) for stage in workspace.stages}
    for record in records.values():
        record.pop("digest")
    order = sorted(counted, key=lambda item: (workspace.stages.index(item[0]), *item[1:]))
    facts = {
        "encoder": records["admit"]["notes"]["encoder"],
        "rows": {table: _rows(table, records, counted) for table in INPUTS},
        "overrides": {"given": 0, "set_aside": {}} | records["overrides"]["notes"],
        "decisions": [{**dict(zip(KEYS, item, strict=True)), "rows": counted[item]} for item in order],
        "categories": _categories(workspace),
        "stages": _stages(records, counted),
        "notes": {stage: {"seconds": record["seconds"], **record["notes"]} for stage, record in records.items()},
        "policy": asdict(policy),
    }
    write_json(workspace.out / "ledger.json", facts, indent=1)
    return facts


def stage_names(governed: Path) -> tuple[str, ...]:
    """Stages of a finished governed folder in order, as its ledger.json lists them."""
    return tuple(json.loads((governed / "ledger.json").read_text())["notes"])


def _written(workspace: Workspace, path: Path) -> Counter[tuple[str, ...]]:
    """Write the decisions of all stages to one file; returns rows by `KEYS`."""
    counted: Counter[tuple[str, ...]] = Counter()
    with pq.ParquetWriter(path, DECISIONS) as writer:
        for table in shards.gathered(decisions(workspace), rows=ROWS_PER_GROUP):
            found = table.group_by(list(KEYS)).aggregate([([], "count_all")])
            for *item, rows in zip(*(found.column(c).to_pylist() for c in (*KEYS, "count_all")), strict=True):
                counted[tuple(item)] += rows
            writer.write_table(table)
    return counted


def decisions(workspace: Workspace) -> Iterator[pa.Table]:
    """All decisions in the order of the stages, those about the log last in each stage, one shard at a time."""
    for stage in workspace.stages:
        yield workspace.table(stage, "decisions")
        yield from shards.batches(workspace.shards(stage, LOG_DROPPED), DECISIONS.names)


def _stages(records: dict[str, Any], counted: Counter[tuple[str, ...]]) -> list[dict[str, Any]]:
    """Counts and reasons of every stage for every table that it counts, in order."""
    found = []
    for stage, record in records.items():
        for table, (rows_in, kept) in record["counts"].items():
            reasons = {
                item[3]: rows for item, rows in counted.items() if item[:2] == (stage, table) and item[2] != "kept"
            }
            entry = {"stage": stage, "table": table, "rows_in": rows_in, "kept": kept, "dropped": rows_in - kept}
            found.append({**entry, "reasons": dict(sorted(reasons.items()))})
    return found


def _rows(table: str, records: dict[str, Any], counted: Counter[tuple[str, ...]]) -> dict[str, int]:
    """Row counts over all stages; asserts rows in = rows kept + rows dropped and not restored."""
    rows_in = records["admit"]["counts"][table][0]
    kept = [record["counts"][table][1] for record in records.values() if table in record["counts"]][-1]
    sign = {"dropped": 1, "restored": -1}
    dropped = sum(rows * sign.get(item[2], 0) for item, rows in counted.items() if item[1] == table)
    assert rows_in == kept + dropped, f"{table}: {rows_in} in, {kept} kept, {dropped} dropped"
    return {"in": rows_in, "kept": kept, "dropped": dropped}


def _categories(workspace: Workspace) -> dict[str, int]:
    table = pq.read_table(workspace.out / "categories.parquet")
    bands = Counter(table.column("band").to_pylist())
    samples = pq.read_table(workspace.out / "samples", columns=["category_id", "split"])
    held = samples.filter(pc.equal(samples.column("split"), "validation"))
    validation = len(pc.unique(held.column("category_id")))
    return {
        "count": table.num_rows,
        **{band: bands[band] for band in ("head", "body", "tail")},
        "validation": validation,
    }
