"""What each governance benchmark has to show: the row of every bar, read from the result files of the measuring parts.

A row is {task, value, unit, bar, ok, oracle, rival, seconds, peak_gib, from}; what a part does not have is None. An
oracle reads the truth (the true centres of the made categories where they are known, else the best setting chosen with
it); a rival does not. `from` is the command that measured.
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
GRAPH_RIVALS = ("components", "content", "leiden")
# (largest gap to the oracle, least F1) by kind and share of wrong labels.
CLEANING_BARS = {
    ("uniform", 0.1): (0.02, 0.0),
    ("uniform", 0.2): (0.02, 0.0),
    ("uniform", 0.4): (0.02, 0.0),
    ("confusable", 0.1): (0.04, 0.96),
    ("confusable", 0.2): (0.04, 0.95),
    ("confusable", 0.4): (0.04, 0.90),
}
ORGANISING_BARS = {0.2: 0.93, 0.45: 0.70}
LOOP_BARS = {0.2: (0.96, 0.85, 0.85), 0.4: (0.92, 0.75, 0.75)}


def row(task: str, value: float, unit: str, bar: tuple[str, float] | None, **more: Any) -> Row:
    """One row; `bar` = (comparison, limit), None where a figure is published without a bar."""
    ok = None if bar is None else COMPARED[bar[0]](value, bar[1])
    shown = None if bar is None else f"{bar[0]} {bar[1]:g}"
    rest = {name: more.get(name) for name in ("oracle", "rival", "seconds", "peak_gib")}
    return {"task": task, "value": value, "unit": unit, "bar": shown, "ok": ok, **rest}


def relational(found: Result) -> Iterator[Row]:
    """Time against plain SQL; a larger log only has to finish within its limit of memory."""
    ours, size = found["ours"], f"{found['rows'] // 10**6}M behaviour rows"
    facts = {"seconds": ours["seconds"], "peak_gib": ours["peak_gib"]}
    if found["memory_limit"] == "1GB":
        yield row(f"{size} under a limit of 1 GB: finished", float(ours["seconds"] > 0), "runs", ("=", 1.0), **facts)
        return
    ratio = found["seconds_ours_over_plain"]
    yield row(f"{size}: ibis with Parquet at every stage / plain SQL", ratio, "ratio", ("<=", 1.5), rival=1.0, **facts)
    yield row(f"{size}: peak", ours["peak_gib"], "GiB", ("<=", 1.5), rival=found["plain"]["peak_gib"], **facts)


def engines(found: Result) -> Iterator[Row]:
    """Unequal tables between DuckDB and separate Spark workers."""
    name = f"DuckDB = Spark {found['spark']['master']}, {found['rows']:,} behaviour rows"
    yield row(f"{name}: unequal tables of {found['tables']}", float(len(found["unequal_tables"])), "tables", ("=", 0.0))


def organising(found: Result) -> Iterator[Row]:
    for setting in found["settings"]:
        bar = ORGANISING_BARS[setting["noise"]]
        rival = max(setting[name]["f1"] for name in GRAPH_RIVALS)
        ours = setting["ours"]
        yield row(
            f"organising {found['documents']:,} documents, {100 * setting['noise']:.0f}% wrong clicks",
            ours["f1"],
            "pair F1",
            (">=", bar),
            oracle=setting["leiden_in_leaf"]["f1"],
            rival=rival,
            seconds=ours.get("cpu_seconds"),
            peak_gib=ours.get("peak_gib"),
        )


def cleaning(found: Result) -> Iterator[Row]:
    """F1 against the oracle, which knows the true centres; at a million rows memory and speed as well."""
    large = found["rows"] >= 1_000_000
    for setting in found["settings"]:
        oracle = setting.get("bayes_f1", setting["oracle_f1"])
        gap, least = (0.04, 0.0) if large else CLEANING_BARS[setting["kind"], setting["noise"]]
        bar = round(max(oracle - gap, least), 4)
        size = f"{found['rows']:,} rows, {found['categories']:,} categories"
        name = f"cleaning {size}, {setting['kind']} {100 * setting['noise']:.0f}%"
        facts = {"seconds": setting["seconds"], "peak_gib": setting["peak_gib"]}
        yield row(name, setting["f1"], "F1", (">=", bar), oracle=oracle, rival=setting.get("one_round_f1"), **facts)
        if large:
            yield row(f"{name}: peak", setting["peak_gib"], "GiB", ("<=", 3.0), **facts)
            yield row(f"{name}: speed", setting["rows_per_second"], "rows/s", (">=", 5_000.0), **facts)


def cleanlab(found: Result) -> Iterator[Row]:
    """Against the best of cleanlab's modes for each figure, whichever that is."""
    for setting in found["comparison"]:
        ours = setting["ours"]
        others = [cell for name, cell in setting.items() if name.startswith("cleanlab")]
        name = f"cleanlab, {found['rows']:,} rows, {found['categories']:,} categories"
        facts = {"seconds": ours.get("cpu_seconds"), "peak_gib": ours["peak_gib"]}
        for figure, unit, best, sign in (
            ("f1", "F1", max, ">"),
            ("rows_per_second", "rows a CPU second", max, ">"),
            ("peak_gib", "GiB", min, "<"),
        ):
            rival = best(cell[figure] for cell in others)
            yield row(f"{name}: {figure.replace('_', ' ')}", ours[figure], unit, (sign, rival), rival=rival, **facts)


