"""Numbers and Markdown tables of the cards."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hub_cards.results import ResultFile

METRIC_NAMES = {
    "recall_at_1": "recall@1",
    "recall_at_5": "recall@5",
    "recall_at_10": "recall@10",
    "trec_recall_at_10": "TREC recall@10",
    "mrr_at_10": "MRR@10",
    "ndcg_at_10": "nDCG@10",
    "map": "mAP",
}
INTERVALS_REQUIRED = ("recall_at_1", "recall_at_10", "mrr_at_10")


def cell(value: Any) -> str:
    """Format a value for a table cell: no pipe, no line break; fractions with four significant digits."""
    if isinstance(value, float) and value != int(value):
        return f"{value:.4g}"
    if isinstance(value, float | int) and not isinstance(value, bool):
        return f"{int(value):,}" if abs(value) >= 10_000 else str(int(value))
    return re.sub(r"\s+", " ", str(value)).replace("|", "\\|")


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Format a Markdown table; the first column is left-aligned, the others right-aligned.

    Raises:
        ValueError: a row has another number of cells than the head.
    """
    if any(len(row) != len(head) for row in rows):
        raise ValueError(f"every row of the table {list(head)} must have {len(head)} cells")
    lines = ["| " + " | ".join(head) + " |", "|---" + "|---:" * (len(head) - 1) + "|"]
    return "\n".join(lines + ["| " + " | ".join(cell(value) for value in row) + " |" for row in rows])


def flat(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield (dotted key, text) of every leaf; a list of plain values is one leaf."""
    for key, value in content.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
            yield from flat({str(place): item for place, item in enumerate(value)}, f"{prefix}{key}.")
        elif isinstance(value, list):
            yield f"{prefix}{key}", ", ".join(cell(item) for item in value) if value else "none"
        else:
            yield f"{prefix}{key}", "none" if value is None else cell(value)


def key_table(content: Mapping[str, Any], head: Sequence[str] = ("key", "value")) -> str:
    """Format all leaves of an object as a table of two columns."""
    return table(head, list(flat(content)))


def metric(metrics: ResultFile, name: str, *, interval: bool) -> str:
    """Format a metric, with its 95% interval if there is one: `0.437 [0.402, 0.471]`.

    Raises:
        ValueError: the number is missing, or with `interval` its interval.
    """
    value = metrics.number(name)
    key = f"intervals.{name}"
    if not metrics.has(key) and not interval:
        return f"{value:.3f}"
    ends = metrics.value(key)
    if not isinstance(ends, list) or len(ends) != 2 or not all(isinstance(end, int | float) for end in ends):
        raise ValueError(f"{metrics.name}: '{key}' is {ends!r}, not [low, high]. Evaluate again, then render again.")
    return f"{value:.3f} [{ends[0]:.3f}, {ends[1]:.3f}]"


def metric_table(rows: Mapping[str, ResultFile], names: Sequence[str]) -> str:
    """Table with one row per system or query set, one column per metric, number of queries and gallery size."""
    head = ["", *(METRIC_NAMES[name] for name in names), "queries", "documents"]
    lines = []
    for label, metrics in rows.items():
        shown = [metric(metrics, name, interval=name in INTERVALS_REQUIRED) for name in names]
        lines.append([label, *shown, metrics.count("queries"), metrics.count("documents")])
    return table(head, lines)
