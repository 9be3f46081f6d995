"""The whole story of one row: what every stage knew of it, what it decided and why, and where the row is now.

A stage's table says what it knew (category, shares, margin), the ledger what it decided. Category numbers change from
stage to stage, so each is told with the first documents that the stage had in it.
"""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_governance.inputs.shards import first_row
from data_governance.stage import LOG, STAGES, Workspace

# Side -> the table of each stage that knows it, the key of its rows, the key of its entities.
SIDES = {"query": ("queries", "query_id", "query"), "document": ("documents", "doc_id", "doc")}
BY_ROW = ("admit", "dedupe", "overrides", "balance")
# Columns of numbers of categories, and columns that say nothing to a reader.
CATEGORIES = ("category", "second", "other", "candidate", "voted")
UNTOLD = ("vector", "features", "sha", "hash", "id", "side", "text", "image")
SHOWN = 5


def story(governed: Path, row_id: str) -> list[str]:
    """Lines that tell what happened to a query, a document or a behaviour row, in the order of the stages.

    Raises:
        ValueError: when the folder holds no ledger or no such id went in.
    """
    if not (governed / "ledger.parquet").exists():
        raise ValueError(f"--governed {governed}: no ledger.parquet there. Run `python -m data_governance run` first.")
    workspace = Workspace(governed)
    decided = _decisions(governed, row_id)
    entity = {side: _entity(workspace, side, row_id) for side in SIDES}
    lines = []
    for stage in STAGES:
        for side, own in entity.items():
            if own is not None:
                lines += _known(workspace, stage, side, row_id, own)
        if stage == "admit":
            lines += _click_row(workspace, row_id)
        lines += [_line(row) for row in decided if row["stage"] == stage]
    if not lines:
        raise ValueError(f"{row_id}: no query_id, doc_id or behaviour row of this run. Ids are told apart by case.")
    return lines + _now(governed, row_id)


def _decisions(governed: Path, row_id: str) -> list[dict[str, Any]]:
    """Ledger rows of the id itself, and of the clicks on it that were dropped: the others are read past, not held."""
    ids, of_log = pc.field("row_id"), pc.field("table") == LOG
    clicked = of_log & (pc.starts_with(ids, f"{row_id}>") | pc.match_substring(ids, f">{row_id}#"))
    return pq.read_table(governed / "ledger.parquet", filters=(ids == row_id) | clicked).to_pylist()


def _entity(workspace: Workspace, side: str, row_id: str) -> str | None:
    """The id that stands for the row after dedupe; None when no such row was admitted."""
    name, key, _ = SIDES[side]
    found = _rows(workspace, "dedupe", name, key, row_id)
    return found[0]["entity"] if found else None


def _rows(workspace: Workspace, stage: str, table: str, key: str, value: Any) -> list[dict[str, Any]]:
    """Rows of a stage's table with key = value, without the wide columns."""
    path = workspace.folder(stage) / f"{table}.parquet"
    schema = pq.read_schema(path)
    told = [field.name for field in schema if field.name not in UNTOLD or field.name == key]
    return pq.read_table(path, columns=told, filters=[(key, "=", value)]).to_pylist()


def _known(workspace: Workspace, stage: str, side: str, row_id: str, entity: str) -> list[str]:
    """What the stage knew of the row, or of the entity that it is part of."""
    name, key, entity_key = SIDES[side]
    if stage == "weigh":
        return _edges(workspace, side, entity)
    if stage == "admit":
        found = _rows(workspace, stage, name, key, row_id)
    elif stage == "dedupe":
        more = [row[key] for row in _rows(workspace, stage, name, "entity", entity) if row[key] != row_id]
        shared = f", shared with {_some(more)}" if more else ""
        return [f"dedupe: {side} {row_id}: entity {entity}{shared}"]
    elif stage == "balance":
        found = _rows_of_side(workspace, side, row_id)
    elif stage in BY_ROW:
        found = _rows(workspace, stage, name, "id", row_id)
    else:
        found = _rows(workspace, stage, name, entity_key, entity)
    skip = {key, entity_key, "id"}
    return [
        f"{stage}: {side} {row_id}: "
        + ", ".join(_told(workspace, stage, k, v) for k, v in row.items() if k not in skip)
        for row in found
    ] + (_stage_figures(workspace, stage) if found and stage == "clean" else [])


