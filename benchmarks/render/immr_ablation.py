"""Render the ablation table from the newest result file."""

from pathlib import Path

from benchmarks.render import immr_format
from benchmarks.render.immr_format import METRICS, Result, change, levels, source
from benchmarks.render.tables import RESULTS, table

PREFIX = "immr_ablation_"
FULL = "oclear"
# By part: its name, and what replaces it.
PARTS = {
    "governance": ("governance", "raw clicks, every document a category of its own"),
    "classification_infonce": ("classification", "InfoNCE on governed labels"),
    "classification_supcon": ("classification", "SupCon on governed labels"),
    "out_of_fold": ("out-of-fold text", "text inside the loss, learned mix of image and text"),
    "memory": ("concept memory", "linear map of the text"),
    "attention": ("text-to-image attention", "no image evidence"),
    "gate": ("gate", "always open, same text weight"),
    "imputation": ("imputation", "documents without text by image alone"),
    "calibration": ("calibration", "plain inner products"),
    "transforms": ("separate transforms", "one residual for queries and documents"),
    "augmentation": ("augmentation", "clean view only"),
}


def newest(folder: Path = RESULTS) -> Result | None:
    """The newest result file of the ablation; None without one."""
    return immr_format.newest(PREFIX, folder)


def ablation(folder: Path = RESULTS) -> str:
    """The whole table with notes; empty without a result file.

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
    rows = [["**none: OCLEAR**", *levels(full["unseen"]), "", "", f"{full['missing']['recall_at_10']:.3f}", ""]]
    for part, (name, replacement) in PARTS.items():
        if part in result["parts"]:
            row, missing = result["parts"][part]["unseen"], result["parts"][part]["missing"]
            # Queries of the cells that both variants have.
            queries = round(full["unseen"]["evaluations"] * row["change"]["cells"] / full["unseen"]["cells"])
            changes = [change(row["change"], "recall_at_1"), change(row["change"], "recall_at_10")]
            changes += [change(missing["change"], "recall_at_10"), f"{row['moved']:,} of {queries:,}"]
            rows.append([f"{name} ({replacement})", *levels(row), *changes])
    head = [
        "Ablation (replacement)",
        *METRICS.values(),
        "R@1, points",
        "R@10, points",
        "R@10 of documents without image",
        "ranks changed",
    ]
    return "\n".join(["## Ablation", "", *table(head, rows), "", *_notes(result)])


def _seeds(result: Result) -> str:
    return ", ".join(str(seed) for seed in sorted({cell["seed"] for cell in result["cells"].values()}))


def _notes(result: Result) -> list[str]:
    full = result["parts"][FULL]["unseen"]
    cells = {part: row["unseen"]["cells"] for part, row in result["parts"].items()}
    fewer = [PARTS[part][0] for part, count in cells.items() if count < full["cells"]]
    lines = [
        f"Dataset split {result['world']}, unseen categories, full gallery; training seeds {_seeds(result)}. Heads "
        "only on frozen features, so metrics are below those of the complete recipe. Points are changes against "
        "OCLEAR, paired by query, with 95% intervals over categories, bold if they exclude zero. "
        '"Ranks changed": queries whose first relevant document has another rank.'
        + (f" With fewer seeds: {', '.join(fewer)}." if fewer else "")
    ]
    if idle := idle_parts(result):
        lines += [
            "",
            f"Without {' or '.join(idle)} no metric changes by 0.1 points: in this recipe they stay close to their "
            "initialisation. This table does not justify them.",
        ]
    return [*lines, "", source(result)]


def idle_parts(result: Result) -> list[str]:
    """Names of the parts whose removal changes no metric by 0.1 points in any evaluation setting."""
    return [
        PARTS[part][0]
        for part, eval_settings in result["parts"].items()
        if part != FULL
        and all(abs(row["change"][name]["difference"]) < 0.001 for row in eval_settings.values() for name in METRICS)
    ]


def short(folder: Path = RESULTS) -> str:
    """The table for README and model card: part and changes; empty without a result file."""
    result = newest(folder)
    if result is None:
        return ""
    rows = [
        [f"{name} ({replacement})", *(change(result["parts"][part]["unseen"]["change"], metric) for metric in METRICS)]
        for part, (name, replacement) in PARTS.items()
        if part in result["parts"]
    ]
    head = ["Ablation (replacement)", *(f"{name}, points" for name in METRICS.values())]
    note = (
        f"Unseen categories of `{result['world']}`, heads only on frozen features, training seeds {_seeds(result)}; "
        "change against OCLEAR with 95% intervals ([Retrieval (IMMR)](immr.md))."
    )
    return "\n".join([*table(head, rows), "", note])
