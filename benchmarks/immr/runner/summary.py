"""From cells on disk to the result file: pooled figures, paired differences, slices, and the heads grid.

Figures are means over all queries of all (split, seed) cells; their intervals draw categories within splits, the same
category of all seeds together. Two systems are compared on the cells that both have. The best rival of each kind of
labels is the one with the highest recall_at_1 on the test split among those that validation let into the final: the
choice that favours the rivals.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.immr.baselines.baselines import DISTILLED, METHODS, Method
from benchmarks.immr.protocol.scores import METRICS, Scores
from benchmarks.immr.protocol.slicing import sliced
from benchmarks.immr.protocol.statistics import LEVEL, bootstrap_differences, paired
from benchmarks.immr.runner.cell import IMAGE_ONLY, PRODUCT, ZERO_SHOT, Cell, Desk
from benchmarks.immr.runner.context import LONG_TRACKS, SHORT_TRACKS, kept_scores
from benchmarks.immr.runner.grid import FIRST, NOISY, SEEDS, SPLITS

DISTILLED_RIVAL = "distilled_rival"
Key = tuple[str, int]  # world, seed
Cells = dict[Key, Scores]
HARD, MAIN = tuple(f"hard-{split}" for split in SPLITS), tuple(f"main-{split}" for split in SPLITS)
BRIEF = (*METRICS, "queries", "documents")


def cells_of_system(desk: Desk, system: str, track: str, *, kind: str, worlds: Sequence[str]) -> Cells:
    """Scores of a system by (world, seed). Zero-shot has no seed: it stands under all that the product has."""
    found = {}
    for world in worlds:
        for seed in SEEDS:
            name = Cell(kind, world, system, 0 if system == ZERO_SHOT else seed).name
            beside = system != ZERO_SHOT or desk.file(Cell(kind, world, PRODUCT, seed).name).is_file()
            if beside and desk.file(name).is_file():
                found[world, seed] = kept_scores(desk.cells / name, track)
    return found


def pooled(cells: Cells) -> dict[str, Any]:
    """Means over all queries of all cells, with intervals over categories; empty without a cell."""
    if not cells:
        return {}
    parts = list(cells.values())
    values_QM = np.concatenate([one.values() for one in parts])
    category = [name for one in parts for name in one.category]
    split_Q = np.concatenate([np.full(len(one.query_ids), one.split) for one in parts])
    means_BM = bootstrap_differences(values_QM, category, split_Q)
    low_M, high_M = np.quantile(means_BM, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    return {
        **{name: round(float(mean), 6) for name, mean in zip(METRICS, values_QM.mean(axis=0), strict=True)},
        "intervals": {
            name: [round(float(low), 6), round(float(high), 6)]
            for name, low, high in zip(METRICS, low_M, high_M, strict=True)
        },
        "evaluations": len(values_QM),
        "cells": len(parts),
    }


def compared(first: Cells, second: Cells) -> dict[str, Any]:
    """Paired differences first - second on the cells that both have; empty when there is none."""
    common = sorted(first.keys() & second.keys())
    if not common:
        return {}
    found = paired([first[key] for key in common], [second[key] for key in common])
    return {**_rounded(found), "cells": len(common)}


def _rounded(found: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    return {name: {key: round(value, 6) for key, value in row.items()} for name, row in found.items()}


def summarised(desk: Desk) -> dict[str, Any]:
    """Everything that the result file says beside command and machine."""
    kind = "final" if desk.file(Cell("final", FIRST, PRODUCT).name).is_file() else "heads"
    names = _systems(desk, kind)
    unseen = {name: cells_of_system(desk, name, "unseen", kind=kind, worlds=HARD) for name in names}
    roles = _roles(unseen)
    found: dict[str, Any] = {
        "grid": kind,
        "max_steps": desk.max_steps,
        "summary": {role: pooled(unseen[name]) | {"name": name} for role, name in roles.items()},
        "systems": {name: pooled(cells) for name, cells in unseen.items()},
        "by_split": {
            name: {
                world: pooled({key: one for key, one in cells.items() if key[0] == world})
                for world in dict.fromkeys(key[0] for key in cells)
            }
            for name, cells in unseen.items()
        },
        "comparisons": _comparisons(desk, roles, kind),
        "slices": sliced(desk, PRODUCT, IMAGE_ONLY, kind=kind, worlds=HARD),
    }
    if kind == "final":
        found |= {"main": _main(desk), "noise": _noise(desk), "styles": _styles(desk)}
    return found | {"heads": _heads(desk), "choices": desk.choices, "cells": _cells(desk), **_taken_over(desk)}


def _systems(desk: Desk, kind: str) -> list[str]:
    """Systems with a finished cell of this kind in the hard setting."""
    distilled = [method.name + DISTILLED for method in METHODS if method.documents == "image"]
    known = [PRODUCT, IMAGE_ONLY, *(method.name for method in METHODS), *distilled, ZERO_SHOT]
    return [
        name
        for name in known
        if any(desk.file(Cell(kind, world, name, seed).name).is_file() for world in HARD for seed in SEEDS)
    ]


def _roles(unseen: Mapping[str, Cells]) -> dict[str, str]:
    """Which system plays which part of the summary."""
    roles = {name: name for name in (PRODUCT, IMAGE_ONLY) if name in unseen}
    for labels in ("governed", "raw"):
        rivals = [n for n in unseen if "." in n and Method.named(n).labels == labels and not n.endswith(DISTILLED)]
        if rivals:
            roles[f"best_{labels}_rival"] = max(rivals, key=lambda name: (pooled(unseen[name])["recall_at_1"], name))
    for name in unseen:
        if name.endswith(DISTILLED):
            roles[DISTILLED_RIVAL] = name
    return roles | ({ZERO_SHOT: ZERO_SHOT} if ZERO_SHOT in unseen else {})


def _comparisons(desk: Desk, roles: Mapping[str, str], kind: str) -> dict[str, Any]:
    """The product against every other part of the summary, on every track that the cells have."""
    found: dict[str, Any] = {}
    tracks = LONG_TRACKS if kind == "final" else SHORT_TRACKS
    for role, name in roles.items():
        if name == PRODUCT or PRODUCT not in roles:
            continue
        found[role] = {}
        for track in tracks:
            pair = [cells_of_system(desk, one, track, kind=kind, worlds=HARD) for one in (PRODUCT, name)]
            levels = {"product": pooled(pair[0]), "other": pooled(pair[1])}
            means = {side: {key: row[key] for key in METRICS} for side, row in levels.items() if row}
            found[role][track] = {**compared(*pair), **means}
    return found


def _main(desk: Desk) -> dict[str, Any]:
    """The main setting: the product and its image side alone, and their difference, by track."""
    found: dict[str, Any] = {}
    for track in LONG_TRACKS:
        pair = [cells_of_system(desk, name, track, kind="final", worlds=MAIN) for name in (PRODUCT, IMAGE_ONLY)]
        if pair[0]:
            found[track] = {PRODUCT: pooled(pair[0]), IMAGE_ONLY: pooled(pair[1]), "difference": compared(*pair)}
    found["slices"] = sliced(desk, PRODUCT, IMAGE_ONLY, kind="final", worlds=MAIN)
    return found


def _noise(desk: Desk) -> dict[str, Any]:
    """The product with 40% wrong clicks against itself with 20%, on the same queries and seeds."""
    noisy = cells_of_system(desk, PRODUCT, "unseen", kind="final", worlds=(NOISY,))
    usual = cells_of_system(desk, PRODUCT, "unseen", kind="final", worlds=(FIRST,))
    moved = {(FIRST, seed): scores for (_, seed), scores in noisy.items()}
    usual = {key: scores for key, scores in usual.items() if key in moved}
    return {"noisy": pooled(noisy), "usual": pooled(usual), "difference": compared(moved, usual)}


def _styles(desk: Desk) -> dict[str, Any]:
    """Gain over zero-shot on styles never trained on, as a share of the gain on the styles of training."""
    found: dict[str, Any] = {}
    for track in ("unseen", "styles"):
        pair = [cells_of_system(desk, name, track, kind="final", worlds=HARD) for name in (PRODUCT, ZERO_SHOT)]
        found[track] = {PRODUCT: pooled(pair[0]), ZERO_SHOT: pooled(pair[1]), "gain": compared(*pair)}
    gains = [found[track]["gain"].get("recall_at_1", {}).get("difference") for track in ("styles", "unseen")]
    found["share_of_gain"] = round(gains[0] / gains[1], 4) if None not in gains and gains[1] else None
    return found


def _taken_over(desk: Desk) -> dict[str, Any]:
    """Which result file gave what was not run again; empty when everything was."""
    if desk.taken_over is None:
        return {}
    cells = [name for name, row in desk.earlier["cells"].items() if row["kind"] != "final"]
    missing = [name for name in cells if not desk.file(name).is_file()]
    if not missing:
        return {}
    # What that file had taken over itself was made at the commit that it names.
    commit = desk.earlier.get("taken_over", desk.earlier)["commit"]
    return {"taken_over": {"commit": commit, "cells": len(missing)}}


def _heads(desk: Desk) -> dict[str, Any]:
    """The heads grid: a row a system, by track; what has no cell here is taken over from an earlier result file."""
    found = dict(desk.earlier.get("heads", {}))
    for path in sorted(desk.cells.glob("heads--*.json")):
        row = json.loads(path.read_text())
        tracks = {track: {key: one[key] for key in BRIEF} for track, one in row["tracks"].items()}
        found[row["system"]] = {"settings": row.get("settings"), "seconds": row["seconds"], **tracks}
    return found


def _cells(desk: Desk) -> dict[str, Any]:
    """Every cell in short, searches and heads of an earlier result file among them."""
    earlier = desk.earlier.get("cells", {})
    found = {name: row for name, row in earlier.items() if row["kind"] != "final"}
    for path in sorted(desk.cells.glob("*--*.json")):
        row = json.loads(path.read_text())
        brief = {key: row[key] for key in ("kind", "world", "system", "seed", "stage", "seconds", "threads")}
        if "tracks" in row:
            brief["tracks"] = {track: {key: one[key] for key in BRIEF} for track, one in row["tracks"].items()}
        for key in ("settings", "training", "chosen", "table"):
            if key in row:
                brief[key] = row[key]
        found[row["name"]] = brief
    return found
