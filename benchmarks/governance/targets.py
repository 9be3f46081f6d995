"""Compare results of the governance benchmarks with their targets.

A row has the keys task, value, unit, bar (the target, as text), ok (target met), oracle, rival (best baseline), seconds
and peak_gib; None stands for what a benchmark does not have. An oracle uses the truth: the true centres of synthetic
categories, or the best setting chosen with the truth. A baseline does not.
"""

import operator
from collections.abc import Callable, Iterator
from typing import Any

Result = dict[str, Any]
Row = dict[str, Any]
COMPARED: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
    "=": operator.eq,
}
GRAPH_BASELINES = ("components", "content", "leiden")
# (kind, share of wrong labels) -> (largest distance to the oracle, least F1).
CLEANING_TARGETS = {
    ("uniform", 0.1): (0.02, 0.0),
    ("uniform", 0.2): (0.02, 0.0),
    ("uniform", 0.4): (0.02, 0.0),
    ("confusable", 0.1): (0.04, 0.96),
    ("confusable", 0.2): (0.04, 0.95),
    ("confusable", 0.4): (0.04, 0.90),
}
# Share of wrong clicks -> least pair F1.
ORGANISING_TARGETS = {0.2: 0.93, 0.45: 0.70}
# Share of wrong clicks -> (least share of right labels, least share kept, least pair F1) in the first round.
LOOP_TARGETS = {0.2: (0.96, 0.85, 0.85), 0.4: (0.92, 0.75, 0.75)}


def row(task: str, value: float, unit: str, target: tuple[str, float] | None, **more: Any) -> Row:
    """One row.

    Args:
        target: (comparison, limit), None for a metric that is published without a target.
        more: of oracle, rival, seconds and peak_gib what there is.
    """
    ok = None if target is None else COMPARED[target[0]](value, target[1])
    text = None if target is None else f"{target[0]} {target[1]:g}"
    rest = {name: more.get(name) for name in ("oracle", "rival", "seconds", "peak_gib")}
    return {"task": task, "value": value, "unit": unit, "bar": text, "ok": ok, **rest}


def relational(result: Result) -> Iterator[Row]:
    """Time compared with plain SQL; a larger log only has to finish within its memory limit."""
    ours, size = result["ours"], f"{result['rows'] // 10**6}M behaviour rows"
    cost = {"seconds": ours["seconds"], "peak_gib": ours["peak_gib"]}
    if result["memory_limit"] == "1GB":
        yield row(f"{size} under a limit of 1 GB: finished", float(ours["seconds"] > 0), "runs", ("=", 1.0), **cost)
        return
    ratio = result["seconds_ours_over_plain"]
    yield row(f"{size}: ibis with Parquet at every stage / plain SQL", ratio, "ratio", ("<=", 1.5), rival=1.0, **cost)
    yield row(f"{size}: peak", ours["peak_gib"], "GiB", ("<=", 1.5), rival=result["plain"]["peak_gib"], **cost)


def engines(result: Result) -> Iterator[Row]:
    """Tables that differ between DuckDB and separate Spark workers."""
    name = f"DuckDB = Spark {result['spark']['master']}, {result['rows']:,} behaviour rows"
    unequal = float(len(result["unequal_tables"]))
    yield row(f"{name}: unequal tables of {result['tables']}", unequal, "tables", ("=", 0.0))


def organising(result: Result) -> Iterator[Row]:
    """Pair F1 compared with the best graph method; the oracle is Leiden within leaves at its best resolution."""
    for setting in result["settings"]:
        ours = setting["ours"]
        yield row(
            f"organising {result['documents']:,} documents, {100 * setting['noise']:.0f}% wrong clicks",
            ours["f1"],
            "pair F1",
            (">=", ORGANISING_TARGETS[setting["noise"]]),
            oracle=setting["leiden_in_leaf"]["f1"],
            rival=max(setting[name]["f1"] for name in GRAPH_BASELINES),
            seconds=ours.get("cpu_seconds"),
            peak_gib=ours.get("peak_gib"),
        )


def cleaning(result: Result) -> Iterator[Row]:
    """F1 compared with the oracle, which uses the true centres; at a million rows memory and speed as well."""
    is_large = result["rows"] >= 1_000_000
    for setting in result["settings"]:
        oracle = setting.get("bayes_f1", setting["oracle_f1"])
        gap, least = (0.04, 0.0) if is_large else CLEANING_TARGETS[setting["kind"], setting["noise"]]
        target = round(max(oracle - gap, least), 4)
        size = f"{result['rows']:,} rows, {result['categories']:,} categories"
        name = f"cleaning {size}, {setting['kind']} {100 * setting['noise']:.0f}%"
        cost = {"seconds": setting["seconds"], "peak_gib": setting["peak_gib"]}
        yield row(name, setting["f1"], "F1", (">=", target), oracle=oracle, rival=setting.get("one_round_f1"), **cost)
        if is_large:
            yield row(f"{name}: peak", setting["peak_gib"], "GiB", ("<=", 3.0), **cost)
            yield row(f"{name}: speed", setting["rows_per_second"], "rows/s", (">=", 5_000.0), **cost)


