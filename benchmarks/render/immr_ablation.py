"""Render the ablation table from the newest result file."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.render.governance import RESULTS, table

FULL = "oclear"
METRICS = {"recall_at_1": "R@1", "recall_at_10": "R@10", "mrr_at_10": "MRR@10"}
# By part: what is taken out, and what stands there instead.
PARTS = {
    "governance": ("governance", "raw clicks: every document a category of its own"),
    "classification_infonce": ("classification", "InfoNCE on governed labels"),
    "classification_supcon": ("classification", "SupCon on governed labels"),
    "out_of_fold": ("out-of-fold text", "text inside the loss, image and text mixed by a learned layer"),
    "memory": ("concept memory", "the linear map where there is no image"),
    "attention": ("text-to-image attention", "no evidence from the image"),
    "gate": ("gate", "open for every document, text as strong as chosen"),
    "imputation": ("imputation", "documents without text by their image alone"),
    "calibration": ("calibration", "plain inner products"),
    "transforms": ("separate transforms", "one residual for queries and documents"),
    "augmentation": ("augmentation", "the clean view alone"),
}
Result = Mapping[str, Any]


def newest(folder: Path = RESULTS) -> Result | None:
    """The newest result file by the month in its name; None without one."""
    paths = sorted(folder.glob("immr_ablation_*.json"), key=lambda path: (path.stem.split("_")[-1], path.stem))
    if not paths:
        return None
    found: Result = json.loads(paths[-1].read_text(encoding="utf-8"))
    return {**found, "file": paths[-1].name}


def change(row: Result, metric: str) -> str:
    """What taking a part out changes, in points with its interval; bold when the interval leaves zero out."""
    found = row["change"][metric]
    low, high = (100 * found[name] for name in ("low", "high"))
    text = f"{100 * found['difference']:+.1f} [{low:+.1f}, {high:+.1f}]"
    return f"**{text}**" if low > 0 or high < 0 else text


def levels(row: Result) -> list[str]:
    """The three metrics of a row."""
    return [f"{row[metric]:.3f}" for metric in METRICS]


def ablation(folder: Path = RESULTS) -> str:
    """The whole table with its note; empty without a result file.

    Raises:
        ValueError: the file lacks a number.
    """
    result = newest(folder)
    if result is None:
        return ""
    try:
        return _ablation(result)
    except KeyError as error:
        raise ValueError(f"{result['file']} lacks {error}; run python -m benchmarks.immr.ablation again") from error


def _ablation(result: Result) -> str:
    full = result["parts"][FULL]
    rows = [["**all parts**", *levels(full["unseen"]), "", "", f"{full['missing']['recall_at_10']:.3f}", ""]]
    for part, (name, instead) in PARTS.items():
        if part in result["parts"]:
            tracks = result["parts"][part]
            row = tracks["unseen"]
            moved = f"{row['moved']:,} of {_common(row, full['unseen']):,}"
            changes = [change(row, "recall_at_1"), change(row, "recall_at_10")]
            rows.append(
                [f"{name}: {instead}", *levels(row), *changes, change(tracks["missing"], "recall_at_10"), moved]
            )
    head = [
        "without",
        *METRICS.values(),
        "R@1, points",
        "R@10, points",
        "R@10 of documents without image",
        "ranks moved",
    ]
    return "\n".join(["## What each part is worth", "", *table(head, rows), "", *_notes(result)])


def _common(row: Result, full: Result) -> int:
    """Queries that were compared: those of the cells that both have."""
    return round(full["evaluations"] * row["change"]["cells"] / full["cells"])


def _seeds(result: Result) -> str:
    return ", ".join(str(seed) for seed in sorted({cell["seed"] for cell in result["cells"].values()}))


def _notes(result: Result) -> list[str]:
    machine, full = result["environment"], result["parts"][FULL]["unseen"]
    cells = {part: tracks["unseen"]["cells"] for part, tracks in result["parts"].items()}
    cut = f" Trial run with {result['max_steps']} steps: no figure counts." if result["max_steps"] else ""
    fewer = [PARTS[part][0] for part, count in cells.items() if count < full["cells"]]
    lines = [
        f"World {result['world']}, unseen categories, full gallery; heads alone on frozen features, so the level lies "
        f"below that of the finished recipe; training seeds {_seeds(result)}. Changes are those of taking "
        "the part out, paired query by query, with 95% intervals over categories; bold ones leave zero out. "
        '"Ranks moved": queries whose first right answer stands elsewhere than with all parts.'
        + (f" With fewer seeds: {', '.join(fewer)}." if fewer else "")
    ]
    if idle := idle_parts(result):
        lines += [
            "",
            f"Taking out {' or '.join(idle)} changes no metric by a tenth of a point: the recipe leaves these parts at "
            "or near their start, where they add next to nothing to a document. They earn no place by this table.",
        ]
    return [
        *lines,
        "",
        f"From `benchmarks/results/{result['file']}`, made by `{result['command']}`, commit "
        f"{result['commit'] or 'unknown'}, on {machine['cores']} cores ({machine['cpu']}, {machine['memory_gib']} GiB, "
        f"Python {machine['python']}, torch {machine['torch']}).{cut}",
    ]


def idle_parts(result: Result) -> list[str]:
    """Names of the parts that change no metric of no track by a tenth of a point."""
    return [
        PARTS[part][0]
        for part, tracks in result["parts"].items()
        if part != FULL
        and all(abs(row["change"][name]["difference"]) < 0.001 for row in tracks.values() for name in METRICS)
    ]


def short(folder: Path = RESULTS) -> str:
    """The table for README and model card: name and two changes; empty without a result file."""
    result = newest(folder)
    if result is None:
        return ""
    rows = [
        [f"{name}: {instead}", *(change(result["parts"][part]["unseen"], metric) for metric in METRICS)]
        for part, (name, instead) in PARTS.items()
        if part in result["parts"]
    ]
    head = ["taken out: what stands there instead", *(f"{name}, points" for name in METRICS.values())]
    note = (
        f"Unseen categories of `{result['world']}`, heads alone on frozen features, training seeds {_seeds(result)}; "
        "change against all parts with 95% intervals ([Retrieval (IMMR)](immr.md))."
    )
    return "\n".join([*table(head, rows), "", note])
