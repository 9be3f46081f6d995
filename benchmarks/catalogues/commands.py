"""The documented commands that a cell is run with.

Paths, recipe, threads and seed are their only flags: a user who reads the guide gets the same.
"""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks.processes import ROOT
from runtime.threads import THREADS_VARIABLE

PARTS = {"unseen": "test", "seen": "seen"}  # part of the result -> name of its tables
SYSTEMS = ("trained", "frozen")


@dataclass(frozen=True)
class Step:
    """One command: it is skipped when `result` exists, and goes on with `--resume` when `begun` exists."""

    name: str
    result: Path
    command: tuple[str, ...]
    begun: Path | None = None

    def words(self) -> tuple[str, ...]:
        """The command line of this call."""
        resumes = self.begun is not None and self.begun.exists()
        return (*self.command, "--resume") if resumes else self.command


@dataclass(frozen=True)
class Settings:
    """What is run on each cell.

    Attributes:
        recipe: of the trained model.
        frozen_recipe: of the frozen features that it is compared with.
        threads: of each command.
    """

    recipe: str = "auto"
    frozen_recipe: str = "emoji_zero_shot"
    threads: int = 1


def _python(*words: object) -> tuple[str, ...]:
    return (sys.executable, *(str(word) for word in words))


def steps(folder: Path, settings: Settings, *, seed: int) -> list[Step]:
    """The commands on one cell, whose tables are in `folder/data`, in order."""
    data, governed = folder / "data", folder / "governed"
    tables = [f"--{name}={data / f'{name}.parquet'}" for name in ("behaviour", "queries", "catalogue")]
    found = [
        Step("govern", governed / "ledger.json", _python("-m", "data_governance", "run", *tables, "--out", governed))
    ]
    for system, recipe in zip(SYSTEMS, (settings.recipe, settings.frozen_recipe), strict=True):
        out = folder / system
        train: list[object] = ["-m", "accelerate.commands.launch", "train/run.py", "--data", governed, "--out", out]
        train += ["--recipe", recipe, "--seed", seed, "--features", folder / "features"]
        index: list[object] = ["-m", "retrieval", "index", "--model", out / "hub", "--out", out / "index"]
        index += ["--catalogue", data / "catalogue.parquet", "--threads", settings.threads]
        found.append(Step(f"train {system}", out / "hub" / "config.json", _python(*train), out / "train.jsonl"))
        found.append(Step(f"index {system}", out / "index" / "current.json", _python(*index)))
        for part, table in PARTS.items():
            judge: list[object] = ["-m", "retrieval", "evaluate", "--model", out / "hub", "--index", out / "index"]
            judge += ["--catalogue", data / "catalogue.parquet", "--queries", data / f"{table}_queries.parquet"]
            judge += ["--qrels", data / f"{table}_qrels.parquet", "--threads", settings.threads]
            judge += ["--per-query", out / f"{part}.parquet", "--out", out / f"{part}.json"]
            found.append(Step(f"evaluate {system} {part}", out / f"{part}.json", _python(*judge)))
    return found


def call(step: Step, *, log: Path, threads: int) -> float:
    """Run a command, with its output in a file, and return the CPU seconds that it used with its own processes.

    CPU seconds, not time: cells may run side by side.

    Raises:
        ValueError: it fails; the message ends with its output.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {THREADS_VARIABLE: str(threads), "OMP_NUM_THREADS": str(threads)}
    with log.open("w", encoding="utf-8") as output:
        words = step.words()
        process = subprocess.Popen(words, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, env=environment)
        try:
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            process.kill()
            process.wait()
            raise
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        text = log.read_text(encoding="utf-8", errors="replace").strip()
        raise ValueError(f"step '{step.name}' failed (exit {process.returncode}): {text[-600:]}")
    return round(usage.ru_utime + usage.ru_stime, 1)
