"""Which cells there are, and running them one after the other: what is done stays done, a broken cell begins again.

heads   one world (hard-0, seed 0), heads alone on cached features: every loss x labels x documents, after the
        searches on validation categories; the product and zero-shot beside them
final   the last block trained: the product, its image side alone, zero-shot, and the best three rivals by
        validation (two on governed labels, one on raw) on 3 splits x 3 seeds; the first of them with members and
        a student, where the product has them; the product alone in the main setting and with 40% wrong clicks
"""

import dataclasses
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from tqdm import tqdm

from benchmarks.immr.baselines.baselines import METHODS, Method
from benchmarks.immr.protocol.splits import open_world
from benchmarks.immr.runner.cell import CHOSEN_BY, PRODUCT, VALIDATION, ZERO_SHOT, Cell, Desk, run_cell, searched
from benchmarks.immr.runner.context import Stand
from train.parallel.topology import set_threads
from train.recipes.registry import recipe_by_name

GRIDS = ("heads", "final")
FIRST = "hard-0"
SPLITS, SEEDS = (0, 1, 2), (0, 1, 2)
NOISY = "hard-0-noise40"
FINALISTS = {"governed": 2, "raw": 1}


def heads_cells() -> list[Cell]:
    """Searches first: nothing of a test split is read before every setting is frozen."""
    searches = [Cell("search", FIRST, method.name) for method in METHODS if searched(method) == method]
    rivals = [Cell("heads", FIRST, method.name) for method in METHODS]
    return [*searches, Cell("heads", FIRST, ZERO_SHOT), Cell("heads", FIRST, PRODUCT), *rivals]


def finalists(desk: Desk) -> list[str]:
    """Names of the best rivals by their validation figure under heads alone; empty before the heads grid is done."""
    figures = {}
    for method in METHODS:
        path = desk.file(Cell("heads", FIRST, method.name).name)
        earlier = desk.earlier.get("heads", {}).get(method.name)
        if not path.is_file() and earlier is None:
            return []
        tracks = json.loads(path.read_text())["tracks"] if path.is_file() else earlier
        figures[method.name] = float(tracks[VALIDATION][CHOSEN_BY])
    best = sorted(figures, key=lambda name: (-figures[name], name))
    return [
        name
        for labels, count in FINALISTS.items()
        for name in [one for one in best if Method.named(one).labels == labels][:count]
    ]


def final_cells(rivals: Sequence[str], *, distils: bool = False) -> list[Cell]:
    """World by world, the product first; `distils`: the first rival with members and a student too."""
    cells = [Cell("final-search", FIRST, name) for name in rivals]
    if distils and rivals and Method.named(rivals[0]).documents == "image":
        rivals = [*rivals, dataclasses.replace(Method.named(rivals[0]), distilled=True).name]
    for split in SPLITS:
        world = f"hard-{split}"
        cells.append(Cell("final", world, ZERO_SHOT))
        for system in (PRODUCT, *rivals):
            cells += [Cell("final", world, system, seed) for seed in SEEDS]
    alone = [f"main-{split}" for split in SPLITS] + [NOISY]
    return cells + [Cell("final", world, PRODUCT, seed) for world in alone for seed in SEEDS]


def cells_of(grid: str, desk: Desk) -> list[Cell]:
    """The cells of a grid; the rivals of "final" are known once "heads" is done."""
    if grid == "heads":
        return heads_cells()
    return final_cells(finalists(desk), distils=recipe_by_name(desk.recipe).ensemble.num_members > 1)


def todo(cells: Sequence[Cell], desk: Desk, only: str | None) -> list[Cell]:
    """Cells whose name matches `only` (a regular expression, anywhere in the name) and that are not done.

    Raises:
        ValueError: `only` is no regular expression, or matches nothing.
    """
    try:
        matching = [cell for cell in cells if only is None or re.search(only, cell.name)]
    except re.error as error:
        raise ValueError(f"--only {only!r} is no regular expression ({error})") from error
    if only is not None and not matching:
        raise ValueError(f"--only {only!r} matches none of {len(cells)} cells, such as {cells[0].name}")
    return [cell for cell in matching if not desk.file(cell.name).is_file()]


def run_grid(grid: str, desk: Desk, *, only: str | None = None, demo: Path | None = None) -> None:
    """Run what is left of a grid, with a progress bar.

    Raises:
        ValueError: see `todo`, `Desk.claim`, `open_world` and `run_cell`.
    """
    cells = todo(cells_of(grid, desk), desk, only)
    desk.claim(recipe_by_name(desk.recipe))
    with tqdm(total=len(cells), desc=f"{grid} grid", unit="cell") as bar:
        for world, group in _by_world(cells):
            stand = Stand(open_world(world, desk.out, demo=demo), recipe_by_name(desk.recipe))
            for cell in group:
                bar.set_postfix_str(cell.name)
                set_threads()
                run_cell(cell, stand, desk)
                bar.update()


def _by_world(cells: Sequence[Cell]) -> Iterator[tuple[str, list[Cell]]]:
    """Neighbouring cells of one world together: its features are read once."""
    group: list[Cell] = []
    for cell in cells:
        if group and group[-1].world != cell.world:
            yield group[0].world, group
            group = []
        group.append(cell)
    if group:
        yield group[0].world, group
