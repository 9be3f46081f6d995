"""What sampling classes costs in quality: recall on unseen categories against rate, correction, hard classes, filter.

Why a table of cells: each is a training of its own, written to a file of its own as soon as it is done, so that the
table can be made in parts, on several machines, and go on where it stopped. The learned part is small and the classes
are many, so that the full softmax itself is affordable.
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

from benchmarks.governance.outcome import write
from benchmarks.head.cell import FORMS, Cell, QualitySettings, loss_bias, run_cell
from benchmarks.head.synthetic_set import MadeSize
from runtime.files import write_json
from runtime.threads import num_threads

# Between these the table can show a loss and a gain; see docs/head.md.
LEAST_RECALL, MOST_RECALL = 0.5, 0.8


def cells_of(args: argparse.Namespace) -> list[Cell]:
    """Every cell that was asked for, the costly ones first; at rate 1 there is one form, "full"."""
    found = []
    for rate in sorted(args.rates, reverse=True):
        forms = [form for form in args.forms if (form == "full") == (rate == 1)]
        for noise in args.noise:
            for seed in args.seeds:
                found += [Cell(noise, rate, form, on == "on", seed) for form in forms for on in args.filters]
    return found


def settings_of(args: argparse.Namespace) -> QualitySettings:
    """The settings, with what the command line changes in them."""
    made = MadeSize(classes=args.classes, unseen=args.unseen)
    return QualitySettings(made=made, steps=args.steps, batch_size=args.batch_size, conflict_delta=args.delta)


def cell_figures(cell: Cell, settings: QualitySettings, out: Path) -> dict[str, Any] | None:
    """What an earlier call left of a cell.

    Raises:
        ValueError: it was made with other settings.
    """
    path = out / f"{cell.name}.json"
    if not path.is_file():
        return None
    found: dict[str, Any] = json.loads(path.read_text())
    if found["settings"] != dataclasses.asdict(settings):
        raise ValueError(f"{path.name} in --out was made with other settings: name another --out, or delete it")
    return found


def run_and_keep(cell: Cell, settings: QualitySettings, out: Path) -> dict[str, Any]:
    """Run one cell and write its file, whole or not at all."""
    found = run_cell(cell, settings)
    path = out / f"{cell.name}.json"
    write_json(path, found, indent=1)
    return found


def one_thread() -> None:
    """Cells run side by side, so that each takes one core and no more."""
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)


def run_all(cells: list[Cell], settings: QualitySettings, out: Path, *, workers: int) -> Iterator[dict[str, Any]]:
    """Figures of each cell as it is done; every worker is a process with one thread."""
    if workers == 1:
        for cell in cells:
            yield run_and_keep(cell, settings, out)
        return
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=spawn, initializer=one_thread) as pool:
        for done in as_completed([pool.submit(run_and_keep, cell, settings, out) for cell in cells]):
            yield done.result()


def summary(cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean and deviation over seeds of every kind of cell, in the order of the table.

    Seeds differ more from one another than forms do, so the difference to full softmax without a filter is taken seed
    by seed: `minus_full`, mean and deviation; None where no seed has both.
    """
    full = {(cell["noise"], cell["seed"]): cell for cell in cells if cell["form"] == "full" and not cell["filtered"]}
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for cell in cells:
        groups.setdefault((cell["noise"], -cell["rate"], FORMS.index(cell["form"]), cell["filtered"]), []).append(cell)
    rows = []
    for (noise, rate, form, filtered), members in sorted(groups.items()):
        recalls = [cell["recall_at_1"] for cell in members]
        pairs = [(cell, full[noise, cell["seed"]]) for cell in members if (noise, cell["seed"]) in full]
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
                "rows_a_step": round(mean(cell["rows_a_step"] for cell in members)),
                "seconds": round(mean(cell["seconds"] for cell in members), 1),
                "seeds": sorted(cell["seed"] for cell in members),
            }
        )
    return rows


