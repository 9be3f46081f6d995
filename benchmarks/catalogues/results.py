"""Figures of one cell under one seed, and of all seeds of a cell together."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from benchmarks.catalogues.commands import PARTS, SYSTEMS
from benchmarks.immr.protocol.statistics import bootstrap_differences
from examples.emoji.score import Truth, governance_score, read_governed

METRICS = ("recall_at_1", "recall_at_10", "mrr_at_10")
TAIL = 0.025  # of the intervals
DIGITS = 5


def cell_result(folder: Path) -> dict[str, Any]:
    """Figures of the folder of one cell: metrics of both systems, every query, differences, governance."""
    data = json.loads((folder / "data" / "cell.json").read_text(encoding="utf-8"))
    queries = {part: query_scores(folder, part) for part in PARTS}
    return {
        "data": data,
        "systems": {system: {part: _metrics(folder / system / f"{part}.json") for part in PARTS} for system in SYSTEMS},
        "difference": {part: differences([queries[part]]) for part in PARTS},
        "governance": governance(folder),
        "published": published(folder),
        "queries": queries,
    }


def published(folder: Path) -> str:
    """Which candidate the trained system published ("frozen", "trained", ...); "" for a recipe that judges none."""
    path = folder / "trained" / "training.json"
    selection = json.loads(path.read_text(encoding="utf-8")).get("selection") if path.is_file() else None
    return str((selection or {}).get("published", ""))


def _metrics(path: Path) -> dict[str, float]:
    found = json.loads(path.read_text(encoding="utf-8"))
    return {name: round(float(found[name]), DIGITS) for name in METRICS} | {"queries": int(found["queries"])}


def query_scores(folder: Path, part: str) -> dict[str, Any]:
    """Category and metrics of every query that both systems answered, in order of query ids."""
    truth = pq.read_table(folder / "data" / "truth" / "queries.parquet").to_pydict()
    category = dict(zip(truth["query_id"], truth["category"], strict=True))
    rows = {
        system: {row["query_id"]: row for row in pq.read_table(folder / system / f"{part}.parquet").to_pylist()}
        for system in SYSTEMS
    }
    both = sorted(set.intersection(*(set(found) for found in rows.values())))
    scores = {
        system: {name: [round(float(rows[system][one][name]), DIGITS) for one in both] for name in METRICS}
        for system in SYSTEMS
    }
    return {"category": [category[one] for one in both]} | scores


def differences(seeds: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Trained minus frozen in every metric: mean over the queries of all seeds, 95% interval over categories.

    Args:
        seeds: `query_scores` of each seed; the seeds are strata of the resampling.
    """
    first, second = (np.concatenate([_values(one[system]) for one in seeds]) for system in SYSTEMS)
    category = [name for one in seeds for name in one["category"]]
    stratum = np.concatenate([np.full(len(one["category"]), number) for number, one in enumerate(seeds)])
    means_BM = bootstrap_differences(first - second, category, stratum)
    low_M, high_M = np.quantile(means_BM, [TAIL, 1 - TAIL], axis=0)
    return {
        name: {
            "difference": round(float((first - second)[:, column].mean()), DIGITS),
            "low": round(float(low_M[column]), DIGITS),
            "high": round(float(high_M[column]), DIGITS),
        }
        for column, name in enumerate(METRICS)
    }


def _values(scores: Mapping[str, Sequence[float]]) -> NDArray[np.float64]:
    return np.asarray([scores[name] for name in METRICS], dtype=np.float64).T


def governance(folder: Path) -> dict[str, float | int]:
    """Governed labels against the truth of the simulation, as examples/emoji/score.py defines it."""
    data = folder / "data"

    def mapping(name: str, key: str) -> dict[str, str]:
        table = pq.read_table(data / "truth" / f"{name}.parquet", columns=[key, "category"]).to_pydict()
        return dict(zip(table[key], table["category"], strict=True))

    of_query = mapping("queries", "query_id")
    events = pq.read_table(data / "queries.parquet", columns=["query_id"])["query_id"].to_pylist()
    right = pq.read_table(data / "truth" / "clicks.parquet", columns=["right"])["right"].to_pylist()
    truth = Truth({one: of_query[one] for one in events}, mapping("catalogue", "doc_id"), right)
    found = governance_score(read_governed(folder / "governed", truth), truth)
    return {name: round(value, DIGITS) if isinstance(value, float) else value for name, value in found.items()}


def summarised(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One row of the summary: the results of all seeds of one cell.

    Args:
        results: contents of the cell's files, one for each seed.
    """
    row: dict[str, Any] = {"seeds": [one["seed"] for one in results]}
    row |= {name: [one.get(name) for one in results] for name in ("published", "threads", "commit")}
    for part in PARTS:
        row[part] = {
            system: {
                name: round(mean(one["systems"][system][part][name] for one in results), DIGITS) for name in METRICS
            }
            for system in SYSTEMS
        }
        row[part]["queries"] = sum(len(one["queries"][part]["category"]) for one in results)
        row[part]["difference"] = differences([one["queries"][part] for one in results])
    first = results[0]
    settings = {name: value for name, value in first["data"]["settings"].items() if name != "seed"}
    facts = {name: first["data"][name] for name in ("rows", "categories", "documents", "clicks", "wrong_click_share")}
    shares = ("kept_share", "label_accuracy_before", "label_accuracy_after", "category_pair_f1")
    row["governance"] = {name: round(mean(one["governance"][name] for one in results), DIGITS) for name in shares}
    seconds = round(mean(sum(one["cpu_seconds"].values()) for one in results), 1)
    return row | {"settings": settings, "first_seed": facts, "cpu_seconds": seconds}
