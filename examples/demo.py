"""The whole project in execution order: from a click log to a published, searchable model, on real drawings.

Every step is one of the commands that a user would type; nothing here computes. A step whose result is already on disk
is skipped, so a second call does only what is missing, and an interrupted run continues where it stopped.

The default demo trains once and compares with nothing: data, governance, training, index, metrics, page and cards.
`--full` trains the ensemble recipe and evaluates every baseline as well.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime.threads import available_cores

MOST_AT_ONCE = 4
RECIPE, FULL_RECIPE = "auto", "emoji"
ALL_BASELINES = ("zero_shot_image", "image_only_documents", "text_removed", "text_shuffled", "text_only")
# Seconds of each step on an otherwise idle 2-core machine (AMD EPYC), for the estimate of what remains. The steps that
# a run has finished scale them to its machine.
USUAL_SECONDS = {
    "emoji": 24.0,
    "govern": 82.0,
    "score": 1.0,
    "train emoji": 367.0,
    "train auto": 250.0,
    "train emoji_image_only": 16.0,
    "train emoji_zero_shot": 41.0,
    "second round": 82.0,
    "score second round": 1.0,
    "index index": 35.0,
    "evaluation": 30.0,
    "evaluation, full": 187.0,
    "governance page": 1.0,
    "page": 6.0,
    "cards": 1.0,
}


@dataclass(frozen=True)
class Step:
    """One command: it is skipped when `result` exists; `group` is the line of the time summary that it counts for."""

    name: str
    group: str
    result: Path
    command: list[str]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m examples.demo",
        description=__doc__.split("\n")[0],
        epilog="examples: python -m examples.demo --out runs/demo --seed 0; "
        "python -m examples.demo --full --out runs/demo-full --share runs/demo",
    )
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder of this run (default: runs/demo)")
    parser.add_argument(
        "--full",
        action="store_true",
        help=f"train the ensemble recipe ({FULL_RECIPE} instead of {RECIPE}) and evaluate the baselines as well",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of training (default: 0)")
    parser.add_argument("--split", type=int, default=0, choices=(0, 1, 2), help="which categories are held out")
    parser.add_argument(
        "--setting", default="hard", choices=("hard", "main"), help="hard: no word of the label in any text"
    )
    parser.add_argument("--noise", type=float, default=0.2, help="share of simulated clicks on a wrong document")
    parser.add_argument("--data-seed", type=int, default=0, help="seed of the simulated behaviour (default: 0)")
    parser.add_argument("--max-steps", type=int, help="shorter training, for trying things out")
    parser.add_argument(
        "--share", type=Path, help="reuse data, governed data and features of this demo folder; made there if missing"
    )
    parser.add_argument("--events", type=int, default=12000, help="simulated query events (default: 12000)")
    parser.add_argument(
        "--baselines",
        nargs="*",
        choices=ALL_BASELINES,
        metavar="NAME",
        help=f"with --full: what the model is compared with (default: {' '.join(ALL_BASELINES)})",
    )
    parser.add_argument("--limit-categories", type=int, help="a small data set, for trying things out")
    parser.add_argument(
        "--second-round",
        action="store_true",
        help="govern once more with the trained model as encoder, and report what that gains (without training again)",
    )
    args = parser.parse_args()
    if args.baselines is not None and not args.full:
        parser.error("--baselines needs --full: the default demo compares with nothing")
    if args.baselines is None:
        args.baselines = ALL_BASELINES if args.full else ()
    args.base = args.share or args.out
    args.recipe = FULL_RECIPE if args.full else RECIPE
    if (found := recipe_of(args.out)) not in (None, args.recipe):
        parser.error(
            f"{args.out} holds a model of the recipe {found}, not {args.recipe}. Give another --out; "
            f"--share {args.out} reuses its data."
        )
    return args


def link_shared(args: argparse.Namespace) -> None:
    """Links to shared data, governed data and features, so that the folder reads like any other demo folder."""
    if args.base == args.out:
        return
    for name in ("data", "governed", "features"):
        if not (args.out / name).exists():
            (args.out / name).symlink_to(Path(os.path.relpath(args.base / name, args.out)), target_is_directory=True)


def recipe_of(out: Path) -> str | None:
    """Name of the recipe that a demo folder was trained with; None before training."""
    path = out / "recipe.json"
    if not path.is_file():
        return None
    recipe = json.loads(path.read_text())
    return str(recipe.get("name") or recipe.get("model", {}).get("name"))


def python(*words: object) -> list[str]:
    return [sys.executable, *(str(word) for word in words)]


def launch(out: Path, recipe: str, args: argparse.Namespace) -> list[str]:
    """The training command; all runs share one folder of cached features."""
    words: list[object] = ["-m", "accelerate.commands.launch", "--config_file", "train/launch/one_process.yaml"]
    words += ["train/run.py", "--data", args.base / "governed", "--out", out, "--recipe", recipe, "--seed", args.seed]
    words += ["--features", args.base / "features"]
    words += ["--max-steps", args.max_steps] if args.max_steps is not None else []
    words += ["--image-side", args.out] if recipe == "emoji_image_only" else []  # text is all that differs
    return python(*words)


def data_steps(args: argparse.Namespace) -> list[Step]:
    """Drawings, simulated behaviour, governed data and its score against the truth."""
    data, governed = args.base / "data", args.base / "governed"
    words: list[object] = ["-m", "examples.emoji", "--out", data, "--split", args.split, "--noise", args.noise]
    words += ["--setting", args.setting, "--seed", args.data_seed, "--events", args.events]
    words += ["--limit-categories", args.limit_categories] if args.limit_categories else []
    return [
        Step("emoji", "data", data / "emoji.json", python(*words)),
        *governance_steps(args, "govern", governed, args.base / "governance.json"),
    ]


def governance_steps(args: argparse.Namespace, name: str, out: Path, score: Path, *options: object) -> list[Step]:
    """One round of governance, and its score against the truth."""
    data = args.base / "data"
    run: list[object] = ["-m", "data_governance", "run", "--behaviour", data / "behaviour.parquet"]
    run += ["--queries", data / "queries.parquet", "--catalogue", data / "train_catalogue.parquet", "--out", out]
    against: list[object] = ["-m", "examples.emoji.score", "--data", data, "--governed", out, "--out", score]
    return [
        Step(name, "governance", out / "ledger.json", python(*run, *options)),
        Step("score" if name == "govern" else f"score {name}", "governance", score, python(*against)),
    ]


def second_round_steps(args: argparse.Namespace) -> list[Step]:
    """The same rows governed with the trained model as encoder, if that is asked for."""
    if not args.second_round:
        return []
    out = args.out / "second_round"
    return governance_steps(args, "second round", out, args.out / "second_round.json", "--encoder", args.out / "hub")


def training_steps(args: argparse.Namespace) -> list[Step]:
    """The model and, among the baselines, the same recipe without text and the frozen features alone."""
    runs = {args.recipe: args.out}
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
    words: list[object] = ["-m", "retrieval", "index", "--model", hub, "--threads", 1]
    words += ["--catalogue", args.base / "data" / "catalogue.parquet", "--out", index, *options]
    words += ["--governed", args.base / "governed"]
    return Step(f"index {name}", "evaluation", index / "current.json", python(*words))


def evaluate_step(args: argparse.Namespace, name: str, hub: Path, index: Path, queries: str, *options: object) -> Step:
    data, out = args.base / "data", args.out / "evaluation" / f"{name}.json"
    words: list[object] = ["-m", "retrieval", "evaluate", "--model", hub, "--index", index, "--threads", 1]
    words += ["--catalogue", data / "catalogue.parquet", "--queries", data / f"{queries}_queries.parquet"]
    words += ["--qrels", data / f"{queries}_qrels.parquet", "--merge", data / "merged.parquet", "--out", out]
    return Step(f"evaluate {name}", "evaluation", out, python(*words, *options))


def evaluation_steps(args: argparse.Namespace) -> list[list[Step]]:
    """Every metric goes through the published folder and its index. The lists do not depend on each other."""
    hub, index = args.out / "hub", args.out / "index"
    per_query = args.out / "evaluation" / "per_query.parquet"
    gallery = args.base / "data" / "gallery_unseen.parquet"
    lists = [
        [evaluate_step(args, "unseen.full_gallery", hub, index, "test", "--per-query", per_query)],
        [evaluate_step(args, "unseen.unseen_gallery", hub, index, "test", "--gallery", gallery)],
        [evaluate_step(args, "seen.full_gallery", hub, index, "seen")],
    ]
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
        steps = [index_step(args, name, model, *options)]
        steps += [evaluate_step(args, f"baselines.{name}", model, folder, "test")]
        steps += [evaluate_step(args, f"baselines_seen.{name}", model, folder, "seen")]
        lists.append(steps)
    return lists


def closing_steps(args: argparse.Namespace) -> list[Step]:
    """The page and the cards, from the result files."""
    out, data, governed = args.out, args.base / "data", args.base / "governed"
    page: list[object] = ["-m", "retrieval", "page", "--model", out / "hub", "--index", out / "index"]
    page += ["--queries", data / "test_queries.parquet", "--qrels", data / "test_qrels.parquet"]
    page += ["--per-query", out / "evaluation" / "per_query.parquet", "--ledger", out / "ledger.json"]
    page += ["--metrics", out / "metrics.json", "--governed", governed]
    page += ["--training", out / "training.json", "--html", out / "report.html"]
    govern = ["-m", "data_governance", "report", "--governed", governed, "--html", out / "governance.html"]
    return [
        Step("governance page", "report", out / "governance.html", python(*govern)),
        Step("page", "report", out / "report.html", python(*page)),
        Step("cards", "report", out / "hub" / "README.md", python("-m", "hub_cards", "render", out)),
    ]


@dataclass
class Plan:
    """The steps of a run in order, by name, and what is known about their times.

    Attributes:
        names: steps that remain.
        seconds: measured seconds of finished steps, those of earlier calls included; also kept in `record`.
        usual: seconds of every step on the machine of `USUAL_SECONDS`.
    """

    names: list[str]
    usual: dict[str, float]
    seconds: dict[str, float]
    record: Path

    def keep(self, name: str, seconds: float) -> None:
        """Add to the seconds of `name`, in the file as well."""
        self.seconds[name] = round(self.seconds.get(name, 0.0) + seconds, 1)
        self.record.write_text(json.dumps(self.seconds, indent=1) + "\n")

    def finish(self, name: str) -> None:
        """Remove a step from what remains."""
        self.names = [one for one in self.names if one != name]

    def speed(self) -> float:
        """Measured over usual seconds of the finished steps: 2 is a machine of half the speed; 1 before the first."""
        done = [name for name in self.seconds if name in self.usual and name not in self.names]
        usual = sum(self.usual[name] for name in done)
        return sum(self.seconds[name] for name in done) / usual if usual else 1.0

    def estimate(self) -> str:
        """What remains and about how long it takes."""
        seconds = [self.usual.get(name, 1.0) * self.speed() for name in self.names]
        basis = "" if self.seconds else ", on an idle 2-core machine"
        count = "1 step remains" if len(self.names) == 1 else f"{len(self.names)} steps remain"
        return f"{count}, about {shown(sum(seconds))}{basis}; the next takes about {shown(seconds[0])}"


def shown(seconds: float) -> str:
    """A duration for people: "40 s", "3 min"."""
    return f"{max(seconds, 1):.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def call(step: Step, *, quiet: bool = False) -> float | None:
    """Run one step and return its seconds, None if its result exists; stops with its own message when it fails."""
    if step.result.exists():
        print(f"== {step.name}: found {step.result}", flush=True)
        return None
    shown = " ".join(word.replace(sys.executable, "python") for word in step.command)
    print(f"== {step.name}: {shown}", flush=True)
    step.result.parent.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    done = subprocess.run(step.command, check=False, stderr=subprocess.PIPE if quiet else None, text=True)
    if done.returncode != 0:
        failed = f"error: step '{step.name}' failed (exit {done.returncode})."
        raise SystemExit(f"{done.stderr or ''}{failed} Mend the cause and call again: finished steps are kept.")
    return time.perf_counter() - start


def run(steps: list[Step], plan: Plan) -> None:
    """Run steps one after the other, print before each what remains, and keep the time of each."""
    for step in steps:
        if not step.result.exists():
            print(f"-- {plan.estimate()}", flush=True)
        if (seconds := call(step)) is not None:
            plan.keep(step.name, seconds)
        plan.finish(step.name)


def run_side_by_side(lists: list[list[Step]], name: str, plan: Plan) -> None:
    """Run lists of steps, as many lists at once as there are cores, each step on one thread; keep the time of all."""
    if is_missing(lists):
        print(f"-- {plan.estimate()}", flush=True)
    start = time.perf_counter()
    with ThreadPoolExecutor(workers()) as pool:
        waiting = [pool.submit(lambda steps: [call(step, quiet=True) for step in steps], steps) for steps in lists]
        results = [seconds for one in waiting for seconds in one.result()]
    if any(seconds is not None for seconds in results):
        plan.keep(name, time.perf_counter() - start)
    plan.finish(name)


def workers() -> int:
    """Steps that may run at once: one for each core, at most 4."""
    return min(MOST_AT_ONCE, available_cores())


def write_metrics(args: argparse.Namespace) -> dict[str, Any]:
    """One JSON of all metrics; every object in it is the output of one evaluate command."""

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
    if args.second_round:
        metrics["governance"]["second_round"] = json.loads((args.out / "second_round.json").read_text())
    metrics["environment"] = metrics["unseen"]["full_gallery"]["environment"]
    (args.out / "metrics.json").write_text(json.dumps(metrics, indent=1) + "\n")
    shutil.copyfile(args.base / "governed" / "ledger.json", args.out / "ledger.json")
    shutil.copyfile(args.base / "data" / "ATTRIBUTION.md", args.out / "ATTRIBUTION.md")
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
    groups = {step.group: 0.0 for step in steps} | {"evaluation": 0.0}
    groups["evaluation"] += times.get("evaluation", 0.0)
    for step in steps:
        groups[step.group] += times.get(step.name, 0.0)
    parts = ", ".join(f"{name} {seconds:.0f}" for name, seconds in groups.items())
    used = os.times()
    cpu = used.children_user + used.children_system
    print(f"seconds: {parts}; total {sum(groups.values()):.0f}; this call used {cpu:.0f} CPU s")


def read_plan(args: argparse.Namespace) -> Plan:
    """What remains to be run, in order, with the times of earlier calls."""
    record = args.out / "timings.json"
    times: dict[str, float] = json.loads(record.read_text()) if record.exists() else {}
    usual = USUAL_SECONDS | ({"evaluation": USUAL_SECONDS["evaluation, full"]} if args.full else {})
    names = [step.name for step in first_steps(args) if not step.result.exists()]
    if is_missing(evaluation_steps(args)):
        names.append("evaluation")
    names += [step.name for step in closing_steps(args) if not step.result.exists()]
    return Plan(names, usual, times, record)


def first_steps(args: argparse.Namespace) -> list[Step]:
    """Everything before evaluation."""
    steps = [*data_steps(args), *training_steps(args), *second_round_steps(args)]
    return [*steps, index_step(args, "index", args.out / "hub")]


def is_missing(lists: list[list[Step]]) -> bool:
    """Whether a step of these lists has no result yet."""
    return not all(step.result.exists() for steps in lists for step in steps)


def main() -> None:
    """Read this top to bottom: it is the flow."""
    args = parse_arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    plan = read_plan(args)
    run(first_steps(args), plan)
    link_shared(args)
    run_side_by_side(evaluation_steps(args), "evaluation", plan)
    metrics = write_metrics(args)
    run(closing_steps(args), plan)
    print_summary(metrics, plan.seconds, [*first_steps(args), *closing_steps(args)])
    out = args.out
    print(f"search: oclear search --model {out / 'hub'} --index {out / 'index'} --image photo.png --html answers.html")
    print(f"open {out / 'report.html'} in a browser; the model is {out / 'hub'}")


if __name__ == "__main__":
    main()
