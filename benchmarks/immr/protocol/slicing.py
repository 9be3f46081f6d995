"""Two systems on every slice: of the documents' texts and images, of the queries' styles and of popularity.

Slices come from three sources: the unseen task as it is, the same task with documents made worse (one slice a
variant), and the queries in styles never trained on. Holm's correction runs over all of them that are large enough.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from benchmarks.immr.protocol.degrade import VARIANTS
from benchmarks.immr.protocol.scores import METRICS, NO_PART, Scores
from benchmarks.immr.protocol.statistics import paired_slices
from benchmarks.immr.runner.cell import Cell, Desk
from benchmarks.immr.runner.context import kept_scores
from benchmarks.immr.runner.grid import SEEDS

DIGITS = 6


def sliced(desk: Desk, first: str, second: str, *, kind: str, worlds: Sequence[str]) -> dict[str, Any]:
    """{metric: {slice: first - second}} pooled over the cells that both systems have."""
    pools: tuple[dict[str, list[Scores]], dict[str, list[Scores]]] = ({}, {})
    for world in worlds:
        for seed in SEEDS:
            names = [Cell(kind, world, system, seed).name for system in (first, second)]
            if not all(desk.file(name).is_file() for name in names):
                continue
            for pool, name in zip(pools, names, strict=True):
                for part, scores in slices_of_cell(desk, name).items():
                    pool.setdefault(part, []).append(scores)
    if not pools[0]:
        return {}
    return {metric: _rounded(paired_slices(*pools, metric=metric)) for metric in METRICS}


def slices_of_cell(desk: Desk, name: str) -> dict[str, Scores]:
    """Scores of a cell by slice: those of the unseen task, one for each variant, those of other styles."""
    wanted = {"unseen": ("document.", "query."), "styles": ("query.style=", "query.training=")}
    wanted |= {track: (f"document.image={track}", "document.text=wrong") for track in VARIANTS}
    found = {}
    for track, prefixes in wanted.items():
        if not (desk.cells / name / f"{track}.parquet").is_file():
            continue
        scores = kept_scores(desk.cells / name, track)
        for part, rank in scores.slice_ranks.items():
            if part.startswith(prefixes):
                one = replace(scores, rank=rank, unmerged=rank, slice_ranks={})
                found[part] = one.subset(rank != NO_PART)
    return found


def _rounded(found: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return {
        part: {key: round(value, DIGITS) if isinstance(value, float) else value for key, value in row.items()}
        for part, row in found.items()
    }
