"""One cell of the grid: a system of a world under one seed, trained and scored, or a search on validation categories.

A cell is a file once it is done: `cells/NAME.json` with its figures, `cells/NAME/TRACK.parquet` with a row a query. A
search reads the validation task alone; what it chose goes into `choices.json`, where it stays: a later cell reads its
settings there and nowhere else.
"""

import dataclasses
import functools
import json
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.immr.baselines.baselines import VALUES, Method, Settings, train_rival
from benchmarks.immr.baselines.losses import PAIRED
from benchmarks.immr.protocol.scores import METRICS, Scores
from benchmarks.immr.runner.context import LONG_TRACKS, SHORT_TRACKS, Stand, keep_scores
from benchmarks.immr.runner.systems import System, published_system, rival_system, train_product
from runtime.files import write_json
from train.recipes.recipe import Recipe, difference, learned_settings

KINDS = ("search", "heads", "final-search", "final")
PRODUCT, IMAGE_ONLY, ZERO_SHOT = "oclear", "image_only", "zero_shot"
# Of the recipe's rates at the stage; the last block was given its rates by a classification, pairs may want less.
RATES = {"heads": (1.0, 0.5, 2.0), "last_block": (1.0, 0.5, 0.25, 2.0)}
RATE_HALVINGS = 4
CHOSEN_BY = "mrr_at_10"
SEARCH_SHARE = 0.5  # of the steps, with a schedule of that length, while heads alone are searched
VALIDATION = "validation"
RUN = "run"  # the training run of the product, removed when it is scored


@dataclass(frozen=True)
class Cell:
    """What, where, under which seed. `system` is a method's name, "oclear" or "zero_shot".

    A cell "oclear" leaves two results: the image side is the same with and without text, so `image_only` costs nothing.
    """

    kind: str
    world: str
    system: str
    seed: int = 0

    @property
    def name(self) -> str:
        return self.named(self.system)

    def named(self, system: str) -> str:
        """The name that this cell has for a system that it scores."""
        return f"{self.kind}--{self.world}--{system}--s{self.seed}"

    @property
    def stage(self) -> str:
        return "heads" if self.kind in ("search", "heads") else "last_block"


@dataclass(frozen=True)
class Desk:
    """Where cells lie, and how many steps they train (None = the recipe's).

    `taken_over` is an earlier result file: choices and heads cells that are not here stand there, and only those: a
    search that is done here has the word, and may begin with what an earlier one found for the layers themselves.
    """

    out: Path
    recipe: str
    max_steps: int | None = None
    taken_over: Path | None = None

    @functools.cached_property
    def earlier(self) -> dict[str, Any]:
        """The earlier result file; empty without one.

        Raises:
            ValueError: it is no file.
        """
        if self.taken_over is None:
            return {}
        if not self.taken_over.is_file():
            raise ValueError(f"--taken-over {self.taken_over} is no file; give a result file of an earlier run")
        return dict(json.loads(self.taken_over.read_text()))

    @property
    def cells(self) -> Path:
        """Cells of a trial with fewer steps lie apart."""
        return self.out / ("cells" if self.max_steps is None else f"cells-{self.max_steps}-steps")

    def claim(self, recipe: Recipe) -> None:
        """Cells here are of one recipe: note it where nobody has, and refuse another one.

        Raises:
            ValueError: the cells here are of another recipe.
        """
        note, mine = self.cells / "recipe.json", recipe.to_json()
        if not note.is_file():
            self.cells.mkdir(parents=True, exist_ok=True)
            write_json(note, mine)
        theirs = json.loads(note.read_text())
        ours, found = (learned_settings(row) for row in (mine, theirs))
        if differs := difference(json.loads(json.dumps(ours)), found):
            raise ValueError(f"the cells of {self.cells} are of another recipe ({differs}); give another --out")

    def file(self, name: str) -> Path:
        return self.cells / f"{name}.json"

    @property
    def choices(self) -> dict[str, Any]:
        """What searches chose, by "METHOD@stage"."""
        return dict(self.earlier.get("choices", {})) | self._chosen_here()

    def _chosen_here(self) -> dict[str, Any]:
        path = self.cells / "choices.json"
        return dict(json.loads(path.read_text())) if path.is_file() else {}

    def choose(self, key: str, chosen: dict[str, Any]) -> None:
        """Keep a choice; one that was made here before stays."""
        write_json(self.cells / "choices.json", {key: chosen} | self._chosen_here())

    def settings(self, method: Method, stage: str) -> Settings:
        """What was chosen for a method.

        Raises:
            ValueError: nothing was chosen yet.
        """
        key = f"{searched(method).name if stage == 'heads' else method.plain.name}@{stage}"
        if key not in self.choices:
            raise ValueError(f"no settings were chosen for {key}; run its search cell first (leave --only out)")
        return Settings(**self.choices[key]["settings"])


