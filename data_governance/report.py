"""A self-contained page on a governed folder: what went in, what came out, why, with pictures.

In: ledger, categories, samples, stage tables of a governed folder. Out: one HTML file, no address in it, under 3 MB.
Next: a person.
"""

import base64
import html
import io
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image

from data_governance.images import decode_square
from data_governance.stage import STAGES, Workspace

THUMBNAIL = 72
CATEGORIES_SHOWN = 12
DROPPED_SHOWN = 8
MERGED_SHOWN = 12
# A thumbnail is never worth decoding more than this.
MAX_PIXELS = 40_000_000
STYLE = """
body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:64rem;padding:0 1rem;color:#1c2430;background:#fff}
h1{font-size:1.6rem}h2{font-size:1.15rem;margin-top:2.2rem;border-bottom:1px solid #d8dee6}
table{border-collapse:collapse}td,th{padding:.2rem .8rem;text-align:left;border-bottom:1px solid #e8ecf1}
td.n{text-align:right;font-variant-numeric:tabular-nums}.row{display:flex;gap:.6rem;flex-wrap:wrap;align-items:flex-end}
figure{margin:0;width:5.2rem;font-size:.7rem;color:#5a6675;overflow-wrap:anywhere}
img{width:72px;height:72px;object-fit:contain;
border:1px solid #d8dee6;border-radius:4px;background:#fff}
.card{padding:.6rem;border:1px solid #e0e5eb;border-radius:6px;margin:.6rem 0}
.tag{font-size:.72rem;color:#5a6675}svg text{font:11px system-ui,sans-serif;fill:#5a6675}
"""


def write_report(governed: Path, target: Path) -> None:
    """Write the page.

    Raises:
        ValueError: when the folder is not a finished governed folder.
    """
    if not (governed / "ledger.json").exists():
        raise ValueError(f"--governed {governed}: no ledger.json there. Run `python -m data_governance run` first.")
    facts = json.loads((governed / "ledger.json").read_text())
    categories = pq.read_table(governed / "categories.parquet")
    parts = [
        f"<p>Encoder: {html.escape(facts['encoder'])}. The command <code>explain</code> tells a row's whole story.</p>",
        "<h2>Rows</h2>" + rows_table(facts["rows"]),
        "<h2>Decisions by stage and reason</h2>" + decisions_table(facts["decisions"]),
        "<h2>Stages</h2>" + stages_table(facts["notes"]),
        "<h2>Before and after</h2>" + distributions(governed, categories),
        "<h2>Head, body and tail</h2>" + bands_table(categories),
        "<h2>Categories</h2><p>Documents first, then queries; the most clicked, and some of the tail.</p>"
        + category_cards(governed, categories),
        "<h2>Set aside, and why</h2>" + set_aside_cards(governed),
        "<h2>Merged</h2>" + merged_cards(governed),
    ]
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>Data governance</title><style>{STYLE}</style></head><body><h1>Data governance</h1>"
        f"{''.join(parts)}</body></html>"
    )
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(page, encoding="utf-8")


def grid(head: list[str], rows: list[list[Any]]) -> str:
    """An HTML table; numbers to the right."""

    def cell(value: Any) -> str:
        return (
            f'<td class="n">{value:,}</td>'
            if isinstance(value, (int, float))
            else f"<td>{html.escape(str(value))}</td>"
        )

    body = "".join("<tr>" + "".join(cell(value) for value in row) + "</tr>" for row in rows)
    return "<table><tr>" + "".join(f"<th>{html.escape(name)}</th>" for name in head) + f"</tr>{body}</table>"


def rows_table(rows: dict[str, dict[str, int]]) -> str:
    return grid(
        ["table", "in", "kept", "dropped"], [[name, r["in"], r["kept"], r["dropped"]] for name, r in rows.items()]
    )


def decisions_table(decisions: list[dict[str, Any]]) -> str:
    keys = ["stage", "table", "decision", "reason", "rows"]
    return grid(keys, [[row[key] for key in keys] for row in decisions])


def stages_table(notes: dict[str, Any]) -> str:
    rows = [
        [name, notes[name]["seconds"], json.dumps({key: v for key, v in notes[name].items() if key != "seconds"})]
        for name in STAGES
    ]
    return grid(["stage", "seconds", "what it measured and chose"], rows)


def bands_table(categories: pa.Table) -> str:
    rows = []
    for band in ("head", "body", "tail"):
        part = categories.filter(pc.equal(categories.column("band"), band))
        rows.append([band, part.num_rows, *(pc.sum(part.column(c)).as_py() or 0 for c in ("queries", "documents"))])
    return grid(["band", "categories", "queries", "documents"], rows)


def distributions(governed: Path, categories: pa.Table) -> str:
    """Clicks per document before, queries and documents per category after, as bars on a doubling scale."""
    edges = Workspace(governed).table("weigh", "edges")
    clicks = list(Counter(edges.column("doc").to_pylist()).values())
    series = [
        ("queries per clicked document, before", clicks),
        ("queries per category, after", categories.column("queries").to_pylist()),
        ("documents per category, after", categories.column("documents").to_pylist()),
    ]
    return '<div class="row">' + "".join(bars(name, values) for name, values in series) + "</div>"


def bars(name: str, values: list[int]) -> str:
    """An SVG histogram with bins 0, 1, 2-3, 4-7, ..."""
    place = [0 if value == 0 else int(np.log2(value)) + 1 for value in values]
    count = np.bincount(place) if place else np.zeros(1, dtype=int)
    parts, top = [], max(int(count.max()), 1)
    for i, rows in enumerate(count):
        label = "0" if i == 0 else str(2 ** (i - 1))
        height = 90 * int(rows) / top
        x = 8 + 27 * i
        parts.append(f'<rect x="{x}" y="{105 - height:.1f}" width="22" height="{height:.1f}" fill="#3b6ea5"/>')
        parts.append(f'<text x="{x}" y="118">{label}</text><text x="{x}" y="{102 - height:.1f}">{rows}</text>')
    width = 27 * len(count) + 16
    frame = f'<svg width="{width}" height="124" viewBox="0 0 {width} 124">{"".join(parts)}</svg>'
    return f"<div>{frame}<br>{html.escape(name)}</div>"


