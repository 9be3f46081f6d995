"""Tables of docs/governance.md, from the result files of benchmarks/governance."""

from collections.abc import Callable
from pathlib import Path

from benchmarks.render.tables import RESULTS, Result, results, source, table

METHODS = {
    "components": "connected components, edges of two or more common clicks",
    "content": "content only",
    "leiden": "Leiden, Jaccard weights, resolution 10",
    "leiden_in_leaf": "the same within leaves, best resolution by the truth",
    "ours": "**this stage**",
}
CHANGES = ("resize", "jpeg", "crop", "recolour")
SIMULATED = "Simulated data."
SIMULATED_CLICKS = "Simulated clicks on real drawings."


def organising(found: list[Result]) -> str:
    """One table per file: precision, recall and F1 of document pairs for every method and noise level."""
    lines = []
    for result in found:
        settings = result["settings"]
        noise = [f"{100 * setting['noise']:.0f}% wrong clicks" for setting in settings]
        rows = []
        for name, title in METHODS.items():
            cells = [setting[name] for setting in settings]
            scores = [f"{cell['precision']:.2f} / {cell['recall']:.2f} / **{cell['f1']:.3f}**" for cell in cells]
            seconds = [cell.get("cpu_seconds", cell.get("seconds")) for cell in cells]
            rows.append([title, *scores, " / ".join(f"{value:.0f}" for value in seconds)])
        unit = "CPU seconds" if "cpu_seconds" in settings[0]["ours"] else "seconds"
        _, has_seed, seed = result["command"].partition("--seed ")
        size = f"{result['documents']:,} documents" + (f", seed {seed.split()[0]}" if has_seed else "")
        head = [f"{size}: pair precision / recall / F1", *noise, unit]
        lines += [*table(head, rows), "", f"{SIMULATED} {source(result)}", ""]
    return "\n".join(lines).strip()


def cleaning(found: list[Result]) -> str:
    """One table per file without a comparison with cleanlab."""
    lines = []
    for result in found:
        if "settings" not in result:
            continue
        head = ["wrong labels", "F1", "best threshold", "one round", "true centres", "estimated share (95%)"]
        head += ["wrong after", "kept", "rows/s", "peak GiB"]
        rows = []
        for setting in result["settings"]:
            interval = setting["stage"]["wrong_labels_interval"]
            estimate = f"{interval[0]:.3f} to {interval[1]:.3f}" if interval else "refused"
            has_wrong = setting["noise_before"] > 0
            rows.append(
                [
                    f"{setting['kind']}, {setting['noise_before']:.3f}",
                    f"**{setting['f1']:.3f}**" if has_wrong else "-",
                    f"{setting['oracle_f1']:.3f}" if has_wrong else "-",
                    f"{setting['one_round_f1']:.3f}" if has_wrong and "one_round_f1" in setting else "-",
                    f"{setting['bayes_f1']:.3f}" if has_wrong and "bayes_f1" in setting else "-",
                    estimate,
                    f"{setting['noise_after']:.3f}",
                    f"{setting['kept']:.3f}",
                    f"{setting['rows_per_second']:,}",
                    f"{setting['peak_gib']:.2f}",
                ]
            )
        search = result["settings"][-1]["stage"]
        lines += [f"{result['rows']:,} rows, {result['categories']:,} categories:", "", *table(head, rows), ""]
        lines += [
            f"Prototype search: {search['prototype_search']}, recall {search['prototype_recall']:.3f}. Neighbour "
            f"search: recall {search['neighbour_recall']:.3f}. {SIMULATED} {source(result)}",
            "",
        ]
    return "\n".join(lines).strip()


def cleanlab(found: list[Result]) -> str:
    """One table per file with a comparison with cleanlab."""
    lines = []
    for result in found:
        for setting in result.get("comparison", []):
            names = [name for name in setting if isinstance(setting[name], dict)]
            rows = [
                [
                    "**this stage**" if name == "ours" else name.replace("_", " ", 1),
                    f"{setting[name]['f1']:.3f}",
                    f"{setting[name]['rows_per_second']:,}",
                    f"{setting[name]['peak_gib']:.2f}",
                ]
                for name in names
            ]
            title = f"{setting['kind']}, {100 * setting['noise']:.0f}% wrong"
            lines += [*table([title, "F1", "rows/s", "peak GiB"], rows), ""]
        if "comparison" in result:
            size = f"{result['rows']:,} rows, {result['categories']:,} categories"
            lines += [f"{size}. {SIMULATED} {source(result)}", ""]
    return "\n".join(lines).strip()