def searched(method: Method) -> Method:
    """The method whose search under heads alone a method shares: one with images, one with text for each loss."""
    return dataclasses.replace(method.plain, documents="image" if method.documents == "image" else "mean")


def run_cell(cell: Cell, stand: Stand, desk: Desk) -> None:
    """Do one cell and write its files."""
    desk.cells.mkdir(parents=True, exist_ok=True)
    begun = time.perf_counter()
    if cell.kind in ("search", "final-search"):
        found = _search(cell, stand, desk)
        desk.choose(f"{cell.system}@{cell.stage}", {**found["chosen"], "cell": cell.name})
        _write(cell, cell.system, desk, found, begun)
        return
    tracks = (*SHORT_TRACKS, VALIDATION) if cell.kind == "heads" else LONG_TRACKS
    for name, system, record in _systems(cell, stand, desk):
        scores = stand.scored(system, tracks, stage="heads" if name == ZERO_SHOT else cell.stage)
        keep_scores(scores, desk.cells / cell.named(name))
        figures = {track: one.metrics() for track, one in scores.items()}
        # The last of them closes the cell: a cell that was killed is done again.
        _write(cell, name, desk, {"tracks": figures, **record}, begun)
    shutil.rmtree(desk.cells / cell.name / RUN, ignore_errors=True)


def _write(cell: Cell, system: str, desk: Desk, found: dict[str, Any], begun: float) -> None:
    about = {**dataclasses.asdict(cell), "system": system, "name": cell.named(system), "stage": cell.stage}
    cost = {"seconds": round(time.perf_counter() - begun, 1), "threads": torch.get_num_threads()}
    write_json(desk.file(cell.named(system)), {**about, "max_steps": desk.max_steps, **cost, **found})


def _systems(cell: Cell, stand: Stand, desk: Desk) -> Iterator[tuple[str, System, dict[str, Any]]]:
    """(name, system, what to keep about its training) of everything that a cell scores, the cell's own last."""
    if cell.system in (PRODUCT, ZERO_SHOT):
        hub, recipe = _product(cell, stand, desk)
        record = json.loads((hub.parent / "training.json").read_text())
        kept = {"training": {key: record[key] for key in ("counts", "seconds", "text")}}
        given: dict[str, Any] = {"frozen_stages": recipe.model.frozen_stages}
        if cell.system == PRODUCT:
            yield IMAGE_ONLY, published_system(hub, with_text=False, **given), kept
        yield cell.system, published_system(hub, with_text=cell.system == PRODUCT, **given), kept
    else:
        method = Method.named(cell.system)
        settings = desk.settings(method, cell.stage)
        yield cell.system, trained_rival(cell, stand, desk, settings), {"settings": dataclasses.asdict(settings)}


def trained_rival(cell: Cell, stand: Stand, desk: Desk, settings: Settings, *, share: float = 1.0) -> System:
    """A rival of a cell under some settings, its whole schedule shortened to `share` of the steps they ask for."""
    method, features = Method.named(cell.system), stand.training(cell.stage)
    recipe = stand.recipe_of(cell.stage, adapters=settings.adapters)
    rows = stand.rows[method.labels]
    steps, warmup = (
        round(share * settings.length * count) for count in (recipe.image.steps, recipe.image.warmup_steps)
    )
    rival = train_rival(
        stand.untrained,
        features,
        rows,
        method=method,
        settings=settings,
        recipe=recipe.with_changes({"image.steps": steps, "image.warmup_steps": warmup}),
        stage=cell.stage,
        seed=cell.seed,
        max_steps=desk.max_steps,
        starts=stand.starts,
    )
    return rival_system(rival, rows, features.query_inputs)


def _product(cell: Cell, stand: Stand, desk: Desk) -> tuple[Path, Recipe]:
    """The published folder of the product under the cell's recipe, and that recipe."""
    home = desk.cells / cell.name
    stage = "heads" if cell.system == ZERO_SHOT else cell.stage
    recipe, cache = stand.recipe_of(stage), stand.training(stage).cache
    if cell.system == ZERO_SHOT:
        recipe = _zero_shot(recipe, width=cache.document_inputs.shape[-1])
    desk.cells.mkdir(parents=True, exist_ok=True)
    words = desk.out / f"{cell.name}.recipe.json"
    write_json(words, recipe.to_json())
    hub = train_product(
        home / RUN,
        governed=stand.world.governed,
        recipe=str(words),
        cache=cache,
        seed=cell.seed,
        max_steps=None if recipe.image.steps == 0 else desk.max_steps,
    )
    words.unlink()
    return hub, recipe


def _zero_shot(recipe: Recipe, *, width: int) -> Recipe:
    """Frozen features, standardised per side, nothing learned."""
    nothing: dict[str, Any] = {
        "text.encoder": None,
        "image.steps": 0,
        "image.query_views": 0,
        "image.document_views": 0,
    }
    return recipe.with_changes(
        {"name": ZERO_SHOT, "model.hidden_size": width, "image.projection": "identity", **nothing}
    )


