"""Run the ablation: train and score the product without each of its parts.

Every training run is a cell, stored like those of the grid: `cells/NAME.json` and `cells/NAME/EVAL_SETTING.parquet`.
It runs on hard-0 with heads only on cached features, three training seeds. Hyperparameters of other losses are searched
on validation categories first, or reused from the grid.
"""

import argparse
import json
import re
import shutil
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from benchmarks.immr.ablation.variants import (
    FULL,
    SEARCHES,
    STAGE,
    SWITCHED,
    TRAINED,
    chosen_text_weight,
    trained_systems,
)
from benchmarks.immr.protocol.splits import open_split
from benchmarks.immr.runner.cell import run_cell
from benchmarks.immr.runner.command import base_parser, exit_code, write_result
from benchmarks.immr.runner.context import BASIC_EVAL_SETTINGS, ExperimentContext
from benchmarks.immr.runner.grid import FIRST, SEEDS
from benchmarks.immr.runner.result_store import GridCell, ResultStore
from benchmarks.immr.runner.summary import compared, pooled, reported, system_scores
from runtime.files import write_json
from train.parallel.topology import set_threads
from train.recipes.registry import recipe_by_name

PROG = "python -m benchmarks.immr.ablation"
EVAL_SETTINGS = (*BASIC_EVAL_SETTINGS, "missing", "missing.small")
PARTS = (TRAINED[0], *TRAINED[1:4], *SWITCHED, *TRAINED[4:])  # in the order of the pipeline


def ablation_cells(dataset: str, seeds: Sequence[int]) -> list[GridCell]:
    """All cells, seed by seed with the full product first, so that an interrupted run has every part."""
    return [GridCell(STAGE, dataset, part, seed) for seed in seeds for part in (FULL, *TRAINED)]


def run_ablation(
    store: ResultStore,
    grid: ResultStore,
    context: ExperimentContext,
    *,
    seeds: Sequence[int],
    only: str | None = None,
) -> None:
    """Run the missing searches and the incomplete cells.

    Args:
        store: of the ablation.
        grid: of the benchmark, whose choices are reused.
        only: a regular expression, searched anywhere in the name of a cell.

    Raises:
        ValueError: `only` is no regular expression.
    """
    try:
        pattern = re.compile(only or "")
    except re.error as error:
        raise ValueError(f"--only {only!r} is no regular expression ({error})") from error
    store.cells.mkdir(parents=True, exist_ok=True)
    dataset = context.dataset.name
    for key, chosen in grid.choices.items():
        if key in {f"{name}@{STAGE}" for name in SEARCHES}:
            store.choose(key, chosen)
    searches = [GridCell("search", dataset, name) for name in SEARCHES if f"{name}@{STAGE}" not in store.choices]
    cells = ablation_cells(dataset, seeds)
    remaining = [cell for cell in cells if pattern.search(cell.name) and not store.file(cell.name).is_file()]
    with tqdm(total=len(searches) + len(remaining), desc="ablation", unit="cell") as bar:
        for cell in [*searches, *remaining]:
            bar.set_postfix_str(cell.name)
            set_threads()
            if cell.kind == "search":
                run_cell(cell, context, store)
            else:
                run_part(cell, context, store)
            bar.update()


def run_part(cell: GridCell, context: ExperimentContext, store: ResultStore) -> None:
    """Train and score one cell; its training run is removed afterwards."""
    started, home = time.perf_counter(), store.cells / f"{cell.name}.run"
    shutil.rmtree(home, ignore_errors=True)
    for name, system in trained_systems(cell.system, context, store, home, seed=cell.seed):
        scores = context.scored(system, EVAL_SETTINGS, stage=STAGE)
        store.write_scores(cell.named(name), scores)
        about = {"name": cell.named(name), "world": cell.dataset, "system": name, "seed": cell.seed, "stage": STAGE}
        cost = {"seconds": round(time.perf_counter() - started, 1), "threads": torch.get_num_threads()}
        metrics = {eval_setting: one.metrics() for eval_setting, one in scores.items()}
        # The cell's own system comes last: an interrupted cell has no file and is run again.
        row = {**about, **cost, "strength": chosen_text_weight(home), "tracks": metrics}
        write_json(store.file(cell.named(name)), row)
    shutil.rmtree(home, ignore_errors=True)


def summarised(store: ResultStore, dataset: str) -> dict[str, Any]:
    """By part and evaluation setting: pooled metrics, change against the full product, number of changed ranks.

    Raises:
        ValueError: no cell of the full product is complete.
    """
    found: dict[str, Any] = {}
    for part in (FULL, *PARTS):
        rows = {}
        for eval_setting in EVAL_SETTINGS:
            full, ablated = (
                system_scores(store, name, eval_setting, kind=STAGE, datasets=(dataset,)) for name in (FULL, part)
            )
            if not ablated:
                continue
            rows[eval_setting] = pooled(ablated)
            if part != FULL:
                common = sorted(full.keys() & ablated.keys())
                moved = [np.count_nonzero(full[key].rank != ablated[key].rank) for key in common]
                rows[eval_setting] |= {"change": compared(ablated, full), "moved": int(sum(moved))}
        if rows:
            found[part] = rows
    if FULL not in found:
        raise ValueError(f"no cell of the full product lies in {store.cells}; leave --only out")
    return found


def _cells(store: ResultStore) -> dict[str, Any]:
    """Short form of every cell."""
    found = {}
    for path in sorted(store.cells.glob(f"{STAGE}--*.json")):
        row = json.loads(path.read_text())
        short = {key: row[key] for key in ("world", "system", "seed", "seconds", "threads", "strength")}
        found[row["name"]] = {**short, "tracks": reported(row["tracks"])}
    return found


def parser() -> argparse.ArgumentParser:
    """The flags of the command."""
    return base_parser(
        PROG,
        description="Measure what each part of the product contributes, by removing one part at a time; complete cells "
        "are skipped.",
        default_json="OUT/ablation/ablation.json",
        example="immr_ablation_x86_64_202611.json",
    )


def run(args: argparse.Namespace) -> None:
    """Run the remaining cells and write the result file."""
    store = ResultStore(args.out / "ablation", args.recipe, args.max_steps)
    if not args.summary:
        grid = ResultStore(args.out, args.recipe, args.max_steps, args.taken_over)
        dataset = open_split(FIRST, args.out, demo=args.demo if args.demo.is_dir() else None)
        context = ExperimentContext(dataset, recipe_by_name(args.recipe))
        run_ablation(store, grid, context, seeds=SEEDS, only=args.only)
    path = args.json or store.out / "ablation.json"
    contents = {"parts": summarised(store, FIRST), "choices": store.choices, "cells": _cells(store)}
    write_result(path, PROG, {"world": FIRST, "max_steps": store.max_steps, **contents})
    print(f"wrote {path.name}: {len(contents['parts'])} rows from {len(contents['cells'])} cells")


def main() -> int:
    """Run the command line."""
    args = parser().parse_args()
    return exit_code(lambda: run(args))