def near_duplicates(found: list[Result]) -> str:
    """Random hashes of every file, then drawings of the files that have them."""
    head = ["hashes", "radius", "joins", "pairs", "recall", "precision", "seconds", "peak GiB"]
    rows = [
        [
            f"{hashed['hashes']:,}",
            str(hashed["radius"]),
            str(hashed["joins"]),
            f"{hashed['found_pairs']:,}",
            f"{hashed['recall']:.3f}",
            f"{hashed['precision']:.3f}",
            f"{hashed['seconds']:.1f}",
            f"{hashed['peak_gib']:.2f}",
        ]
        for hashed in (result["hash"] for result in found)
    ]
    lines = [*table(head, rows), "", *(source(result) for result in found), ""] if found else []
    for result in found:
        if "drawings" not in result:
            continue
        drawn = result["drawings"]
        rows = [
            [
                name.replace("_", " "),
                f"{scores['precision']:.3f}",
                *(f"{scores[f'recall_{change}']:.2f}" for change in CHANGES),
            ]
            for name, scores in drawn.items()
            if isinstance(scores, dict)
        ]
        head = [f"{drawn['drawings']} drawings, {drawn['images']} images", "precision"]
        lines += [*table([*head, *(f"recall, {change}" for change in CHANGES)], rows), "", source(result), ""]
    return "\n".join(lines).strip()


def relational(found: list[Result]) -> str:
    """Joins of the early stages compared with the same steps in plain SQL, one line a file."""
    head = ["behaviour rows", "DuckDB's limit", "ibis s", "plain SQL s", "ratio", "ibis peak GiB", "plain SQL peak GiB"]
    rows = [
        [
            f"{result['rows']:,}",
            result["memory_limit"],
            f"{result['ours']['seconds']:.1f}",
            f"{result['plain']['seconds']:.1f}",
            f"{result['seconds_ours_over_plain']:.2f}",
            f"{result['ours']['peak_gib']:.2f}",
            f"{result['plain']['peak_gib']:.2f}",
        ]
        for result in found
    ]
    return line_per_file(head, rows, found, note=SIMULATED)


def loop(found: list[Result]) -> str:
    """First and second round below each other, for every share of wrong clicks."""
    head = ["clicks that are right", "round", "labels right", "kept", "kept and right"]
    head += ["precision of pairs", "recall", "F1"]
    lines = []
    for result in found:
        rows = []
        for setting in result["settings"]:
            for name in ("first", "second"):
                scores = setting[name]
                right, kept = scores["label_accuracy_after"], scores["kept_share"]
                cells = [f"{value:.4f}" for value in (right, kept, right * kept)]
                cells += [f"{scores[f'category_pair_{key}']:.4f}" for key in ("precision", "recall")]
                rows.append(
                    [f"{scores['label_accuracy_before']:.3f}", name, *cells, f"**{scores['category_pair_f1']:.4f}**"]
                )
        lines += [*table(head, rows), "", f"{SIMULATED_CLICKS} {source(result)}", ""]
    return "\n".join(lines).strip()


def incremental(found: list[Result]) -> str:
    """Incremental run compared with a full one, one line a file."""
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
    return line_per_file(head, rows, found, note=SIMULATED_CLICKS)


def killed(found: list[Result]) -> str:
    """Tables after kills compared with an undisturbed run, one line a file."""
    head = ["behaviour rows", "queries", "kills", "last complete stage", "tables compared", "unequal", "ledger"]
    rows = [
        [
            f"{result['behaviour']:,}",
            f"{result['queries']:,}",
            str(result["kills"]),
            ", ".join(f"{stage_title(stage)} {count}" for stage, count in result["last_whole_stage"].items()),
            f"{result['tables']} with {result['rows']:,} rows",
            str(len(result["unequal_tables"])),
            "equal" if result["figures_equal"] else "**unequal**",
        ]
        for result in found
    ]
    return line_per_file(head, rows, found, note=SIMULATED_CLICKS)


def stage_title(name: str) -> str:
    """Name of a stage as it is now: older result files call click_rates "weigh"."""
    return {"weigh": "click_rates", "nothing": "none"}.get(name, name)


def engines(found: list[Result]) -> str:
    """DuckDB compared with Spark, one line a file."""
    head = ["behaviour rows", "Spark", "worker processes", "tables compared", "rows from the engines", "unequal"]
    rows = [
        [
            f"{result['rows']:,}",
            f"{result['spark']['spark']}, {result['spark']['master']}",
            str(result["spark"]["worker_processes"]),
            f"{result['tables']} with {result['rows_compared']:,} rows",
            ", ".join(
                f"{stage_title(name.split('/')[0])}/{name.split('/')[1]} {count:,}"
                for name, count in result["rows_from_the_engine"].items()
            ),
            ", ".join(result["unequal_tables"]) or "none",
        ]
        for result in found
    ]
    return line_per_file(head, rows, found, note=SIMULATED)


def log_scale(found: list[Result]) -> str:
    """One table per file, one line for each length of the log."""
    head = ["behaviour rows", "rejected by admit", "rejected by click_rates", "edges", "admit rows/s"]
    head += ["click_rates rows/s", "peak GiB"]
    lines = []
    for result in found:
        rows = []
        for run in result["runs"]:
            counts = (run["dropped_by_admit"], run["dropped_by_click_rates"], run["edges"])
            speed = run["rows_per_second"]
            rates = (speed["admit"], speed["click_rates"])
            rows.append(
                [f"{run['rows']:,}", *(f"{value:,}" for value in (*counts, *rates)), f"**{run['peak_gib']:.2f}**"]
            )
        size = f"{result['queries']:,} queries, {result['documents']:,} documents, "
        size += f"engine limited to {result['memory_limit']}, stand-in encoder"
        lines += [*table(head, rows), "", f"{SIMULATED} {size}. {source(result)}", ""]
    return "\n".join(lines).strip()


