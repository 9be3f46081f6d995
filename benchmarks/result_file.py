"""Write the result file of a benchmark with its command, commit and machine."""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.processes import ROOT
from runtime.environment import environment
from runtime.files import write_text


def command_parser(module: str, purpose: str, *, example: str) -> argparse.ArgumentParser:
    """Command line of a benchmark, with the two flags that most of them share.

    Args:
        module: below `benchmarks`, as `python -m` takes it: "governance.cleaning".
        purpose: the module's docstring, of which --help shows the first line.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{module}", description=purpose.split("\n")[0], epilog=f"example: {example}"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the random numbers (default: 0)")
    parser.add_argument("--json", type=Path, help="result file to write (default: print only)")
    return parser


def write_result(
    module: str, metrics: dict[str, Any], path: Path | None, arguments: list[str] | None = None
) -> dict[str, Any]:
    """Print a result and write it to `path`, with command, commit, machine and threads added to the metrics.

    Args:
        module: below `benchmarks`, as in `command_parser`: the recorded command must exist.
        arguments: of the command line; None for those of this process.
    """
    words = sys.argv[1:] if arguments is None else arguments
    # An absolute path belongs to one machine: only its last part is recorded.
    recorded = [word if not word.startswith("/") else Path(word).name for word in words]
    machine = environment()
    threads = os.environ.get("OMP_NUM_THREADS")
    result = {
        "command": " ".join([f"python -m benchmarks.{module}", *recorded]),
        "commit": commit(),
        "environment": machine,
        "threads": int(threads) if threads and threads.isdigit() else machine["cores"],
        **metrics,
    }
    text = json.dumps(result, indent=1)
    print(text)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, text + "\n")
    return result


def commit() -> str:
    """Short hash of the current commit, with "+" when tracked files differ from it; empty outside a repository."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else ""

    name = git("rev-parse", "--short", "HEAD")
    return f"{name}+" if name and git("status", "--porcelain", "--untracked-files=no") else name
