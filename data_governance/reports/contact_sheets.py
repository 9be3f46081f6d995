"""Pictures of what governance decided: rows set aside, merged, relabelled or placed by a person, with the reasons."""

import base64
import html
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image

from data_governance.inputs.images import decode_square
from data_governance.stage import Workspace

THUMBNAIL = 72
DROPPED_SHOWN = 8
MERGED_SHOWN = 12
RELABELLED_SHOWN = 12
DECIDED_SHOWN = 40
# A thumbnail is never worth decoding more than this.
MAX_PIXELS = 40_000_000
Cell = dict[str, Any] | None


def grid(head: list[str], rows: list[list[Any]]) -> str:
    """An HTML table; numbers to the right."""

    def cell(value: Any) -> str:
        if isinstance(value, (int, float)):
            return f'<td class="n">{value:,}</td>'
        return f"<td>{html.escape(str(value))}</td>"

    body = "".join("<tr>" + "".join(cell(value) for value in row) + "</tr>" for row in rows)
    return "<table><tr>" + "".join(f"<th>{html.escape(name)}</th>" for name in head) + f"</tr>{body}</table>"


def thumbnail(cell: Cell) -> str:
    """A small JPEG of the cropped image as a data address; a grey square where there is none or it is broken."""
    square = None
    if cell is not None and cell["bytes"] is not None:
        square, _ = decode_square(cell["bytes"], size=THUMBNAIL, max_pixels=MAX_PIXELS)
    image = Image.new("RGB", (THUMBNAIL, THUMBNAIL), (230, 230, 230)) if square is None else Image.fromarray(square)
    out = io.BytesIO()
    image.save(out, "JPEG", quality=70)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode()


def figure(cell: Cell, caption: str) -> str:
    return f'<figure><img alt="" src="{thumbnail(cell)}"><br>{html.escape(caption[:60])}</figure>'


def card(head: str, body: str) -> str:
    return f'<div class="card"><div class="tag">{html.escape(head)}</div>{body}</div>'


def set_aside_cards(governed: Path) -> str:
    """Per table and reason some dropped rows: the picture, beside it the categories it hesitated between."""
    cards = list[str]()
    shown: dict[tuple[str, str], tuple[int, list[tuple[int, dict[str, Any]]]]] = {}
    for name in ("queries", "catalogue", "behaviour", "overrides"):
        path = governed / "dropped" / f"{name}.parquet"
        found = dropped_rows(path) if path.exists() else {}
        shown |= {(name, reason): found[reason] for reason in sorted(found)}
    wanted = {named for _, some in shown.values() for _, row in some for named in _candidates(row).values()}
    pictures = sample_pictures(governed, "document", wanted)
    for (name, reason), (count, some) in shown.items():
        head = f"{name}: {reason}, {count} rows"
        if name in ("queries", "catalogue"):
            at = pa.array([i for i, _ in some], pa.int64())
            cells = pq.read_table(governed / "dropped" / f"{name}.parquet", columns=["image"]).take(at).column("image")
            drawn = zip(cells.to_pylist(), (row for _, row in some), strict=True)
            body = f'<div class="row">{"".join(dropped_figure(cell, row, pictures) for cell, row in drawn)}</div>'
        else:
            body = grid(["row", "stage", "figures"], [[r["row_id"], r["stage"], r["figures"]] for _, r in some])
        cards.append(card(head, body))
    return "".join(cards) or "<p>Nothing was dropped.</p>"


def dropped_rows(path: Path) -> dict[str, tuple[int, list[tuple[int, dict[str, Any]]]]]:
    """Reason -> (how many rows, the first of them with their numbers); the file is read batch by batch."""
    found: dict[str, tuple[int, list[tuple[int, dict[str, Any]]]]] = {}
    start = 0
    with pq.ParquetFile(path) as opened:
        light = [column for column in opened.schema_arrow.names if column not in ("image", "text")]
        for batch in opened.iter_batches(columns=light):
            why = batch.column("reason")
            for reason in pc.unique(why).to_pylist():
                count, some = found.get(reason, (0, []))
                at = np.flatnonzero(pc.equal(why, reason).to_numpy(zero_copy_only=False))
                more = at[: DROPPED_SHOWN - len(some)]
                rows = batch.take(pa.array(more)).to_pylist()
                found[reason] = (count + len(at), [*some, *zip((start + more).tolist(), rows, strict=True)])
            start += batch.num_rows
    return found


