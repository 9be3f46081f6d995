"""Stage 7, overrides: apply manual decisions over those of the stages.

`--overrides FILE` lists rows (side `query` or `document`, id) with one action each: `keep` undoes what cleaning did to
the row, `drop` removes it, `relabel` moves it to the category with `category_key`. Each becomes a ledger row with its
reason. An override that cannot be applied (an id or a key that this run does not have) is rejected with a reason; an
invalid file (an unknown action, two actions for one row) is an error.

The stage runs after the categories are found, so an override moves only its own row, and a rerun takes seconds.
"""

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from data_governance.context import GovernanceContext
from data_governance.entities import SIDES, Side, rows_of_entities
from data_governance.grouping import category_keys
from data_governance.inputs.tables import Source, open_source
from data_governance.stage import StageResult, Workspace

ACTIONS = ("keep", "drop", "relabel")
NO_REASON = "no reason given"
# A lead is a difference of shares, at most 1: overridden rows are the last to be dropped by a cap.
OVERRIDE_LEAD = 2.0


@dataclass(frozen=True)
class Placement:
    """Category of a row; rows with the smallest `lead` are dropped when a category is over its cap."""

    category: int
    lead: float


def open_overrides(path: Path | None) -> Source | None:
    """Read the table of overrides and check everything that does not depend on a run.

    Raises:
        ValueError: naming row, value and remedy.
    """
    if path is None:
        return None
    source = open_source(str(path), name="overrides", mark=False)
    if source.lost:
        raise ValueError(f"overrides: {source.lost[0][1]} Correct the file: overrides are never skipped.")
    first: dict[tuple[str, str], int] = {}
    for number, row in enumerate(source.table.to_pylist(), start=1):
        where = f"overrides: row {number}:"
        if row["side"] not in SIDES:
            raise ValueError(f"{where} side {row['side']!r} is not one of {', '.join(SIDES)}.")
        if row["action"] not in ACTIONS:
            raise ValueError(f"{where} action {row['action']!r} is not one of {', '.join(ACTIONS)}.")
        if not row["id"]:
            raise ValueError(f"{where} the id is missing. Fill it or remove the row.")
        if bool(row["category_key"]) != (row["action"] == "relabel"):
            need = "relabel needs a category_key" if row["action"] == "relabel" else "only relabel takes a category_key"
            raise ValueError(f"{where} {need} (category {row['category_key']!r}, action {row['action']!r}).")
        if (at := first.setdefault((row["side"], row["id"]), number)) != number:
            raise ValueError(f"{where} {row['side']} {row['id']} is listed in row {at} too. Keep one of the two.")
    return source


def run(context: GovernanceContext) -> StageResult:
    """Stage 7 in the folder of the run."""
    return overrides(context.workspace, context.overrides, previous=context.previous_keys)


def overrides(workspace: Workspace, table: Source | None, *, previous: dict[str, list[str]]) -> StageResult:
    """Place every row in its category, assign category keys, then apply the overrides.

    Args:
        previous: category_key -> document ids of an earlier run.
    """
    sides = {name: placed_rows(workspace, side) for name, side in SIDES.items()}
    documents: dict[int, list[str]] = {}
    for row_id, at in sides["document"].items():
        documents.setdefault(at.category, []).append(row_id)
    key_of = category_keys.keys(documents, previous)
    result = StageResult()
    if table is not None:
        state = RunState(workspace, sides, key_of)
        before = {side: len(rows) for side, rows in sides.items()}
        for number, row in enumerate(table.table.to_pylist(), start=1):
            _apply(result, state, {**row, "row": number})
        _count(result, before, sides, table.table.num_rows)
    for side, rows in sides.items():
        ids = sorted(rows)
        result.tables[SIDES[side].table] = pa.table(
            {
                "id": pa.array(ids, pa.string()),
                "category": pa.array([rows[i].category for i in ids], pa.int64()),
                "lead": pa.array([rows[i].lead for i in ids], pa.float64()),
            }
        )
    names = sorted(key_of)
    result.tables["keys"] = pa.table(
        {"category": pa.array(names, pa.int64()), "category_key": pa.array([key_of[c] for c in names], pa.string())}
    )
    return result


def placed_rows(workspace: Workspace, side: Side) -> dict[str, Placement]:
    """Row id -> placement, for all rows of the entities of merge_split."""
    table = workspace.table("merge_split", side.table)
    entities, category = table.column(side.entity).to_pylist(), table.column("category").to_pylist()
    lead = table.column("lead").to_pylist() if "lead" in table.column_names else [1.0] * len(entities)
    members = rows_of_entities(workspace, entities, side)
    rows = zip(entities, category, lead, strict=True)
    return {row: Placement(c, s) for one, c, s in rows for row in members[one]}


