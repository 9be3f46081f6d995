"""Formatting shared by the tables of the IMMR benchmark and of its ablation."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.render.tables import RESULTS

METRICS = {"recall_at_1": "R@1", "recall_at_10": "R@10", "mrr_at_10": "MRR@10"}
Result = Mapping[str, Any]


def newest(prefix: str, folder: Path = RESULTS, *, other_than: str | None = None) -> Result | None:
    """Newest result file PREFIX*.json by the month in its name, with its name under "file"; None without one.

    Args:
        other_than: a longer prefix whose files do not count.
    """
    paths = [path for path in folder.glob(f"{prefix}*.json") if not (other_than and path.name.startswith(other_than))]
    if not paths:
        return None
    path = max(paths, key=lambda one: (one.stem.split("_")[-1], one.stem))
    found: Result = json.loads(path.read_text(encoding="utf-8"))
    return {**found, "file": path.name}


def change(differences: Result, metric: str) -> str:
    """A paired difference in points with its interval; bold when the interval excludes zero."""
    row = differences[metric]
    text = f"{100 * row['difference']:+.1f} [{100 * row['low']:+.1f}, {100 * row['high']:+.1f}]"
    return f"**{text}**" if row["low"] > 0 or row["high"] < 0 else text


def levels(row: Result) -> list[str]:
    """The metrics of a row without intervals."""
    return [f"{row[metric]:.3f}" for metric in METRICS]


def source(result: Result) -> str:
    """Result file, command, commit and machine."""
    machine = result["environment"]
    trial = f" Trial run with {result['max_steps']} steps: not a result." if result["max_steps"] else ""
    return (
        f"From `benchmarks/results/{result['file']}`, written by `{result['command']}`, commit "
        f"{result['commit'] or 'unknown'}, on {machine['cores']} cores ({machine['cpu']}, {machine['memory_gib']} GiB, "
        f"Python {machine['python']}, torch {machine['torch']}).{trial}"
    )
