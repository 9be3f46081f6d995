"""Run the demo with several training seeds and write the means to one file.

Every number is written by `python -m examples.demo --full`, run as a user would. Several seeds are needed because the
95% interval of one run is about two points wide on either side. Data and governed data are those of the first seed: the
seed changes views, draws and initialisation, not the training data.
"""

import argparse
import json
import platform
import subprocess
import sys
from datetime import date
from pathlib import Path
from statistics import mean
from typing import Any

from runtime.files import write_json

METRICS = ("recall_at_1", "recall_at_10", "mrr_at_10")
# Baselines that are measured with every seed; the others only with the first one.
SEEDED = ("image_only_documents", "text_only")


def run_demo(folder: Path, *, setting: str, seed: int, share: Path | None) -> dict[str, Any]:
    """Run one demo, or reuse its finished steps; return metrics, timings and training record."""
    command = [sys.executable, "-m", "examples.demo", "--out", str(folder), "--seed", str(seed), "--setting", setting]
    command += ["--full"]
    command += ["--share", str(share), "--baselines", *SEEDED] if share else []
    subprocess.run(command, check=True)
    metrics: dict[str, Any] = json.loads((folder / "metrics.json").read_text())
    metrics["timings"] = json.loads((folder / "timings.json").read_text())
    metrics["training"] = json.loads((folder / "training.json").read_text())
    return metrics


def table_of(metrics: dict[str, Any]) -> dict[str, dict[str, float]]:
    """system -> metric -> value; metrics on held-out queries of seen categories are prefixed `seen_`."""
    rows = {"oclear": (metrics["unseen"]["full_gallery"], metrics["seen"]["full_gallery"])}
    for name in metrics["baselines"]:
        rows[name] = (metrics["baselines"][name], metrics["baselines_seen"][name])
    table = {}
    for name, (unseen, seen) in rows.items():
        table[name] = {key: unseen[key] for key in METRICS} | {f"seen_{key}": seen[key] for key in METRICS}
    gallery = metrics["unseen"]["unseen_gallery"]
    table["oclear"] |= {f"unseen_gallery_{key}": gallery[key] for key in METRICS}
    return table


def means(tables: list[dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Mean of every metric of every system over the seeds that measured it; `seeds` is their number."""
    table: dict[str, dict[str, float]] = {}
    for system in tables[0]:
        measured = [found[system] for found in tables if system in found]
        table[system] = {key: round(mean(row[key] for row in measured), 4) for key in measured[0]}
        table[system]["seeds"] = len(measured)
    return table


def summary(setting: str, runs: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """Means, differences to image-only documents, and governance and seconds of the first run, which is complete."""
    tables = [table_of(metrics) for metrics in runs.values()]
    table = means(tables)
    image_only = table["image_only_documents"]
    first = next(iter(runs.values()))
    chance = 10 * first["governance"]["truth_documents_per_category"] / first["unseen"]["full_gallery"]["documents"]
    return {
        "setting": setting,
        "seeds": list(runs),
        "mean": table,
        "fused_minus_image_only": {
            key: round(table["oclear"][key] - image_only[key], 4) for key in image_only if key != "seeds"
        },
        "chance_recall_at_10": round(chance, 4),
        "governance": first["governance"],
        "strengths": {seed: metrics["training"]["text"].get("strength") for seed, metrics in runs.items()},
        "mass_in_named_half": [metrics["training"]["text"].get("mass_in_named_half") for metrics in runs.values()],
        "seconds_of_first_run": first["timings"],
        "by_seed": dict(zip(runs, tables, strict=True)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.training.demo_seeds",
        description=__doc__.split("\n")[0],
        epilog="example: python -m benchmarks.training.demo_seeds --seeds 0 1 2 --settings hard main --out runs/seeds",
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--settings", nargs="+", choices=("hard", "main"), default=["hard", "main"])
    parser.add_argument("--out", type=Path, default=Path("runs/seeds"))
    parser.add_argument("--note", default="", help="remark on the machine for readers of the timings")
    parser.add_argument(
        "--json", type=Path, help="result file (default: benchmarks/results/demo_<machine>_<yyyymm>.json)"
    )
    options = parser.parse_args()
    words = ["--seeds", *(str(seed) for seed in options.seeds), "--settings", *options.settings]
    command = "python -m benchmarks.training.demo_seeds " + " ".join(words)
    result: dict[str, Any] = {"command": command, "note": options.note, "settings": {}}
    for setting in options.settings:
        first = options.out / f"{setting}-{options.seeds[0]}"
        runs = {}
        for seed in options.seeds:
            folder = options.out / f"{setting}-{seed}"
            runs[seed] = run_demo(folder, setting=setting, seed=seed, share=None if folder == first else first)
        result["settings"][setting] = summary(setting, runs)
        result["environment"] = next(iter(runs.values()))["environment"]
    name = f"demo_{platform.machine()}_{date.today():%Y%m}.json"
    path = options.json or Path("benchmarks/results") / name
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, result, indent=1)
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