def _candidates(row: dict[str, Any]) -> dict[str, str]:
    """The representatives of the two best categories, where a stage named them."""
    figures = json.loads(row["figures"])
    return {name: figures[name] for name in ("candidate", "other_candidate") if figures.get(name)}


def dropped_figure(cell: Cell, row: dict[str, Any], pictures: dict[str, Cell]) -> str:
    """A dropped picture, then the representatives of its two best categories where a stage named them."""
    figures = json.loads(row["figures"])
    told = [f"{name} {figures[name]:.2f}" for name in ("lead", "margin") if isinstance(figures.get(name), float)]
    shown = [figure(cell, ", ".join(told) or row["row_id"])]
    for name in _candidates(row).values():
        if name in pictures:
            shown.append(figure(pictures[name], f"candidate {name}"))
    return f'<div class="card row">{"".join(shown)}</div>'


def merged_cards(governed: Path) -> str:
    """Documents that were found to show the same picture as another one."""
    decisions = Workspace(governed).table("dedupe", "decisions")
    rows = decisions.filter(pc.equal(decisions.column("table"), "catalogue")).slice(0, MERGED_SHOWN).to_pylist()
    into = [json.loads(row["figures"])["into"] for row in rows]
    pictures = sample_pictures(governed, "document", {row["row_id"] for row in rows} | set(into))
    cards = []
    for row, other in zip(rows, into, strict=True):
        if row["row_id"] in pictures:
            pair = figure(pictures[row["row_id"]], row["row_id"]) + figure(pictures.get(other), f"into {other}")
            cards.append(card(row["reason"], f'<div class="row">{pair}</div>'))
    return f'<div class="row">{"".join(cards)}</div>' if cards else "<p>No two documents show the same picture.</p>"


def relabelled_cards(governed: Path) -> str:
    """Queries that changed their category, each before a document of where it is now."""
    ledger = pq.read_table(governed / "ledger.parquet", filters=[("decision", "in", ["relabelled", "restored"])])
    mine = ledger.filter(pc.equal(ledger.column("table"), "queries")).to_pylist()
    rows = list({row["row_id"]: row for row in mine}.values())[:RELABELLED_SHOWN]
    if not rows:
        return "<p>No query changed its category.</p>"
    queries = sample_pictures(governed, "query", {row["row_id"] for row in rows})
    columns = ["sample_id", "side", "category_id"]
    placed = pq.read_table(governed / "samples", columns=columns, filters=[("sample_id", "in", sorted(queries))])
    ids = (placed.column(c).to_pylist() for c in columns)
    category = {row_id: number for row_id, side, number in zip(*ids, strict=True) if side == "query"}
    named = pq.read_table(governed / "categories.parquet", columns=["category_id", "representative"])
    first = dict(zip(*(named.column(c).to_pylist() for c in named.column_names), strict=True))
    documents = sample_pictures(governed, "document", {first[c] for c in category.values()})
    cards = []
    for row in rows:
        if row["row_id"] in category:
            now = first[category[row["row_id"]]]
            pair = figure(queries[row["row_id"]], row["row_id"]) + figure(documents.get(now), f"now with {now}")
            cards.append(card(f"{row['stage']}: {row['reason']}", f'<div class="row">{pair}</div>'))
    return f'<div class="row">{"".join(cards)}</div>'


def decided_rows(governed: Path) -> str:
    """What a person decided, and what came of it."""
    rows = Workspace(governed).table("overrides", "decisions").slice(0, DECIDED_SHOWN).to_pylist()
    if not rows:
        return "<p>No decision of a person was given.</p>"
    told = [[r["table"], r["row_id"], r["decision"], r["reason"], r["figures"]] for r in rows]
    return grid(["table", "row", "decision", "reason", "figures"], told)


def sample_pictures(governed: Path, side: str, wanted: set[str]) -> dict[str, Cell]:
    """sample_id -> image cell of the wanted rows of one side; only these are read."""
    if not wanted:
        return {}
    filters = [("side", "=", side), ("sample_id", "in", sorted(wanted))]
    found = pq.read_table(governed / "samples", columns=["sample_id", "side", "image"], filters=filters)
    return dict(zip(found.column("sample_id").to_pylist(), found.column("image").to_pylist(), strict=True))
