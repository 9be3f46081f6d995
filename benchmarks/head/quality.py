"""Measure what sampling classes costs in recall on unseen categories.

Every training of the table writes a file of its own, so the table can be measured in parts, on several machines, and
continued. The encoder is a linear map, so that the full softmax is affordable too.
"""

import argparse
import dataclasses
import json
import multiprocessing
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import faiss
import torch

from benchmarks.head.quality_run import FORMS, QualityRun, QualitySettings, loss_bias, train_and_score
from benchmarks.head.synthetic_set import SyntheticSize
from benchmarks.result_file import write_result
from runtime.files import write_json
from runtime.threads import num_threads

# Planned range of R@1 of the full softmax without wrong labels: far enough from 0 and 1 to show losses and gains.
LEAST_RECALL, MOST_RECALL = 0.5, 0.8


def runs_of(args: argparse.Namespace) -> list[QualityRun]:
    """All requested trainings, the costly ones first; at rate 1 the only form is "full"."""
    found = []
    for rate in sorted(args.rates, reverse=True):
        forms = [form for form in args.forms if (form == "full") == (rate == 1)]
        for noise in args.noise:
            for seed in args.seeds:
                found += [QualityRun(noise, rate, form, on == "on", seed) for form in forms for on in args.filters]
    return found


def settings_of(args: argparse.Namespace) -> QualitySettings:
    """Settings with the values of the command line."""
    data_size = SyntheticSize(classes=args.classes, unseen=args.unseen)
    return QualitySettings(made=data_size, steps=args.steps, batch_size=args.batch_size, conflict_delta=args.delta)


def saved_result(run: QualityRun, settings: QualitySettings, out: Path) -> dict[str, Any] | None:
    """Result of a training that an earlier call has saved, None without one.

    Raises:
        ValueError: when it has other settings.
    """
    path = out / f"{run.name}.json"
    if not path.is_file():
        return None
    found: dict[str, Any] = json.loads(path.read_text())
    if found["settings"] != dataclasses.asdict(settings):
        raise ValueError(f"{path.name} in --out has other settings: choose another --out, or delete it")
    return found


def run_and_save(run: QualityRun, settings: QualitySettings, out: Path) -> dict[str, Any]:
    """Run one training and save its result."""
    found = train_and_score(run, settings)
    path = out / f"{run.name}.json"
    write_json(path, found, indent=1)
    return found


def one_thread() -> None:
    """Use one thread: trainings run in parallel, one core each."""
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)


def run_all(runs: list[QualityRun], settings: QualitySettings, out: Path, *, workers: int) -> Iterator[dict[str, Any]]:
    """Run trainings in worker processes of one thread each; yield every result when it is done."""
    if workers == 1:
        for run in runs:
            yield run_and_save(run, settings, out)
        return
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=spawn, initializer=one_thread) as pool:
        for done in as_completed([pool.submit(run_and_save, run, settings, out) for run in runs]):
            yield done.result()


