"""Run one grid cell: train and score a system, or search its hyperparameters.

A search reads the validation task alone, and stores its choice in the result store before any cell reads a test split.
"""

import dataclasses
import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.immr.baselines.losses import PAIRED
from benchmarks.immr.baselines.method import LOSS_VALUES, Hyperparameters, Method
from benchmarks.immr.baselines.training import train_baseline
from benchmarks.immr.protocol.scores import METRICS
from benchmarks.immr.runner.context import ALL_EVAL_SETTINGS, BASIC_EVAL_SETTINGS, VALIDATION, ExperimentContext
from benchmarks.immr.runner.result_store import IMAGE_ONLY, PRODUCT, ZERO_SHOT, GridCell, ResultStore
from benchmarks.immr.runner.systems import System, baseline_system, parts_of, published_system, train_product
from runtime.files import write_json
from train.recipes.recipe import Recipe

# Factors on the recipe's learning rates. The recipe's rates of the last block were tuned for classification losses;
# losses over pairs may need lower ones.
RATES = {"heads": (1.0, 0.5, 2.0), "last_block": (1.0, 0.5, 0.25, 2.0)}
MAX_RATE_HALVINGS = 4
CHOSEN_BY = "mrr_at_10"
SEARCH_LENGTH = 0.5  # of the steps, with a schedule of that length, in searches of the heads grid
RUN = "run"  # training run of the product, removed after scoring


def run_cell(cell: GridCell, context: ExperimentContext, store: ResultStore) -> None:
    """Run one cell and write its files."""
    store.cells.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    if cell.kind in ("search", "final-search"):
        table = _search(cell, context, store)
        chosen = max(table, key=_criterion)
        store.choose(f"{cell.system}@{cell.stage}", {**chosen, "cell": cell.name})
        _write(cell, cell.system, store, {"table": table, "chosen": chosen}, started)
        return
    eval_settings = (*BASIC_EVAL_SETTINGS, VALIDATION) if cell.kind == "heads" else ALL_EVAL_SETTINGS
    for name, system, record in _systems(cell, context, store):
        scores = context.scored(system, eval_settings, stage="heads" if name == ZERO_SHOT else cell.stage)
        store.write_scores(cell.named(name), scores)
        metrics = {eval_setting: one.metrics() for eval_setting, one in scores.items()}
        # The cell's own system comes last: an interrupted cell has no file and is run again.
        _write(cell, name, store, {"tracks": metrics, **record}, started)
    shutil.rmtree(store.cells / cell.name / RUN, ignore_errors=True)


def _write(cell: GridCell, system: str, store: ResultStore, contents: dict[str, Any], started: float) -> None:
    name = cell.named(system)
    about = {"kind": cell.kind, "world": cell.dataset, "system": system, "seed": cell.seed}
    about |= {"name": name, "stage": cell.stage, "max_steps": store.max_steps}
    cost = {"seconds": round(time.perf_counter() - started, 1), "threads": torch.get_num_threads()}
    write_json(store.file(name), {**about, **cost, **contents})


def _systems(
    cell: GridCell, context: ExperimentContext, store: ResultStore
) -> Iterator[tuple[str, System, dict[str, Any]]]:
    """(name, system, record of its training) of every system that a cell scores, the cell's own last."""
    if cell.system not in (PRODUCT, ZERO_SHOT):
        hyperparameters = store.hyperparameters(Method.named(cell.system), cell.stage)
        system = trained_baseline_system(cell, context, hyperparameters, max_steps=store.max_steps)
        yield cell.system, system, {"settings": dataclasses.asdict(hyperparameters)}
        return
    hub, recipe = _train_product(cell, context, store)
    record = json.loads((hub.parent / "training.json").read_text())
    kept = {"training": {key: record[key] for key in ("counts", "seconds", "text")}}
    if cell.system == PRODUCT:
        yield IMAGE_ONLY, published_system(hub, with_text=False, frozen_stages=recipe.model.frozen_stages), kept
    system = published_system(hub, with_text=cell.system == PRODUCT, frozen_stages=recipe.model.frozen_stages)
    yield cell.system, system, kept


def trained_baseline_system(
    cell: GridCell,
    context: ExperimentContext,
    hyperparameters: Hyperparameters,
    *,
    max_steps: int | None,
    length: float = 1.0,
) -> System:
    """Train the baseline of a cell.

    Args:
        length: factor on the steps that the hyperparameters ask for, with a schedule of that length.
    """
    method = Method.named(cell.system)
    recipe = context.recipe_of(cell.stage, adapters=hyperparameters.adapters)
    steps, warmup = (
        round(length * hyperparameters.length * count) for count in (recipe.image.steps, recipe.image.warmup_steps)
    )
    recipe = recipe.with_changes({"image.steps": steps, "image.warmup_steps": warmup})
    inputs = context.baseline_inputs(cell.stage, method.labels, recipe)
    baseline = train_baseline(
        inputs, method=method, hyperparameters=hyperparameters, seed=cell.seed, max_steps=max_steps
    )
    return baseline_system(baseline, inputs.rows, inputs.features.query_inputs)


