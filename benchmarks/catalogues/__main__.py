"""Command line of `python -m benchmarks.catalogues`."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.catalogues.build import build
from benchmarks.catalogues.cells import NamedCell, chosen, listed
from benchmarks.catalogues.commands import Settings
from benchmarks.catalogues.domains import Domains
from benchmarks.catalogues.results import summarised
from benchmarks.catalogues.runner import jobs, run_all
from benchmarks.result_file import write_result

EXAMPLES = """examples:
  python -m benchmarks.catalogues --list
  python -m benchmarks.catalogues --cells icons emoji --seeds 0 1 --out runs/catalogues
  python -m benchmarks.catalogues --out runs/catalogues --workers 2 --json benchmarks/results/catalogues.json
  python -m benchmarks.catalogues --cells icons-shop --data-only --out runs/catalogues
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    line = argparse.ArgumentParser(
        prog="python -m benchmarks.catalogues",
        description="Run governance, training, index and evaluation on many small data sets that differ in what shops "
        "differ in, and compare the trained model with frozen features. The behaviour is SIMULATED. Finished results "
        "are skipped, unfinished ones are continued.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    line.add_argument("--list", action="store_true", help="print the cells as a table and stop")
    line.add_argument("--cells", nargs="+", metavar="NAME", help="run these cells only (default: all of --list)")
    line.add_argument("--seeds", type=int, nargs="+", default=[0], help="seeds of data and training (default: 0)")
    line.add_argument(
        "--out", type=Path, default=Path("runs/catalogues"), help="folder of results (default: runs/catalogues)"
    )
    line.add_argument("--workers", type=int, default=1, help="cells that run at once (default: 1)")
    line.add_argument("--threads", type=int, default=1, help="threads of each command (default: 1)")
    line.add_argument("--recipe", default="auto", help="recipe of the trained model (default: auto)")
    line.add_argument(
        "--frozen-recipe", default="emoji_zero_shot", help="recipe of the frozen features (default: emoji_zero_shot)"
    )
    line.add_argument("--data-only", action="store_true", help="write the tables of the cells and stop")
    line.add_argument(
        "--json", type=Path, metavar="SUMMARY", help="also write one file with all finished cells of --out"
    )
    return line


def summary(cells: Sequence[NamedCell], out: Path) -> dict[str, Any]:
    """The finished cells of a folder, all seeds together."""
    rows: dict[str, Any] = {}
    for one in cells:
        files = sorted(out.glob(f"{one.name}-s[0-9]*.json"), key=lambda path: int(path.stem.rsplit("-s", 1)[1]))
        found = [json.loads(path.read_text(encoding="utf-8")) for path in files]
        if found:
            rows[one.name] = {"base": one.base, "recipe": found[0]["recipe"], **summarised(found)}
    return {"simulated": True, "cells": rows}


def run(arguments: argparse.Namespace, words: list[str] | None) -> int:
    """Run the command with arguments parsed from `words`; the exit code is 2 if a cell failed.

    Raises:
        ValueError: invalid input.
    """
    cells = chosen(arguments.cells)
    if arguments.list:
        print(listed(cells))
        return 0
    if min(arguments.workers, arguments.threads) < 1:
        raise ValueError(f"--workers {arguments.workers} --threads {arguments.threads}: give whole numbers above 0")
    out: Path = arguments.out.expanduser().resolve()
    domains = Domains(workers=arguments.workers)
    found = jobs(cells, arguments.seeds, out)
    if arguments.data_only:
        for job in found:
            cell = job.cell()
            written = build(cell, domains(cell.domain), job.folder / "data", workers=arguments.workers)
            print(f"{job.name}: " + ", ".join(f"{count} {name}" for name, count in written["rows"].items()))
        return 0
    settings = Settings(arguments.recipe, arguments.frozen_recipe, arguments.threads)
    failures = run_all(found, domains, settings, workers=arguments.workers)
    if arguments.json is not None:
        write_result("catalogues", summary(cells, out), arguments.json, words)
    for line in failures:
        print("error:", line, file=sys.stderr)
    return 2 if failures else 0


def main(words: list[str] | None = None) -> int:
    """Exit code of the command line."""
    try:
        return run(parser().parse_args(words), words)
    except (ValueError, OSError) as error:
        print("error:", error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