def summary(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean and standard deviation over seeds, in the order of the table.

    Seeds differ more than forms do, so the difference to the full softmax without a filter is taken seed by seed:
    `minus_full` is its mean and standard deviation; None where no seed has both.
    """
    full = {(run["noise"], run["seed"]): run for run in runs if run["form"] == "full" and not run["filtered"]}
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for run in runs:
        groups.setdefault((run["noise"], -run["rate"], FORMS.index(run["form"]), run["filtered"]), []).append(run)
    rows = []
    for (noise, rate, form, filtered), members in sorted(groups.items()):
        recalls = [run["recall_at_1"] for run in members]
        pairs = [(run, full[noise, run["seed"]]) for run in members if (noise, run["seed"]) in full]
        gaps = [one["recall_at_1"] - other["recall_at_1"] for one, other in pairs]
        rows.append(
            {
                "noise": noise,
                "rate": -rate,
                "form": FORMS[form],
                "filtered": filtered,
                "recall_at_1": round(mean(recalls), 4),
                "deviation": round(stdev(recalls), 4) if len(recalls) > 1 else None,
                "minus_full": [round(mean(gaps), 5), round(stdev(gaps), 5) if len(gaps) > 1 else None]
                if gaps
                else None,
                "rows_a_step": round(mean(run["rows_a_step"] for run in members)),
                "seconds": round(mean(run["seconds"] for run in members), 1),
                "seeds": sorted(run["seed"] for run in members),
            }
        )
    return rows


def collect(runs: list[dict[str, Any]], settings: QualitySettings, bias: dict[str, Any] | None) -> dict[str, Any]:
    """Content of the result file."""
    clean = [run["recall_at_1"] for run in runs if run["form"] == "full" and not run["noise"]]
    return {
        "settings": dataclasses.asdict(settings),
        "queries": runs[0]["queries"] if runs else 0,
        "fingerprints": {f"{run['noise']:g}": run["fingerprint"] for run in runs},
        "recall_at_1_before": round(mean(run["recall_at_1_before"] for run in runs), 4) if runs else None,
        "full_softmax_in_range": all(LEAST_RECALL <= recall <= MOST_RECALL for recall in clean) if clean else None,
        "core_minutes": round(sum(run["seconds"] for run in runs) / 60, 1),
        "summary": summary(runs),
        "bias": bias,
    }


def saved_bias(settings: QualitySettings, rates: list[float], out: Path) -> dict[str, Any]:
    """Bias of the loss; read from its file when an earlier call had the same settings and rates."""
    path, asked = out / "bias.json", {"settings": dataclasses.asdict(settings), "rates": rates}
    if path.is_file():
        found: dict[str, Any] = json.loads(path.read_text())
        if found["asked"] == asked:
            return found
    found = {"asked": asked, **loss_bias(settings, rates=rates)}
    write_json(path, found, indent=1)
    return found


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Run the missing trainings, print the time of each, collect all results."""
    settings, runs = settings_of(args), runs_of(args)
    if not runs:
        raise ValueError("no training is left: form full belongs to rate 1, the other forms to rates below 1")
    args.out.mkdir(parents=True, exist_ok=True)
    kept = [found for run in runs if (found := saved_result(run, settings, args.out)) is not None]
    missing = [run for run in runs if saved_result(run, settings, args.out) is None]
    print(f"{len(runs)} trainings, {len(kept)} of them finished before", flush=True)
    start = time.perf_counter()
    for number, found in enumerate(run_all(missing, settings, args.out, workers=args.workers), start=len(kept) + 1):
        kept.append(found)
        name = QualityRun(**{field.name: found[field.name] for field in dataclasses.fields(QualityRun)}).name
        minutes = (time.perf_counter() - start) / 60
        print(
            f"{number}/{len(runs)} {name}: recall_at_1 {found['recall_at_1']:.4f} in {found['seconds']:.0f} s "
            f"({minutes:.1f} min so far)",
            flush=True,
        )
    sampled = sorted({rate for rate in args.rates if rate < 1})
    bias = saved_bias(settings, sampled, args.out) if sampled and not args.no_bias else None
    return collect(kept, settings, bias)


def main(words: list[str] | None = None) -> int:
    settings = QualitySettings()
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.head.quality",
        description=__doc__.split("\n")[0],
        epilog="example: python -m benchmarks.head.quality --seeds 0 --noise 0 --rates 1 0.01 --out runs/head_quality",
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--noise", type=float, nargs="+", default=[0.0, 0.2, 0.4], help="shares of wrong labels")
    parser.add_argument("--rates", type=float, nargs="+", default=[1.0, 0.1, 0.01, 0.001])
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=list(FORMS))
    parser.add_argument("--filters", nargs="+", choices=("off", "on"), default=["off", "on"], help="conflict filter")
    parser.add_argument("--delta", type=float, default=settings.conflict_delta, help="delta of the conflict filter")
    parser.add_argument("--steps", type=int, default=settings.steps)
    parser.add_argument("--batch-size", type=int, default=settings.batch_size)
    parser.add_argument("--classes", type=int, default=settings.made.classes)
    parser.add_argument("--unseen", type=int, default=settings.made.unseen, help="number of unseen categories")
    parser.add_argument("--workers", type=int, default=num_threads(), help="processes of one thread each")
    parser.add_argument("--no-bias", action="store_true", help="do not measure the bias of the loss")
    parser.add_argument("--out", type=Path, default=Path("runs/head_quality"), help="folder of results to reuse")
    parser.add_argument(
        "--json", type=Path, help="result file; docs/head.md reads benchmarks/results/head_quality_*.json"
    )
    args = parser.parse_args(words)
    one_thread()
    try:
        if min(args.steps, args.batch_size, args.workers) < 1:
            raise ValueError("steps, batch size and workers must be at least 1")
        write_result("head.quality", measure(args) | {"threads": args.workers}, args.json, words)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
