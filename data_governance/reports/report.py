"""A self-contained page on a governed folder: what went in, what came out, why, with pictures."""

import html
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_governance.reports.contact_sheets import (
    decided_rows,
    figure,
    grid,
    merged_cards,
    relabelled_cards,
    set_aside_cards,
)
from data_governance.stage import STAGES, Workspace

CATEGORIES_SHOWN = 12
MARGIN_BINS = 28
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
        "<h2>Noise of the labels</h2>"
        + click_noise(facts["notes"]["organise"])
        + noise(governed, facts["notes"]["clean"]),
        "<h2>Before and after</h2>" + distributions(governed, categories),
        "<h2>Head, body and tail</h2>" + bands_table(categories),
        "<h2>Categories</h2><p>Documents first, then queries; the most clicked, and some of the tail.</p>"
        + category_cards(governed, categories),
        "<h2>Set aside, and why</h2>" + set_aside_cards(governed),
        "<h2>Merged</h2>" + merged_cards(governed),
        "<h2>Relabelled</h2>" + relabelled_cards(governed),
        "<h2>Decided by a person</h2>" + decided_rows(governed),
    ]
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>Data governance</title><style>{STYLE}</style></head><body><h1>Data governance</h1>"
        f"{''.join(parts)}</body></html>"
    )
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(page, encoding="utf-8")


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


def click_noise(notes: dict[str, Any]) -> str:
    """The share of clicks that fall outside their query's category, with its interval; nothing in folders of before."""
    if "clicks_outside" not in notes:
        return ""
    low, high = (100 * end for end in notes["clicks_outside_interval"])
    told = f"Of the clicked pairs, {100 * notes['clicks_outside']:.1f}% lie outside the category of their query"
    return f"<p>{told} (95% interval {low:.1f}% to {high:.1f}%): as many clicks seem to be wrong.</p>"


def noise(governed: Path, notes: dict[str, Any]) -> str:
    """The estimated share of wrong labels with its interval, or why there is none; the margins before and after."""
    share, interval = notes.get("wrong_labels"), notes.get("wrong_labels_interval")
    if share is None:
        told = f"No estimate: the margins do not show two modes (cut by {notes.get('method', 'none')})."
    else:
        between = f", interval {100 * interval[0]:.1f}% to {100 * interval[1]:.1f}%" if interval else ""
        told = f"Of the labels that clicks and content gave, an estimated {100 * share:.1f}% are wrong{between}."
    told += f" Relabelling: {notes.get('relabelling', 'none')}."
    return f"<p>{html.escape(told)}</p>" + margin_chart(governed, notes.get("threshold"))


def margin_chart(governed: Path, threshold: float | None) -> str:
    """Margins of the queries that stayed, under those that cleaning dropped or relabelled; the cut as a line."""
    workspace = Workspace(governed)
    stayed = workspace.table("clean", "queries").column("margin").to_numpy()
    decisions = workspace.table("clean", "decisions").column("figures").to_pylist()
    judged = np.array([m for m in (json.loads(f).get("margin") for f in decisions) if m is not None], dtype=float)
    both = np.concatenate([stayed, judged])
    both = both[np.isfinite(both)]
    if not len(both):
        return ""
    edges = np.linspace(both.min(), both.max() + 1e-6, MARGIN_BINS + 1)
    blue, red = np.histogram(stayed, edges)[0], np.histogram(judged, edges)[0]
    top, parts = max(int((blue + red).max()), 1), []
    for i, (b, r) in enumerate(zip(blue.tolist(), red.tolist(), strict=True)):
        low, high = 90 * b / top, 90 * r / top
        parts.append(f'<rect x="{8 + 14 * i}" y="{105 - low:.1f}" width="12" height="{low:.1f}" fill="#3b6ea5"/>')
        parts.append(
            f'<rect x="{8 + 14 * i}" y="{105 - low - high:.1f}" width="12" height="{high:.1f}" fill="#c8553d"/>'
        )
    width = 14 * MARGIN_BINS + 16
    if threshold is not None:
        x = 8 + 14 * MARGIN_BINS * (threshold - edges[0]) / (edges[-1] - edges[0])
        parts.append(f'<path d="M{min(max(x, 2), width - 2):.1f} 8V106" stroke="#1c2430" stroke-dasharray="3 2"/>')
    for x, value in ((8, edges[0]), (width - 40, edges[-1])):
        parts.append(f'<text x="{x}" y="118">{value:.2f}</text>')
    frame = f'<svg width="{width}" height="124" viewBox="0 0 {width} 124">{"".join(parts)}</svg>'
    return f"<div>{frame}<br>margin of each query: stayed (blue), dropped or relabelled (red), cut (dashed)</div>"


def distributions(governed: Path, categories: pa.Table) -> str:
    """Clicks per document before, queries and documents per category after, as bars on a doubling scale."""
    edges = Workspace(governed).table("weigh", "edges")
    clicks = list(Counter(edges.column("doc").to_pylist()).values())
    believed = Workspace(governed).table("organise", "queries").column("category").to_pylist()
    series = [
        ("queries per clicked document, before", clicks),
        ("queries per category, before cleaning", list(Counter(believed).values())),
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
