"""The cells of the two grids, run one after the other; complete cells are skipped.

heads   hard-0, seed 0, heads only on cached features: hyperparameter searches on validation categories, then every
        loss x labels x documents, the product and zero-shot
final   last block trained, 3 splits x 3 seeds: the product, its image stage alone, zero-shot, and the three best
        baselines by validation (two on governed labels, one on raw), the first of them also distilled if the product
        is; the product alone in the main setting and with 40% wrong clicks
"""

import dataclasses
import itertools
import json
import re
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from benchmarks.immr.baselines.method import METHODS, Method
from benchmarks.immr.protocol.splits import open_split
from benchmarks.immr.runner.cell import CHOSEN_BY, run_cell
from benchmarks.immr.runner.context import VALIDATION, ExperimentContext
from benchmarks.immr.runner.result_store import PRODUCT, ZERO_SHOT, GridCell, ResultStore, search_method
from train.parallel.topology import set_threads
from train.recipes.registry import recipe_by_name

GRIDS = ("heads", "final")
FIRST = "hard-0"
SPLITS, SEEDS = (0, 1, 2), (0, 1, 2)
NOISY = "hard-0-noise40"
FINALISTS = {"governed": 2, "raw": 1}


def heads_cells() -> list[GridCell]:
    """Cells of the heads grid; searches come first, so that no test split is read before all choices are made."""
    searches = [GridCell("search", FIRST, method.name) for method in METHODS if search_method(method) == method]
    baselines = [GridCell("heads", FIRST, method.name) for method in METHODS]
    return [*searches, GridCell("heads", FIRST, ZERO_SHOT), GridCell("heads", FIRST, PRODUCT), *baselines]


def finalists(store: ResultStore) -> list[str]:
    """Names of the best baselines by validation with heads only; empty until the heads grid is complete."""
    criteria = {}
    for method in METHODS:
        path = store.file(GridCell("heads", FIRST, method.name).name)
        earlier = store.earlier.get("heads", {}).get(method.name)
        if not path.is_file() and earlier is None:
            return []
        metrics = json.loads(path.read_text())["tracks"] if path.is_file() else earlier
        criteria[method.name] = float(metrics[VALIDATION][CHOSEN_BY])
    best = sorted(criteria, key=lambda name: (-criteria[name], name))
    return [
        name
        for labels, count in FINALISTS.items()
        for name in [one for one in best if Method.named(one).labels == labels][:count]
    ]


def final_cells(baselines: Sequence[str], *, distils: bool = False) -> list[GridCell]:
    """Cells of the final grid, split by split, the product first.

    Args:
        baselines: names of the finalists. distils: add the first of them with ensemble and student.
    """
    cells = [GridCell("final-search", FIRST, name) for name in baselines]
    if distils and baselines and Method.named(baselines[0]).documents == "image":
        baselines = [*baselines, dataclasses.replace(Method.named(baselines[0]), distilled=True).name]
    for split in SPLITS:
        dataset = f"hard-{split}"
        cells.append(GridCell("final", dataset, ZERO_SHOT))
        for system in (PRODUCT, *baselines):
            cells += [GridCell("final", dataset, system, seed) for seed in SEEDS]
    product_only = [f"main-{split}" for split in SPLITS] + [NOISY]
    return cells + [GridCell("final", dataset, PRODUCT, seed) for dataset in product_only for seed in SEEDS]


def grid_cells(grid: str, store: ResultStore) -> list[GridCell]:
    """All cells of a grid; the baselines of "final" depend on the complete "heads" grid."""
    if grid == "heads":
        return heads_cells()
    return final_cells(finalists(store), distils=recipe_by_name(store.recipe).ensemble.num_members > 1)


def remaining_cells(cells: Sequence[GridCell], store: ResultStore, only: str | None) -> list[GridCell]:
    """Incomplete cells whose name matches `only` (a regular expression, searched anywhere in the name).

    Raises:
        ValueError: `only` is no regular expression, or matches nothing.
    """
    try:
        matching = [cell for cell in cells if only is None or re.search(only, cell.name)]
    except re.error as error:
        raise ValueError(f"--only {only!r} is no regular expression ({error})") from error
    if only is not None and not matching:
        raise ValueError(f"--only {only!r} matches none of {len(cells)} cells, such as {cells[0].name}")
    return [cell for cell in matching if not store.file(cell.name).is_file()]


def run_grid(grid: str, store: ResultStore, *, only: str | None = None, demo: Path | None = None) -> None:
    """Run the remaining cells of a grid, with a progress bar.

    Raises:
        ValueError: see `remaining_cells`, `ResultStore.check_recipe`, `open_split` and `run_cell`.
    """
    cells = remaining_cells(grid_cells(grid, store), store, only)
    store.check_recipe(recipe_by_name(store.recipe))
    with tqdm(total=len(cells), desc=f"{grid} grid", unit="cell") as bar:
        # Neighbouring cells of one dataset split share its features in memory.
        for dataset, group in itertools.groupby(cells, key=lambda cell: cell.dataset):
            context = ExperimentContext(open_split(dataset, store.out, demo=demo), recipe_by_name(store.recipe))
            for cell in group:
                bar.set_postfix_str(cell.name)
                set_threads()
                run_cell(cell, context, store)
                bar.update()
