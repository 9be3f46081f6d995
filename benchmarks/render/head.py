"""The blocks of docs/head.md: tables of the head's result files, or the command that makes what is missing."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.head.capacity import card

RESULTS = Path(__file__).resolve().parents[1] / "results"
FULL_SPEED = "--heads ours dense_update dense_parameter floor full_softmax pytorch_metric_learning"
COMMANDS = {
    "speed": "python -m benchmarks.head --classes 1_000_000 --rate 0.01 --optimizer momentum rowwise_adagrad "
    f"{FULL_SPEED} --steps 10 --rounds 2 --json benchmarks/results/head_speed_1m_HARDWARE_YYYYMM.json",
    "fixed_rows": "python -m benchmarks.head --classes 1_000_000 10_000_000 --fixed-rows 100_000 --optimizer momentum "
    "rowwise_adagrad --rounds 3 --json benchmarks/results/head_fixed_rows_HARDWARE_YYYYMM.json",
    "nearest": "python -m benchmarks.head.nearest --json benchmarks/results/head_nearest_HARDWARE_YYYYMM.json",
    "large": "python -m benchmarks.head.large --classes 100_000_000 --hidden-size 64 --storage memory --dtype bf16 "
    "--json benchmarks/results/head_large_memory_bf16_HARDWARE_YYYYMM.json",
    "quality": "python -m benchmarks.head.quality --json benchmarks/results/head_quality_HARDWARE_YYYYMM.json",
}
HEAD_TITLES = {
    "ours": "**ours**",
    "dense_update": "sampled, dense update",
    "dense_parameter": "sampled, parameter and SGD of torch",
    "floor": "floor",
    "full_softmax": "full softmax, torch",
    "pytorch_metric_learning": "full softmax, pytorch-metric-learning",
}
FORM_TITLES = {
    "full": "every class",
    "uniform": "uniform",
    "uniform_logq": "uniform + logQ",
    "hard_logq": "nearest + uniform + logQ",
}
MOST_GROWTH = 1.3


def results(theme: str) -> list[dict[str, Any]]:
    """Every result file of a theme, by name."""
    paths = sorted(RESULTS.glob(f"head_{theme}_*.json"))
    return [json.loads(path.read_text()) | {"file": path.name} for path in paths]


def missing(theme: str) -> str:
    """What stands in the page while there is no result."""
    return f"Not measured yet. Made by `{COMMANDS[theme.removesuffix('_bias')]}`, then `python -m benchmarks.render`."


def source(result: dict[str, Any]) -> str:
    """File, command and machine of a result."""
    machine = result["environment"]
    device = f"{result['gpu']} with " if result.get("gpu") else ""
    return (
        f"`{result['file']}`, made by `{result['command']}` on {device}{machine['cores']} cores ({machine['cpu']}, "
        f"{machine['memory_gib']} GiB, torch {machine['torch']}; {result['threads']} threads)."
    )


def speed_rows(result: dict[str, Any]) -> list[str]:
    """One table of `benchmarks.head.speed`; what did not fit says why."""
    lines = [
        "| head | row optimiser | classes | width | rate | batch | dtype | step s | forward | backward | update | "
        "peak GiB |",
        "|---" * 12 + "|",
    ]
    for row in result["rows"]:
        size = f"{row['classes']:,} | {row['hidden_size']} | {row['rate']:g} | {row['batch_size']} | {row['dtype']}"
        if "left_out" in row:
            times = f"left out: {row['left_out']} | | | | "
        else:
            parts = (row[key] for key in ("step_s", "forward_s", "backward_s", "update_s"))
            times = " | ".join(f"{second:.4f}" for second in parts) + f" | {row['peak_gib']:.2f}"
        lines.append(f"| {HEAD_TITLES[row['head']]} | {row['optimizer']} | {size} | {times} |")
    return lines


def against_dense(result: dict[str, Any]) -> list[str]:
    """How many times longer the dense update takes, step and update, at each number of classes."""
    lines = []
    timed = [row for row in result["rows"] if "step_s" in row]
    for dense in (row for row in timed if row["head"] in ("dense_update", "dense_parameter")):
        share = dense.get("bandwidth_share")
        moved = "" if share is None else f"; it moved its tables at {share:.0%} of a copy's bandwidth"
        for ours in (row for row in timed if row["head"] == "ours" and row["classes"] == dense["classes"]):
            lines.append(
                f'{dense["classes"]:,} classes: a step of "{HEAD_TITLES[dense["head"]]}" takes '
                f"{dense['step_s'] / ours['step_s']:.1f} times as long as ours with {ours['optimizer']} (update alone "
                f"{dense['update_s'] / ours['update_s']:.1f} times){moved}."
            )
    for floor in (row for row in timed if row["head"] == "floor"):
        same = [row for row in timed if row["classes"] == floor["classes"] and row["dtype"] == floor["dtype"]]
        ours_said = ", ".join(
            f"{row['step_s'] / floor['step_s']:.2f} with {row['optimizer']}" for row in same if row["head"] == "ours"
        )
        dense_said = ", ".join(
            f'"{HEAD_TITLES[row["head"]]}" {row["step_s"] / floor["step_s"]:.1f}'
            for row in same
            if row["head"] in ("dense_update", "dense_parameter")
        )
        behind = f"; {dense_said}: no head that scores these rows in fp32 could be further ahead" if dense_said else ""
        lines.append(f"{floor['classes']:,} classes, in steps of the floor: ours {ours_said}{behind}.")
    return lines


def speed() -> str:
    """Speed and memory, a table a file."""
    lines = []
    for result in results("speed"):
        lines += [*speed_rows(result), "", *(f"- {line}" for line in against_dense(result)), "", source(result), ""]
    return "\n".join(lines[:-1]) if lines else missing("speed")


def fixed_rows() -> str:
    """Whether a step grows with the classes while the sampled rows stay as many."""
    lines = []
    for result in results("fixed_rows"):
        lines += [*speed_rows(result), ""]
        for found in result["growth"]:
            holds = ""
            if found["head"] == "ours":
                holds = (
                    f" (at most {MOST_GROWTH}: {'holds' if found['step_ratio'] <= MOST_GROWTH else 'does NOT hold'})"
                )
            lines.append(
                f"- {HEAD_TITLES[found['head']]}, {found['optimizer']}: {found['step_ratio']:.2f} times the step of "
                f"{found['from']:,} classes at {found['to']:,}, {result['fixed_rows']:,} rows drawn in both{holds}."
            )
        lines += ["", source(result), ""]
    return "\n".join(lines[:-1]) if lines else missing("fixed_rows")


def nearest() -> str:
    """What hard classes cost, of the newest file."""
    found = results("nearest")
    if not found:
        return missing("nearest")
    result = found[-1]
    lines = [
        "| classes | index | built in s | built, in steps of the head | 256 positives asked in s | "
        "recall of the 10 nearest | index GiB |",
        "|---" * 7 + "|",
    ]
    for row in result["rows"]:
        cells = [f"{row['classes']:,}", "**ours**" if row["index"] == "ours" else f"`{row['index']}` of FAISS"]
        cells += [f"{row['build_s']:.1f}", f"{row['build_s'] / row['step_s']:.0f}", f"{row['find_s']:.3f}"]
        lines.append("| " + " | ".join([*cells, f"{row['recall']:.3f}", f"{row['index_gib']:.3f}"]) + " |")
    return "\n".join([*lines, "", source(result)])


def large() -> str:
    """Runs of `benchmarks.head.large`."""
    found = results("large")
    if not found:
        return missing("large")
    lines = [
        "| classes | width | stored as | where | table GiB | start s | step s | rows a step | held-out loss before | "
        "after | own memory GiB | peak with pages of files GiB | never-drawn rows checked | of these moved |",
        "|---" * 14 + "|",
    ]
    for run in found:
        cells = [f"{run['classes']:,}", run["hidden_size"], f"{run['dtype']}, {run['optimizer']}", run["storage"]]
        cells += [run["table_gib"], f"{run['start_s']:.0f}", f"{run['step_s']:.3f}", f"{run['rows_a_step']:,}"]
        cells += [f"{run['loss_start']:.2f}", f"{run['loss_end']:.2f}", run["anonymous_gib"], run["peak_gib"]]
        cells += [f"{run['never_drawn_rows']:,}", run["never_drawn_moved"]]
        lines.append("| " + " | ".join(str(cell) for cell in cells) + " |")
    for run in found:
        failed = f" FAILED: {'; '.join(run['failures'])}." if run["failures"] else ""
        lines += ["", f"{run['steps']} steps, {run['categories']:,} categories: {source(run)}{failed}"]
    return "\n".join(lines)


def quality() -> str:
    """Recall on unseen categories, one table per share of wrong labels, of the newest file."""
    found = results("quality")
    if not found:
        return missing("quality")
    result = found[-1]
    made, lines = result["settings"]["made"], []
    for noise in dict.fromkeys(row["noise"] for row in result["summary"]):
        lines += [
            f"*{noise:.0%} wrong labels*",
            "",
            "| rate | classes drawn | rows a step | R@1 | minus full, points | R@1, filter | minus full, points | s |",
        ]
        lines += [
            "|---" * 8 + "|",
            *quality_rows([row for row in result["summary"] if row["noise"] == noise]),
        ]
        lines.append("")
    judged = {None: "was not run", True: "lies in the planned range", False: "lies OUTSIDE the planned range"}
    lines += [
        f"{made['classes']:,} trained categories, {result['queries']:,} queries of {made['unseen']:,} unseen ones; "
        f"R@1 before training {result['recall_at_1_before']:.3f}. Mean of seeds, deviation between seeds behind it. "
        f"Full softmax without wrong labels {judged[result['full_softmax_in_range']]} of 0.5 to 0.8. "
        f"{result['core_minutes']:.0f} minutes of one process each in all: {source(result)}",
    ]
    return "\n".join(lines)


def quality_rows(rows: list[dict[str, Any]]) -> list[str]:
    """Rows of one share of wrong labels; with and without filter side by side."""
    lines = []
    for rate, form in dict.fromkeys((row["rate"], row["form"]) for row in rows):
        pair = {row["filtered"]: row for row in rows if (row["rate"], row["form"]) == (rate, form)}
        one = next(iter(pair.values()))
        cells = [f"{rate:g}", FORM_TITLES[form], f"{one['rows_a_step']:,}"]
        for filtered in (False, True):
            cells += [_recall(pair.get(filtered)), _minus_full(pair.get(filtered))]
        lines.append("| " + " | ".join([*cells, f"{one['seconds']:.0f}"]) + " |")
    return lines


def _minus_full(row: dict[str, Any] | None) -> str:
    """Difference to full softmax without a filter, seed by seed, in points of recall."""
    if row is None or not row["minus_full"]:
        return "-"
    gap, spread = row["minus_full"]
    return f"{100 * gap:+.1f}" + (f" ±{100 * spread:.1f}" if spread is not None else "")


def _recall(row: dict[str, Any] | None) -> str:
    if row is None:
        return "-"
    spread = f" ±{row['deviation']:.3f}" if row["deviation"] is not None else " (one seed)"
    return f"{row['recall_at_1']:.3f}{spread}"


def bias() -> str:
    """Bias of the loss against rate, from the newest quality file that has it."""
    found = [result for result in results("quality") if result["bias"]]
    if not found:
        return missing("quality_bias")
    table = found[-1]["bias"]
    lines = ["| rate | loss without logQ minus full | with logQ minus full |", "|---|---|---|"]
    for rate in dict.fromkeys(row["rate"] for row in table["rows"]):
        pair = {row["log_q"]: row for row in table["rows"] if row["rate"] == rate}
        cells = [f"{pair[log_q]['bias']:+.4f} ±{pair[log_q]['standard_error']:.4f}" for log_q in (False, True)]
        lines.append(f"| {rate:g} | {cells[0]} | {cells[1]} |")
    lines += ["", f"Full loss {table['full_loss']:.4f}; mean of {table['draws']} draws, ± standard error of the mean."]
    return "\n".join(lines)


BLOCKS: dict[str, Callable[[], str]] = {
    "speed": speed,
    "fixed_rows": fixed_rows,
    "nearest": nearest,
    "large": large,
    "card": card,
    "quality": quality,
    "bias": bias,
}


def blocks() -> dict[str, str]:
    """Marker name -> Markdown of docs/head.md."""
    return {name: block() for name, block in BLOCKS.items()}
