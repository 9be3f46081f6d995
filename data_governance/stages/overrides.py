"""Stage 7, overrides: what a person decided, row by row, stands above what the stages decided.

`--overrides FILE` names rows (side `query` or `document`, id) and for each one action: `keep` takes back what cleaning
did to it, `drop` takes the row out, `relabel` puts it into the category with `category_key`. Every one is a ledger row
with the person's reason. What cannot be honoured (an id or a key that this run lacks) is set aside with its reason; a
file that cannot be meant (an unknown action, one row decided twice) is an error.

It comes after the categories are found: a decision moves its row and nothing else, and a rerun takes seconds.
"""

import hashlib
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from data_governance.inputs.tables import Source, open_source
from data_governance.output import category_keys
from data_governance.stage import STAGES, StageResult, Workspace
from data_governance.stages.clean import members_of

SIDES = {"query": ("queries", "query", "query_id", "queries"), "document": ("documents", "doc", "doc_id", "catalogue")}
ACTIONS = ("keep", "drop", "relabel")
NO_REASON = "no reason given"
# A lead is a difference of shares, 1 at most: a row that a person placed is the last to go over a cap.
CERTAIN = 2.0


@dataclass(frozen=True)
class Placed:
    """A row and its category; `lead` decides who stays when a category is over its cap."""

    category: int
    lead: float


def open_overrides(path: Path | None) -> Source | None:
    """The table of overrides, checked as far as that needs no run.

    Raises:
        ValueError: naming row, value and remedy.
    """
    if path is None:
        return None
    source = open_source(str(path), name="overrides")
    if source.lost:
        raise ValueError(f"overrides: {source.lost[0][1]} Mend the file: decisions of a person are never skipped.")
    first: dict[tuple[str, str], int] = {}
    for number, row in enumerate(source.table.to_pylist(), start=1):
        where = f"overrides: row {number}:"
        if row["side"] not in SIDES:
            raise ValueError(f"{where} side {row['side']!r} is not one of {', '.join(SIDES)}.")
        if row["action"] not in ACTIONS:
            raise ValueError(f"{where} action {row['action']!r} is not one of {', '.join(ACTIONS)}.")
        if not row["id"]:
            raise ValueError(f"{where} the id is missing. Fill it or take the row out.")
        if bool(row["category_key"]) != (row["action"] == "relabel"):
            need = "relabel needs a category_key" if row["action"] == "relabel" else "only relabel takes a category_key"
            raise ValueError(f"{where} {need} (category {row['category_key']!r}, action {row['action']!r}).")
        if (at := first.setdefault((row["side"], row["id"]), number)) != number:
            raise ValueError(f"{where} {row['side']} {row['id']} is decided in row {at} too. Keep one of the two.")
    return source


def digest(source: Source | None, previous: dict[str, list[str]]) -> str:
    """Of what this stage reads besides the stages before it."""
    rows = None if source is None else source.table.to_pylist()
    return hashlib.sha256(json.dumps([rows, sorted(previous.items())]).encode()).hexdigest()