def collect(cells: list[dict[str, Any]], settings: QualitySettings, bias: dict[str, Any] | None) -> dict[str, Any]:
    """The whole table, with what a reader must know of it."""
    clean = [cell["recall_at_1"] for cell in cells if cell["form"] == "full" and not cell["noise"]]
    return {
        "settings": dataclasses.asdict(settings),
        "queries": cells[0]["queries"] if cells else 0,
        "fingerprints": {f"{cell['noise']:g}": cell["fingerprint"] for cell in cells},
        "recall_at_1_before": round(mean(cell["recall_at_1_before"] for cell in cells), 4) if cells else None,
        "full_softmax_in_range": all(LEAST_RECALL <= recall <= MOST_RECALL for recall in clean) if clean else None,
        "core_minutes": round(sum(cell["seconds"] for cell in cells) / 60, 1),
        "summary": summary(cells),
        "bias": bias,
    }


def kept_bias(settings: QualitySettings, rates: list[float], out: Path) -> dict[str, Any]:
    """Bias of the loss, from its file where an earlier call of the same settings and rates left one."""
    path, asked = out / "bias.json", {"settings": dataclasses.asdict(settings), "rates": rates}
    if path.is_file():
        found: dict[str, Any] = json.loads(path.read_text())
        if found["asked"] == asked:
            return found
    found = {"asked": asked, **loss_bias(settings, rates=rates)}
    path.write_text(json.dumps(found, indent=1) + "\n")
    return found


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Run what is missing, print each cell's time, collect."""
    settings, cells = settings_of(args), cells_of(args)
    if not cells:
        raise ValueError("no cell was asked for: form full belongs to rate 1, the other forms to rates below 1")
    args.out.mkdir(parents=True, exist_ok=True)
    kept = [figures for cell in cells if (figures := cell_figures(cell, settings, args.out)) is not None]
    missing = [cell for cell in cells if cell_figures(cell, settings, args.out) is None]
    print(f"{len(cells)} cells, {len(kept)} of them done before", flush=True)
    start = time.perf_counter()
    for number, found in enumerate(run_all(missing, settings, args.out, workers=args.workers), start=len(kept) + 1):
        kept.append(found)
        name = Cell(**{field.name: found[field.name] for field in dataclasses.fields(Cell)}).name
        minutes = (time.perf_counter() - start) / 60
        print(
            f"{number}/{len(cells)} {name}: recall_at_1 {found['recall_at_1']:.4f} in {found['seconds']:.0f} s "
            f"({minutes:.1f} min so far)",
            flush=True,
        )
    sampled = sorted({rate for rate in args.rates if rate < 1})
    bias = kept_bias(settings, sampled, args.out) if sampled and not args.no_bias else None
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
    parser.add_argument("--delta", type=float, default=settings.conflict_delta, help="of the conflict filter")
    parser.add_argument("--steps", type=int, default=settings.steps)
    parser.add_argument("--batch-size", type=int, default=settings.batch_size)
    parser.add_argument("--classes", type=int, default=settings.made.classes)
    parser.add_argument("--unseen", type=int, default=settings.made.unseen, help="categories that are only searched")
    parser.add_argument("--workers", type=int, default=num_threads(), help="processes of one thread each")
    parser.add_argument("--no-bias", action="store_true", help="leave out the bias of the loss")
    parser.add_argument("--out", type=Path, default=Path("runs/head_quality"), help="one JSON a cell; goes on from it")
    parser.add_argument(
        "--json", type=Path, help="result file; docs/head.md reads benchmarks/results/head_quality_*.json"
    )
    args = parser.parse_args(words)
    one_thread()
    try:
        if min(args.steps, args.batch_size, args.workers) < 1:
            raise ValueError("steps, batch size and workers must be at least 1")
        write("head_quality", measure(args) | {"threads": args.workers}, args.json, words)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
