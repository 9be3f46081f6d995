"""Tables of docs/head.md, from the result files of benchmarks/head."""

from collections.abc import Callable
from typing import Any

from benchmarks.render import tables
from benchmarks.render.tables import Result, source, table
from train.planner.plan import GIB, GPUS, USABLE, optimizer_bytes

RESULTS = tables.RESULTS
FULL_SPEED = "--heads ours dense_update dense_parameter floor full_softmax pytorch_metric_learning"
# What to run where a block of the page has no result file yet.
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
    "dense_parameter": "sampled, torch parameter and SGD",
    "floor": "lower bound",
    "full_softmax": "full softmax, torch",
    "pytorch_metric_learning": "full softmax, pytorch-metric-learning",
}
FORM_TITLES = {
    "full": "every class",
    "uniform": "uniform",
    "uniform_logq": "uniform + logQ",
    "hard_logq": "nearest + uniform + logQ",
}
# A step with ten times the classes and the same sampled rows may take so many times as long.
MOST_GROWTH = 1.3
# What the table of capacities is computed for.
CAPACITY_WIDTH, CAPACITY_CLASSES, CAPACITY_GPU = 512, 100_000_000, "h200"
CAPACITY_COMMAND = (
    "python -m benchmarks.head.large --classes 100_000_000 --hidden-size 512 --storage device --dtype bf16 "
    "--device cuda --json benchmarks/results/head_large_cuda_bf16_HARDWARE_YYYYMM.json"
)


def results(theme: str) -> list[Result]:
    """Result files of one theme."""
    return tables.results(f"head_{theme}", RESULTS)


def missing(theme: str) -> str:
    """Text of a block without result files."""
    return f"Not measured yet. Run `{COMMANDS[theme]}`, then `python -m benchmarks.render`."


def speed_table(result: Result) -> list[str]:
    """Times and memory of the heads in one file; a head that did not fit has the reason instead."""
    rows = []
    for row in result["rows"]:
        cells = [HEAD_TITLES[row["head"]], row["optimizer"], f"{row['classes']:,}", str(row["hidden_size"])]
        cells += [f"{row['rate']:g}", str(row["batch_size"]), row["dtype"]]
        if "left_out" in row:
            cells += [f"left out: {row['left_out']}", "", "", "", ""]
        else:
            cells += [f"{row[key]:.4f}" for key in ("step_s", "forward_s", "backward_s", "update_s")]
            cells += [f"{row['peak_gib']:.2f}"]
        rows.append(cells)
    head = ["head", "row optimiser", "classes", "width", "rate", "batch", "dtype", "step s", "forward", "backward"]
    return table([*head, "update", "peak GiB"], rows)


def speed_ratios(result: Result) -> list[str]:
    """Sentences: step times of the dense heads over ours, and of all sampled heads over the lower bound."""
    lines = []
    timed = [row for row in result["rows"] if "step_s" in row]
    for dense in (row for row in timed if row["head"] in ("dense_update", "dense_parameter")):
        share = dense.get("bandwidth_share")
        bandwidth = "" if share is None else f"; its update ran at {share:.0%} of the bandwidth of a copy"
        for ours in (row for row in timed if row["head"] == "ours" and row["classes"] == dense["classes"]):
            lines.append(
                f'{dense["classes"]:,} classes: a step of "{HEAD_TITLES[dense["head"]]}" takes '
                f"{dense['step_s'] / ours['step_s']:.1f} times as long as ours with {ours['optimizer']} (update alone "
                f"{dense['update_s'] / ours['update_s']:.1f} times){bandwidth}."
            )
    for floor in (row for row in timed if row["head"] == "floor"):
        same = [row for row in timed if row["classes"] == floor["classes"] and row["dtype"] == floor["dtype"]]
        ratios = [
            f"ours with {row['optimizer']} {row['step_s'] / floor['step_s']:.2f}"
            if row["head"] == "ours"
            else f'"{HEAD_TITLES[row["head"]]}" {row["step_s"] / floor["step_s"]:.1f}'
            for row in same
            if row["head"] in ("ours", "dense_update", "dense_parameter")
        ]
        lines.append(
            f"{floor['classes']:,} classes, {floor['dtype']}: step time divided by that of the lower bound: "
            f"{', '.join(ratios)}."
        )
    return lines


