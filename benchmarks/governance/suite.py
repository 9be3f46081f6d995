"""Every bar of governance by one command: runs the measuring parts, each in its own process, and lists value and bar.

A part that is done is not done again: its result lies in `--work`, with the command that made it. `--taken-over` names
a folder of result files of such commands from before (benchmarks/results); what is found there is not measured again,
and its rows say so in `from`. Parts on drawings read a finished demo (`--demo`, made by `make demo`).
"""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.governance import cleaning, organising, outcome, targets

DEMO = "runs/demo"
SMALL = "runs/small"


@dataclass(frozen=True)
class Part:
    """A measuring command without --json, how its result becomes rows, and the command that makes what it reads."""

    words: str
    rows: Callable[[dict[str, Any]], Iterator[targets.Row]]
    reads: str = ""
    made_by: str = "make demo"

    def command(self, demo: Path) -> list[str]:
        return [word.replace(DEMO, str(demo)) for word in self.words.split()]

    def lacking(self, demo: Path) -> str | None:
        """What has to be made first, and how."""
        read = Path(self.reads.replace(DEMO, str(demo)))
        if not self.reads or (outcome.ROOT / read).exists():
            return None
        return f"reads {read}, which does not exist: {self.made_by}"


PARTS = {
    "relational-10m": Part("relational --rows 10000000 --threads 2", targets.relational),
    "relational-60m": Part("relational --rows 60000000 --memory 1GB --threads 2 --rounds 1", targets.relational),
    "engines": Part("engines --rows 50000", targets.engines),
    "organising": Part("organising --documents 30000", targets.organising),
    "cleaning": Part("cleaning --rows 60000 --categories 6000 --noise 0.1 0.2 0.4", targets.cleaning),
    "cleaning-1m": Part("cleaning --rows 1000000 --categories 100000 --kinds confusable --noise 0.2", targets.cleaning),
    "cleanlab": Part(
        "cleaning --rows 20000 --categories 5000 --kinds confusable --noise 0.1 --cleanlab", targets.cleanlab
    ),
    "near-duplicates": Part(
        f"near_duplicates --hashes 1000000 --catalogue {DEMO}/data/train_catalogue.parquet --drawings 600",
        targets.near_duplicates,
        reads=DEMO,
    ),
    "incremental": Part(f"incremental --data {DEMO}/data", targets.incremental, reads=DEMO),
    "killed": Part(
        f"killed --data {SMALL} --kills 20",
        targets.killed,
        reads=SMALL,
        made_by=f"python -m examples.emoji --out {SMALL} --limit-categories 400 --events 2000",
    ),
    "loop": Part(f"governance_loop --demo {DEMO} --out runs/loop", targets.loop, reads=DEMO),
    "bad-rows": Part("bad_rows --rows 1000000 --repeats 2", targets.bad_rows),
}


def comparable(words: list[str]) -> list[str]:
    """A command's words without --json and the folders of paths, which a result file does not tell either."""
    kept, skip = [], False
    for word in words:
        if not skip and word != "--json":
            kept.append(Path(word).name if "/" in word else word)
        skip = word == "--json"
    return kept


def known(folder: Path | None, command: list[str]) -> tuple[str, dict[str, Any]] | None:
    """(file name, result) of the newest result of that command in a folder."""
    found = []
    for path in sorted(folder.glob("*.json")) if folder is not None and folder.is_dir() else []:
        result = json.loads(path.read_text(encoding="utf-8"))
        told = (
            str(result.get("command", "")).removeprefix("python -m benchmarks.").split()
            if isinstance(result, dict)
            else []
        )
        if comparable(told) == comparable(command):
            found.append((path.name, result))
    return found[-1] if found else None


def measured(name: str, command: list[str], work: Path) -> dict[str, Any]:
    """The result of a part, run in a process of its own.

    Raises:
        ValueError: when it leaves no result; it has said why.
    """
    target = work / f"{name}.json"
    # A part that misses what it checks itself ends with 1 and leaves its figures all the same.
    words = [sys.executable, "-m", f"benchmarks.{command[0]}", *command[1:], "--json", str(target)]
    subprocess.run(words, cwd=outcome.ROOT, stdout=sys.stderr, check=False)
    if not target.exists():
        raise ValueError(
            f"{name} left no result: python -m benchmarks.{' '.join(command)} failed. Mend it, call again."
        )
    return dict(json.loads(target.read_text(encoding="utf-8")))


def rows_of(name: str, *, demo: Path, work: Path, taken_over: Path | None) -> list[targets.Row]:
    """The rows of one part, from its finished result, from a result taken over, or measured now."""
    part = PARTS[name]
    command = part.command(demo)
    done = known(work, command)
    before = None if done else known(taken_over, command)
    if done or before:
        result = (done or before)[1]  # type: ignore[index]
    else:
        lacking = part.lacking(demo)
        if lacking:
            raise ValueError(f"{name} {lacking}")
        result = measured(name, command, work)
    source = {"command": result["command"], "commit": result["commit"], "machine": result["environment"]["cpu"]}
    origin = {**source, "file": before[0] if before else None}
    return [{**found, "part": name, "from": origin} for found in part.rows(result)]


def generators(seed: int) -> dict[str, Any]:
    """What the made worlds are like: width, cosines within a category and to the nearest other one, sizes."""
    found: dict[str, Any] = {}
    for kind in ("uniform", "confusable"):
        world = cleaning.made(60_000, 6_000, kind=kind, noise=0.2, seed=seed)
        found[f"cleaning, {kind}"] = cleaning.world_figures(world)
    for noise in targets.ORGANISING_BARS:
        log = organising.made(30_000, noise=noise, seed=seed)
        found[f"organising, {100 * noise:.0f}% wrong clicks"] = organising.log_figures(log)
    return found


def main(words: list[str] | None = None) -> int:
    line = outcome.parser("governance", str(__doc__), example="python -m benchmarks.governance --only cleaning")
    line.add_argument("--only", nargs="+", choices=tuple(PARTS), metavar="TASK", help=f"of {', '.join(PARTS)}")
    line.add_argument("--work", type=Path, default=Path("runs/governance"), help="folder of the parts' results")
    line.add_argument("--taken-over", type=Path, help="folder of earlier result files that count as measured")
    line.add_argument("--demo", type=Path, default=Path(DEMO), help="a finished demo")
    given = line.parse_args(words)
    given.work.mkdir(parents=True, exist_ok=True)
    chosen = given.only or list(PARTS)
    rows: list[targets.Row] = []
    missing: dict[str, str] = {}
    for number, name in enumerate(chosen, 1):
        print(f"{number}/{len(chosen)} {name}: python -m benchmarks.{PARTS[name].words}", file=sys.stderr, flush=True)
        try:
            found = rows_of(name, demo=given.demo, work=given.work, taken_over=given.taken_over)
        except ValueError as error:
            missing[name] = str(error)
            print(f"error: {error}", file=sys.stderr)
            continue
        rows += found
        for one in found:
            print(
                f"  {one['task']}: {one['value']:g} {one['unit']}, bar {one['bar']}, ok: {one['ok']}", file=sys.stderr
            )
    figures = {"simulated": True, "generators": generators(given.seed), "rows": rows, "missing": missing}
    outcome.write("governance", figures, given.json, words)
    return 2 if missing else int(any(one["ok"] is False for one in rows))


if __name__ == "__main__":
    sys.exit(main())