def _search(cell: Cell, stand: Stand, desk: Desk) -> dict[str, Any]:
    """One coordinate after the other: learning rate, the loss's value, for raw labels the balance of the batches.

    Under heads alone it is done with image documents and with the mean of image and text, at half the steps; what it
    chooses with text holds for every form that reads text.

    On the last block the learning rate is searched again, from what the heads chose; of a loss over pairs the value
    too, since what a miner or a temperature makes of pairs depends on the features under them.

    A lowest rate that is the best of its row is halved until that gains nothing (`RATE_HALVINGS` times at most). Where
    the product trains adapters, all this is done twice, with the last block's layers themselves and with adapters on
    them; what an earlier result file has of either stands. Where the product trains members and a student, the best is
    tried with as many steps as those have together.
    """
    method = Method.named(cell.system)
    share = SEARCH_SHARE if cell.kind == "search" else 1.0

    def validated(settings: Settings) -> dict[str, float]:
        system = trained_rival(cell, stand, desk, settings, share=share)
        return _means(stand.scored(system, (VALIDATION,), stage=cell.stage)[VALIDATION])

    axes, halvings = axes_of(cell, method), 0 if cell.kind == "search" else RATE_HALVINGS
    start = Settings.usual(method) if cell.kind == "search" else desk.settings(method, "heads")
    adapts = cell.kind == "final-search" and stand.recipe.image.lora.rank > 0
    table = _found_earlier(cell, desk) if adapts else []
    for adapters in (False, True) if adapts else (False,):
        if not any(row["settings"]["adapters"] == adapters for row in table):
            form = dataclasses.replace(start, adapters=adapters)
            table += searched_table(form, axes, validated, halvings=halvings)
    if cell.kind == "final-search" and (length := whole_length(stand.recipe)) > 1:
        longer = dataclasses.replace(Settings(**max(table, key=_figure)["settings"]), length=length)
        table.append({"settings": dataclasses.asdict(longer), "validation": validated(longer)})
    return {"table": table, "chosen": max(table, key=_figure)}


def whole_length(recipe: Recipe) -> float:
    """Steps of all members and of the student, in units of one member's."""
    if recipe.ensemble.num_members == 1:
        return 1.0
    return recipe.ensemble.num_members + recipe.ensemble.distil_steps / recipe.image.steps


def _found_earlier(cell: Cell, desk: Desk) -> list[dict[str, Any]]:
    """Rows of an earlier result file's search of this cell, of trainings of the recipe's own length."""
    rows = desk.earlier.get("cells", {}).get(cell.name, {}).get("table", [])
    found = [{**row, "settings": dataclasses.asdict(Settings(**row["settings"]))} for row in rows]
    return [row for row in found if row["settings"]["length"] == 1]


def axes_of(cell: Cell, method: Method) -> dict[str, tuple[Any, ...]]:
    """What a search tries, coordinate by coordinate."""
    axes: dict[str, tuple[Any, ...]] = {"rate": RATES[cell.stage]}
    if cell.kind == "search" or method.loss in PAIRED:
        axes["value"] = VALUES[method.loss]
    if cell.kind == "search" and method.labels == "raw":
        axes["balance"] = (1.0, 0.0)
    return axes


def searched_table(
    start: Settings,
    axes: dict[str, tuple[Any, ...]],
    validated: Callable[[Settings], dict[str, float]],
    *,
    halvings: int,
) -> list[dict[str, Any]]:
    """Every setting that was tried, in order, with its validation figures.

    Args:
        axes: values by field of `Settings`, tried one coordinate after the other from the best so far.
        validated: settings -> figures. halvings: how often a best rate that is the lowest is halved at most.
    """
    table: list[dict[str, Any]] = []

    def gains(settings: Settings) -> bool:
        said = dataclasses.asdict(settings)
        if any(row["settings"] == said for row in table):
            return False
        top = max(map(_figure, table), default=-1.0)
        table.append({"settings": said, "validation": validated(settings)})
        return _figure(table[-1]) > top

    gains(start)
    best = start
    for field, values in axes.items():
        for value in values:
            settings = dataclasses.replace(best, **{field: value})
            best = settings if gains(settings) else best
        for _ in range(halvings if field == "rate" and best.rate == min(values) else 0):
            settings = dataclasses.replace(best, rate=best.rate / 2)
            if not gains(settings):
                break
            best = settings
    return table


def _figure(row: dict[str, Any]) -> float:
    return float(row["validation"][CHOSEN_BY])


def _means(scores: Scores) -> dict[str, float]:
    means = scores.values().mean(axis=0)
    return {name: round(float(value), 6) for name, value in zip(METRICS, means, strict=True)}