def _rows_of_side(workspace: Workspace, side: str, row_id: str) -> list[dict[str, Any]]:
    path = workspace.folder("balance") / "members.parquet"
    filters = [("id", "=", row_id), ("side", "=", side)]
    return pq.read_table(path, columns=["category", "weight"], filters=filters).to_pylist()


def _edges(workspace: Workspace, side: str, entity: str) -> list[str]:
    """The clicks that count, strongest first."""
    own, other = ("query", "doc") if side == "query" else ("doc", "query")
    found = _rows(workspace, "weigh", "edges", own, entity)
    found.sort(key=lambda row: (-row["rate"], row[other]))
    told = [f"{row[other]} ({row['clicks']} clicks, rate {row['rate']:.3g})" for row in found[:SHOWN]]
    more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    word = "documents" if side == "query" else "queries"
    return [f"weigh: {side} {entity}: {len(found)} {word} by click" + (f": {', '.join(told)}{more}" if found else "")]


def _stage_figures(workspace: Workspace, stage: str) -> list[str]:
    """What the stage measured over all rows: a margin says little without its threshold."""
    notes = workspace.record(stage)["notes"]
    told = [f"{k} {_plain(v)}" for k, v in notes.items() if isinstance(v, (int, float, str))]
    return [f"{stage}: over all rows: {', '.join(told)}"] if told else []


def _click_row(workspace: Workspace, row_id: str) -> list[str]:
    """A click as it was admitted. Its name ends with the number of its row, which leads to its shard."""
    number = row_id.rpartition("#")[2]
    if not number.isdecimal():
        return []
    before = [path for path in workspace.shards("admit", LOG) if first_row(path) <= int(number)]
    rows = pq.read_table(before[-1], filters=[("row_id", "=", row_id)]).to_pylist() if before else []
    told = [", ".join(f"{k} {_plain(v)}" for k, v in row.items() if k != "row_id" and v is not None) for row in rows]
    return [f"admit: behaviour {row_id}: {line}" for line in told]


def _told(workspace: Workspace, stage: str, column: str, value: Any) -> str:
    if column not in CATEGORIES or not isinstance(value, int):
        return f"{column} {_plain(value)}"
    return f"{column} {value}" + _documents_in(workspace, stage, value)


def _documents_in(workspace: Workspace, stage: str, category: int) -> str:
    """The first documents that a stage has in a category, in brackets."""
    table, key = ("members", "id") if stage == "balance" else ("documents", "id" if stage in BY_ROW else "doc")
    filters: list[tuple[str, str, Any]] = [("category", "=", category)]
    filters += [("side", "=", "document")] if stage == "balance" else []
    path = workspace.folder(stage) / f"{table}.parquet"
    ids = pq.read_table(path, columns=[key], filters=filters).column(key).to_pylist()
    return f" ({_some(sorted(ids))})" if ids else " (no document)"


def _some(ids: list[str]) -> str:
    more = f" and {len(ids) - SHOWN} more" if len(ids) > SHOWN else ""
    return ", ".join(ids[:SHOWN]) + more


def _plain(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _line(row: dict[str, Any]) -> str:
    figures = ", ".join(f"{name} {value}" for name, value in json.loads(row["figures"]).items())
    tail = f" ({figures})" if figures else ""
    return f"{row['stage']}: {row['table']} {row['row_id']} {row['decision']}: {row['reason']}{tail}"


def _now(governed: Path, row_id: str) -> list[str]:
    """Where the row is in what is published."""
    columns = ["sample_id", "side", "category_id", "weight", "split"]
    found = pq.read_table(governed / "samples", columns=columns, filters=[("sample_id", "=", row_id)]).to_pylist()
    named = pq.read_table(governed / "categories.parquet", columns=["category_id", "category_key"])
    key = dict(zip(*(named.column(c).to_pylist() for c in named.column_names), strict=True))
    lines = []
    for row in found:
        category = row["category_id"]
        mates: pa.Table = pq.read_table(
            governed / "samples", columns=["sample_id", "side"], filters=[("category_id", "=", category)]
        )
        sides = {side: [m["sample_id"] for m in mates.to_pylist() if m["side"] == side] for side in SIDES}
        lines.append(
            f"now: {row['side']} of category {category}, key {key[category]} ({row['split']}, weight"
            f" {row['weight']:.2f}) with {len(sides['document'])} documents ({_some(sides['document'])}) and"
            f" {len(sides['query'])} queries"
        )
    return lines or ["now: in no category; dropped/ holds the row as it came"]
