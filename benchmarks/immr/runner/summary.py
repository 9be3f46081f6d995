"""Summarise stored cells: pooled metrics, paired differences and slices.

Metrics are means over all queries of all (split, seed) cells; their intervals resample categories within splits, a
category of all seeds together. Two systems are compared on the cells that both have. The best baseline of each kind of
labels is the finalist with the highest recall_at_1 on the test split, a choice in favour of the baselines.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.immr.baselines.method import DISTILLED, METHODS, Method
from benchmarks.immr.protocol.degrade import VARIANTS
from benchmarks.immr.protocol.scores import METRICS, Scores
from benchmarks.immr.protocol.statistics import LEVEL, bootstrap_differences, paired, paired_slices
from benchmarks.immr.runner.context import ALL_EVAL_SETTINGS, BASIC_EVAL_SETTINGS
from benchmarks.immr.runner.grid import FIRST, NOISY, SEEDS, SPLITS
from benchmarks.immr.runner.result_store import IMAGE_ONLY, PRODUCT, ZERO_SHOT, GridCell, ResultStore

DISTILLED_BASELINE = "distilled_rival"  # key in result files
HARD, MAIN = tuple(f"hard-{split}" for split in SPLITS), tuple(f"main-{split}" for split in SPLITS)
REPORTED = (*METRICS, "queries", "documents")
DIGITS = 6
ScoresByCell = dict[tuple[str, int], Scores]  # by (dataset split, seed)


def summarised(store: ResultStore) -> dict[str, Any]:
    """Contents of the result file except command and machine."""
    kind = "final" if store.file(GridCell("final", FIRST, PRODUCT).name).is_file() else "heads"
    unseen = {
        name: system_scores(store, name, "unseen", kind=kind, datasets=HARD) for name in _stored_systems(store, kind)
    }
    roles = _roles(unseen)
    found: dict[str, Any] = {
        "grid": kind,
        "max_steps": store.max_steps,
        "summary": {role: pooled(unseen[name]) | {"name": name} for role, name in roles.items()},
        "systems": {name: pooled(scores) for name, scores in unseen.items()},
        "by_split": {
            name: {
                dataset: pooled({key: one for key, one in scores.items() if key[0] == dataset})
                for dataset in dict.fromkeys(key[0] for key in scores)
            }
            for name, scores in unseen.items()
        },
        "comparisons": _comparisons(store, roles, kind),
        "slices": compared_slices(store, PRODUCT, IMAGE_ONLY, kind=kind, datasets=HARD),
    }
    if kind == "final":
        found |= {"main": _main_setting(store), "noise": _noise(store), "styles": _styles(store)}
    return found | {"heads": _heads(store), "choices": store.choices, "cells": _cells(store), **_reused(store)}


def system_scores(
    store: ResultStore, system: str, eval_setting: str, *, kind: str, datasets: Sequence[str]
) -> ScoresByCell:
    """Scores of a system by (dataset split, seed). Zero-shot has no seed: it repeats under the product's seeds."""
    found = {}
    for dataset in datasets:
        for seed in SEEDS:
            name = GridCell(kind, dataset, system, 0 if system == ZERO_SHOT else seed).name
            counts = system != ZERO_SHOT or store.file(GridCell(kind, dataset, PRODUCT, seed).name).is_file()
            if counts and store.file(name).is_file():
                found[dataset, seed] = store.read_scores(name, eval_setting)
    return found


