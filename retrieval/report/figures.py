"""The figures of the report page: metric tiles and table, governance before and after, sizes of categories.

Every number comes from a result file; what a file lacks is left out, never guessed.
"""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retrieval.report.charts import Bar, Column, columns, horizontal

COLUMNS = {
    "recall_at_1": "Recall@1",
    "recall_at_5": "Recall@5",
    "recall_at_10": "Recall@10",
    "mrr_at_10": "MRR@10",
    "ndcg_at_10": "nDCG@10",
    "map": "mAP",
}
MAIN_ROWS = {
    ("unseen", "full_gallery"): "Unseen categories, all documents",
    ("unseen", "unseen_gallery"): "Unseen categories, their documents only",
    ("seen", "full_gallery"): "Held-out queries of seen categories, all documents",
}
BASELINES = {
    "zero_shot_image": "Baseline: frozen image features",
    "image_only_documents": "Baseline: trained without text",
    "text_removed": "Ablation: documents without text",
    "text_shuffled": "Ablation: text of other categories",
}
BANDS = ("head", "body", "tail")
GOVERNANCE = {
    "kept_share": "rows kept",
    "category_pair_f1": "document pairs grouped right (F1)",
    "documents_per_category": "documents per category",
    "truth_documents_per_category": "documents per category, truth",
}


def metric_rows(metrics: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any], bool]]:
    """(label, metrics object, whether it is a main row) of every system in metrics.json, in reading order."""
    rows = []
    for (group, name), label in MAIN_ROWS.items():
        found = metrics.get(group, {}).get(name)
        if found:
            rows.append((label, found, True))
    for name, found in metrics.get("baselines", {}).items():
        rows.append((BASELINES.get(name, f"Baseline: {name.replace('_', ' ')}"), found, False))
    return rows


def metric_table(rows: Sequence[tuple[str, Mapping[str, Any], bool]]) -> str:
    """One row per system, its 95% intervals in small print."""
    shown = [name for name in COLUMNS if any(name in found for _, found, _ in rows)]
    head = "".join(f"<th>{COLUMNS[name]}</th>" for name in shown)
    body = "".join(
        f"<tr{' class=main' if main else ''}><td>{escape(label)}</td>"
        + "".join(_metric_cell(found, name) for name in shown)
        + f"<td>{int(found.get('queries', 0)):,}</td><td>{int(found.get('documents', 0)):,}</td></tr>"
        for label, found, main in rows
    )
    return (
        f"<table><thead><tr><th></th>{head}<th>Queries</th><th>Documents</th></tr></thead><tbody>{body}</tbody></table>"
    )


def _metric_cell(found: Mapping[str, Any], name: str) -> str:
    if name not in found:
        return "<td></td>"
    span = found.get("intervals", {}).get(name)
    small = f"<small>{100 * span[0]:.1f} to {100 * span[1]:.1f}</small>" if span else ""
    return f"<td>{100 * float(found[name]):.1f}{small}</td>"


def tiles(rows: Sequence[tuple[str, Mapping[str, Any], bool]]) -> str:
    """Large figures for the first row, its Recall@1, Recall@10 and MRR@10, and how many documents were searched."""
    if not rows:
        return ""
    label, found, _ = rows[0]
    parts = [
        f"<div class=tile><b>{100 * float(found[name]):.1f}%</b><span>{COLUMNS[name]}: {escape(label)}</span></div>"
        for name in ("recall_at_1", "recall_at_10", "mrr_at_10")
        if name in found
    ]
    parts.append(f"<div class=tile><b>{int(found.get('documents', 0)):,}</b><span>documents searched</span></div>")
    return f'<div class="tiles">{"".join(parts)}</div>'


def governance_panels(
    ledger: Mapping[str, Any] | None, figures: Mapping[str, Any] | None, sizes: Mapping[str, NDArray[np.int64]] | None
) -> str:
    """What governance did: rows by stage and reason, label accuracy before and after, sizes of the categories.

    Args:
        ledger: ledger.json; its `stages` list {stage, table, rows_in, kept, dropped, reasons}.
        figures: the `governance` object of metrics.json.
        sizes: sizes of the categories by band.
    """
    panels = []
    if figures and "label_accuracy_before" in figures and "label_accuracy_after" in figures:
        panels.append(_accuracy_panel(figures))
    if sizes and any(size.size for size in sizes.values()):
        panels.append(_size_panel(sizes))
    stages = (ledger or {}).get("stages")
    if isinstance(stages, list) and stages:
        panels.append(_kept_panel(stages))
        panels.append(_reason_panel(stages))
    return f'<div class="panels">{"".join(panel for panel in panels if panel)}</div>' if panels else ""


