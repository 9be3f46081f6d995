"""The figures of docs/governance.md, rendered from result files: nothing there is typed by hand."""

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
RESULT_NAMES = ("organising", "cleaning", "near_duplicates", "relational")
METHODS = {
    "components": "components, clicked together twice",
    "content": "content alone",
    "leiden": "Leiden, Jaccard weights, resolution 10",
    "leiden_in_leaf": "the same within leaves, best resolution by the truth",
    "ours": "**this stage**",
}
CHANGES = ("resize", "jpeg", "crop", "recolour")


def results(start: str, folder: Path = RESULTS) -> list[dict[str, Any]]:
    """Result files whose name begins so, oldest month first."""
    files = sorted(folder.glob(f"{start}_*.json"), key=lambda path: (path.stem.split("_")[-1], path.stem))
    return [json.loads(path.read_text(encoding="utf-8")) for path in files]


def source(result: dict[str, Any]) -> str:
    """The line under a table: command, commit and machine."""
    machine = result["environment"]
    return (
        f"`{result['command']}`, commit {result['commit'] or 'unknown'}, threads: {result['threads']} of "
        f"{machine['cores']} cores ({machine['cpu']}, {machine['memory_gib']} GiB)."
    )


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    """A Markdown table, first column to the left."""
    rule = "|---|" + "---:|" * (len(head) - 1)
    return [f"| {' | '.join(head)} |", rule, *(f"| {' | '.join(row)} |" for row in rows)]


def organising(found: list[dict[str, Any]]) -> str:
    """One table per file: pair precision / recall / F1 of every method at every share of noise."""
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
        _, given, seed = result["command"].partition("--seed ")
        size = f"{result['documents']:,} documents" + (f", seed {seed.split()[0]}" if given else "")
        head = [f"{size}: precision / recall / F1 of pairs", *noise, unit]
        lines += [*table(head, rows), "", f"Simulated log. {source(result)}", ""]
    return "\n".join(lines).strip()


def cleaning(found: list[dict[str, Any]]) -> str:
    """One table per file without a comparison."""
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
            wrong = setting["noise_before"] > 0
            rows.append(
                [
                    f"{setting['kind']}, {setting['noise_before']:.3f}",
                    f"**{setting['f1']:.3f}**" if wrong else "-",
                    f"{setting['oracle_f1']:.3f}" if wrong else "-",
                    f"{setting['one_round_f1']:.3f}" if wrong and "one_round_f1" in setting else "-",
                    f"{setting['bayes_f1']:.3f}" if wrong and "bayes_f1" in setting else "-",
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
            f"Nearest prototypes: {search['prototype_search']}, recall {search['prototype_recall']:.3f}; neighbours: "
            f"recall {search['neighbour_recall']:.3f}. Simulated. {source(result)}",
            "",
        ]
    return "\n".join(lines).strip()


def cleanlab(found: list[dict[str, Any]]) -> str:
    """One table per file with a comparison."""
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
            lines += [f"{size}, simulated. {source(result)}", ""]
    return "\n".join(lines).strip()


def near_duplicates(found: list[dict[str, Any]]) -> str:
    """Hashes of every file, then drawings of those that have them."""
    head = ["hashes", "radius", "joins", "pairs", "recall", "precision", "seconds", "peak GiB"]
    rows = [
        [
            f"{part['hashes']:,}",
            str(part["radius"]),
            str(part["joins"]),
            f"{part['found_pairs']:,}",
            f"{part['recall']:.3f}",
            f"{part['precision']:.3f}",
            f"{part['seconds']:.1f}",
            f"{part['peak_gib']:.2f}",
        ]
        for part in (result["hash"] for result in found)
    ]
    lines = [*table(head, rows), "", *(source(result) for result in found), ""] if found else []
    for result in found:
        if "drawings" not in result:
            continue
        part = result["drawings"]
        rows = [
            [
                name.replace("_", " "),
                f"{scores['precision']:.3f}",
                *(f"{scores[f'recall_{change}']:.2f}" for change in CHANGES),
            ]
            for name, scores in part.items()
            if isinstance(scores, dict)
        ]
        head = [f"{part['drawings']} drawings, {part['images']} images", "precision"]
        lines += [*table([*head, *(f"recall, {change}" for change in CHANGES)], rows), "", source(result), ""]
    return "\n".join(lines).strip()


def relational(found: list[dict[str, Any]]) -> str:
    """Joins of the early stages against the same steps in plain SQL, one line a file."""
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
        if "plain" in result
    ]
    head = ["behaviour rows", "DuckDB's limit", "ibis s", "plain SQL s", "ratio", "ibis peak GiB", "plain SQL peak GiB"]
    sources = [f"Simulated log. {source(result)}" for result in found]
    return "\n".join([*table(head, rows), "", *sources]) if rows else ""


def blocks(folder: Path = RESULTS) -> dict[str, str]:
    """Marker name -> Markdown for docs/governance.md.

    Raises:
        ValueError: when a result file is missing, naming the command that makes it.
    """
    from benchmarks.render import governance_runs as runs  # which takes `table` and `source` from here

    found = {name: results(name, folder) for name in RESULT_NAMES}
    made = {
        "governance-organising": (organising(found["organising"]), "organising"),
        "governance-cleaning": (cleaning(found["cleaning"]), "cleaning"),
        "governance-cleanlab": (cleanlab(found["cleaning"]), "cleaning --cleanlab"),
        "governance-near-duplicates": (near_duplicates(found["near_duplicates"]), "near_duplicates"),
        "governance-relational": (relational(found["relational"]), "relational"),
    }
    for name, (block, command) in made.items():
        if not block:
            raise ValueError(
                f"{name}: no result file. Run python -m benchmarks.{command} --json benchmarks/results/..."
            )
    shown = {name: block for name, (block, _) in made.items()}
    return shown | runs.blocks(lambda start: results(start, folder))
