"""README's results table: pooled runs of the model and what it is compared with."""

from pathlib import Path

from benchmarks.render.immr import newest
from benchmarks.render.immr_format import METRICS, Result
from benchmarks.render.tables import RESULTS, table

# Roles in the summary of the result file; the lines that a reader of README needs.
ROWS = {
    "oclear": "**OCLEAR**",
    "image_only": "the same, documents without their text",
    "distilled_rival": "ProxyAnchor on governed labels, same distillation, image only",
    "best_governed_rival": "best baseline on governed labels: one ProxyAnchor model, image only",
    "best_raw_rival": "best baseline on raw clicks: one ProxyAnchor model, image only",
    "zero_shot": "frozen ImageNet features",
}
# What the wording of ROWS says about the two baselines; another winner needs other words.
NAMES = {"best_governed_rival": "proxyanchor.governed.image", "best_raw_rival": "proxyanchor.raw.image"}


def blocks(folder: Path = RESULTS) -> dict[str, str]:
    """Marker name -> Markdown of README.

    Raises:
        ValueError: there is no result file, or it lacks a number of the table.
    """
    result = newest(folder)
    if result is None:
        raise ValueError("benchmarks/results holds no immr_*.json: run python -m benchmarks.immr first")
    try:
        return {"results": results(result)}
    except KeyError as error:
        raise ValueError(f"{result['file']} lacks {error} for README's results; run the benchmark again") from error


def results(result: Result) -> str:
    """One table: queries of unseen and of seen categories, full gallery."""
    rows = []
    for role, title in ROWS.items():
        unseen = result["summary"][role]
        if unseen["name"] != NAMES.get(role, unseen["name"]):
            raise ValueError(f"{role} is now {unseen['name']}: change its title in benchmarks/render/readme.py")
        seen = seen_metrics(result, role)
        cells = [*(unseen[name] for name in METRICS), seen["recall_at_1"], seen["recall_at_10"]]
        rows.append([title, *(f"{value:.3f}" for value in cells), str(unseen["cells"])])
    head = ["", *(f"unseen {name}" for name in METRICS.values()), "seen R@1", "seen R@10", "runs"]
    machine = result["environment"]
    source = f"Rendered from `benchmarks/results/{result['file']}` ({machine['cores']} cores, {machine['cpu']})."
    return "\n".join([*table(head, rows), "", source])


def seen_metrics(result: Result, role: str) -> dict[str, float]:
    """Metrics on held-out queries of seen categories."""
    if role == "oclear":
        found: dict[str, float] = result["comparisons"]["image_only"]["seen"]["product"]
    else:
        found = result["comparisons"][role]["seen"]["other"]
    return found