def pooled(scores: ScoresByCell) -> dict[str, Any]:
    """Means over all queries of all cells, with intervals over categories; empty without a cell."""
    if not scores:
        return {}
    cells = list(scores.values())
    values_QM = np.concatenate([one.values() for one in cells])
    category = [name for one in cells for name in one.category]
    split_Q = np.concatenate([np.full(len(one.query_ids), one.split) for one in cells])
    means_BM = bootstrap_differences(values_QM, category, split_Q)
    low_M, high_M = np.quantile(means_BM, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    return {
        **{name: round(float(mean), DIGITS) for name, mean in zip(METRICS, values_QM.mean(axis=0), strict=True)},
        "intervals": {
            name: [round(float(low), DIGITS), round(float(high), DIGITS)]
            for name, low, high in zip(METRICS, low_M, high_M, strict=True)
        },
        "evaluations": len(values_QM),
        "cells": len(cells),
    }


def compared(first: ScoresByCell, second: ScoresByCell) -> dict[str, Any]:
    """Paired differences first - second on the cells that both have; empty without a common cell."""
    common = sorted(first.keys() & second.keys())
    if not common:
        return {}
    return {**_rounded(paired([first[key] for key in common], [second[key] for key in common])), "cells": len(common)}


def compared_slices(
    store: ResultStore, first: str, second: str, *, kind: str, datasets: Sequence[str]
) -> dict[str, Any]:
    """{metric: {slice: first - second}} on the cells that both systems have, with Holm's correction.

    Slices come from three sources: the unseen task, the same task with degraded documents (one slice per variant), and
    the queries in styles outside the training data.
    """
    pools: tuple[dict[str, list[Scores]], dict[str, list[Scores]]] = ({}, {})
    for dataset in datasets:
        for seed in SEEDS:
            names = [GridCell(kind, dataset, system, seed).name for system in (first, second)]
            if not all(store.file(name).is_file() for name in names):
                continue
            for pool, name in zip(pools, names, strict=True):
                for slice_name, scores in _slices_of_cell(store, name).items():
                    pool.setdefault(slice_name, []).append(scores)
    if not pools[0]:
        return {}
    return {metric: _rounded(paired_slices(*pools, metric=metric)) for metric in METRICS}


def _slices_of_cell(store: ResultStore, name: str) -> dict[str, Scores]:
    """Scores of a cell by slice, from the evaluation settings that define slices."""
    wanted = {"unseen": ("document.", "query."), "styles": ("query.style=", "query.training=")}
    wanted |= {variant: (f"document.image={variant}", "document.text=wrong") for variant in VARIANTS}
    found: dict[str, Scores] = {}
    for eval_setting, prefixes in wanted.items():
        if store.has_scores(name, eval_setting):
            scores = store.read_scores(name, eval_setting)
            kept = [one for one in scores.slice_ranks if one.startswith(prefixes)]
            found |= {slice_name: scores.document_slice(slice_name) for slice_name in kept}
    return found


def _rounded(found: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    return {
        name: {key: round(value, DIGITS) if isinstance(value, float) else value for key, value in row.items()}
        for name, row in found.items()
    }


def reported(metrics: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """The metrics of each evaluation setting that the result file keeps, without intervals."""
    return {eval_setting: {key: row[key] for key in REPORTED} for eval_setting, row in metrics.items()}


def _stored_systems(store: ResultStore, kind: str) -> list[str]:
    """Systems with a complete cell of this kind in the hard setting."""
    distilled = [method.name + DISTILLED for method in METHODS if method.documents == "image"]
    names = [PRODUCT, IMAGE_ONLY, *(method.name for method in METHODS), *distilled, ZERO_SHOT]
    return [
        name
        for name in names
        if any(store.file(GridCell(kind, dataset, name, seed).name).is_file() for dataset in HARD for seed in SEEDS)
    ]


def _roles(unseen: Mapping[str, ScoresByCell]) -> dict[str, str]:
    """Name of the system in each role of the summary; the role names are keys of the result file."""
    roles = {name: name for name in (PRODUCT, IMAGE_ONLY) if name in unseen}
    for labels in ("governed", "raw"):
        baselines = [n for n in unseen if "." in n and Method.named(n).labels == labels and not n.endswith(DISTILLED)]
        if baselines:
            roles[f"best_{labels}_rival"] = max(baselines, key=lambda name: (pooled(unseen[name])["recall_at_1"], name))
    for name in unseen:
        if name.endswith(DISTILLED):
            roles[DISTILLED_BASELINE] = name
    return roles | ({ZERO_SHOT: ZERO_SHOT} if ZERO_SHOT in unseen else {})


def _comparisons(store: ResultStore, roles: Mapping[str, str], kind: str) -> dict[str, Any]:
    """The product against every other role, in every evaluation setting of the cells."""
    found: dict[str, Any] = {}
    for role, name in roles.items():
        if name == PRODUCT or PRODUCT not in roles:
            continue
        found[role] = {}
        for eval_setting in ALL_EVAL_SETTINGS if kind == "final" else BASIC_EVAL_SETTINGS:
            pair = [system_scores(store, one, eval_setting, kind=kind, datasets=HARD) for one in (PRODUCT, name)]
            levels = {"product": pooled(pair[0]), "other": pooled(pair[1])}
            means = {side: {key: row[key] for key in METRICS} for side, row in levels.items() if row}
            found[role][eval_setting] = {**compared(*pair), **means}
    return found


def _main_setting(store: ResultStore) -> dict[str, Any]:
    """Main setting: the product, its image stage alone, and their difference, by evaluation setting."""
    found: dict[str, Any] = {}
    for eval_setting in ALL_EVAL_SETTINGS:
        pair = [system_scores(store, name, eval_setting, kind="final", datasets=MAIN) for name in (PRODUCT, IMAGE_ONLY)]
        if pair[0]:
            found[eval_setting] = {PRODUCT: pooled(pair[0]), IMAGE_ONLY: pooled(pair[1]), "difference": compared(*pair)}
    found["slices"] = compared_slices(store, PRODUCT, IMAGE_ONLY, kind="final", datasets=MAIN)
    return found


def _noise(store: ResultStore) -> dict[str, Any]:
    """The product with 40% wrong clicks against itself with 20%, on the same queries and seeds."""
    noisy = system_scores(store, PRODUCT, "unseen", kind="final", datasets=(NOISY,))
    usual = system_scores(store, PRODUCT, "unseen", kind="final", datasets=(FIRST,))
    renamed = {(FIRST, seed): scores for (_, seed), scores in noisy.items()}
    usual = {key: scores for key, scores in usual.items() if key in renamed}
    return {"noisy": pooled(noisy), "usual": pooled(usual), "difference": compared(renamed, usual)}


def _styles(store: ResultStore) -> dict[str, Any]:
    """Gain over zero-shot on styles outside the training data, as a share of the gain on training styles."""
    found: dict[str, Any] = {}
    for eval_setting in ("unseen", "styles"):
        pair = [system_scores(store, name, eval_setting, kind="final", datasets=HARD) for name in (PRODUCT, ZERO_SHOT)]
        found[eval_setting] = {PRODUCT: pooled(pair[0]), ZERO_SHOT: pooled(pair[1]), "gain": compared(*pair)}
    gains = [found[name]["gain"].get("recall_at_1", {}).get("difference") for name in ("styles", "unseen")]
    found["share_of_gain"] = round(gains[0] / gains[1], 4) if None not in gains and gains[1] else None
    return found


def _reused(store: ResultStore) -> dict[str, Any]:
    """Commit and number of the cells reused from an earlier result file; empty if there are none."""
    if store.earlier_file is None:
        return {}
    cells = [name for name, row in store.earlier["cells"].items() if row["kind"] != "final"]
    missing = [name for name in cells if not store.file(name).is_file()]
    if not missing:
        return {}
    # Cells that the earlier file had reused itself were run at the commit named there.
    commit = store.earlier.get("taken_over", store.earlier)["commit"]
    return {"taken_over": {"commit": commit, "cells": len(missing)}}


def _heads(store: ResultStore) -> dict[str, Any]:
    """Heads grid: hyperparameters and metrics by system; missing cells are read from the earlier result file."""
    found = dict(store.earlier.get("heads", {}))
    for path in sorted(store.cells.glob("heads--*.json")):
        row = json.loads(path.read_text())
        found[row["system"]] = {"settings": row.get("settings"), "seconds": row["seconds"], **reported(row["tracks"])}
    return found


def _cells(store: ResultStore) -> dict[str, Any]:
    """Short form of every cell, including the searches and heads of an earlier result file."""
    found = {name: row for name, row in store.earlier.get("cells", {}).items() if row["kind"] != "final"}
    for path in sorted(store.cells.glob("*--*.json")):
        row = json.loads(path.read_text())
        short = {key: row[key] for key in ("kind", "world", "system", "seed", "stage", "seconds", "threads")}
        if "tracks" in row:
            short["tracks"] = reported(row["tracks"])
        found[row["name"]] = short | {
            key: row[key] for key in ("settings", "training", "chosen", "table") if key in row
        }
    return found
