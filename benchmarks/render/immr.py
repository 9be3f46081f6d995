"""Render the tables of docs/immr.md and README from the newest IMMR result file.

A section appears only if the result file contains it: without a file all are empty, and a file of the heads grid has no
section of the final grid. A number that is missing inside a section is an error.
"""

from collections.abc import Callable
from pathlib import Path

from benchmarks.immr.baselines.method import Method
from benchmarks.render import immr_format
from benchmarks.render.immr_ablation import PREFIX as ABLATION_PREFIX
from benchmarks.render.immr_ablation import ablation
from benchmarks.render.immr_format import METRICS, Result, change, levels, source
from benchmarks.render.tables import RESULTS, table

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
    "image_only": "OCLEAR's image stage, documents without text",
    "zero_shot": "frozen features, no training",
}
# Keys of the result file.
ROLES = {
    "oclear": "",
    "image_only": "",
    "best_governed_rival": "best baseline on governed labels: ",
    "best_raw_rival": "best baseline on raw clicks: ",
    "distilled_rival": "baseline with OCLEAR's ensemble distillation: ",
    "zero_shot": "",
}
EVAL_SETTINGS = {
    "unseen": "unseen categories",
    "seen": "held-out queries of seen categories",
    "styles": "unseen categories, untrained styles",
    "tiny": "unseen documents tiny",
    "blurred": "unseen documents blurred",
    "line_art": "unseen documents as line art",
    "occluded": "unseen documents half occluded",
    "missing": "unseen documents without image",
    "wrong_text": "unseen documents with wrong text",
}
SMALL = ".small"
NOISES = {"20%": "usual", "40%": "noisy"}
README_EVAL_SETTINGS = ("unseen", "unseen.small", "seen", "styles", "occluded.small", "missing.small", "wrong_text")


def newest(folder: Path = RESULTS) -> Result | None:
    """The newest result file of the benchmark; None without one."""
    return immr_format.newest("immr_", folder, other_than=ABLATION_PREFIX)


def blocks(folder: Path = RESULTS) -> dict[str, str]:
    """Every block of the page; all empty without a result file.

    Raises:
        ValueError: a section of the file lacks a number.
    """
    result = newest(folder)
    found = {"immr-ablation": ablation(folder)}
    if result is None:
        return {**dict.fromkeys(SECTIONS, ""), **found}
    for name, section in SECTIONS.items():
        try:
            found[name] = section(result)
        except KeyError as error:
            raise ValueError(f"{result['file']} lacks {error} for the block {name}; run the benchmark again") from error
    return found


def system_title(name: str) -> str:
    """Title of a system: "infonce.raw.concat" is "InfoNCE, raw labels, documents: image + text, learned"."""
    if name in SYSTEMS:
        return SYSTEMS[name]
    method = Method.named(name)
    title = f"{LOSSES[method.loss]}, {method.labels} labels, documents: {DOCUMENTS[method.documents]}"
    return f"{title}, distilled" if method.distilled else title


def eval_setting_title(name: str) -> str:
    """Title of an evaluation setting."""
    return EVAL_SETTINGS[name.removesuffix(SMALL)] + ("; small gallery" if name.endswith(SMALL) else "")


def slice_title(name: str) -> str:
    """Title of a slice: "document.text=other_language" is "documents, text: other language"."""
    fact, value = name.split("=", 1)
    side, what = fact.split(".", 1)
    return f"{'documents' if side == 'document' else 'queries'}, {what}: {value.replace('_', ' ')}"


def with_interval(row: Result, metric: str) -> str:
    """A mean with its interval."""
    low, high = row["intervals"][metric]
    return f"{row[metric]:.3f} [{low:.3f}, {high:.3f}]"


def summary(result: Result) -> str:
    """Metrics of every system on unseen categories, full gallery."""
    grid = "last block trained" if result["grid"] == "final" else "heads only on frozen features"
    rows, shown = [], set()
    for role, row in result["summary"].items():
        shown.add(row["name"])
        metrics = [with_interval(row, name) for name in METRICS]
        rows.append([ROLES[role] + system_title(row["name"]), *metrics, str(row["cells"])])
    others = [(name, row) for name, row in result["systems"].items() if name not in shown]
    if result["grid"] == "final":
        for name, row in sorted(others, key=lambda pair: -float(pair[1]["recall_at_1"])):
            rows.append([system_title(name), *(with_interval(row, metric) for metric in METRICS), str(row["cells"])])
    return "\n".join(
        [
            f"## Results: unseen categories, full gallery, {grid}",
            "",
            *table(["system", *METRICS.values(), "runs"], rows),
            "",
            "Means over all queries of all runs; a run is one (split, training seed). 95% intervals over categories.",
            "",
            source(result),
        ]
    )


def comparisons(result: Result) -> str:
    """OCLEAR minus every other system of the summary, in every evaluation setting, in points."""
    lines = ["## Paired differences to OCLEAR", "", "In points, with 95% intervals; bold if they exclude zero.", ""]
    for role, eval_settings in result["comparisons"].items():
        name = result["summary"][role]["name"]
        rows = []
        for eval_setting, row in eval_settings.items():
            if row:
                both = [f"{row[side]['recall_at_10']:.3f}" for side in ("product", "other")]
                differences = [change(row, metric) for metric in METRICS]
                rows.append([eval_setting_title(eval_setting), *differences, " / ".join(both)])
        if rows:
            head = [f"OCLEAR minus {ROLES[role]}{system_title(name)}", *METRICS.values(), "R@10 of both"]
            lines += [*table(head, rows), ""]
    return "\n".join(lines).strip()


