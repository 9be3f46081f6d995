"""Read result files and write them as Markdown tables with their source."""

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parents[1] / "results"
Result = dict[str, Any]


def results(start: str, folder: Path = RESULTS) -> list[Result]:
    """Result files `<start>_*.json`, oldest month first; `file` is added to each."""
    paths = sorted(folder.glob(f"{start}_*.json"), key=lambda path: (path.stem.split("_")[-1], path.stem))
    return [json.loads(path.read_text(encoding="utf-8")) | {"file": path.name} for path in paths]


def newest(start: str, *, command: str, folder: Path = RESULTS) -> Result:
    """Newest of these files.

    Raises:
        ValueError: when there is none; the message names `command`, which writes one.
    """
    found = results(start, folder)
    if not found:
        raise ValueError(f"benchmarks/results holds no {start}_*.json: run {command} first")
    return found[-1]


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    """Lines of a Markdown table; all columns but the first are aligned to the right."""
    rule = "|---|" + "---:|" * (len(head) - 1)
    return [f"| {' | '.join(head)} |", rule, *(f"| {' | '.join(row)} |" for row in rows)]


def source(result: Result) -> str:
    """Where a table comes from: file, command, commit, machine and threads."""
    machine = result["environment"]
    commit = f" at commit {result['commit']}" if result.get("commit") else ""
    device = f"{result['gpu']} with " if result.get("gpu") else ""
    cores = f"{machine['cores']} core" + ("s" if machine["cores"] != 1 else "")
    facts = [machine["cpu"], f"{machine['memory_gib']} GiB"]
    facts += [f"torch {machine['torch']}"] if machine.get("torch") else []
    threads = f"{result['threads']} thread" + ("s" if result["threads"] != 1 else "")
    return (
        f"From `{result['file']}`, written by `{result['command']}`{commit} on {device}{cores} "
        f"({', '.join(facts)}), {threads}."
    )
