"""The tables of docs/governance.md about whole runs: the loop with a trained encoder, few new rows, kills.

In: results of benchmarks.{governance_loop,incremental,killed}. Out: blocks of Markdown. Next: render_governance.py.
"""

from collections.abc import Callable
from typing import Any

from benchmarks.render_governance import source, table

Results = list[dict[str, Any]]


def loop(found: Results) -> str:
    """First and second round beside each other, one line for every share of wrong clicks."""
    head = ["clicks that are right", "round", "labels right", "kept", "precision of pairs", "recall", "F1"]
    lines = []
    for result in found:
        rows = []
        for setting in result["settings"]:
            for name in ("first", "second"):
                cells = setting[name]
                right = f"{cells['label_accuracy_before']:.3f}"
                figures = [f"{cells[key]:.3f}" for key in ("label_accuracy_after", "kept_share")]
                figures += [f"{cells[f'category_pair_{key}']:.3f}" for key in ("precision", "recall")]
                rows.append([right, name, *figures, f"**{cells['category_pair_f1']:.3f}**"])
        lines += [*table(head, rows), "", f"Simulated clicks on real drawings. {source(result)}", ""]
    return "\n".join(lines).strip()


def incremental(found: Results) -> str:
    """One line a file."""
    head = ["new queries", "new documents", "CPU s in full", "CPU s incremental", "share"]
    head += ["untouched: keys kept", "same clicks: keys kept", "F1 of pairs"]
    rows = [
        [
            f"{result['queries_new']:,}",
            f"{result['documents_new']:,}",
            f"{result['full_cpu_seconds']:.0f}",
            f"{result['incremental_cpu_seconds']:.0f}",
            f"**{result['cpu_share']:.3f}**",
            f"**{result['keys_kept']:.3f}** of {result['untouched']:,}",
            f"{result['keys_kept_same_clicks']:.3f}",
            f"**{result['pair_f1']:.3f}**",
        ]
        for result in found
    ]
    sources = [f"Simulated clicks on real drawings. {source(result)}" for result in found]
    return "\n".join([*table(head, rows), "", *sources]) if rows else ""


def killed(found: Results) -> str:
    """One line a file."""
    head = ["behaviour rows", "queries", "kills", "after", "tables compared", "unequal", "figures"]
    rows = [
        [
            f"{result['behaviour']:,}",
            f"{result['queries']:,}",
            str(result["kills"]),
            ", ".join(f"{stage} {count}" for stage, count in result["last_whole_stage"].items()),
            f"{result['tables']} with {result['rows']:,} rows",
            str(len(result["unequal_tables"])),
            "equal" if result["figures_equal"] else "**unequal**",
        ]
        for result in found
    ]
    sources = [f"Simulated clicks on real drawings. {source(result)}" for result in found]
    return "\n".join([*table(head, rows), "", *sources]) if rows else ""


# Marker -> (start of the result files, table, the command that measures). These runs take hours on two cores, so a page
# may stand without one of them: it then says so.
RUNS: dict[str, tuple[str, Callable[[Results], str], str]] = {
    "governance-loop": ("governance_loop", loop, "governance_loop --demo runs/demo --out runs/loop"),
    "governance-incremental": ("incremental", incremental, "incremental --data runs/demo/data"),
    "governance-killed": ("killed", killed, "killed --data runs/demo/data"),
}


def blocks(read: Callable[[str], Results]) -> dict[str, str]:
    """Marker -> table, or the words that nothing was measured yet; `read` gives the result files of a start."""
    made = {marker: show(read(start)) for marker, (start, show, _) in RUNS.items()}
    return {
        marker: text or f"Not measured yet: `python -m benchmarks.{RUNS[marker][2]}`." for marker, text in made.items()
    }