def bad_rows(found: list[Result]) -> str:
    """Admission with and without bad rows, one line a file."""
    head = ["good rows", "bad rows", "kinds", "CPU s, good rows only", "CPU s, with bad rows", "ratio of minima"]
    head += ["bad rows found", "good rows"]
    rows = [
        [
            ", ".join(f"{name} {count:,}" for name, count in result["good_rows"].items()),
            f"{sum(result['bad_rows'].values()):,}",
            str(result["kinds"]),
            *(" / ".join(f"{value:.1f}" for value in result["cpu_seconds"][name]) for name in ("good", "mixed")),
            f"**{result['seconds_mixed_over_good']:.3f}**",
            "all, with their reasons" if result["every_bad_row_found_for_its_reason"] else "**not all**",
            "unchanged" if result["good_rows_equal"] else "**changed**",
        ]
        for result in found
    ]
    return line_per_file(head, rows, found, note=SIMULATED)


def targets(found: list[Result]) -> str:
    """Newest file: every target, then the commands that measured and the synthetic data."""
    if not found:
        return ""
    result = found[-1]
    verdict = {True: "yes", False: "**no**", None: "no target"}
    rows = [
        [row["task"], f"{number(row['value'])} {row['unit']}", row["bar"] or "-", verdict[row["ok"]]]
        + [number(row["oracle"]), number(row["rival"])]
        for row in result["rows"]
    ]
    lines = [*table(["task", "value", "target", "met", "oracle", "baseline"], rows), ""]
    lines += [f"- Not measured: {name} ({why})" for name, why in result["missing"].items()]
    for name, origin in {row["part"]: row["from"] for row in result["rows"]}.items():
        reused = f", reused from `{origin['file']}`" if origin["file"] else ""
        lines.append(f"- {name}: `{origin['command']}`, commit {origin['commit']}, {origin['machine']}{reused}")
    lines.append("")
    for name, statistics in result["generators"].items():
        values = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in statistics.items())
        lines.append(f"- synthetic data of {name}: {values}")
    return "\n".join([*lines, "", source(result)])


def number(value: float | None) -> str:
    """Up to four significant digits, or whole thousands with commas; "-" for None."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 1_000 else f"{value:.4g}"


def line_per_file(head: list[str], rows: list[list[str]], found: list[Result], *, note: str) -> str:
    """A table with one line per result file and their sources below; empty without files."""
    sources = [f"{note} {source(result)}" for result in found]
    return "\n".join([*table(head, rows), "", *sources]) if rows else ""


# Marker in the page -> (start of the result files' names, table, command that measures it, without --json).
TABLES: dict[str, tuple[str, Callable[[list[Result]], str], str]] = {
    "governance-organising": ("organising", organising, "governance.organising"),
    "governance-cleaning": ("cleaning", cleaning, "governance.cleaning"),
    "governance-cleanlab": ("cleaning", cleanlab, "governance.cleaning --cleanlab"),
    "governance-near-duplicates": ("near_duplicates", near_duplicates, "governance.near_duplicates"),
    "governance-relational": ("relational", relational, "governance.relational"),
}
# These take hours on two cores: without a file the page says "not measured yet", and rendering goes on.
OPTIONAL_TABLES: dict[str, tuple[str, Callable[[list[Result]], str], str]] = {
    "governance-loop": ("governance_loop", loop, "governance.loop --demo runs/demo --out runs/loop"),
    "governance-incremental": ("incremental", incremental, "governance.incremental --data runs/demo/data"),
    "governance-killed": ("killed", killed, "governance.killed --data runs/small"),
    "governance-engines": ("engines", engines, "governance.engines --rows 50000"),
    "governance-log-scale": ("log_scale", log_scale, "governance.log_scale --rows 1000000 10000000"),
    "governance-bad-rows": ("bad_rows", bad_rows, "governance.bad_rows --rows 1000000"),
    "governance-targets": ("governance_bars", targets, "governance"),
}


def blocks(folder: Path = RESULTS) -> dict[str, str]:
    """Marker name -> Markdown for docs/governance.md.

    Raises:
        ValueError: when a result file is missing; the message names the command that writes it.
    """
    rendered = {}
    for marker, (start, show, command) in (TABLES | OPTIONAL_TABLES).items():
        rendered[marker] = show(results(start, folder))
        if not rendered[marker] and marker in TABLES:
            raise ValueError(
                f"{marker}: no result file. Run python -m benchmarks.{command} --json benchmarks/results/..."
            )
        rendered[marker] = rendered[marker] or f"Not measured yet: `python -m benchmarks.{command}`."
    return rendered
