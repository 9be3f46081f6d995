"""Cleaning against cleanlab on one made world, each in a process of its own so that memory can be compared.

cleanlab reads a table of N x K class probabilities. It gets the strongest that this world gives without the truth:
softmax over the cosines to all prototypes, the own one without the row itself (leave one out), at each of several
temperatures, of which the one with the best F1 against the truth is reported. That choice favours cleanlab.
"""

import importlib
import multiprocessing
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from importlib.util import find_spec
from typing import Any

import numpy as np

from benchmarks.governance import cleaning, outcome
from data_governance.policy import Policy
from data_governance.stages import clean

TEMPERATURES = (0.03, 0.06, 0.12)
# Its filters, and its variant for data larger than memory.
MODES = ("prune_by_noise_rate", "confident_learning", "predicted_neq_given", "batched")


def compared(rows: int, categories: int, kind: str, noise: float, seed: int) -> dict[str, Any]:
    """Figures of both.

    Raises:
        ValueError: when cleanlab is not installed.
    """
    if find_spec("cleanlab") is None:
        raise ValueError("--cleanlab: cleanlab is not installed. pip install cleanlab, then run again.")
    world = {"rows": rows, "categories": categories, "kind": kind, "noise": noise, "seed": seed}
    found: dict[str, Any] = {"kind": kind, "noise": noise, "ours": alone(world, "ours", 0.0)}
    for mode in MODES:
        tried = [alone(world, mode, temperature) for temperature in TEMPERATURES]
        found[f"cleanlab_{mode}"] = max(tried, key=lambda run: run["f1"])
    return found


def alone(world: dict[str, Any], method: str, temperature: float) -> dict[str, Any]:
    """`run` in a fresh process, for its peak memory."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return dict(pool.submit(run, world, method, temperature).result())


def run(world: dict[str, Any], method: str, temperature: float) -> dict[str, Any]:
    """F1, CPU seconds of all threads, rows a CPU second, peak memory; the probabilities are part of cleanlab's work."""
    made = cleaning.made(
        world["rows"], world["categories"], **{name: world[name] for name in ("kind", "noise", "seed")}
    )
    if method != "ours":
        importlib.import_module("cleanlab.experimental.label_issues_batched")  # loading it is not its work
    start = time.process_time()
    if method == "ours":
        flagged = clean.judge(made.rows, made.label, *cleaning.NOBODY, policy=Policy()).flagged
    else:
        flagged = by_cleanlab(made, temperature, method)
    seconds = time.process_time() - start
    return {
        "f1": round(cleaning.f1(flagged, made.wrong), 4),
        "cpu_seconds": round(seconds, 2),
        "rows_per_second": round(len(flagged) / seconds),
        "peak_gib": outcome.peak_gib(),
        "temperature": temperature or None,
    }


def by_cleanlab(made: cleaning.World, temperature: float, mode: str) -> np.ndarray:
    """(N,) bool: what cleanlab calls an issue. Categories that lost every row are not numbered."""
    warnings.simplefilter("ignore")
    from cleanlab.experimental.label_issues_batched import find_label_issues_batched
    from cleanlab.filter import find_label_issues

    label = np.unique(made.label, return_inverse=True)[1]
    probability = leave_one_out(made.rows, label, temperature)
    if mode != "batched":
        return np.asarray(find_label_issues(label, probability, filter_by=mode, n_jobs=1))
    flagged = np.zeros(len(label), dtype=bool)
    flagged[find_label_issues_batched(label, probability, n_jobs=1, verbose=False)] = True
    return flagged


def leave_one_out(rows_NW: np.ndarray, label_N: np.ndarray, temperature: float) -> np.ndarray:
    """(N, K) float32 softmax of cosines to prototypes over `temperature`; a lone row has cosine 0 to its own."""
    count = int(label_N.max()) + 1
    total = np.zeros((count, rows_NW.shape[1]), dtype=np.float32)
    np.add.at(total, label_N, rows_NW)
    score = rows_NW @ (total / np.maximum(np.linalg.norm(total, axis=1, keepdims=True), 1e-9)).T
    rest = total[label_N] - rows_NW
    rest /= np.maximum(np.linalg.norm(rest, axis=1, keepdims=True), 1e-9)
    own = (rest * rows_NW).sum(axis=1)
    score[np.arange(len(label_N)), label_N] = np.where(np.bincount(label_N)[label_N] > 1, own, 0)
    score /= temperature
    score -= score.max(axis=1, keepdims=True)
    np.exp(score, out=score)
    score /= score.sum(axis=1, keepdims=True)
    return score