def _panel(title: str, inside: str, note: str = "") -> str:
    small = f'<p class="note">{escape(note)}</p>' if note else ""
    return f'<section class="panel"><h3>{escape(title)}</h3>{inside}{small}</section>'


def _accuracy_panel(figures: Mapping[str, Any]) -> str:
    """Bars and figures; `second_round`, where there is one, stands beside the first."""
    bars = [
        Bar("before, share of clicks", *_share(figures["label_accuracy_before"]), style="before"),
        Bar("after, share of kept events", *_share(figures["label_accuracy_after"])),
    ]
    rounds = [figures]
    if figures.get("second_round"):
        rounds.append(figures["second_round"])
        bars.append(Bar("after a second round, with the trained encoder", *_share(rounds[1]["label_accuracy_after"])))
    rows = "".join(
        f"<tr><td>{label}</td>{''.join(f'<td>{float(one[name]):.3g}</td>' for one in rounds)}</tr>"
        for name, label in GOVERNANCE.items()
        if all(isinstance(one.get(name), int | float) for one in rounds)
    )
    rows = f"<tr><td></td><td>first round</td><td>second round</td></tr>{rows}" if len(rounds) > 1 else rows
    chart = horizontal(bars, title="share of right labels before and after governance")
    return _panel("Right labels before and after", f"{chart}<table>{rows}</table>")


def _share(value: Any) -> tuple[float, str]:
    return float(value), f"{100 * float(value):.1f}%"


def _size_panel(sizes: Mapping[str, NDArray[np.int64]]) -> str:
    largest = max(int(size.max()) for size in sizes.values() if size.size)
    edges = [0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 1024, 2**62]
    data = []
    for low, high in zip(edges[:-1], edges[1:], strict=True):
        if low >= largest:
            break
        # Short, so that neighbours do not touch; a column holds what is above the column before it.
        label = str(high) if high == low + 1 else f"\N{LESS-THAN OR EQUAL TO}{high}" if high < 2**62 else f">{low}"
        data.append(Column(label, [(int(((size > low) & (size <= high)).sum()), band) for band, size in sizes.items()]))
    while data and sum(count for count, _ in data[0].parts) == 0:
        data = data[1:]
    chart = columns(data, title="number of categories by size")
    legend = "".join(
        f'<span><i class="{band}"></i>{band} {size.size:,}</span>' for band, size in sizes.items() if size.size
    )
    inside = f'{chart}<div class="legend">{legend}</div>'
    return _panel("Categories by size", inside, "Across: samples in a category. Upwards: number of categories.")


def _kept_panel(stages: Sequence[Mapping[str, Any]]) -> str:
    bars = []
    for stage in stages:
        given = int(stage.get("rows_in", 0))
        if given:
            kept = int(stage.get("kept", 0))
            label = f"{stage.get('stage', '')}: {stage.get('table', '')}"
            bars.append(Bar(label, kept / given, f"{100 * kept / given:.1f}%"))
    if not bars:
        return ""
    return _panel("Rows kept by each stage", horizontal(bars, title="share of rows kept by stage"))


def _reason_panel(stages: Sequence[Mapping[str, Any]]) -> str:
    bars: list[Bar] = []
    for stage in stages:
        reasons = {str(name): int(count) for name, count in stage.get("reasons", {}).items() if int(count) > 0}
        if reasons:
            bars.append(Bar(f"{stage.get('stage', '')}: {stage.get('table', '')}", 0, "", heading=True))
        for name, count in sorted(reasons.items(), key=lambda item: (-item[1], item[0])):
            bars.append(Bar(name.replace("_", " "), count, f"{count:,}", style="drop"))
    if not bars:
        return ""
    return _panel("Decisions by reason", horizontal(bars, title="rows by stage and reason"))
