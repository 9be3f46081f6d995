"""The ablation table: what each part of the product is worth, `python -m benchmarks.immr.ablation --json FILE`.

Every training is a cell that is done once: `cells/NAME.json` with its figures, `cells/NAME/TRACK.parquet` with a row a
query. One world (hard-0), heads alone on its cached features, three seeds of training. What a loss needs to be set is
searched on validation categories first, or taken from the grid where it has chosen already.
"""

import argparse
import json
import re
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from benchmarks.immr.ablation.variants import FULL, SEARCHES, STAGE, SWITCHED, TRAINED, strength, trained_systems
from benchmarks.immr.protocol.splits import open_world
from benchmarks.immr.runner.cell import Cell, Desk, run_cell
from benchmarks.immr.runner.context import SHORT_TRACKS, Stand, keep_scores
from benchmarks.immr.runner.grid import FIRST, SEEDS
from benchmarks.immr.runner.summary import BRIEF, cells_of_system, compared, pooled
from benchmarks.result_file import commit
from runtime.environment import environment
from runtime.files import write_json
from train.parallel.topology import set_threads
from train.recipes.registry import recipe_by_name

TRACKS = (*SHORT_TRACKS, "missing", "missing.small")
PARTS = (TRAINED[0], *TRAINED[1:4], *SWITCHED, *TRAINED[4:])  # in the order of the flow


def ablation_cells(world: str, seeds: Sequence[int]) -> list[Cell]:
    """Seed by seed, so that a run that is cut short has every part; the full product first."""
    return [Cell(STAGE, world, part, seed) for seed in seeds for part in (FULL, *TRAINED)]


def run_ablation(desk: Desk, grid: Desk, stand: Stand, *, seeds: Sequence[int], only: str | None = None) -> None:
    """Search what is to be searched and run the cells that are not done.

    Args:
        desk: where the ablation lies. grid: the benchmark's own, whose choices are taken over.
        only: a regular expression that a cell's name must match anywhere.

    Raises:
        ValueError: `only` is no regular expression.
    """
    try:
        pattern = re.compile(only or "")
    except re.error as error:
        raise ValueError(f"--only {only!r} is no regular expression ({error})") from error
    desk.cells.mkdir(parents=True, exist_ok=True)
    for key, chosen in grid.choices.items():
        if key in {f"{name}@{STAGE}" for name in SEARCHES}:
            desk.choose(key, chosen)
    searches = [Cell("search", stand.world.name, name) for name in SEARCHES if f"{name}@{STAGE}" not in desk.choices]
    cells = ablation_cells(stand.world.name, seeds)
    left = [cell for cell in cells if pattern.search(cell.name) and not desk.file(cell.name).is_file()]
    with tqdm(total=len(searches) + len(left), desc="ablation", unit="cell") as bar:
        for cell in [*searches, *left]:
            bar.set_postfix_str(cell.name)
            set_threads()
            if cell.kind == "search":
                run_cell(cell, stand, desk)
            else:
                run_part(cell, stand, desk)
            bar.update()


def run_part(cell: Cell, stand: Stand, desk: Desk) -> None:
    """Train and score one cell; the run is removed, its scores stay."""
    begun, home = time.perf_counter(), desk.cells / f"{cell.name}.run"
    shutil.rmtree(home, ignore_errors=True)
    for name, system in trained_systems(cell.system, stand, desk, home, seed=cell.seed):
        scores = stand.scored(system, TRACKS, stage=STAGE)
        keep_scores(scores, desk.cells / cell.named(name))
        about = {"name": cell.named(name), "world": cell.world, "system": name, "seed": cell.seed, "stage": STAGE}
        cost = {"seconds": round(time.perf_counter() - begun, 1), "threads": torch.get_num_threads()}
        figures = {track: one.metrics() for track, one in scores.items()}
        # The last of them closes the cell: a cell that was killed is done again.
        write_json(desk.file(cell.named(name)), {**about, **cost, "strength": strength(home), "tracks": figures})
    shutil.rmtree(home, ignore_errors=True)


