"""The tables of docs/governance.md about whole runs, engines and bad rows, and the one table of all bars."""

from collections.abc import Callable
from typing import Any

from benchmarks.render.governance import source, table

Results = list[dict[str, Any]]


def loop(found: Results) -> str:
    """First and second round beside each other, one line for every share of wrong clicks."""
    head = ["clicks that are right", "round", "labels right", "kept", "kept and right"]
    head += ["precision of pairs", "recall", "F1"]
    lines = []
    for result in found:
        rows = []
        for setting in result["settings"]:
            for name in ("first", "second"):
                cells = setting[name]
                right = f"{cells['label_accuracy_before']:.3f}"
                shares = [cells[key] for key in ("label_accuracy_after", "kept_share")]
                figures = [f"{share:.4f}" for share in (*shares, shares[0] * shares[1])]
                figures += [f"{cells[f'category_pair_{key}']:.4f}" for key in ("precision", "recall")]
                rows.append([right, name, *figures, f"**{cells['category_pair_f1']:.4f}**"])
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


def engines(found: Results) -> str:
    """One line a file."""
    head = ["behaviour rows", "Spark", "worker processes", "tables compared", "rows from the engines", "unequal"]
    rows = [
        [
            f"{result['rows']:,}",
            f"{result['spark']['spark']}, {result['spark']['master']}",
            str(result["spark"]["worker_processes"]),
            f"{result['tables']} with {result['rows_compared']:,} rows",
            ", ".join(f"{name} {count:,}" for name, count in result["rows_from_the_engine"].items()),
            ", ".join(result["unequal_tables"]) or "none",
        ]
        for result in found
    ]
    sources = [f"Simulated log. {source(result)}" for result in found]
    return "\n".join([*table(head, rows), "", *sources]) if rows else ""


def log_scale(found: Results) -> str:
    """One table per file, one line a length of the log."""
    head = [
        "behaviour rows",
        "dropped by admit",
        "dropped by click_rates",
        "edges",
        "admit rows/s",
        "click_rates rows/s",
        "peak GiB",
    ]
    lines = []
    for result in found:
        rows = [
            [
                f"{run['rows']:,}",
                *(f"{run[name]:,}" for name in ("dropped_by_admit", "dropped_by_click_rates", "edges")),
                *(f"{run['rows_per_second'][name]:,}" for name in ("admit", "click_rates")),
                f"**{run['peak_gib']:.2f}**",
            ]
            for run in result["runs"]
        ]
        size = (
            f"{result['queries']:,} queries, {result['documents']:,} documents, engine's limit {result['memory_limit']}"
        )
        lines += [*table(head, rows), "", f"Simulated log, stand-in for the encoder; {size}. {source(result)}", ""]
    return "\n".join(lines).strip()


def bad_rows(found: Results) -> str:
    """One line a file."""
    head = [
        "good rows",
        "bad rows",
        "kinds",
        "CPU s, good alone",
        "CPU s with bad",
        "ratio of least",
        "found",
        "good rows",
    ]
    rows = [
        [
            ", ".join(f"{name} {count:,}" for name, count in result["good_rows"].items()),
            f"{sum(result['bad_rows'].values()):,}",
            str(result["kinds"]),
            *(" / ".join(f"{value:.1f}" for value in result["cpu_seconds"][name]) for name in ("good", "mixed")),
            f"**{result['seconds_mixed_over_good']:.3f}**",
            "all, for their reasons" if result["every_bad_row_found_for_its_reason"] else "**not all**",
            "unchanged" if result["good_rows_equal"] else "**changed**",
        ]
        for result in found
    ]
    sources = [f"Simulated. {source(result)}" for result in found]
    return "\n".join([*table(head, rows), "", *sources]) if rows else ""


def number(value: float | None) -> str:
    """Four significant digits at most, thousands apart; - for None."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 1_000 else f"{value:.4g}"


def bars(found: Results) -> str:
    """The newest file: every bar, then the commands behind them and the made worlds."""
    if not found:
        return ""
    result = found[-1]
    words = {True: "yes", False: "**no**", None: "no bar"}
    rows = [
        [one["task"], f"{number(one['value'])} {one['unit']}", one["bar"] or "-", words[one["ok"]]]
        + [number(one["oracle"]), number(one["rival"])]
        for one in result["rows"]
    ]
    parts = {one["part"]: one["from"] for one in result["rows"]}
    lines = [*table(["task", "value", "bar", "ok", "oracle", "rival"], rows), ""]
    lines += [f"- Not measured: {name} ({why})" for name, why in result["missing"].items()]
    for name, origin in parts.items():
        taken = f", taken over from `{origin['file']}`" if origin["file"] else ""
        lines.append(f"- {name}: `{origin['command']}`, commit {origin['commit']}, {origin['machine']}{taken}")
    lines.append("")
    for name, facts in result["generators"].items():
        told = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in facts.items())
        lines.append(f"- made world of {name}: {told}")
    return "\n".join([*lines, "", source(result)])


# Marker -> (start of the result files, table, the command that measures). These runs take hours on two cores, so a page
# may stand without one of them: it then says so.
RUNS: dict[str, tuple[str, Callable[[Results], str], str]] = {
    "governance-loop": ("governance_loop", loop, "governance_loop --demo runs/demo --out runs/loop"),
    "governance-incremental": ("incremental", incremental, "incremental --data runs/demo/data"),
    "governance-killed": ("killed", killed, "killed --data runs/small"),
    "governance-engines": ("engines", engines, "engines --rows 50000"),
    "governance-log-scale": ("log_scale", log_scale, "log_scale --rows 1000000 10000000"),
    "governance-bad-rows": ("bad_rows", bad_rows, "bad_rows --rows 1000000"),
    "governance-bars": ("governance_bars", bars, "governance"),
}


def blocks(read: Callable[[str], Results]) -> dict[str, str]:
    """Marker -> table, or the words that nothing was measured yet; `read` gives the result files of a start."""
    made = {marker: show(read(start)) for marker, (start, show, _) in RUNS.items()}
    return {
        marker: text or f"Not measured yet: `python -m benchmarks.{RUNS[marker][2]}`." for marker, text in made.items()
    }