def speed() -> str:
    """Speed and memory, one table per file."""
    lines = []
    for result in results("speed"):
        lines += [*speed_table(result), "", *(f"- {line}" for line in speed_ratios(result)), "", source(result), ""]
    return "\n".join(lines[:-1]) if lines else missing("speed")


def fixed_rows() -> str:
    """Step time against the number of classes, with the same number of sampled rows."""
    lines = []
    for result in results("fixed_rows"):
        lines += [*speed_table(result), ""]
        for found in result["growth"]:
            verdict = ""
            if found["head"] == "ours":
                met = "met" if found["step_ratio"] <= MOST_GROWTH else "**not met**"
                verdict = f" (target: at most {MOST_GROWTH}; {met})"
            lines.append(
                f"- {HEAD_TITLES[found['head']]}, {found['optimizer']}, {result['fixed_rows']:,} sampled rows: a step "
                f"with {found['to']:,} classes takes {found['step_ratio']:.2f} times as long as with "
                f"{found['from']:,}{verdict}."
            )
        lines += ["", source(result), ""]
    return "\n".join(lines[:-1]) if lines else missing("fixed_rows")


def nearest() -> str:
    """Cost and recall of the index of hard classes, of the newest file."""
    found = results("nearest")
    if not found:
        return missing("nearest")
    rows = []
    for row in found[-1]["rows"]:
        cells = [f"{row['classes']:,}", "**ours**" if row["index"] == "ours" else f"`{row['index']}` of FAISS"]
        cells += [f"{row['build_s']:.1f}", f"{row['build_s'] / row['step_s']:.0f}", f"{row['find_s']:.3f}"]
        rows.append([*cells, f"{row['recall']:.3f}", f"{row['index_gib']:.3f}"])
    head = ["classes", "index", "build s", "build, in steps of the head", "search for 256 positives s"]
    return "\n".join([*table([*head, "recall of the 10 nearest", "index GiB"], rows), "", source(found[-1])])


def large() -> str:
    """Runs with a hundred million classes."""
    found = results("large")
    if not found:
        return missing("large")
    rows = []
    for run in found:
        cells = [f"{run['classes']:,}", run["hidden_size"], f"{run['dtype']}, {run['optimizer']}", run["storage"]]
        cells += [run["table_gib"], f"{run['start_s']:.0f}", f"{run['step_s']:.3f}", f"{run['rows_a_step']:,}"]
        cells += [f"{run['loss_start']:.2f}", f"{run['loss_end']:.2f}", run["anonymous_gib"], run["peak_gib"]]
        rows.append([str(cell) for cell in [*cells, f"{run['never_drawn_rows']:,}", run["never_drawn_moved"]]])
    head = ["classes", "width", "stored as", "storage", "table GiB", "initialisation s", "step s", "rows a step"]
    head += ["held-out loss before", "after", "process memory GiB", "peak with mapped files GiB"]
    lines = table([*head, "unsampled rows checked", "of these changed"], rows)
    for run in found:
        failed = f" FAILED: {'; '.join(run['failures'])}." if run["failures"] else ""
        lines += ["", f"{run['steps']} steps, {run['categories']:,} categories. {source(run)}{failed}"]
    return "\n".join(lines)


def quality() -> str:
    """Recall on unseen categories, one table per share of wrong labels, of the newest file."""
    found = results("quality")
    if not found:
        return missing("quality")
    result, lines = found[-1], []
    head = ["rate", "sampled classes", "rows a step", "R@1", "minus full, points", "R@1, conflict filter"]
    for noise in dict.fromkeys(row["noise"] for row in result["summary"]):
        rows = quality_rows([row for row in result["summary"] if row["noise"] == noise])
        lines += [f"*{noise:.0%} wrong labels*", "", *table([*head, "minus full, points", "s"], rows), ""]
    verdict = {None: "was not run", True: "lies in the planned range", False: "lies OUTSIDE the planned range"}
    data = result["settings"]["made"]
    lines += [
        f"{data['classes']:,} trained categories, {result['queries']:,} queries of {data['unseen']:,} unseen ones; "
        f"R@1 before training {result['recall_at_1_before']:.3f}. Mean and standard deviation over seeds. "
        f"Full softmax without wrong labels {verdict[result['full_softmax_in_range']]} of 0.5 to 0.8. "
        f"{result['core_minutes']:.0f} core minutes in all. {source(result)}",
    ]
    return "\n".join(lines)


