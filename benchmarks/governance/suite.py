"""Run all governance benchmarks and compare the results with their targets.

A finished benchmark is not run again: its result file lies in `--work`. `--taken-over` names a folder of earlier result
files (benchmarks/results), which are reused in place of a run; `from` in a row names the file. Benchmarks on drawings
read a finished demo (`--demo`, written by `make demo`).
"""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import processes, result_file
from benchmarks.governance import noisy_labels, organising, targets

DEMO = "runs/demo"
SMALL = "runs/small"


@dataclass(frozen=True)
class Benchmark:
    """One benchmark of the suite.

    Attributes:
        arguments: module below `benchmarks` and its flags, without --json. rows: rows of its result.
        reads: folder that must exist. made_by: command that writes this folder.
    """

    arguments: str
    rows: Callable[[dict[str, Any]], Iterator[targets.Row]]
    reads: str = ""
    made_by: str = "make demo"

    def command(self, demo: Path) -> list[str]:
        """The arguments as words, with the folder of the demo."""
        return [word.replace(DEMO, str(demo)) for word in self.arguments.split()]

    def missing_input(self, demo: Path) -> str | None:
        """Which folder must be written first, and how; None when it exists."""
        read = Path(self.reads.replace(DEMO, str(demo)))
        if not self.reads or (processes.ROOT / read).exists():
            return None
        return f"reads {read}, which does not exist: {self.made_by}"


BENCHMARKS = {
    "relational-10m": Benchmark("governance.relational --rows 10000000 --threads 2", targets.relational),
    "relational-60m": Benchmark(
        "governance.relational --rows 60000000 --memory 1GB --threads 2 --rounds 1", targets.relational
    ),
    "engines": Benchmark("governance.engines --rows 50000", targets.engines),
    "organising": Benchmark("governance.organising --documents 30000", targets.organising),
    "cleaning": Benchmark("governance.cleaning --rows 60000 --categories 6000 --noise 0.1 0.2 0.4", targets.cleaning),
    "cleaning-1m": Benchmark(
        "governance.cleaning --rows 1000000 --categories 100000 --kinds confusable --noise 0.2", targets.cleaning
    ),
    "cleanlab": Benchmark(
        "governance.cleaning --rows 20000 --categories 5000 --kinds confusable --noise 0.1 --cleanlab",
        targets.cleanlab,
    ),
    "near-duplicates": Benchmark(
        f"governance.near_duplicates --hashes 1000000 --catalogue {DEMO}/data/train_catalogue.parquet --drawings 600",
        targets.near_duplicates,
        reads=DEMO,
    ),
    "incremental": Benchmark(f"governance.incremental --data {DEMO}/data", targets.incremental, reads=DEMO),
    "killed": Benchmark(
        f"governance.killed --data {SMALL} --kills 20",
        targets.killed,
        reads=SMALL,
        made_by=f"python -m examples.emoji --out {SMALL} --limit-categories 400 --events 2000",
    ),
    "loop": Benchmark(f"governance.loop --demo {DEMO} --out runs/loop", targets.loop, reads=DEMO),
    "bad-rows": Benchmark("governance.bad_rows --rows 1000000 --repeats 2", targets.bad_rows),
}


def comparable(words: list[str]) -> list[str]:
    """Words of a command without --json and with the last part of each path: what recorded commands have in common."""
    kept, skip = [], False
    for word in words:
        if not skip and word != "--json":
            kept.append(Path(word).name if "/" in word else word)
        skip = word == "--json"
    return kept


def result_of(command: list[str], folder: Path | None) -> tuple[str, dict[str, Any]] | None:
    """(file name, result) of a command in a folder of result files, the last by name; None without one."""
    found = []
    for path in sorted(folder.glob("*.json")) if folder is not None and folder.is_dir() else []:
        result = json.loads(path.read_text(encoding="utf-8"))
        recorded = str(result.get("command", "")) if isinstance(result, dict) else ""
        if comparable(recorded.removeprefix("python -m benchmarks.").split()) == comparable(command):
            found.append((path.name, result))
    return found[-1] if found else None