def thumbnail(cell: dict[str, Any] | None) -> str:
    """A small JPEG of the cropped image as a data address; a grey square where there is none or it is broken."""
    square = None
    if cell is not None and cell["bytes"] is not None:
        square, _ = decode_square(cell["bytes"], size=THUMBNAIL, max_pixels=MAX_PIXELS)
    image = Image.new("RGB", (THUMBNAIL, THUMBNAIL), (230, 230, 230)) if square is None else Image.fromarray(square)
    out = io.BytesIO()
    image.save(out, "JPEG", quality=70)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode()


def figure(cell: dict[str, Any] | None, caption: str) -> str:
    return f'<figure><img alt="" src="{thumbnail(cell)}"><br>{html.escape(caption[:60])}</figure>'


def category_cards(governed: Path, categories: pa.Table) -> str:
    """The most clicked categories and as many from the tail, with up to four documents and six queries each."""
    order = sorted(range(categories.num_rows), key=lambda i: (-categories.column("queries")[i].as_py(), i))
    step = max(len(order) // CATEGORIES_SHOWN, 1)
    chosen = dict.fromkeys(order[: CATEGORIES_SHOWN // 2] + order[::step][:CATEGORIES_SHOWN])
    ids = {categories.column("category_id")[i].as_py(): i for i in chosen}
    found: dict[int, dict[str, list[dict[str, Any]]]] = {c: {"document": [], "query": []} for c in ids}
    for shard in sorted((governed / "samples").glob("*.parquet")):
        table = pq.read_table(shard)
        for row in table.filter(pc.is_in(table.column("category_id"), pa.array(list(ids)))).to_pylist():
            found[row["category_id"]][row["side"]].append(row)
    cards = []
    for category, sides in found.items():
        facts = {
            name: categories.column(name)[ids[category]].as_py()
            for name in ("category_key", "queries", "documents", "band")
        }
        shown = [figure(row["image"], row["text"] or "(no text)") for row in sides["document"][:4]]
        shown += [figure(row["image"], "query") for row in sides["query"][:6]]
        head = f"{facts['category_key']}: {facts['documents']} documents, {facts['queries']} queries, {facts['band']}"
        cards.append(
            f'<div class="card"><div class="tag">{html.escape(head)}</div><div class="row">{"".join(shown)}</div></div>'
        )
    return "".join(cards)


def set_aside_cards(governed: Path) -> str:
    """Per table and reason some dropped rows: the picture, beside it the categories it hesitated between."""
    pictures = document_pictures(governed)
    cards = []
    for name in ("queries", "catalogue", "behaviour"):
        rows = pq.read_table(governed / "dropped" / f"{name}.parquet").to_pylist()
        for reason in sorted({row["reason"] for row in rows}):
            mine = [row for row in rows if row["reason"] == reason]
            body = grid(
                ["row", "stage", "figures"], [[r["row_id"], r["stage"], r["figures"]] for r in mine[:DROPPED_SHOWN]]
            )
            if name != "behaviour":
                body = (
                    '<div class="row">' + "".join(dropped_figure(r, pictures) for r in mine[:DROPPED_SHOWN]) + "</div>"
                )
            head = html.escape(f"{name}: {reason}, {len(mine)} rows")
            cards.append(f'<div class="card"><div class="tag">{head}</div>{body}</div>')
    return "".join(cards) or "<p>Nothing was dropped.</p>"


def dropped_figure(row: dict[str, Any], pictures: dict[str, dict[str, Any]]) -> str:
    """A dropped picture, then the representatives of its two best categories where a stage named them."""
    figures = json.loads(row["figures"])
    lead = f"lead {figures['lead']:.2f}" if "lead" in figures else row["row_id"]
    shown = [figure(row["image"], lead)]
    for name in ("candidate", "other_candidate"):
        if figures.get(name) in pictures:
            shown.append(figure(pictures[figures[name]], f"candidate {figures[name]}"))
    return f'<div class="card row">{"".join(shown)}</div>'


def merged_cards(governed: Path) -> str:
    """Documents that were found to show the same picture as another one."""
    decisions = Workspace(governed).table("dedupe", "decisions").to_pylist()
    pictures = document_pictures(governed)
    merged = [row for row in decisions if row["row_id"] in pictures][:MERGED_SHOWN]
    cards = []
    for row in merged:
        into = json.loads(row["figures"])["into"]
        pair = figure(pictures[row["row_id"]], row["row_id"]) + figure(pictures.get(into), f"into {into}")
        cards.append(
            f'<div class="card"><div class="tag">{html.escape(row["reason"])}</div><div class="row">{pair}</div></div>'
        )
    return f'<div class="row">{"".join(cards)}</div>' if cards else "<p>No two documents show the same picture.</p>"


def document_pictures(governed: Path) -> dict[str, dict[str, Any]]:
    """doc_id -> image cell of the governed documents."""
    found: dict[str, dict[str, Any]] = {}
    for shard in sorted((governed / "samples").glob("*.parquet")):
        table = pq.read_table(shard, columns=["sample_id", "side", "image"])
        part = table.filter(pc.equal(table.column("side"), "document"))
        found.update(zip(part.column("sample_id").to_pylist(), part.column("image").to_pylist(), strict=True))
    return found
