"""Write a self-contained HTML report on a governed folder."""

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_governance.reports.contact_sheets import (
    Card,
    Table,
    dropped_cards,
    merged_cards,
    override_table,
    picture,
    relabelled_cards,
)
from data_governance.reports.page import write_page
from data_governance.stage import Workspace

CATEGORIES_SHOWN = 12
MARGIN_BINS = 28
BLUE, RED = "#3b6ea5", "#c8553d"
# Of the charts, in pixels: height of the tallest bar, and the y of the axis.
BAR_HEIGHT, AXIS = 90, 105


def write_report(governed: Path, target: Path) -> None:
    """Write the page.

    Raises:
        ValueError: when the folder is not a finished governed folder.
    """
    if not (governed / "ledger.json").exists():
        raise ValueError(f"--governed {governed}: no ledger.json there. Run `python -m data_governance run` first.")
    facts = json.loads((governed / "ledger.json").read_text())
    categories = pq.read_table(governed / "categories.parquet")
    notes = facts["notes"]
    write_page(
        target,
        "report",
        encoder=facts["encoder"],
        rows=Table(
            ["table", "in", "kept", "dropped"],
            [[name, rows["in"], rows["kept"], rows["dropped"]] for name, rows in facts["rows"].items()],
        ),
        decisions=decisions_table(facts["decisions"]),
        stages=stages_table(notes),
        click_noise=click_noise(notes["organise"]),
        label_noise=label_noise(notes["clean"]),
        margins=margin_chart(governed, notes["clean"].get("threshold")),
        histograms=histograms(governed, categories),
        bands=bands_table(categories),
        categories=category_cards(governed, categories),
        dropped=dropped_cards(governed),
        merged=merged_cards(governed),
        relabelled=relabelled_cards(governed),
        overrides=override_table(governed),
    )


def decisions_table(decisions: list[dict[str, Any]]) -> Table:
    """Rows by stage, table, decision and reason."""
    keys = ["stage", "table", "decision", "reason", "rows"]
    return Table(keys, [[row[key] for key in keys] for row in decisions])


def stages_table(notes: dict[str, Any]) -> Table:
    """Seconds and notes of every stage."""
    rows = [
        [name, notes[name]["seconds"], json.dumps({key: v for key, v in notes[name].items() if key != "seconds"})]
        for name in notes
    ]
    return Table(["stage", "seconds", "statistics and choices"], rows)


def bands_table(categories: pa.Table) -> Table:
    """Categories, queries and documents of head, body and tail."""
    rows = []
    for band in ("head", "body", "tail"):
        part = categories.filter(pc.equal(categories.column("band"), band))
        rows.append([band, part.num_rows, *(pc.sum(part.column(c)).as_py() or 0 for c in ("queries", "documents"))])
    return Table(["band", "categories", "queries", "documents"], rows)


def click_noise(notes: dict[str, Any]) -> str:
    """Share of clicks outside their query's category, with its interval; "" for folders of older versions."""
    if "clicks_outside" not in notes:
        return ""
    low, high = (100 * end for end in notes["clicks_outside_interval"])
    share = f"Of the clicked pairs, {100 * notes['clicks_outside']:.1f}% lie outside the category of their query"
    return f"{share} (95% interval {low:.1f}% to {high:.1f}%): an estimate of the share of wrong clicks."


def label_noise(notes: dict[str, Any]) -> str:
    """The estimated share of wrong labels with its interval, or why there is no estimate."""
    share, interval = notes.get("wrong_labels"), notes.get("wrong_labels_interval")
    if share is None:
        text = f"No estimate: the margins do not show two modes (cut by {notes.get('method', 'none')})."
    else:
        between = f", interval {100 * interval[0]:.1f}% to {100 * interval[1]:.1f}%" if interval else ""
        text = f"Of the labels from clicks and content, an estimated {100 * share:.1f}% are wrong{between}."
    return f"{text} Relabelling: {notes.get('relabelling', 'none')}."


@dataclass(frozen=True)
class Bar:
    """A rectangle of a chart, in pixels."""

    x: int
    y: float
    width: int
    height: float
    colour: str