def quality_rows(rows: list[dict[str, Any]]) -> list[list[str]]:
    """Cells of one share of wrong labels; a line shows one rate and form, without and with conflict filter."""
    lines = []
    for rate, form in dict.fromkeys((row["rate"], row["form"]) for row in rows):
        pair = {row["filtered"]: row for row in rows if (row["rate"], row["form"]) == (rate, form)}
        one = next(iter(pair.values()))
        cells = [f"{rate:g}", FORM_TITLES[form], f"{one['rows_a_step']:,}"]
        for filtered in (False, True):
            cells += [_recall(pair.get(filtered)), _minus_full(pair.get(filtered))]
        lines.append([*cells, f"{one['seconds']:.0f}"])
    return lines


def _minus_full(row: dict[str, Any] | None) -> str:
    """Difference to the full softmax without a filter, seed by seed, in points of recall."""
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
    """Bias of the sampled loss against the rate, from the newest quality file that has it."""
    found = [result for result in results("quality") if result["bias"]]
    if not found:
        return missing("quality")
    measured, rows = found[-1]["bias"], []
    for rate in dict.fromkeys(row["rate"] for row in measured["rows"]):
        pair = {row["log_q"]: row for row in measured["rows"] if row["rate"] == rate}
        cells = [f"{pair[log_q]['bias']:+.4f} ±{pair[log_q]['standard_error']:.4f}" for log_q in (False, True)]
        rows.append([f"{rate:g}", *cells])
    note = f"Full loss {measured['full_loss']:.4f}; mean of {measured['draws']} draws, ± standard error of the mean."
    return "\n".join(
        [
            *table(["rate", "sampled minus full loss, without logQ", "with logQ"], rows),
            "",
            f"{note} {source(found[-1])}",
        ]
    )


def bytes_per_class() -> list[tuple[str, float, str]]:
    """(head, bytes of one class, their formula with D = width)."""
    width = CAPACITY_WIDTH
    rowwise, momentum = (optimizer_bytes(name, width) for name in ("rowwise_adagrad", "momentum"))
    weights = 4 * width
    return [
        ("ours, bf16, row-wise Adagrad", 2 * width + rowwise, f"2 D + {rowwise:g}"),
        ("ours, fp32, momentum", weights + momentum, f"4 D + {momentum:g}"),
        ("sampled, dense update: weight and momentum", 2 * weights, "8 D"),
        ("sampled, torch parameter and SGD: weight, gradient and momentum", 3 * weights, "12 D"),
    ]


def capacity() -> str:
    """How many classes fit on one accelerator for each head; computed, not measured.

    A sampled step reads few rows, so the number of classes is limited by what is stored for every class.
    """
    usable = USABLE * GPUS[CAPACITY_GPU].memory_gib * GIB
    rows = [
        [name, f"{size:,.0f} = {formula}", f"{CAPACITY_CLASSES * size / GIB:.0f}", f"{usable / size / 1e6:.0f} million"]
        for name, size, formula in bytes_per_class()
    ]
    head = [f"head, width {CAPACITY_WIDTH}", "bytes a class", f"GiB for {CAPACITY_CLASSES // 10**6} million classes"]
    lines = table([*head, f"most classes in {usable / GIB:.0f} GiB"], rows)
    note = f"{USABLE:.0%} of an H200's memory (train/planner/plan.py). The first line can be measured by "
    return "\n".join([*lines, "", f"{note}`{CAPACITY_COMMAND}`."])


BLOCKS: dict[str, Callable[[], str]] = {
    "speed": speed,
    "fixed_rows": fixed_rows,
    "nearest": nearest,
    "large": large,
    "card": capacity,
    "quality": quality,
    "bias": bias,
}


def blocks() -> dict[str, str]:
    """Marker name -> Markdown of docs/head.md."""
    return {name: block() for name, block in BLOCKS.items()}
