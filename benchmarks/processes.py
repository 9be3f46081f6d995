"""Run benchmarks and commands in new processes, with their own peak memory."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def peak_gib() -> float:
    """Largest resident memory of this process so far, GiB."""
    scale = 1 if sys.platform == "darwin" else 1024
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale / 2**30, 2)


def run_module(module: str, words: list[str], *, variables: dict[str, str] | None = None) -> dict[str, Any]:
    """JSON object that a module of benchmarks prints as its last line, run in a new process.

    Args:
        module: below `benchmarks`, as `python -m` takes it. variables: added to the environment.

    Raises:
        ValueError: when it fails; the message ends with its error output.
    """
    command = [sys.executable, "-m", f"benchmarks.{module}", *words]
    environment = os.environ | (variables or {})
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise ValueError(f"python -m benchmarks.{module} {' '.join(words)} failed: {done.stderr.strip()[-600:]}")
    return dict(json.loads(next(line for line in reversed(done.stdout.splitlines()) if line.startswith("{"))))


def governance_command(data: Path, out: Path, *words: object) -> list[str]:
    """Words of `python -m data_governance run` on a data folder of `python -m examples.emoji`."""
    command: list[object] = [sys.executable, "-m", "data_governance", "run", "--behaviour", data / "behaviour.parquet"]
    command += ["--queries", data / "queries.parquet", "--catalogue", data / "train_catalogue.parquet", "--out", out]
    return [str(word) for word in (*command, *words)]
