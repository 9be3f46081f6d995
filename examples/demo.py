"""The whole project in execution order: from a click log to a published, searchable model, on real drawings.

Every step is one of the commands that a user would type; nothing here computes. A step whose result is already on disk
is passed over, so a second call does only what is missing, and a broken run goes on where it stopped.

In: nothing but the installed packages. Out: DIR/{hub,index,metrics.json,ledger.json,report.html,timings.json}.
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ALL_BASELINES = ("zero_shot_image", "image_only_documents", "text_removed", "text_shuffled", "text_only")


@dataclass(frozen=True)
class Step:
    """One command: it is passed over when `result` exists; `group` says which time budget it counts for."""

    name: str
    group: str
    result: Path
    command: list[str]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m examples.demo",
        description=__doc__.split("\n")[0],
        epilog="example: python -m examples.demo --out runs/demo --seed 0",
    )
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder of this run (default: runs/demo)")
    parser.add_argument("--seed", type=int, default=0, help="seed of training (default: 0)")
    parser.add_argument("--split", type=int, default=0, choices=(0, 1, 2), help="which categories are held out")
    parser.add_argument(
        "--setting", default="hard", choices=("hard", "main"), help="hard: no word of the label in any text"
    )
    parser.add_argument("--noise", type=float, default=0.2, help="share of simulated clicks on a wrong document")
    parser.add_argument("--data-seed", type=int, default=0, help="seed of the simulated behaviour (default: 0)")
    parser.add_argument("--max-steps", type=int, help="shorter training, for trying things out")
    parser.add_argument(
        "--share", type=Path, help="take data, governed data and features from this earlier demo folder"
    )
    parser.add_argument("--events", type=int, default=12000, help="simulated query events (default: 12000)")
    parser.add_argument(
        "--baselines",
        nargs="*",
        choices=ALL_BASELINES,
        default=ALL_BASELINES,
        metavar="NAME",
        help=f"what the model is compared with (default: {' '.join(ALL_BASELINES)})",
    )
    parser.add_argument("--limit-categories", type=int, help="a small data set, for trying things out")
    args = parser.parse_args()
    args.base = args.share or args.out
    return args


def python(*words: object) -> list[str]:
    return [sys.executable, *(str(word) for word in words)]


def launch(out: Path, recipe: str, args: argparse.Namespace) -> list[str]:
    """The training command; all runs share one folder of cached features."""
    words: list[object] = ["-m", "accelerate.commands.launch", "--config_file", "train/launch/one_process.yaml"]
    words += ["train/run.py", "--data", args.base / "governed", "--out", out, "--recipe", recipe, "--seed", args.seed]
    words += ["--features", args.base / "features"]
    words += ["--max-steps", args.max_steps] if args.max_steps is not None else []
    return python(*words)


def data_steps(args: argparse.Namespace) -> list[Step]:
    """Drawings, simulated behaviour, governed data and its score against the truth."""
    data, governed = args.base / "data", args.base / "governed"
    words: list[object] = ["-m", "examples.emoji", "--out", data, "--split", args.split, "--noise", args.noise]
    words += ["--setting", args.setting, "--seed", args.data_seed, "--events", args.events]
    words += ["--limit-categories", args.limit_categories] if args.limit_categories else []
    inputs: list[object] = ["--behaviour", data / "behaviour.parquet", "--queries", data / "queries.parquet"]
    inputs += ["--catalogue", data / "train_catalogue.parquet"]
    score: list[object] = ["-m", "examples.emoji.score", "--data", data, "--governed", governed]
    return [
        Step("emoji", "data", data / "emoji.json", python(*words)),
        Step(
            "govern",
            "governance",
            governed / "ledger.json",
            python("-m", "data_governance", "run", *inputs, "--out", governed),
        ),
        Step(
            "score", "governance", args.base / "governance.json", python(*score, "--out", args.base / "governance.json")
        ),
    ]


def training_steps(args: argparse.Namespace) -> list[Step]:
    """The model, the same recipe without text, and the frozen features alone."""
    runs = {"emoji": args.out}
    if "image_only_documents" in args.baselines:
        runs["emoji_image_only"] = args.out / "image_only"
    if "zero_shot_image" in args.baselines:
        runs["emoji_zero_shot"] = args.out / "zero_shot"
    return [
        Step(f"train {recipe}", "training", out / "hub" / "config.json", launch(out, recipe, args))
        for recipe, out in runs.items()
    ]


def index_step(args: argparse.Namespace, name: str, hub: Path, *options: str) -> Step:
    index = args.out / "indexes" / name if name != "index" else args.out / "index"
    words = ["-m", "retrieval", "index", "--model", hub, "--catalogue", args.base / "data" / "catalogue.parquet"]
    return Step(f"index {name}", "evaluation", index / "index.json", python(*words, "--out", index, *options))


def evaluate_step(args: argparse.Namespace, name: str, hub: Path, index: Path, queries: str, *options: object) -> Step:
    data, out = args.base / "data", args.out / "evaluation" / f"{name}.json"
    words: list[object] = ["-m", "retrieval", "evaluate", "--model", hub, "--index", index]
    words += ["--catalogue", data / "catalogue.parquet", "--queries", data / f"{queries}_queries.parquet"]
    words += ["--qrels", data / f"{queries}_qrels.parquet", "--merge", data / "merged.parquet", "--out", out]
    return Step(f"evaluate {name}", "evaluation", out, python(*words, *options))


def evaluation_steps(args: argparse.Namespace) -> list[Step]:
    """Every figure goes through the published folder and its index."""
    hub, index = args.out / "hub", args.out / "index"
    per_query = args.out / "evaluation" / "per_query.parquet"
    gallery = args.base / "data" / "gallery_unseen.parquet"
    steps = [index_step(args, "index", hub)]
    steps += [evaluate_step(args, "unseen.full_gallery", hub, index, "test", "--per-query", per_query)]
    steps += [evaluate_step(args, "unseen.unseen_gallery", hub, index, "test", "--gallery", gallery)]
    steps += [evaluate_step(args, "seen.full_gallery", hub, index, "seen")]
    sources: dict[str, tuple[Path, list[str]]] = {
        "zero_shot_image": (args.out / "zero_shot" / "hub", []),
        "image_only_documents": (args.out / "image_only" / "hub", []),
        "text_removed": (hub, ["--text", "remove"]),
        "text_shuffled": (hub, ["--text", "shuffle"]),
        "text_only": (hub, ["--images", "remove"]),
    }
    for name in args.baselines:
        model, options = sources[name]
        folder = args.out / "indexes" / name
        steps += [index_step(args, name, model, *options)]
        steps += [evaluate_step(args, f"baselines.{name}", model, folder, "test")]
        steps += [evaluate_step(args, f"baselines_seen.{name}", model, folder, "seen")]
    return steps


def closing_steps(args: argparse.Namespace) -> list[Step]:
    """The page and the cards, from the result files."""
    out, data, governed = args.out, args.base / "data", args.base / "governed"
    page: list[object] = ["-m", "retrieval", "page", "--model", out / "hub", "--index", out / "index"]
    page += ["--queries", data / "test_queries.parquet", "--qrels", data / "test_qrels.parquet"]
    page += ["--per-query", out / "evaluation" / "per_query.parquet", "--ledger", out / "ledger.json"]
    page += ["--metrics", out / "metrics.json", "--governed", governed, "--html", out / "report.html"]
    govern = ["-m", "data_governance", "report", "--governed", governed, "--html", out / "governance.html"]
    return [
        Step("governance page", "report", out / "governance.html", python(*govern)),
        Step("page", "report", out / "report.html", python(*page)),
        Step("cards", "report", out / "hub" / "README.md", python("-m", "hub_cards", "render", out)),
    ]


def run(step: Step, times: dict[str, float], record: Path) -> None:
    """Run one step unless its result exists; keep its time; stop with its own message when it fails."""
    if step.result.exists():
        print(f"== {step.name}: found {step.result}", flush=True)
        return
    shown = " ".join(word.replace(sys.executable, "python") for word in step.command)
    print(f"== {step.name}: {shown}", flush=True)
    step.result.parent.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    code = subprocess.run(step.command, check=False).returncode
    if code != 0:
        raise SystemExit(
            f"error: step '{step.name}' failed (exit {code}). Mend the cause and call again: finished steps are kept."
        )
    times[step.name] = round(time.perf_counter() - start, 1)
    record.write_text(json.dumps(times, indent=1) + "\n")


def write_metrics(args: argparse.Namespace) -> dict[str, Any]:
    """One JSON of all figures; every object in it is the output of one evaluate command."""

    def read(name: str) -> dict[str, Any]:
        return json.loads((args.out / "evaluation" / f"{name}.json").read_text())

    metrics: dict[str, Any] = {
        "unseen": {"full_gallery": read("unseen.full_gallery"), "unseen_gallery": read("unseen.unseen_gallery")},
        "seen": {"full_gallery": read("seen.full_gallery")},
        "baselines": {name: read(f"baselines.{name}") for name in args.baselines},
        "baselines_seen": {name: read(f"baselines_seen.{name}") for name in args.baselines},
        "governance": json.loads((args.base / "governance.json").read_text()),
        "data": json.loads((args.base / "data" / "emoji.json").read_text()),
    }
    metrics["environment"] = metrics["unseen"]["full_gallery"]["environment"]
    (args.out / "metrics.json").write_text(json.dumps(metrics, indent=1) + "\n")
    shutil.copyfile(args.base / "governed" / "ledger.json", args.out / "ledger.json")
    return metrics


def print_summary(metrics: dict[str, Any], times: dict[str, float], steps: list[Step]) -> None:
    """The figures and the time of every group, as text."""
    print(
        "\nqueries of categories never trained on, full gallery     R@1    R@10   | held-out queries of seen categories"
    )
    rows = {"oclear": (metrics["unseen"]["full_gallery"], metrics["seen"]["full_gallery"])}
    rows |= {name: (metrics["baselines"][name], metrics["baselines_seen"][name]) for name in metrics["baselines"]}
    for name, (unseen, seen) in rows.items():
        figures = [unseen["recall_at_1"], unseen["recall_at_10"], seen["recall_at_1"], seen["recall_at_10"]]
        print(f"  {name:50s} {figures[0]:7.3f} {figures[1]:7.3f}   | {figures[2]:.3f} {figures[3]:.3f}")
    groups: dict[str, float] = {}
    for step in steps:
        groups[step.group] = groups.get(step.group, 0.0) + times.get(step.name, 0.0)
    shown = ", ".join(f"{name} {seconds:.0f}" for name, seconds in groups.items())
    print(f"seconds: {shown}; total {sum(groups.values()):.0f}")


def main() -> None:
    """Read this top to bottom: it is the flow."""
    args = parse_arguments()
    record = args.out / "timings.json"
    args.out.mkdir(parents=True, exist_ok=True)
    times: dict[str, float] = json.loads(record.read_text()) if record.exists() else {}
    stages: list[Callable[[argparse.Namespace], list[Step]]] = [data_steps, training_steps, evaluation_steps]
    steps = [step for stage in stages for step in stage(args)]
    for step in steps:
        run(step, times, record)
    metrics = write_metrics(args)
    closing = closing_steps(args)
    for step in closing:
        run(step, times, record)
    print_summary(metrics, times, steps + closing)
    print(f"open {args.out / 'report.html'} in a browser; the model is {args.out / 'hub'}")


if __name__ == "__main__":
    main()