def measure(name: str, command: list[str], work: Path) -> dict[str, Any]:
    """Run a benchmark in its own process and read its result.

    Raises:
        ValueError: when it writes no result; its own message is on the terminal.
    """
    target = work / f"{name}.json"
    # A benchmark that misses its own checks exits with 1 and still writes its result.
    words = [sys.executable, "-m", f"benchmarks.{command[0]}", *command[1:], "--json", str(target)]
    subprocess.run(words, cwd=processes.ROOT, stdout=sys.stderr, check=False)
    if not target.exists():
        raise ValueError(
            f"{name} wrote no result: python -m benchmarks.{' '.join(command)} failed. Fix the cause and run again."
        )
    return dict(json.loads(target.read_text(encoding="utf-8")))


def rows_of(name: str, *, demo: Path, work: Path, earlier: Path | None) -> list[targets.Row]:
    """Rows of one benchmark, from its result in `work`, else from a reused result of `earlier`, else from a run.

    Raises:
        ValueError: when it cannot run, or writes no result.
    """
    benchmark = BENCHMARKS[name]
    command = benchmark.command(demo)
    reused_file = None
    if done := result_of(command, work):
        result = done[1]
    elif reused := result_of(command, earlier):
        reused_file, result = reused
    else:
        if missing := benchmark.missing_input(demo):
            raise ValueError(f"{name} {missing}")
        result = measure(name, command, work)
    origin = {"command": result["command"], "commit": result["commit"], "machine": result["environment"]["cpu"]}
    origin["file"] = reused_file
    return [{**row, "part": name, "from": origin} for row in benchmark.rows(result)]


def generators(seed: int) -> dict[str, Any]:
    """Statistics of the synthetic data: width, cosines within a category and to the nearest other one, sizes."""
    found: dict[str, Any] = {}
    for kind in ("uniform", "confusable"):
        data = noisy_labels.noisy_labels(60_000, 6_000, kind=kind, noise=0.2, seed=seed)
        found[f"cleaning, {kind}"] = noisy_labels.describe(data)
    for noise in targets.ORGANISING_TARGETS:
        log = organising.synthetic_log(30_000, noise=noise, seed=seed)
        found[f"organising, {100 * noise:.0f}% wrong clicks"] = organising.describe(log)
    return found


def main(words: list[str] | None = None) -> int:
    """Run the command line.

    Returns:
        0; 1 when a target is missed; 2 when a benchmark could not be measured.
    """
    example = "python -m benchmarks.governance --only cleaning"
    parser = result_file.command_parser("governance", str(__doc__), example=example)
    parser.add_argument("--only", nargs="+", choices=tuple(BENCHMARKS), metavar="TASK", help=", ".join(BENCHMARKS))
    parser.add_argument("--work", type=Path, default=Path("runs/governance"), help="folder of the result files")
    parser.add_argument("--taken-over", type=Path, help="folder of earlier result files to reuse")
    parser.add_argument("--demo", type=Path, default=Path(DEMO), help="folder of a finished demo")
    options = parser.parse_args(words)
    options.work.mkdir(parents=True, exist_ok=True)
    chosen = options.only or list(BENCHMARKS)
    rows: list[targets.Row] = []
    missing: dict[str, str] = {}
    for number, name in enumerate(chosen, 1):
        command = f"python -m benchmarks.{BENCHMARKS[name].arguments}"
        print(f"{number}/{len(chosen)} {name}: {command}", file=sys.stderr, flush=True)
        try:
            found = rows_of(name, demo=options.demo, work=options.work, earlier=options.taken_over)
        except ValueError as error:
            missing[name] = str(error)
            print(f"error: {error}", file=sys.stderr)
            continue
        rows += found
        for row in found:
            verdict = {True: "met", False: "missed", None: "none"}[row["ok"]]
            target = f"target {row['bar']}: {verdict}" if row["bar"] else "no target"
            print(f"  {row['task']}: {row['value']:g} {row['unit']}, {target}", file=sys.stderr)
    metrics = {"simulated": True, "generators": generators(options.seed), "rows": rows, "missing": missing}
    result_file.write_result("governance", metrics, options.json, words)
    return 2 if missing else int(any(row["ok"] is False for row in rows))


if __name__ == "__main__":
    sys.exit(main())
