"""Numbers of the report page: metrics of the systems, governance before and after, category sizes.

Every number comes from a result file; a number that a file lacks is left out.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from retrieval.report.charts import Bar, Column, columns, horizontal
from retrieval.report.templates import rendered

# (label, metrics object, whether it is a main row)
Rows = Sequence[tuple[str, Mapping[str, Any], bool]]

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
SELECTION = {"recall_at_1": "Recall@1", "recall_at_10": "Recall@10", "mrr_at_10": "MRR@10", "ndcg": "nDCG"}
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


def metric_table(rows: Rows) -> Markup:
    """Table with one row per system, its 95% intervals in small print."""
    shown = {name: label for name, label in COLUMNS.items() if any(name in found for _, found, _ in rows)}
    return rendered("metrics.html.j2", part="table", rows=rows, columns=shown)


def tiles(rows: Rows) -> Markup:
    """Recall@1, Recall@10 and MRR@10 of the first row in large print, and how many documents were searched."""
    return rendered("metrics.html.j2", part="tiles", rows=rows, columns=COLUMNS)


def selection_panel(selection: Mapping[str, Any] | None) -> Markup:
    """The candidates for publication and why one was chosen; empty where a run judged nothing.

    Args:
        selection: the `selection` object of training.json.
    """
    if not selection:
        return Markup()
    candidates = selection.get("candidates") or []
    shown = {name: label for name, label in SELECTION.items() if all(name in row for row in candidates)}
    return rendered("selection.html.j2", selection=selection, columns=shown)


def governance_panels(
    ledger: Mapping[str, Any] | None, metrics: Mapping[str, Any] | None, sizes: Mapping[str, NDArray[np.int64]] | None
) -> Markup:
    """What governance did: rows by stage and reason, label accuracy before and after, sizes of the categories.

    Args:
        ledger: ledger.json; its `stages` list {stage, table, rows_in, kept, dropped, reasons}.
        metrics: the `governance` object of metrics.json.
        sizes: sizes of the categories by band.

    Returns:
        HTML; empty where none of the three holds anything to show.
    """
    stages = (ledger or {}).get("stages")
    stages = stages if isinstance(stages, list) else []
    has_accuracy = metrics and "label_accuracy_before" in metrics and "label_accuracy_after" in metrics
    panels = {
        "accuracy": _accuracy(metrics) if metrics and has_accuracy else None,
        "sizes": _sizes(sizes) if sizes and any(size.size for size in sizes.values()) else None,
        "kept": _kept(stages),
        "reasons": _reasons(stages),
    }
    # A ledger whose stages have no rows still gets its (empty) section.
    if not any(panels.values()) and not stages:
        return Markup()
    return rendered("governance.html.j2", **panels)


def _accuracy(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Chart and rows of label accuracy; `second_round` of the metrics, if any, is a second column."""
    bars = [
        Bar("before, share of clicks", *_share(metrics["label_accuracy_before"]), style="before"),
        Bar("after, share of kept events", *_share(metrics["label_accuracy_after"])),
    ]
    rounds = [metrics]
    if metrics.get("second_round"):
        rounds.append(metrics["second_round"])
        bars.append(Bar("after a second round, with the trained encoder", *_share(rounds[1]["label_accuracy_after"])))
    rows = [
        (label, [float(one[name]) for one in rounds])
        for name, label in GOVERNANCE.items()
        if all(isinstance(one.get(name), int | float) for one in rounds)
    ]
    chart = horizontal(bars, title="share of right labels before and after governance")
    return {"chart": chart, "rounds": len(rounds), "rows": rows}


def _share(value: Any) -> tuple[float, str]:
    return float(value), f"{100 * float(value):.1f}%"


def _sizes(sizes: Mapping[str, NDArray[np.int64]]) -> dict[str, Any]:
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
    legend = [(band, size.size) for band, size in sizes.items() if size.size]
    return {"chart": columns(data, title="number of categories by size"), "legend": legend}


def _kept(stages: Sequence[Mapping[str, Any]]) -> Markup | None:
    bars = []
    for stage in stages:
        rows_in = int(stage.get("rows_in", 0))
        if rows_in:
            kept = int(stage.get("kept", 0))
            label = f"{stage.get('stage', '')}: {stage.get('table', '')}"
            bars.append(Bar(label, kept / rows_in, f"{100 * kept / rows_in:.1f}%"))
    return horizontal(bars, title="share of rows kept by stage") if bars else None


def _reasons(stages: Sequence[Mapping[str, Any]]) -> Markup | None:
    bars: list[Bar] = []
    for stage in stages:
        reasons = {str(name): int(count) for name, count in stage.get("reasons", {}).items() if int(count) > 0}
        if reasons:
            bars.append(Bar(f"{stage.get('stage', '')}: {stage.get('table', '')}", 0, "", heading=True))
        for name, count in sorted(reasons.items(), key=lambda item: (-item[1], item[0])):
            bars.append(Bar(name.replace("_", " "), count, f"{count:,}", style="drop"))
    return horizontal(bars, title="rows by stage and reason") if bars else None
