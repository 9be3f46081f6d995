"""The tables of docs/immr.md, rendered from the newest result file: nothing there is typed by hand.

A section stands in the page when the result file has it: without a file there is none, a file of the heads grid alone
has no section of the final grid. A number that is missing inside a section stops the rendering.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.immr.baselines.baselines import Method
from benchmarks.render.governance import RESULTS, table
from benchmarks.render.immr_ablation import ablation

METRICS = {"recall_at_1": "R@1", "recall_at_10": "R@10", "mrr_at_10": "MRR@10"}
LOSSES = {
    "infonce": "InfoNCE",
    "supcon": "SupCon",
    "siglip": "SigLIP loss",
    "triplet": "triplet",
    "proxyanchor": "ProxyAnchor",
    "cosface": "CosFace",
}
DOCUMENTS = {"image": "image", "text": "text", "mean": "mean of image and text", "concat": "image + text, learned"}
SYSTEMS = {
    "oclear": "**OCLEAR**",
    "image_only": "the same image side, documents without text",
    "zero_shot": "frozen features, nothing learned",
}
ROLES = {
    "oclear": "",
    "image_only": "",
    "best_governed_rival": "best rival on governed labels: ",
    "best_raw_rival": "best rival on raw clicks: ",
    "distilled_rival": "a rival given the product's members and student: ",
    "zero_shot": "",
}
TRACKS = {
    "unseen": "unseen categories",
    "seen": "held-out queries of seen categories",
    "styles": "unseen categories, styles never trained on",
    "tiny": "unseen documents tiny",
    "blurred": "unseen documents blurred",
    "line_art": "unseen documents as line art",
    "occluded": "unseen documents half occluded",
    "missing": "unseen documents without image",
    "wrong_text": "unseen documents with another's text",
}
SMALL = ".small"
Result = Mapping[str, Any]


def newest(folder: Path = RESULTS) -> Result | None:
    """The newest result file by the month in its name; None without one."""
    paths = [path for path in folder.glob("immr_*.json") if not path.name.startswith("immr_ablation_")]
    paths.sort(key=lambda path: (path.stem.split("_")[-1], path.stem))
    if not paths:
        return None
    found: Result = json.loads(paths[-1].read_text(encoding="utf-8"))
    return {**found, "file": paths[-1].name}


def blocks(folder: Path = RESULTS) -> dict[str, str]:
    """Every block of the page; all empty without a result file.

    Raises:
        ValueError: a section of the file lacks a number.
    """
    result = newest(folder)
    if result is None:
        return {**dict.fromkeys(SECTIONS, ""), "immr-ablation": ablation(folder)}
    found = {"immr-ablation": ablation(folder)}
    for name, section in SECTIONS.items():
        try:
            found[name] = section(result)
        except KeyError as error:
            raise ValueError(f"{result['file']} lacks {error} for the block {name}; run the benchmark again") from error
    return found


def system(name: str) -> str:
    """A system in words: "infonce.raw.concat" is "InfoNCE, raw labels, image + text, learned"."""
    if name in SYSTEMS:
        return SYSTEMS[name]
    method = Method.named(name)
    said = f"{LOSSES[method.loss]}, {method.labels} labels, documents: {DOCUMENTS[method.documents]}"
    return f"{said}, distilled" if method.distilled else said


def track(name: str) -> str:
    """A track in words."""
    small = name.endswith(SMALL)
    return TRACKS[name.removesuffix(SMALL)] + ("; gallery of unseen documents alone" if small else "")


def part(name: str) -> str:
    """A slice in words: "document.text=other_language" is "documents, text: other language"."""
    fact, value = name.split("=", 1)
    side, what = fact.split(".", 1)
    return f"{'documents' if side == 'document' else 'queries'}, {what}: {value.replace('_', ' ')}"


def spread(row: Result, metric: str) -> str:
    """A mean with its interval."""
    low, high = row["intervals"][metric]
    return f"{row[metric]:.3f} [{low:.3f}, {high:.3f}]"


def change(row: Result, metric: str) -> str:
    """A paired difference with its interval, in points; bold when the interval leaves zero out."""
    found = row[metric]
    text = f"{100 * found['difference']:+.1f} [{100 * found['low']:+.1f}, {100 * found['high']:+.1f}]"
    return f"**{text}**" if found["low"] > 0 or found["high"] < 0 else text


def source(result: Result) -> str:
    """File, command and machine."""
    machine = result["environment"]
    cut = f" Trial run with {result['max_steps']} steps: no figure counts." if result["max_steps"] else ""
    return (
        f"From `benchmarks/results/{result['file']}`, made by `{result['command']}`, commit "
        f"{result['commit'] or 'unknown'}, on {machine['cores']} cores ({machine['cpu']}, {machine['memory_gib']} GiB, "
        f"Python {machine['python']}, torch {machine['torch']}).{cut}"
    )


def summary(result: Result) -> str:
    """Means of the summary and of every other system, unseen categories, full gallery."""
    grid = "last block trained" if result["grid"] == "final" else "heads alone on frozen features"
    lines = [f"## Results: unseen categories, full gallery, {grid}", ""]
    rows, shown = [], set()
    for role, row in result["summary"].items():
        shown.add(row["name"])
        rows.append([ROLES[role] + system(row["name"]), *(spread(row, name) for name in METRICS), str(row["cells"])])
    others = sorted(
        ((name, row) for name, row in result["systems"].items() if name not in shown),
        key=lambda pair: -float(pair[1]["recall_at_1"]),
    )
    if result["grid"] == "final":
        rows += [[system(name), *(spread(row, m) for m in METRICS), str(row["cells"])] for name, row in others]
    lines += table(["system", *METRICS.values(), "cells"], rows)
    return "\n".join([*lines, "", "Means over all queries of all (split, seed) cells.", "", source(result)])


def comparisons(result: Result) -> str:
    """OCLEAR minus every other part of the summary, on every track, in points."""
    lines = ["## OCLEAR against the others, in points", "", "Intervals that leave zero out are bold.", ""]
    for role, tracks in result["comparisons"].items():
        name = result["summary"][role]["name"]
        rows = []
        for one, row in tracks.items():
            if not row:
                continue
            levels = [f"{row[side]['recall_at_10']:.3f}" for side in ("product", "other")]
            rows.append([track(one), *(change(row, metric) for metric in METRICS), " / ".join(levels)])
        if rows:
            head = [f"OCLEAR minus {ROLES[role]}{system(name)}", *METRICS.values(), "R@10 of both"]
            lines += [*table(head, rows), ""]
    return "\n".join(lines).strip()


def slice_table(slices: Result, metric: str) -> list[str]:
    """One row a slice with Holm's corrected interval."""
    rows = []
    for name, row in slices[metric].items():
        plain = f"{100 * row['difference']:+.1f} [{100 * row['low']:+.1f}, {100 * row['high']:+.1f}]"
        corrected = "too few to judge"
        if row["judged"]:
            verdict = "below zero" if row["high_holm"] < 0 else "above zero" if row["low_holm"] > 0 else "open"
            corrected = f"[{100 * row['low_holm']:+.1f}, {100 * row['high_holm']:+.1f}], {verdict}"
        rows.append([part(name), f"{row['evaluations']:,}", plain, corrected])
    return table([f"slice ({METRICS[metric]}, points)", "evaluations", "difference", "after Holm"], rows)


