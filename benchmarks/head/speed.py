"""Measure step time and memory of the head compared with other heads.

Times depend on the machine, so ratios within one run are compared. First all heads must agree on the loss of a small
case. Then each is timed in a process of its own; with --rounds the heads alternate.
"""

import argparse
import dataclasses
import json
import math
import os
import subprocess
import sys
from statistics import median
from typing import Any

import torch

from benchmarks.head.heads import DenseParameter, DenseUpdate, FullSoftmax, Head, Ours, PytorchMetricLearning
from benchmarks.head.step import DTYPES, HeadSize
from benchmarks.head.trial import as_json, random_batch
from benchmarks.processes import ROOT
from benchmarks.result_file import command_parser, write_result
from runtime.threads import num_threads
from train.class_weights.row_optimizers import ROW_OPTIMIZERS

NAMES = ("ours", "dense_update", "dense_parameter", "floor", "full_softmax", "pytorch_metric_learning")
PARTS = ("step_s", "forward_s", "backward_s", "update_s")
SMALL = HeadSize(classes=500, hidden_size=24, rate=0.1, batch_size=16)
# A dense update slower than this share of a copy's bandwidth is no fair baseline; tables that fit a cache are exempt.
LEAST_BANDWIDTH_SHARE, JUDGED_BYTES = 0.5, 2**28


def losses_of(head: Head, size: HeadSize, *, steps: int) -> list[float]:
    """Loss before each of the steps."""
    found = []
    for step in range(steps):
        embeds_BD, labels_B = random_batch(size, step)
        loss = head.forward(embeds_BD, labels_B, step)
        head.backward(loss)
        head.update()
        found.append(float(loss.detach()))
    return found


def check_equal_losses(heads: list[str]) -> dict[str, float]:
    """Largest difference of loss over a few steps of the small case, by pair.

    Ours with momentum and decay must follow the dense update step by step. Weight decay in torch's SGD is coupled, so
    the dense parameter and, at rate 1, the full softmaxes are compared before the first update only.

    Raises:
        ValueError: when a pair differs by more than 1e-4 of the loss: the timings would compare different work.
    """
    small, full = SMALL, dataclasses.replace(SMALL, rate=1.0)
    pairs: dict[str, tuple[HeadSize, Any, int]] = {}
    if "dense_update" in heads:
        pairs["dense_update"] = (small, DenseUpdate(small), 8)
    if "dense_parameter" in heads:
        pairs["dense_parameter"] = (small, DenseParameter(small), 1)
    if "full_softmax" in heads:
        pairs["full_softmax"] = (full, FullSoftmax(full), 1)
    if "pytorch_metric_learning" in heads:
        pairs["pytorch_metric_learning"] = (full, PytorchMetricLearning(full), 1)
    found = {}
    for name, (size, other, steps) in pairs.items():
        ours = Ours(size)
        rows_CD = other.head.W.detach().T if isinstance(other, PytorchMetricLearning) else other.weight_CD.detach()
        ours.shard.put_rows(torch.arange(size.classes), rows_CD.clone())
        mine, theirs = losses_of(ours, size, steps=steps), losses_of(other, size, steps=steps)
        found[name] = max(abs(a - b) for a, b in zip(mine, theirs, strict=True))
        if found[name] > 1e-4 * max(mine):
            raise ValueError(f"ours and {name} differ by {found[name]:.2e} in a loss of {max(mine):.3f}")
    return found


def run_trial(name: str, size: HeadSize, *, steps: int, threads: int) -> dict[str, Any]:
    """Run one trial in a new process."""
    command = [sys.executable, "-m", "benchmarks.head.trial", "--head", name, "--size", as_json(size)]
    command += ["--steps", str(steps), "--threads", str(threads)]
    limits = os.environ | {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    # Pages of 2 MiB for every head, as `train` sets in its own process.
    limits["THP_MEM_ALLOC_ENABLE"] = "1"
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=limits, cwd=ROOT)
    if done.returncode:
        why = "it was killed, probably because memory ran out" if done.returncode < 0 else done.stderr[-2000:]
        return {"left_out": why.strip().split("\n")[-1]}
    found: dict[str, Any] = json.loads(done.stdout.strip().split("\n")[-1])
    return found


