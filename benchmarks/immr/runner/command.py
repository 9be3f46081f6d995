"""Flags, errors and result file of the benchmark and ablation commands."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.result_file import commit
from runtime.environment import environment
from runtime.files import write_json


def base_parser(prog: str, *, description: str, default_json: str, example: str) -> argparse.ArgumentParser:
    """A parser with the flags that both commands have."""
    parser = argparse.ArgumentParser(
        prog=prog, description=description, epilog=f"example: {prog} --json benchmarks/results/{example}"
    )
    parser.add_argument("--json", type=Path, help=f"result file (default: {default_json})")
    parser.add_argument("--only", metavar="CELL", help="run only cells whose name matches this regular expression")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/immr"), help="folder of data, features and cells (default: runs/immr)"
    )
    parser.add_argument(
        "--demo", type=Path, default=Path("runs/demo"), help="demo folder whose data may be reused (default: runs/demo)"
    )
    parser.add_argument("--recipe", default="emoji", help="recipe of the product (default: emoji)")
    parser.add_argument("--max-steps", type=int, help="train fewer steps for a trial; its cells have their own folder")
    parser.add_argument(
        "--taken-over", type=Path, metavar="FILE", help="earlier result file; its searches are reused where missing"
    )
    parser.add_argument("--summary", action="store_true", help="run no cell; write the result file from stored cells")
    return parser


def exit_code(run: Callable[[], None]) -> int:
    """Run a command; a caller's mistake prints one line on stderr and gives 2."""
    try:
        run()
    except ValueError as error:
        print("error:", error, file=sys.stderr)
        return 2
    return 0


def write_result(path: Path, prog: str, contents: dict[str, Any]) -> None:
    """Write a result file: contents with command, commit and machine. Absolute paths are shortened to their name."""
    arguments = [word if not word.startswith("/") else Path(word).name for word in sys.argv[1:]]
    header = {"command": " ".join([prog, *arguments]), "commit": commit(), "environment": environment()}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {**header, **contents})
