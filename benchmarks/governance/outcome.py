"""One result file of a governance benchmark: what was found, by which command, on which machine.

Why: no figure of a page is typed by hand, so every benchmark writes the same facts beside its figures.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

from runtime.environment import environment

ROOT = Path(__file__).resolve().parents[2]


def parser(name: str, purpose: str, *, example: str) -> argparse.ArgumentParser:
    """A command line with what all of these benchmarks take."""
    line = argparse.ArgumentParser(
        prog=f"python -m benchmarks.{name}", description=purpose.split("\n")[0], epilog=f"example: {example}"
    )
    line.add_argument("--seed", type=int, default=0, help="of the made data")
    line.add_argument("--json", type=Path, help="result file to write (default: only the screen)")
    return line


def peak_gib() -> float:
    """Largest resident memory of this process so far, GiB."""
    scale = 1 if sys.platform == "darwin" else 1024
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale / 2**30, 2)


def write(name: str, figures: dict[str, Any], path: Path | None, arguments: list[str] | None = None) -> dict[str, Any]:
    """Add command, commit, machine and threads to the figures; print them, and write them where a path is given."""
    words = sys.argv[1:] if arguments is None else arguments
    shown = [word if not word.startswith("/") else Path(word).name for word in words]
    threads = os.environ.get("OMP_NUM_THREADS")
    found = {
        "command": " ".join([f"python -m benchmarks.{name}", *shown]),
        "commit": commit(),
        "environment": environment(),
        "threads": int(threads) if threads and threads.isdigit() else environment()["cores"],
        **figures,
    }
    text = json.dumps(found, indent=1)
    print(text)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n", encoding="utf-8")
    return found


def commit() -> str:
    """Short name of the commit in the working folder, with + when files differ from it; empty outside a repository."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else ""

    name = git("rev-parse", "--short", "HEAD")
    return f"{name}+" if name and git("status", "--porcelain", "--untracked-files=no") else name