@dataclass(frozen=True)
class Label:
    """A text in a chart; `y` is a string, because labels below the axis and above bars have other decimals."""

    x: int
    y: str
    text: str


@dataclass(frozen=True)
class Chart:
    """Bars with labels; `line` is the x of a dashed vertical line."""

    caption: str
    width: int
    bars: list[Bar]
    labels: list[Label]
    line: float | None = None


def margin_chart(governed: Path, threshold: float | None) -> Chart | None:
    """Histogram of the margins of kept queries, with those of dropped or relabelled ones on top."""
    workspace = Workspace(governed)
    kept = workspace.table("clean", "queries").column("margin").to_numpy()
    decisions = workspace.table("clean", "decisions").column("figures").to_pylist()
    changed = np.array([m for m in (json.loads(f).get("margin") for f in decisions) if m is not None], dtype=float)
    both = np.concatenate([kept, changed])
    both = both[np.isfinite(both)]
    if not len(both):
        return None
    edges = np.linspace(both.min(), both.max() + 1e-6, MARGIN_BINS + 1)
    blue, red = np.histogram(kept, edges)[0], np.histogram(changed, edges)[0]
    top, bars = max(int((blue + red).max()), 1), []
    for i, (b, r) in enumerate(zip(blue.tolist(), red.tolist(), strict=True)):
        low, high = BAR_HEIGHT * b / top, BAR_HEIGHT * r / top
        bars.append(Bar(8 + 14 * i, AXIS - low, 12, low, BLUE))
        bars.append(Bar(8 + 14 * i, AXIS - low - high, 12, high, RED))
    width = 14 * MARGIN_BINS + 16
    line = None
    if threshold is not None:
        x = 8 + 14 * MARGIN_BINS * (threshold - edges[0]) / (edges[-1] - edges[0])
        line = min(max(x, 2), width - 2)
    labels = [Label(x, "118", f"{value:.2f}") for x, value in ((8, edges[0]), (width - 40, edges[-1]))]
    caption = "margin of each query: kept (blue), dropped or relabelled (red), cut (dashed)"
    return Chart(caption, width, bars, labels, line)


def histograms(governed: Path, categories: pa.Table) -> list[Chart]:
    """Queries per document before; queries and documents per category after."""
    edges = Workspace(governed).table("click_rates", "edges")
    clicks = list(Counter(edges.column("doc").to_pylist()).values())
    organised = Workspace(governed).table("organise", "queries").column("category").to_pylist()
    return [
        histogram("queries per clicked document, before", clicks),
        histogram("queries per category, before cleaning", list(Counter(organised).values())),
        histogram("queries per category, after", categories.column("queries").to_pylist()),
        histogram("documents per category, after", categories.column("documents").to_pylist()),
    ]


def histogram(caption: str, values: list[int]) -> Chart:
    """A histogram with bins 0, 1, 2-3, 4-7, ..."""
    place = [0 if value == 0 else int(np.log2(value)) + 1 for value in values]
    count = np.bincount(place) if place else np.zeros(1, dtype=int)
    top = max(int(count.max()), 1)
    bars, labels = [], []
    for i, rows in enumerate(count):
        x, height = 8 + 27 * i, BAR_HEIGHT * int(rows) / top
        bars.append(Bar(x, AXIS - height, 22, height, BLUE))
        labels += [
            Label(x, "118", "0" if i == 0 else str(2 ** (i - 1))),
            Label(x, f"{AXIS - 3 - height:.1f}", str(rows)),
        ]
    return Chart(caption, 27 * len(count) + 16, bars, labels)


def category_cards(governed: Path, categories: pa.Table) -> list[Card]:
    """The most clicked categories and some of the tail, with up to four documents and six queries each."""
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
        key, queries, documents, band = (
            categories.column(name)[ids[category]].as_py() for name in ("category_key", "queries", "documents", "band")
        )
        pictures = [picture(row["image"], row["text"] or "(no text)") for row in sides["document"][:4]]
        pictures += [picture(row["image"], "query") for row in sides["query"][:6]]
        cards.append(Card(f"{key}: {documents} documents, {queries} queries, {band}", tuple(pictures)))
    return cards