def cleanlab(result: Result) -> Iterator[Row]:
    """Every metric compared with the mode of cleanlab that is best in it."""
    for setting in result["comparison"]:
        ours = setting["ours"]
        modes = [metrics for name, metrics in setting.items() if name.startswith("cleanlab")]
        name = f"cleanlab, {result['rows']:,} rows, {result['categories']:,} categories"
        cost = {"seconds": ours.get("cpu_seconds"), "peak_gib": ours["peak_gib"]}
        for metric, unit, best, sign in (
            ("f1", "F1", max, ">"),
            ("rows_per_second", "rows a CPU second", max, ">"),
            ("peak_gib", "GiB", min, "<"),
        ):
            rival = best(mode[metric] for mode in modes)
            yield row(f"{name}: {metric.replace('_', ' ')}", ours[metric], unit, (sign, rival), rival=rival, **cost)


def near_duplicates(result: Result) -> Iterator[Row]:
    """Recall and time over random hashes; precision and recall on drawings, without a target."""
    hashed = result["hash"]
    name = f"near-duplicates, {hashed['hashes']:,} hashes, radius {hashed['radius']}"
    cost = {"seconds": hashed["seconds"], "peak_gib": hashed["peak_gib"]}
    yield row(f"{name}: recall of pairs", hashed["recall"], "recall", ("=", 1.0), **cost)
    yield row(f"{name}: time", hashed["seconds"], "s", ("<=", 30.0), **cost)
    for radius, cosine in ((3, 0.998), (6, 0.97)):
        scores = result["drawings"][f"radius_{radius}_cosine_{cosine}"]
        recalls = [value for metric, value in scores.items() if metric.startswith("recall_")]
        name = f"{result['drawings']['drawings']} drawings, radius {radius}, cosine {cosine}"
        yield row(f"{name}: precision", scores["precision"], "precision", None)
        yield row(f"{name}: mean recall of four changes", round(sum(recalls) / len(recalls), 4), "recall", None)


def incremental(result: Result) -> Iterator[Row]:
    """Time saved and category keys kept by an incremental run."""
    name = f"incremental, {100 * result['share']:g}% new rows"
    cost = {"seconds": result["incremental_cpu_seconds"], "rival": None}
    yield row(f"{name}: CPU time / full", result["cpu_share"], "ratio", ("<=", 0.15), **cost)
    yield row(f"{name}: pairs against a full run", result["pair_f1"], "pair F1", (">=", 0.98), **cost)
    yield row(f"{name}: keys of untouched documents kept", result["keys_kept"], "share", (">=", 0.99), **cost)


def killed(result: Result) -> Iterator[Row]:
    """Tables and ledger after kills compared with an undisturbed run."""
    name = f"killed {result['kills']} times, run again"
    unequal = float(len(result["unequal_tables"]))
    yield row(f"{name}: unequal tables of {result['tables']}", unequal, "tables", ("=", 0.0))
    yield row(f"{name}: ledger bit-equal", float(result["figures_equal"]), "runs", ("=", 1.0))


def loop(result: Result) -> Iterator[Row]:
    """First round compared with the targets, and the gain of the second round."""
    for setting in result["settings"]:
        first, second = setting["first"], setting["second"]
        accuracy, kept, f1 = LOOP_TARGETS[setting["noise"]]
        name = f"drawings, {100 * setting['noise']:.0f}% wrong clicks"
        before = first["label_accuracy_before"]
        metric = "label_accuracy_after"
        yield row(f"{name}: right labels", first[metric], "share", (">=", accuracy), rival=before)
        yield row(f"{name}: kept", first["kept_share"], "share", (">=", kept))
        yield row(f"{name}: pairs of documents", first["category_pair_f1"], "pair F1", (">=", f1))
        for key, title in ((metric, "right labels"), ("kept_share", "kept"), ("category_pair_f1", "pair F1")):
            gain = round(100 * (second[key] - first[key]), 2)
            yield row(f"{name}, second round: gain in {title}", gain, "points", (">", 0.0))
        before, after = (scores[metric] * scores["kept_share"] for scores in (first, second))
        title = "events that are kept and right"
        yield row(f"{name}, second round: gain in {title}", round(100 * (after - before), 2), "points", None)


def bad_rows(result: Result) -> Iterator[Row]:
    """Slowdown by bad rows, and whether each was found; rows lost to one truncated file."""
    name = f"{result['good_rows']['behaviour']:,} behaviour rows with {result['kinds']} kinds of bad ones"
    cost = {"seconds": min(result["cpu_seconds"]["mixed"]), "peak_gib": result["peak_gib"]}
    yield row(f"{name}: time / good rows alone", result["seconds_mixed_over_good"], "ratio", ("<=", 1.1), **cost)
    is_right = result["every_bad_row_found_for_its_reason"] and result["good_rows_equal"]
    yield row(f"{name}: all found, good ones unchanged", float(is_right), "runs", ("=", 1.0))
    folder = result["one_bad_file"]
    lost = folder["rows_of_the_others"] - folder["rows_kept"]
    yield row(f"one truncated file of {folder['files']}: rows lost of the others", float(lost), "rows", ("=", 0.0))