def slices(result: Result) -> str:
    """Where text helps and where it hurts: OCLEAR minus the same image side without text, slice by slice."""
    if not result["slices"]:
        return ""
    lines = ["## Slice by slice: with text minus without", ""]
    for metric in ("recall_at_10", "recall_at_1"):
        lines += [*slice_table(result["slices"], metric), ""]
    return "\n".join(lines).strip()


def others(result: Result) -> str:
    """Main setting, 40% wrong clicks, styles never trained on: where the final grid measured them."""
    lines: list[str] = []
    if result.get("main", {}).get("unseen"):
        lines += ["## Main setting: texts as they are", ""]
        rows = []
        for one, row in result["main"].items():
            if one != "slices" and row:
                levels = [f"{row['oclear'][m]:.3f}" for m in METRICS]
                rows.append([track(one), *levels, *(change(row["difference"], metric) for metric in METRICS)])
        head = ["OCLEAR", *METRICS.values(), *(f"{name}, minus image only" for name in METRICS.values())]
        lines += [*table(head, rows), ""]
    if result.get("noise", {}).get("noisy"):
        lines += ["## 40% wrong clicks instead of 20%", ""]
        rows = [[share, *(spread(result["noise"][key], m) for m in METRICS)] for share, key in NOISES.items()]
        rows.append(["difference, points", *(change(result["noise"]["difference"], m) for m in METRICS)])
        lines += [*table(["wrong clicks", *METRICS.values()], rows), ""]
    share = result.get("styles", {}).get("share_of_gain")
    if share is not None:
        lines += [f"Styles never trained on keep {share:.0%} of the R@1 gained over frozen features on trained styles."]
    return "\n".join(lines).strip()