def near_duplicates(found: Result) -> Iterator[Row]:
    part = found["hash"]
    name = f"near-duplicates, {part['hashes']:,} hashes, radius {part['radius']}"
    facts = {"seconds": part["seconds"], "peak_gib": part["peak_gib"]}
    yield row(f"{name}: recall of pairs", part["recall"], "recall", ("=", 1.0), **facts)
    yield row(f"{name}: time", part["seconds"], "s", ("<=", 30.0), **facts)
    for radius, cosine in ((3, 0.998), (6, 0.97)):
        scores = found["drawings"][f"radius_{radius}_cosine_{cosine}"]
        kinds = [value for figure, value in scores.items() if figure.startswith("recall_")]
        told = f"{found['drawings']['drawings']} drawings, radius {radius}, cosine {cosine}"
        yield row(f"{told}: precision", scores["precision"], "precision", None)
        yield row(f"{told}: mean recall of four changes", round(sum(kinds) / len(kinds), 4), "recall", None)


def incremental(found: Result) -> Iterator[Row]:
    name = f"incremental, {100 * found['share']:g}% new rows"
    facts = {"seconds": found["incremental_cpu_seconds"], "rival": None}
    yield row(f"{name}: CPU time / full", found["cpu_share"], "ratio", ("<=", 0.15), **facts)
    yield row(f"{name}: pairs against a full run", found["pair_f1"], "pair F1", (">=", 0.98), **facts)
    yield row(f"{name}: keys of untouched documents kept", found["keys_kept"], "share", (">=", 0.99), **facts)


def killed(found: Result) -> Iterator[Row]:
    name = f"killed {found['kills']} times, run again"
    yield row(f"{name}: unequal tables of {found['tables']}", float(len(found["unequal_tables"])), "tables", ("=", 0.0))
    yield row(f"{name}: figures bit-equal", float(found["figures_equal"]), "runs", ("=", 1.0))


def loop(found: Result) -> Iterator[Row]:
    """First round against the bars, then what the second gains on it."""
    for setting in found["settings"]:
        first, second = setting["first"], setting["second"]
        accuracy, kept, f1 = LOOP_BARS[setting["noise"]]
        name = f"drawings, {100 * setting['noise']:.0f}% wrong clicks"
        before = first["label_accuracy_before"]
        figure = "label_accuracy_after"
        yield row(f"{name}: right labels", first[figure], "share", (">=", accuracy), rival=before)
        yield row(f"{name}: kept", first["kept_share"], "share", (">=", kept))
        yield row(f"{name}: pairs of documents", first["category_pair_f1"], "pair F1", (">=", f1))
        for key, told in ((figure, "right labels"), ("kept_share", "kept"), ("category_pair_f1", "pair F1")):
            gain = round(100 * (second[key] - first[key]), 2)
            yield row(f"{name}, second round: gain in {told}", gain, "points", (">", 0.0))
        right = [one[figure] * one["kept_share"] for one in (first, second)]
        told = "events that are kept and right"
        yield row(f"{name}, second round: gain in {told}", round(100 * (right[1] - right[0]), 2), "points", None)


def bad_rows(found: Result) -> Iterator[Row]:
    kinds = found["kinds"]
    name = f"{found['good_rows']['behaviour']:,} behaviour rows with {kinds} kinds of bad ones"
    peak = {"seconds": min(found["cpu_seconds"]["mixed"]), "peak_gib": found["peak_gib"]}
    yield row(f"{name}: time / good rows alone", found["seconds_mixed_over_good"], "ratio", ("<=", 1.1), **peak)
    whole = found["every_bad_row_found_for_its_reason"] and found["good_rows_equal"]
    yield row(f"{name}: all found, good ones unchanged", float(whole), "runs", ("=", 1.0))
    folder = found["one_bad_file"]
    lost = folder["rows_of_the_others"] - folder["rows_kept"]
    yield row(f"one cut file of {folder['files']}: rows lost of the others", float(lost), "rows", ("=", 0.0))