def summarised(desk: Desk, world: str) -> dict[str, Any]:
    """By part and track: pooled figures, the change against the full product, and how many queries it moved.

    Raises:
        ValueError: no cell of the full product is done.
    """
    found: dict[str, Any] = {}
    for part in (FULL, *PARTS):
        rows = {}
        for track in TRACKS:
            full, mine = (cells_of_system(desk, name, track, kind=STAGE, worlds=(world,)) for name in (FULL, part))
            if not mine:
                continue
            rows[track] = pooled(mine)
            if part != FULL:
                common = sorted(full.keys() & mine.keys())
                moved = [np.count_nonzero(full[key].rank != mine[key].rank) for key in common]
                rows[track] |= {"change": compared(mine, full), "moved": int(sum(moved))}
        if rows:
            found[part] = rows
    if FULL not in found:
        raise ValueError(f"no cell of the full product lies in {desk.cells}; leave --only out")
    return found


def _cells(desk: Desk) -> dict[str, Any]:
    """Every cell in short."""
    found = {}
    for path in sorted(desk.cells.glob(f"{STAGE}--*.json")):
        row = json.loads(path.read_text())
        brief = {key: row[key] for key in ("world", "system", "seed", "seconds", "threads", "strength")}
        tracks = {track: {key: one[key] for key in BRIEF} for track, one in row["tracks"].items()}
        found[row["name"]] = {**brief, "tracks": tracks}
    return found


def parser() -> argparse.ArgumentParser:
    """The flags."""
    line = argparse.ArgumentParser(
        prog="python -m benchmarks.immr.ablation",
        description="What each part of the product is worth, part by part; a second call goes on.",
        epilog="example: python -m benchmarks.immr.ablation --json benchmarks/results/immr_ablation_x86_64_202611.json",
    )
    line.add_argument("--json", type=Path, help="result file (default: OUT/ablation/ablation.json)")
    line.add_argument("--only", metavar="CELL", help="only cells whose name matches this regular expression")
    line.add_argument("--out", type=Path, default=Path("runs/immr"), help="folder of the benchmark's worlds")
    line.add_argument("--demo", type=Path, default=Path("runs/demo"), help="demo folder whose data may be read")
    line.add_argument("--recipe", default="emoji", help="recipe of the product (default: emoji)")
    line.add_argument("--max-steps", type=int, help="shorter training, for trying things out; its cells lie apart")
    line.add_argument("--taken-over", type=Path, metavar="FILE", help="earlier result of the grid: its searches")
    line.add_argument("--summary", action="store_true", help="run no cell; write the result file from those there are")
    return line


def main() -> int:
    """Run the command line; 2 and one line on stderr for a caller's mistake."""
    said = parser().parse_args()
    desk = Desk(said.out / "ablation", said.recipe, said.max_steps)
    grid = Desk(said.out, said.recipe, said.max_steps, said.taken_over)
    try:
        if not said.summary:
            world = open_world(FIRST, said.out, demo=said.demo if said.demo.is_dir() else None)
            run_ablation(desk, grid, Stand(world, recipe_by_name(said.recipe)), seeds=SEEDS, only=said.only)
        write_result(said.json or desk.out / "ablation.json", desk)
    except ValueError as error:
        print("error:", error, file=sys.stderr)
        return 2
    return 0


def write_result(path: Path, desk: Desk) -> None:
    """The result file: parts and cells, with command, commit and machine."""
    words = [word if not word.startswith("/") else Path(word).name for word in sys.argv[1:]]
    found: dict[str, Any] = {
        "command": " ".join(["python -m benchmarks.immr.ablation", *words]),
        "commit": commit(),
        "environment": environment(),
        "world": FIRST,
        "max_steps": desk.max_steps,
        "parts": summarised(desk, FIRST),
        "choices": desk.choices,
        "cells": _cells(desk),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, found)
    print(f"wrote {path.name}: {len(found['parts'])} rows from {len(found['cells'])} cells")


if __name__ == "__main__":
    sys.exit(main())
