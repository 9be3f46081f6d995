"""Lineage of one row: its values and decisions in every stage.

Values (category, shares, margin) are from the stage tables, decisions from the ledger. Category numbers change from
stage to stage, so each is shown with the first documents of the category in that stage.
"""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_governance.entities import SIDES
from data_governance.inputs.shards import first_row
from data_governance.output.ledger import stage_names
from data_governance.stage import LOG, Workspace

BY_ROW = ("admit", "dedupe", "overrides", "balance")
# Columns with category numbers, and columns that are not shown.
CATEGORIES = ("category", "second", "other", "candidate", "voted")
HIDDEN = ("vector", "features", "sha", "hash", "id", "side", "text", "image")
SHOWN = 5


def row_lineage(governed: Path, row_id: str) -> list[str]:
    """Lines about a query, a document or a behaviour row, in the order of the stages.

    Raises:
        ValueError: when the folder is not finished, or the id is not of this run.
    """
    if not (governed / "ledger.json").exists():
        raise ValueError(f"--governed {governed}: no ledger.json there. Run `python -m data_governance run` first.")
    workspace = Workspace(governed)
    decisions = _decisions(governed, row_id)
    entity = {side: _entity(workspace, side, row_id) for side in SIDES}
    lines = []
    for stage in stage_names(governed):
        for side, own in entity.items():
            if own is not None:
                lines += _stage_values(workspace, stage, side, row_id, own)
        if stage == "admit":
            lines += _click_row(workspace, row_id)
        lines += [_line(row) for row in decisions if row["stage"] == stage]
    if not lines:
        raise ValueError(f"{row_id}: no query_id, doc_id or behaviour row of this run. Ids are case-sensitive.")
    return lines + _now(governed, row_id)


def _decisions(governed: Path, row_id: str) -> list[dict[str, Any]]:
    """Ledger rows of the id and of dropped clicks on it; other rows are filtered while reading."""
    ids, of_log = pc.field("row_id"), pc.field("table") == LOG
    clicked = of_log & (pc.starts_with(ids, f"{row_id}>") | pc.match_substring(ids, f">{row_id}#"))
    return pq.read_table(governed / "ledger.parquet", filters=(ids == row_id) | clicked).to_pylist()


def _entity(workspace: Workspace, side: str, row_id: str) -> str | None:
    """Entity of the row after dedupe; None when no such row was admitted."""
    name, key = SIDES[side].table, SIDES[side].key
    found = _rows(workspace, "dedupe", name, key, row_id)
    return found[0]["entity"] if found else None


def _rows(workspace: Workspace, stage: str, table: str, key: str, value: Any) -> list[dict[str, Any]]:
    """Rows of a stage's table with key = value, without the wide columns."""
    path = workspace.folder(stage) / f"{table}.parquet"
    schema = pq.read_schema(path)
    columns = [field.name for field in schema if field.name not in HIDDEN or field.name == key]
    return pq.read_table(path, columns=columns, filters=[(key, "=", value)]).to_pylist()


def _stage_values(workspace: Workspace, stage: str, side: str, row_id: str, entity: str) -> list[str]:
    """Values of the row, or of its entity, in the tables of a stage."""
    name, key, entity_key = SIDES[side].table, SIDES[side].key, SIDES[side].entity
    if stage == "click_rates":
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
        + ", ".join(_value_text(workspace, stage, k, v) for k, v in row.items() if k not in skip)
        for row in found
    ] + (_stage_notes(workspace, stage) if found and stage == "clean" else [])


def _rows_of_side(workspace: Workspace, side: str, row_id: str) -> list[dict[str, Any]]:
    path = workspace.folder("balance") / "members.parquet"
    filters = [("id", "=", row_id), ("side", "=", side)]
    return pq.read_table(path, columns=["category", "weight"], filters=filters).to_pylist()


def _edges(workspace: Workspace, side: str, entity: str) -> list[str]:
    """Click edges of an entity, highest rate first."""
    own, other = ("query", "doc") if side == "query" else ("doc", "query")
    found = _rows(workspace, "click_rates", "edges", own, entity)
    found.sort(key=lambda row: (-row["rate"], row[other]))
    edges = [f"{row[other]} ({row['clicks']} clicks, rate {row['rate']:.3g})" for row in found[:SHOWN]]
    more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    word = "documents" if side == "query" else "queries"
    return [
        f"click_rates: {side} {entity}: {len(found)} {word} by click" + (f": {', '.join(edges)}{more}" if found else "")
    ]


def _stage_notes(workspace: Workspace, stage: str) -> list[str]:
    """Statistics of the stage over all rows, such as the threshold of the margins."""
    notes = workspace.record(stage)["notes"]
    statistics = [f"{k} {_plain(v)}" for k, v in notes.items() if isinstance(v, (int, float, str))]
    return [f"{stage}: over all rows: {', '.join(statistics)}"] if statistics else []


def _click_row(workspace: Workspace, row_id: str) -> list[str]:
    """An admitted click."""
    # Its name ends with the number of its row, which identifies the shard.
    number = row_id.rpartition("#")[2]
    if not number.isdecimal():
        return []
    before = [path for path in workspace.shards("admit", LOG) if first_row(path) <= int(number)]
    rows = pq.read_table(before[-1], filters=[("row_id", "=", row_id)]).to_pylist() if before else []
    texts = [", ".join(f"{k} {_plain(v)}" for k, v in row.items() if k != "row_id" and v is not None) for row in rows]
    return [f"admit: behaviour {row_id}: {text}" for text in texts]


def _value_text(workspace: Workspace, stage: str, column: str, value: Any) -> str:
    if column not in CATEGORIES or not isinstance(value, int):
        return f"{column} {_plain(value)}"
    return f"{column} {value}" + _documents_in(workspace, stage, value)


def _documents_in(workspace: Workspace, stage: str, category: int) -> str:
    """The first documents of a category in a stage, in brackets."""
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
    """Place of the row in the published data."""
    columns = ["sample_id", "side", "category_id", "weight", "split"]
    found = pq.read_table(governed / "samples", columns=columns, filters=[("sample_id", "=", row_id)]).to_pylist()
    table = pq.read_table(governed / "categories.parquet", columns=["category_id", "category_key"])
    key = dict(zip(*(table.column(c).to_pylist() for c in table.column_names), strict=True))
    lines = []
    for row in found:
        category = row["category_id"]
        members: pa.Table = pq.read_table(
            governed / "samples", columns=["sample_id", "side"], filters=[("category_id", "=", category)]
        )
        sides = {side: [m["sample_id"] for m in members.to_pylist() if m["side"] == side] for side in SIDES}
        lines.append(
            f"now: {row['side']} of category {category}, key {key[category]} ({row['split']}, weight"
            f" {row['weight']:.2f}) with {len(sides['document'])} documents ({_some(sides['document'])}) and"
            f" {len(sides['query'])} queries"
        )
    return lines or ["now: in no category; dropped/ has the row as it was read"]