def row_of(name: str, size: HeadSize, trials: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians over the steps of all rounds, or the reason why there are none.

    Raises:
        ValueError: for a dense update that did not use the memory's bandwidth.
    """
    only_fp32 = name in ("dense_update", "dense_parameter", "full_softmax", "pytorch_metric_learning")
    optimizer = {"ours": size.optimizer, "floor": "none"}.get(name, "momentum")
    is_full = name in ("full_softmax", "pytorch_metric_learning")
    row: dict[str, Any] = {
        "head": name,
        "classes": size.classes,
        "hidden_size": size.hidden_size,
        "rate": 1.0 if is_full else size.rate,
        "batch_size": size.batch_size,
        "dtype": "fp32" if only_fp32 else size.dtype,
        "optimizer": optimizer,
    }
    failed = [trial["left_out"] for trial in trials if "left_out" in trial]
    if failed:
        return row | {"left_out": failed[0]}
    row |= {part: round(median(second for trial in trials for second in trial[part]), 6) for part in PARTS}
    row |= {"peak_gib": max(trial["peak_gib"] for trial in trials), "steps": sum(len(t["step_s"]) for t in trials)}
    if "moves_bytes" in trials[0]:
        # Compared with the copy of the same round: other work on the machine then slowed both.
        share = max(t["moves_bytes"] / median(t["update_s"]) / t["copy_bandwidth"] for t in trials)
        row["bandwidth_share"] = round(share, 3)
        if share < LEAST_BANDWIDTH_SHARE and trials[0]["moves_bytes"] >= JUDGED_BYTES:
            raise ValueError(
                f"the dense update reached {share:.0%} of a copy's bandwidth, less than {LEAST_BANDWIDTH_SHARE:.0%}: "
                "it would be an unfair baseline; use an idle machine, or other --threads"
            )
    return row


def sizes_of(args: argparse.Namespace) -> list[HeadSize]:
    """Every requested combination of classes and optimiser."""
    found = []
    for classes in args.classes:
        rate = args.rate if args.fixed_rows is None else min(1.0, args.fixed_rows / classes)
        for optimizer in args.optimizer:
            found.append(
                HeadSize(
                    classes=classes,
                    hidden_size=args.hidden_size,
                    rate=rate,
                    batch_size=args.batch_size,
                    dtype=args.dtype,
                    optimizer=optimizer,
                    device=args.device,
                    seed=args.seed,
                )
            )
    return found


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Check losses, then time the heads; those of a size alternate."""
    differences = check_equal_losses(args.heads)
    print(f"losses agree: {differences}", flush=True)
    rows = []
    done: set[tuple[str, int]] = set()
    for size in sizes_of(args):
        # Heads that do not use our optimiser are timed once per number of classes.
        heads = [name for name in args.heads if name == "ours" or (name, size.classes) not in done]
        done |= {(name, size.classes) for name in heads}
        trials: dict[str, list[dict[str, Any]]] = {name: [] for name in heads}
        for _ in range(args.rounds):
            for name in heads:
                trials[name].append(run_trial(name, size, steps=args.steps, threads=args.threads))
        for name in heads:
            rows.append(row_of(name, size, trials[name]))
            print(json.dumps(rows[-1]), flush=True)
    found: dict[str, Any] = {"rows": rows, "loss_difference": differences, "threads": args.threads}
    if args.device == "cuda":
        found["gpu"] = torch.cuda.get_device_name()
    if args.fixed_rows is not None:
        found |= {"fixed_rows": args.fixed_rows, "growth": growth(rows)}
    return found


def growth(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Step time at the most classes over that at the fewest, for each head and optimiser."""
    found = []
    for key in dict.fromkeys((row["head"], row["optimizer"]) for row in rows):
        timed = [row for row in rows if (row["head"], row["optimizer"]) == key and "step_s" in row]
        if len(timed) > 1:
            few, many = (choose(timed, key=lambda row: row["classes"]) for choose in (min, max))
            times = round(many["step_s"] / few["step_s"], 3)
            found.append({"head": key[0], "optimizer": key[1], "from": few["classes"], "to": many["classes"]})
            found[-1]["step_ratio"] = times
    return found


def main(words: list[str] | None = None) -> int:
    example = "python -m benchmarks.head --classes 1_000_000 --rate 0.01 --json benchmarks/results/x.json"
    parser = command_parser("head", str(__doc__), example=example)
    parser.add_argument("--classes", type=int, nargs="+", default=[1_000_000])
    parser.add_argument("--hidden-size", type=int, default=128)
    parser.add_argument("--rate", type=float, default=0.01, help="share of the classes that a sampled head samples")
    parser.add_argument("--fixed-rows", type=int, help="sample so many classes at every size; replaces --rate")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--optimizer", nargs="+", choices=list(ROW_OPTIMIZERS), default=["momentum"], help="for ours")
    parser.add_argument("--dtype", choices=list(DTYPES), default="fp32", help="stored rows of ours and floor")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--heads", nargs="+", choices=NAMES, default=["ours", "dense_update", "dense_parameter", "floor"]
    )
    parser.add_argument("--steps", type=int, default=20, help="timed steps of a trial, after two of warm-up")
    parser.add_argument("--rounds", type=int, default=1, help="trials of each head, alternating")
    parser.add_argument("--threads", type=int, default=num_threads())
    args = parser.parse_args(words)
    try:
        if min(*args.classes, args.hidden_size, args.batch_size, args.steps, args.rounds, args.threads, math.inf) < 1:
            raise ValueError("classes, hidden size, batch size, steps, rounds and threads must be at least 1")
        write_result("head", measure(args), args.json, words)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