def slice_table(slices: Result, metric: str) -> list[str]:
    """One row per slice with Holm's corrected interval."""
    rows = []
    for name, row in slices[metric].items():
        plain = f"{100 * row['difference']:+.1f} [{100 * row['low']:+.1f}, {100 * row['high']:+.1f}]"
        corrected = "too few evaluations"
        if row["judged"]:
            verdict = (
                "below zero" if row["high_holm"] < 0 else "above zero" if row["low_holm"] > 0 else "not significant"
            )
            corrected = f"[{100 * row['low_holm']:+.1f}, {100 * row['high_holm']:+.1f}], {verdict}"
        rows.append([slice_title(name), f"{row['evaluations']:,}", plain, corrected])
    return table([f"slice ({METRICS[metric]}, points)", "evaluations", "difference", "after Holm's correction"], rows)


def slices(result: Result) -> str:
    """Effect of text by slice: OCLEAR minus its image stage without text."""
    if not result["slices"]:
        return ""
    lines = ["## Effect of text by slice", "", "OCLEAR minus its image stage, documents without text.", ""]
    for metric in ("recall_at_10", "recall_at_1"):
        lines += [*slice_table(result["slices"], metric), ""]
    return "\n".join(lines).strip()


def others(result: Result) -> str:
    """Main setting, 40% wrong clicks and untrained styles, as far as the final grid measured them."""
    lines: list[str] = []
    if result.get("main", {}).get("unseen"):
        rows = [
            [eval_setting_title(name), *levels(row["oclear"]), *(change(row["difference"], m) for m in METRICS)]
            for name, row in result["main"].items()
            if name != "slices" and row
        ]
        head = ["OCLEAR", *METRICS.values(), *(f"{name}, minus image stage" for name in METRICS.values())]
        lines += ["## Main setting: unmodified texts", "", *table(head, rows), ""]
    if result.get("noise", {}).get("noisy"):
        rows = [[share, *(with_interval(result["noise"][key], m) for m in METRICS)] for share, key in NOISES.items()]
        rows.append(["difference, points", *(change(result["noise"]["difference"], m) for m in METRICS)])
        lines += ["## 40% wrong clicks instead of 20%", "", *table(["wrong clicks", *METRICS.values()], rows), ""]
    share = result.get("styles", {}).get("share_of_gain")
    if share is not None:
        lines += [f"In untrained styles, the R@1 gain over frozen features is {share:.0%} of that in trained styles."]
    return "\n".join(lines).strip()


def short(folder: Path = RESULTS) -> str:
    """README's table: OCLEAR and the effect of text in both settings; empty without a final grid."""
    result = newest(folder)
    if result is None or result["grid"] != "final" or "image_only" not in result["comparisons"]:
        return ""
    rows = []
    for name in README_EVAL_SETTINGS:
        row = result["comparisons"]["image_only"].get(name)
        if row:
            differences = [change(row, metric) for metric in METRICS]
            rows.append(["hard", eval_setting_title(name), *levels(row["product"]), *differences])
    main = result.get("main", {}).get("unseen")
    if main:
        differences = [change(main["difference"], metric) for metric in METRICS]
        rows.append(["main", eval_setting_title("unseen"), *levels(main["oclear"]), *differences])
    names = METRICS.values()
    runs = f"Means of {result['summary']['oclear']['cells']} runs in the hard setting"
    runs += f" and {main['oclear']['cells']} in the main setting" if main else ""
    note = (
        f"{runs}: category splits with disjoint test sets, several training seeds each. Differences in points with 95% "
        "intervals over categories, bold if they exclude zero. Baselines and details: [Retrieval (IMMR)](immr.md)."
    )
    head = ["texts", "searched", *names, *(f"{name}, minus documents without text" for name in names)]
    return "\n".join([*table(head, rows), "", note, "", source(result)])


def heads(result: Result) -> str:
    """The heads grid: every loss, labels and document representation on one split."""
    if not result["heads"]:
        return ""
    rows = []
    for name, row in sorted(result["heads"].items(), key=lambda pair: -float(pair[1]["unseen"]["recall_at_1"])):
        metrics = [f"{row[one][m]:.3f}" for one in ("unseen", "seen") for m in ("recall_at_1", "recall_at_10")]
        chosen = row["settings"]
        text = f"x{chosen['rate']:g}, {chosen['value']}, {chosen['balance']:g}" if chosen else ""
        rows.append([system_title(name), *metrics, text])
    lines = ["## All methods, heads only on frozen features", ""]
    lines += table(["system", "unseen R@1", "R@10", "seen R@1", "R@10", "chosen: rate, value, balance"], rows)
    lines += [
        "",
        "One split, one seed. The last column is the choice of the search on validation categories: factor on all",
        "learning rates, temperature or margin of the loss, and class balance of the batches (1: equally often).",
    ]
    if earlier := result.get("taken_over"):
        lines.append(f"{earlier['cells']} of these cells and searches were reused from commit {earlier['commit']}.")
    return "\n".join(lines)


SECTIONS: dict[str, Callable[[Result], str]] = {
    "immr-results": summary,
    "immr-comparisons": comparisons,
    "immr-slices": slices,
    "immr-others": others,
    "immr-heads": heads,
}