def overrides(workspace: Workspace, given: Source | None, *, previous: dict[str, list[str]]) -> StageResult:
    """Put every row into its category, name the categories, then do what the person decided."""
    sides = {side: placed_rows(workspace, side) for side in SIDES}
    documents: dict[int, list[str]] = {}
    for row_id, at in sides["document"].items():
        documents.setdefault(at.category, []).append(row_id)
    key_of = category_keys.keys(documents, previous)
    result = StageResult()
    if given is not None:
        desk = Desk(workspace, sides, key_of)
        before = {side: len(rows) for side, rows in sides.items()}
        for number, row in enumerate(given.table.to_pylist(), start=1):
            _judge(result, desk, {**row, "row": number})
        _count(result, before, sides, given.table.num_rows)
    for side, rows in sides.items():
        ids = sorted(rows)
        result.tables[SIDES[side][0]] = pa.table(
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


def placed_rows(workspace: Workspace, side: str) -> dict[str, Placed]:
    """Row id -> its place, for every row that the entities of merge_split stand for."""
    name, entity, key, _ = SIDES[side]
    table = workspace.table("merge_split", name)
    entities, category = table.column(entity).to_pylist(), table.column("category").to_pylist()
    lead = table.column("lead").to_pylist() if "lead" in table.column_names else [1.0] * len(entities)
    members = members_of(workspace, entities, table=name, key=key)
    rows = zip(entities, category, lead, strict=True)
    return {row: Placed(c, s) for one, c, s in rows for row in members[one]}


class Desk:
    """What a decision is checked against: where rows are, which are gone, and what the categories are called."""

    def __init__(self, workspace: Workspace, sides: dict[str, dict[str, Placed]], key_of: dict[int, str]) -> None:
        self.sides, self.key_of = sides, key_of
        self.category_of = {key: category for category, key in key_of.items()}
        self.admitted, self.gone, self.relabelled = {}, {}, set()
        for side, (name, _, key, table) in SIDES.items():
            rows = workspace.table("dedupe", name)
            self.admitted[side] = dict(
                zip(rows.column(key).to_pylist(), rows.column("entity").to_pylist(), strict=True)
            )
            for stage in STAGES[: STAGES.index("overrides")]:
                for row in workspace.table(stage, "decisions").to_pylist():
                    if row["table"] == table and row["decision"] == "dropped":
                        self.gone[side, row["row_id"]] = row
                    if row["table"] == table and row["decision"] == "relabelled" and stage == "clean":
                        self.relabelled.add((side, row["row_id"]))
        organised = workspace.table("organise", "queries")
        self._organised = dict(
            zip(organised.column("query").to_pylist(), organised.column("category").to_pylist(), strict=True)
        )
        found = workspace.table("organise", "documents")
        final: dict[int, Counter[int]] = {}
        for entity, category in zip(found.column("doc").to_pylist(), found.column("category").to_pylist(), strict=True):
            if entity in sides["document"]:
                final.setdefault(category, Counter())[sides["document"][entity].category] += 1
        # Where most documents of a category of organise are now; ties go to the smaller number.
        self._now = {category: min(count, key=lambda c: (-count[c], c)) for category, count in final.items()}

    def home(self, query_id: str) -> int | None:
        """The category that the clicks gave to a query, before cleaning; None where they named none."""
        category = self._organised.get(self.admitted["query"][query_id])
        if category is not None:
            return self._now.get(category)
        gone = self.gone.get(("query", query_id))
        named = json.loads(gone["figures"]).get("candidate") if gone else None
        place = self.sides["document"].get(named) if named else None
        return place.category if place else None


def _judge(result: StageResult, desk: Desk, row: dict[str, Any]) -> None:
    """Honour one decision, or set it aside."""
    side, row_id, action = row["side"], row["id"], row["action"]
    rows, table = desk.sides[side], SIDES[side][3]
    here, gone = rows.get(row_id), desk.gone.get((side, row_id))
    why = row["why"] or NO_REASON
    figures = {"side": side, "action": action, "row": row["row"], "why": why}
    if action == "keep" and side == "query" and row_id in desk.admitted[side]:
        stays = here is not None and (side, row_id) not in desk.relabelled
        target = here.category if here is not None and stays else desk.home(row_id)
    else:
        target = here.category if action == "keep" and here else desk.category_of.get(row["category_key"] or "")
    fault = _fault(desk, row, target)
    if fault is not None:
        result.decide("overrides", [row_id], "dropped", fault, **figures)
        return
    if action == "drop" and here is None:
        assert gone is not None
        result.decide("overrides", [row_id], "kept", "already_dropped", **figures, by=gone["stage"])
        return
    told: dict[str, Any] = {"action": action, "row": row["row"]}
    told["was"] = (
        desk.key_of[here.category] if here else f"dropped by {gone['stage']}: {gone['reason']}" if gone else ""
    )
    if action == "drop":
        del rows[row_id]
        result.decide(table, [row_id], "dropped", why, **told)
        return
    assert target is not None
    rows[row_id] = Placed(target, CERTAIN)
    moved = here is not None and here.category != target
    decision = "restored" if here is None else "relabelled" if moved else "kept"
    result.decide(table, [row_id], decision, why, **told, category_key=desk.key_of[target])


def _fault(desk: Desk, row: dict[str, Any], target: int | None) -> str | None:
    """Why a decision cannot be honoured."""
    gone = desk.gone.get((row["side"], row["id"]))
    if row["id"] not in desk.admitted[row["side"]]:
        return "refused_by_admit" if gone is not None else "unknown_id"
    if row["action"] != "drop" and target is None:
        return "unknown_category_key" if row["action"] == "relabel" else "no_category_to_keep_it_in"
    return None


def _count(result: StageResult, before: dict[str, int], sides: dict[str, dict[str, Placed]], given: int) -> None:
    """Rows that came back count as rows in: rows in = kept + dropped holds here as at every stage."""
    for side, (_, _, _, table) in SIDES.items():
        back = sum(r["decision"] == "restored" and r["table"] == table for r in result.decisions)
        result.counts[table] = (before[side] + back, len(sides[side]))
    aside = Counter(row["reason"] for row in result.decisions if row["table"] == "overrides" and _is_fault(row))
    result.counts["overrides"] = (given, given - sum(aside.values()))
    result.notes = {"given": given, "set_aside": dict(sorted(aside.items()))}


def _is_fault(row: dict[str, Any]) -> bool:
    return bool(row["decision"] == "dropped")
