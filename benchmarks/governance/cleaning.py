"""Measure how well cleaning finds wrong labels, and at what cost.

The data set is that of noisy_labels.py. F1 compares the flagged rows (margin below the threshold and not confirmed by
the neighbours) with the wrong ones. Reported besides:

    oracle_f1     best F1 of any threshold on the same margins, chosen with the truth
    bayes_f1      the same for margins to the true centres
    one_round_f1  F1 of the margins before they are learned again without the flagged rows
"""

import sys
import time
from typing import Any

import numpy as np

from benchmarks import processes, result_file
from benchmarks.governance import cleanlab_baseline
from benchmarks.governance.noisy_labels import NO_DOCUMENTS, NoisyLabels, best_f1, f1, noisy_labels
from data_governance.noise import margins
from data_governance.policy import Policy
from data_governance.stages import clean

# The comparison with every true centre is left out above so many products of rows and categories.
MOST_PRODUCTS = 10**9


def bayes_margin(data: NoisyLabels) -> np.ndarray:
    """(N,) cosine to the centre of the row's label minus the largest cosine to another centre, by true centres."""
    margin = np.empty(len(data.rows), dtype=np.float32)
    for start in range(0, len(margin), 4_096):
        chunk = slice(start, start + 4_096)
        cosine = data.rows[chunk] @ data.centre.T
        row = np.arange(len(cosine))
        own = cosine[row, data.label[chunk]].copy()
        cosine[row, data.label[chunk]] = -np.inf
        margin[chunk] = own - cosine.max(axis=1)
    return margin


def setting(rows: int, categories: int, *, kind: str, noise: float, seed: int) -> dict[str, Any]:
    """Clean one synthetic data set: metrics of the module's docstring, time, memory and the stage's notes."""
    data = noisy_labels(rows, categories, kind=kind, noise=noise, seed=seed)
    start = time.perf_counter()
    verdict = clean.judge(data.rows, data.label, *NO_DOCUMENTS, policy=Policy())
    seconds = time.perf_counter() - start
    peak = processes.peak_gib()
    kept = ~verdict.drop
    label = np.where(verdict.relabel, verdict.voted, data.label)
    metrics = {
        "kind": kind,
        "noise": noise,
        "f1": f1(verdict.flagged, data.wrong),
        "oracle_f1": best_f1(verdict.margins.margin, data.wrong),
        "noise_before": float(data.wrong.mean()),
        "noise_after": float((label != data.truth)[kept].mean()),
        "kept": float(kept.mean()),
    }
    if rows * categories <= MOST_PRODUCTS:
        one = margins.margins(data.rows, data.label, *NO_DOCUMENTS, most=Policy().max_dropped_share)
        low = np.isfinite(one.margin) & (one.margin < one.cut.at)
        metrics |= {"bayes_f1": best_f1(bayes_margin(data), data.wrong), "one_round_f1": f1(low, data.wrong)}
    metrics = {name: round(value, 4) if isinstance(value, float) else value for name, value in metrics.items()}
    speed = {"seconds": round(seconds, 2), "rows_per_second": round(rows / seconds), "peak_gib": peak}
    return {**metrics, **speed, "stage": verdict.notes}


def main(words: list[str] | None = None) -> int:
    example = "python -m benchmarks.governance.cleaning --rows 60000 --categories 6000"
    parser = result_file.command_parser("governance.cleaning", str(__doc__), example=example)
    parser.add_argument("--rows", type=int, default=6_000)
    parser.add_argument("--categories", type=int, default=600)
    parser.add_argument("--kinds", nargs="+", choices=("uniform", "confusable"), default=["uniform", "confusable"])
    parser.add_argument("--noise", type=float, nargs="+", default=[0.0, 0.1, 0.2, 0.4], help="shares of wrong labels")
    parser.add_argument("--cleanlab", action="store_true", help="compare with cleanlab, which must be installed")
    options = parser.parse_args(words)
    metrics: dict[str, Any] = {"simulated": True, "rows": options.rows, "categories": options.categories}
    key, measure = ("comparison", cleanlab_baseline.compare) if options.cleanlab else ("settings", setting)
    try:
        metrics[key] = [
            measure(options.rows, options.categories, kind=kind, noise=noise, seed=options.seed)
            for kind in options.kinds
            for noise in options.noise
        ]
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    result_file.write_result("governance.cleaning", metrics, options.json, words)
    return 0


if __name__ == "__main__":
    sys.exit(main())
