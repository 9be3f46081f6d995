"""The ledger: one row per decision, its counts by stage and reason, and the story of one row.

In: the decisions of all stages. Out: ledger.parquet, ledger.json; `explain` reads them. Next: report.py, hub_cards.
"""

import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_governance.policy import Policy
from data_governance.stage import STAGES, Workspace

INPUTS = ("behaviour", "queries", "catalogue")


def write(workspace: Workspace, *, policy: Policy) -> dict[str, Any]:
    """Write ledger.parquet and ledger.json; returns the latter.

    ledger.json: rows {table: {in, kept, dropped}}, decisions [{stage, table, decision, reason, rows}], stages [{stage,
    table, rows_in, kept, dropped, reasons {reason: rows not kept as they were}}], notes {stage: {seconds, ...}},
    categories {count, head, body, tail, validation}, encoder, policy.
    """
    decisions = pa.concat_tables([workspace.table(stage, "decisions") for stage in STAGES])
    part = workspace.out / "ledger.tmp"
    pq.write_table(decisions, part)
    part.rename(workspace.out / "ledger.parquet")
    records = {stage: workspace.record(stage) for stage in STAGES}
    for record in records.values():
        record.pop("digest")
    keys = ("stage", "table", "decision", "reason")
    counted = Counter(zip(*(decisions.column(key).to_pylist() for key in keys), strict=True))
    order = sorted(counted, key=lambda item: (STAGES.index(item[0]), *item[1:]))
    facts = {
        "encoder": records["admit"]["notes"]["encoder"],
        "rows": {table: _rows(table, records, counted) for table in INPUTS},
        "decisions": [{**dict(zip(keys, item, strict=True)), "rows": counted[item]} for item in order],
        "categories": _categories(workspace),
        "stages": _stages(records, counted),
        "notes": {stage: {"seconds": record["seconds"], **record["notes"]} for stage, record in records.items()},
        "policy": asdict(policy),
    }
    (workspace.out / "ledger.json").write_text(json.dumps(facts, indent=1) + "\n")
    return facts


def _stages(records: dict[str, Any], counted: Counter[tuple[str, ...]]) -> list[dict[str, Any]]:
    """What every stage did to every table that it judged, in order."""
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
    """Conservation over all stages: rows in = rows kept + rows dropped."""
    rows_in = records["admit"]["counts"][table][0]
    kept = [record["counts"][table][1] for record in records.values() if table in record["counts"]][-1]
    dropped = sum(rows for item, rows in counted.items() if item[1] == table and item[2] == "dropped")
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


def story(governed: Path, row_id: str) -> list[str]:
    """Lines that tell what happened to a query, a document or a behaviour row, in the order of the stages.

    Raises:
        ValueError: when the folder holds no ledger or the ledger no such id.
    """
    if not (governed / "ledger.parquet").exists():
        raise ValueError(f"--governed {governed}: no ledger.parquet there. Run `python -m data_governance run` first.")
    ledger = pq.read_table(governed / "ledger.parquet")
    ids = ledger.column("row_id")
    own = pc.equal(ids, row_id)
    clicked = pc.and_(
        pc.equal(ledger.column("table"), "behaviour"),
        pc.or_(pc.starts_with(ids, f"{row_id}>"), pc.match_substring(ids, f">{row_id}#")),
    )
    rows = ledger.filter(pc.or_(own, clicked)).to_pylist()
    if not rows:
        raise ValueError(f"{row_id}: the ledger has no such query_id, doc_id or behaviour row.")
    order = sorted(rows, key=lambda row: (STAGES.index(row["stage"]), row["table"], row["row_id"]))
    lines = [_line(row) for row in order]
    samples = pq.read_table(governed / "samples", columns=["sample_id", "side", "category_id", "weight", "split"])
    for row in samples.filter(pc.equal(samples.column("sample_id"), row_id)).to_pylist():
        mates = samples.filter(pc.equal(samples.column("category_id"), row["category_id"])).to_pylist()
        sides = {side: [m["sample_id"] for m in mates if m["side"] == side] for side in ("document", "query")}
        lines.append(
            f"now: {row['side']} of category {row['category_id']} ({row['split']}, weight {row['weight']:.2f}) with"
            f" {len(sides['document'])} documents ({', '.join(sides['document'][:5])})"
            f" and {len(sides['query'])} queries"
        )
    return lines


def _line(row: dict[str, Any]) -> str:
    figures = ", ".join(f"{name} {value}" for name, value in json.loads(row["figures"]).items())
    tail = f" ({figures})" if figures else ""
    return f"{row['stage']}: {row['table']} {row['row_id']} {row['decision']}: {row['reason']}{tail}"