NOISES = {"20%": "usual", "40%": "noisy"}
SHORT = ("unseen", "unseen.small", "seen", "styles", "occluded.small", "missing.small", "wrong_text")


def short(folder: Path = RESULTS) -> str:
    """README's table: OCLEAR and what text adds, in both settings; empty without a final grid."""
    result = newest(folder)
    if result is None or result["grid"] != "final" or "image_only" not in result["comparisons"]:
        return ""
    rows = []
    for one in SHORT:
        row = result["comparisons"]["image_only"].get(one)
        if row:
            rows.append(["hard", track(one), *levels_and_changes(row["product"], row)])
    found = result.get("main", {}).get("unseen")
    if found:
        rows.append(["main", track("unseen"), *levels_and_changes(found["oclear"], found["difference"])])
    names = METRICS.values()
    lines = table(["texts", "searched", *names, *(f"{name}, minus documents without text" for name in names)], rows)
    runs = f"Means of {result['summary']['oclear']['cells']} runs in the hard setting"
    runs += f" and {found['oclear']['cells']} in the main one" if found else ""
    said = (
        f"{runs}, on splits of the categories with disjoint test sets, each with its seeds of training; differences in "
        "points with 95% intervals over categories, bold where they leave zero out. More, and the other methods: "
        "[Retrieval (IMMR)](immr.md)."
    )
    return "\n".join([*lines, "", said, "", source(result)])


def levels_and_changes(levels: Result, differences: Result) -> list[str]:
    return [*(f"{levels[m]:.3f}" for m in METRICS), *(change(differences, m) for m in METRICS)]


def heads(result: Result) -> str:
    """The whole heads grid: every loss, labels and documents on one split."""
    if not result["heads"]:
        return ""
    ordered = sorted(result["heads"].items(), key=lambda pair: -float(pair[1]["unseen"]["recall_at_1"]))
    rows = []
    for name, row in ordered:
        levels = [f"{row[one][m]:.3f}" for one in ("unseen", "seen") for m in ("recall_at_1", "recall_at_10")]
        settings = row["settings"]
        chosen = f"x{settings['rate']:g}, {settings['value']}, {settings['balance']:g}" if settings else ""
        rows.append([system(name), *levels, chosen])
    lines = ["## Every method, heads alone on frozen features", ""]
    lines += table(["system", "unseen R@1", "R@10", "seen R@1", "R@10", "chosen: rate, value, balance"], rows)
    lines += [
        "",
        "One split, one seed. The last column is what the search on validation categories chose: factor on all",
    ]
    lines.append("learning rates, temperature or margin of the loss, and whether batches draw classes evenly (1).")
    if earlier := result.get("taken_over"):
        lines.append(
            f"Of these and of the searches {earlier['cells']} were taken over from commit {earlier['commit']}."
        )
    return "\n".join(lines)


SECTIONS: dict[str, Callable[[Result], str]] = {
    "immr-results": summary,
    "immr-comparisons": comparisons,
    "immr-slices": slices,
    "immr-others": others,
    "immr-heads": heads,
}