def _train_product(cell: GridCell, context: ExperimentContext, store: ResultStore) -> tuple[Path, Recipe]:
    """Published folder of the product trained under the cell's recipe, and that recipe."""
    stage = "heads" if cell.system == ZERO_SHOT else cell.stage
    recipe, cache = context.recipe_of(stage), context.training(stage).cache
    if cell.system == ZERO_SHOT:
        # Frozen features, standardised per side, without any training.
        untrained = {"text.encoder": None, "image.steps": 0, "image.query_views": 0, "image.document_views": 0}
        shape = {"model.hidden_size": cache.document_inputs.shape[-1], "image.projection": "identity"}
        recipe = recipe.with_changes({"name": ZERO_SHOT, **shape, **untrained})
    recipe_file = store.out / f"{cell.name}.recipe.json"
    write_json(recipe_file, recipe.to_json())
    hub = train_product(
        store.cells / cell.name / RUN,
        governed=context.dataset.governed,
        recipe=str(recipe_file),
        seed=cell.seed,
        max_steps=None if recipe.image.steps == 0 else store.max_steps,
        parts=parts_of(cache),
    )
    recipe_file.unlink()
    return hub, recipe


def _search(cell: GridCell, context: ExperimentContext, store: ResultStore) -> list[dict[str, Any]]:
    """Search hyperparameters one coordinate at a time; returns every trial with its validation metrics.

    Heads only: learning rate, value of the loss, and for raw labels the class balance, at half the steps. It is run
    with image documents and with the mean of image and text; the latter choice holds for every fusion that reads text.

    Last block: the learning rate again, starting from the choice of the heads; for losses over pairs also their value,
    since what a temperature or a miner does depends on the features. If the best rate is the lowest of its row, it is
    halved while that improves (at most MAX_RATE_HALVINGS times). If the product trains adapters, the search is run with
    the layers themselves and with adapters on them; trials of either kind in an earlier result file are reused. If the
    product trains an ensemble and a student, the best trial is repeated with the number of steps of all of these.
    """
    method = Method.named(cell.system)
    length = SEARCH_LENGTH if cell.kind == "search" else 1.0

    def validate(hyperparameters: Hyperparameters) -> dict[str, float]:
        system = trained_baseline_system(cell, context, hyperparameters, max_steps=store.max_steps, length=length)
        scores = context.scored(system, (VALIDATION,), stage=cell.stage)[VALIDATION]
        means = scores.values().mean(axis=0)
        return {name: round(float(value), 6) for name, value in zip(METRICS, means, strict=True)}

    axes = search_axes(cell, method)
    if cell.kind == "search":
        return search_table(Hyperparameters.default(method), axes, validate, max_halvings=0)
    start = store.hyperparameters(method, "heads")
    has_adapters = context.recipe.image.lora.rank > 0
    table = _earlier_trials(cell, store) if has_adapters else []
    for adapters in (False, True) if has_adapters else (False,):
        if not any(row["settings"]["adapters"] == adapters for row in table):
            first = dataclasses.replace(start, adapters=adapters)
            table += search_table(first, axes, validate, max_halvings=MAX_RATE_HALVINGS)
    if (total := total_length(context.recipe)) > 1:
        longer = dataclasses.replace(Hyperparameters(**max(table, key=_criterion)["settings"]), length=total)
        table.append({"settings": dataclasses.asdict(longer), "validation": validate(longer)})
    return table


def total_length(recipe: Recipe) -> float:
    """Steps of all ensemble members and the student, as a multiple of the steps of one member."""
    if recipe.ensemble.num_members == 1:
        return 1.0
    return recipe.ensemble.num_members + recipe.ensemble.distil_steps / recipe.image.steps


def _earlier_trials(cell: GridCell, store: ResultStore) -> list[dict[str, Any]]:
    """Trials of this cell in the earlier result file, of the recipe's own length."""
    rows = store.earlier.get("cells", {}).get(cell.name, {}).get("table", [])
    trials = [{**row, "settings": dataclasses.asdict(Hyperparameters(**row["settings"]))} for row in rows]
    return [row for row in trials if row["settings"]["length"] == 1]


def search_axes(cell: GridCell, method: Method) -> dict[str, tuple[Any, ...]]:
    """Values to try for each hyperparameter, in the order of the coordinates."""
    axes: dict[str, tuple[Any, ...]] = {"rate": RATES[cell.stage]}
    if cell.kind == "search" or method.loss in PAIRED:
        axes["value"] = LOSS_VALUES[method.loss]
    if cell.kind == "search" and method.labels == "raw":
        axes["balance"] = (1.0, 0.0)
    return axes


def search_table(
    start: Hyperparameters,
    axes: dict[str, tuple[Any, ...]],
    validate: Callable[[Hyperparameters], dict[str, float]],
    *,
    max_halvings: int,
) -> list[dict[str, Any]]:
    """Coordinate search; returns all trials in order, with their validation metrics.

    Args:
        axes: values by field of `Hyperparameters`, tried one coordinate at a time from the best trial so far.
        validate: hyperparameters -> validation metrics.
        max_halvings: how often the best rate is halved at most if it is the lowest of its axis.
    """
    table: list[dict[str, Any]] = []

    def improves(hyperparameters: Hyperparameters) -> bool:
        values = dataclasses.asdict(hyperparameters)
        if any(row["settings"] == values for row in table):
            return False
        best_before = max(map(_criterion, table), default=-1.0)
        table.append({"settings": values, "validation": validate(hyperparameters)})
        return _criterion(table[-1]) > best_before

    improves(start)
    best = start
    for field, values in axes.items():
        for value in values:
            candidate = dataclasses.replace(best, **{field: value})
            best = candidate if improves(candidate) else best
        for _ in range(max_halvings if field == "rate" and best.rate == min(values) else 0):
            candidate = dataclasses.replace(best, rate=best.rate / 2)
            if not improves(candidate):
                break
            best = candidate
    return table


def _criterion(trial: dict[str, Any]) -> float:
    return float(trial["validation"][CHOSEN_BY])
