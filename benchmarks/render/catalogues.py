"""docs/catalogues.md: which catalogues gain from training, cell by cell.

Cells that were not run, or were run with settings that the list no longer has, are shown without numbers.
"""

from pathlib import Path
from typing import Any

from benchmarks.catalogues.cell import Cell
from benchmarks.catalogues.cells import CELLS, NamedCell, shown
from benchmarks.render.immr_format import Result, change, newest
from benchmarks.render.tables import RESULTS, source, table

COMMAND = "python -m benchmarks.catalogues"
DOMAINS = {"icons": "Icons", "emoji": "Emoji", "furniture": "Furniture"}
HEAD = [
    "cell",
    "changed setting",
    "documents",
    "query pictures",
    "unseen R@1: frozen",
    "trained",
    "difference, points",
    "unseen R@10: difference",
    "unseen MRR@10: frozen",
    "trained",
    "gain",
    "seen MRR@10: difference",
    "right labels before -> after",
    "published",
    "CPU s",
]


def blocks(folder: Path = RESULTS) -> dict[str, str]:
    """Marker name -> Markdown of docs/catalogues.md.

    Raises:
        ValueError: a cell of the result file lacks a number.
    """
    return {"cells": cells(folder)}


def cells(folder: Path = RESULTS) -> str:
    """One table for each domain with named cells; without a result file only the settings."""
    result = newest("catalogues", folder)
    found: Result = result["cells"] if result else {}
    lines: list[str] = []
    for domain, title in DOMAINS.items():
        listed = [one for one in CELLS if one.cell.domain == domain]
        if listed:
            lines += [f"### {title}", "", base_line(listed[0].cell), ""]
            lines += [*table(HEAD, [_row(one, found, result) for one in listed]), ""]
    if result is None:
        return "\n".join([*lines, f"Not measured yet. Run `{COMMAND} --json benchmarks/results/catalogues.json`."])
    return "\n".join([*lines, _notes(found), "", source(dict(result))])


def base_line(cell: Cell) -> str:
    """The settings of a base cell in words."""
    low, high = cell.documents
    number = f"{low}" if low == high else f"{low} to {high}"
    return (
        f"Base: {cell.categories:,} categories ({cell.test_categories} unseen), {number} documents each; "
        f"{cell.clicked:.0%} of the others may be clicked; {cell.pictures:g} query pictures a clicked category "
        f"with {cell.clicks:g} clicks each, {cell.noise:.0%} of them wrong; Zipf exponent {cell.skew:g}; "
        f"text {cell.text}."
    )


def changed(one: NamedCell) -> str:
    """What a cell changes in its base: "noise 0.5 (0.2)"; against the first cell of its domain without a base."""
    known = {other.name: other.cell for other in CELLS}
    base = known[one.base or one.cell.domain].as_json()
    return ", ".join(
        f"{name.replace('_', ' ')} {shown(value)} ({shown(base[name])})"
        for name, value in one.cell.as_json().items()
        if value != base[name] and name not in ("seed", "test_queries", "test_categories")
    )


def _row(one: NamedCell, found: Result, result: Result | None) -> list[str]:
    row = found.get(one.name)
    settings = {name: value for name, value in one.cell.as_json().items() if name != "seed"}
    if row is None or row["settings"] != settings:
        return [one.name, changed(one), *["not run" if place == 0 else "" for place in range(len(HEAD) - 2)]]
    try:
        return [one.name, changed(one), *_numbers(row)]
    except KeyError as error:
        file = result["file"] if result else ""
        raise ValueError(f"{file} lacks {error} of the cell {one.name}; run {COMMAND} again") from error


def _numbers(row: dict[str, Any]) -> list[str]:
    unseen, labels, counts = row["unseen"], row["governance"], row["first_seed"]["rows"]
    return [
        f"{counts['catalogue']:,}",
        f"{counts['queries']:,}",
        f"{unseen['frozen']['recall_at_1']:.3f}",
        f"{unseen['trained']['recall_at_1']:.3f}",
        change(unseen["difference"], "recall_at_1"),
        change(unseen["difference"], "recall_at_10"),
        f"{unseen['frozen']['mrr_at_10']:.3f}",
        f"{unseen['trained']['mrr_at_10']:.3f}",
        _gain(unseen),
        change(row["seen"]["difference"], "mrr_at_10"),
        f"{labels['label_accuracy_before']:.3f} -> {labels['label_accuracy_after']:.3f}",
        ", ".join(dict.fromkeys(row["published"])),
        f"{row['cpu_seconds']:.0f}",
    ]


def _gain(unseen: dict[str, Any]) -> str:
    """MRR@10 of the trained system relative to the frozen features."""
    frozen = unseen["frozen"]["mrr_at_10"]
    return f"{unseen['trained']['mrr_at_10'] / frozen - 1:+.0%}" if frozen else ""


def _notes(found: Result) -> str:
    recipes = ", ".join(f"`{name}`" for name in sorted({row["recipe"] for row in found.values()}))
    seeds = ", ".join(str(seed) for seed in sorted({seed for row in found.values() for seed in row["seeds"]}))
    return (
        f"SIMULATED behaviour. Recipe {recipes} against frozen features, full catalogue, seeds {seeds}. Points are "
        "trained minus frozen, paired by query, with 95% intervals over categories, bold if they exclude zero. "
        "Published: what the held-out queries of the cell chose; with `frozen` both systems are the same. CPU "
        "seconds of all commands of one seed."
    )