class RunState:
    """Where rows are, which were dropped, and the category keys: what an override is checked against."""

    def __init__(self, workspace: Workspace, sides: dict[str, dict[str, Placement]], key_of: dict[int, str]) -> None:
        self.sides, self.key_of = sides, key_of
        self.category_of = {key: category for category, key in key_of.items()}
        self.admitted, self.dropped, self.relabelled = {}, {}, set()
        for name, side in SIDES.items():
            rows = workspace.table("dedupe", side.table)
            self.admitted[name] = dict(
                zip(rows.column(side.key).to_pylist(), rows.column("entity").to_pylist(), strict=True)
            )
            for stage in workspace.stages[: workspace.stages.index("overrides")]:
                for row in workspace.table(stage, "decisions").to_pylist():
                    if row["table"] == side.source and row["decision"] == "dropped":
                        self.dropped[name, row["row_id"]] = row
                    if row["table"] == side.source and row["decision"] == "relabelled" and stage == "clean":
                        self.relabelled.add((name, row["row_id"]))
        organised = workspace.table("organise", "queries")
        self._organised = dict(
            zip(organised.column("query").to_pylist(), organised.column("category").to_pylist(), strict=True)
        )
        found = workspace.table("organise", "documents")
        final: dict[int, Counter[int]] = {}
        for entity, category in zip(found.column("doc").to_pylist(), found.column("category").to_pylist(), strict=True):
            if entity in sides["document"]:
                final.setdefault(category, Counter())[sides["document"][entity].category] += 1
        # Category of organise -> the one that most of its documents are in now; ties go to the smaller number.
        self._current = {category: min(count, key=lambda c: (-count[c], c)) for category, count in final.items()}

    def category_by_clicks(self, query_id: str) -> int | None:
        """Category of a query by its clicks, before cleaning; None without one."""
        category = self._organised.get(self.admitted["query"][query_id])
        if category is not None:
            return self._current.get(category)
        dropped = self.dropped.get(("query", query_id))
        candidate = json.loads(dropped["figures"]).get("candidate") if dropped else None
        placement = self.sides["document"].get(candidate) if candidate else None
        return placement.category if placement else None


def _apply(result: StageResult, state: RunState, row: dict[str, Any]) -> None:
    """Apply one override, or reject it."""
    side, row_id, action = row["side"], row["id"], row["action"]
    rows, table = state.sides[side], SIDES[side].source
    here, dropped = rows.get(row_id), state.dropped.get((side, row_id))
    why = row["why"] or NO_REASON
    figures = {"side": side, "action": action, "row": row["row"], "why": why}
    if action == "keep" and side == "query" and row_id in state.admitted[side]:
        unchanged = here is not None and (side, row_id) not in state.relabelled
        target = here.category if here is not None and unchanged else state.category_by_clicks(row_id)
    else:
        target = here.category if action == "keep" and here else state.category_of.get(row["category_key"] or "")
    fault = _fault(state, row, target)
    if fault is not None:
        result.decide("overrides", [row_id], "dropped", fault, **figures)
        return
    if action == "drop" and here is None:
        assert dropped is not None
        result.decide("overrides", [row_id], "kept", "already_dropped", **figures, by=dropped["stage"])
        return
    was = ""
    if here:
        was = state.key_of[here.category]
    elif dropped:
        was = f"dropped by {dropped['stage']}: {dropped['reason']}"
    figures = {"action": action, "row": row["row"], "was": was}
    if action == "drop":
        del rows[row_id]
        result.decide(table, [row_id], "dropped", why, **figures)
        return
    assert target is not None
    rows[row_id] = Placement(target, OVERRIDE_LEAD)
    moved = here is not None and here.category != target
    decision = "restored" if here is None else "relabelled" if moved else "kept"
    result.decide(table, [row_id], decision, why, **figures, category_key=state.key_of[target])


def _fault(state: RunState, row: dict[str, Any], target: int | None) -> str | None:
    """Why an override cannot be applied; None if it can."""
    if row["id"] not in state.admitted[row["side"]]:
        return "refused_by_admit" if (row["side"], row["id"]) in state.dropped else "unknown_id"
    if row["action"] != "drop" and target is None:
        return "unknown_category_key" if row["action"] == "relabel" else "no_category_to_keep_it_in"
    return None


def _count(
    result: StageResult, before: dict[str, int], sides: dict[str, dict[str, Placement]], num_overrides: int
) -> None:
    """Count rows; restored rows count as rows in, so that rows in = kept + dropped."""
    for name, side in SIDES.items():
        back = sum(r["decision"] == "restored" and r["table"] == side.source for r in result.decisions)
        result.counts[side.source] = (before[name] + back, len(sides[name]))
    faults = [row for row in result.decisions if row["table"] == "overrides" and row["decision"] == "dropped"]
    rejected = Counter(row["reason"] for row in faults)
    result.counts["overrides"] = (num_overrides, num_overrides - sum(rejected.values()))
    result.notes = {"given": num_overrides, "set_aside": dict(sorted(rejected.items()))}
