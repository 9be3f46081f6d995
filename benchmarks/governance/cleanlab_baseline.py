"""Compare the clean stage with cleanlab on one synthetic data set.

Every method runs in its own process, so that peak memory can be compared. cleanlab reads a table of N x K class
probabilities. It gets a softmax over the cosines to all prototypes, where the prototype of a row's own category leaves
the row out. Of several temperatures the one with the best F1 against the truth is reported, which favours cleanlab.
"""

import importlib
import multiprocessing
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from importlib.util import find_spec
from typing import Any

import numpy as np

from benchmarks.governance.noisy_labels import NO_DOCUMENTS, f1, noisy_labels
from benchmarks.processes import peak_gib
from data_governance.policy import Policy
from data_governance.stages import clean

TEMPERATURES = (0.03, 0.06, 0.12)
# Its filters, and its variant for data larger than memory.
MODES = ("prune_by_noise_rate", "confident_learning", "predicted_neq_given", "batched")


def compare(rows: int, categories: int, *, kind: str, noise: float, seed: int) -> dict[str, Any]:
    """Metrics of the clean stage and of every mode of cleanlab at its best temperature.

    Raises:
        ValueError: when cleanlab is not installed.
    """
    if find_spec("cleanlab") is None:
        raise ValueError("--cleanlab: cleanlab is not installed. pip install cleanlab, then run again.")
    settings = {"rows": rows, "categories": categories, "kind": kind, "noise": noise, "seed": seed}
    found: dict[str, Any] = {"kind": kind, "noise": noise, "ours": run_in_process(settings, "ours", 0.0)}
    for mode in MODES:
        runs = [run_in_process(settings, mode, temperature) for temperature in TEMPERATURES]
        found[f"cleanlab_{mode}"] = max(runs, key=lambda metrics: metrics["f1"])
    return found


def run_in_process(settings: dict[str, Any], method: str, temperature: float) -> dict[str, Any]:
    """`run` in a new process, whose peak memory is then that of this method."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return dict(pool.submit(run, settings, method, temperature).result())


def run(settings: dict[str, Any], method: str, temperature: float) -> dict[str, Any]:
    """F1, CPU seconds of all threads, rows a CPU second and peak memory of one method.

    Args:
        settings: arguments of `noisy_labels`. method: "ours" or one of `MODES`.
        temperature: of the softmax for cleanlab, whose time includes the softmax.
    """
    data = noisy_labels(**settings)
    if method != "ours":
        # Loading the library is not counted as its work.
        importlib.import_module("cleanlab.experimental.label_issues_batched")
    start = time.process_time()
    if method == "ours":
        flagged = clean.judge(data.rows, data.label, *NO_DOCUMENTS, policy=Policy()).flagged
    else:
        flagged = flagged_by_cleanlab(data.rows, data.label, temperature, method)
    seconds = time.process_time() - start
    return {
        "f1": round(f1(flagged, data.wrong), 4),
        "cpu_seconds": round(seconds, 2),
        "rows_per_second": round(len(flagged) / seconds),
        "peak_gib": peak_gib(),
        "temperature": temperature or None,
    }


def flagged_by_cleanlab(rows_NW: np.ndarray, label_N: np.ndarray, temperature: float, mode: str) -> np.ndarray:
    """(N,) bool: rows that cleanlab reports as label issues."""
    warnings.simplefilter("ignore")
    from cleanlab.experimental.label_issues_batched import find_label_issues_batched
    from cleanlab.filter import find_label_issues

    # cleanlab wants labels 0..K-1: a category that lost all of its rows to wrong labels gets no number.
    label_N = np.unique(label_N, return_inverse=True)[1]
    probability_NK = leave_one_out(rows_NW, label_N, temperature)
    if mode != "batched":
        return np.asarray(find_label_issues(label_N, probability_NK, filter_by=mode, n_jobs=1))
    flagged = np.zeros(len(label_N), dtype=bool)
    flagged[find_label_issues_batched(label_N, probability_NK, n_jobs=1, verbose=False)] = True
    return flagged


def leave_one_out(rows_NW: np.ndarray, label_N: np.ndarray, temperature: float) -> np.ndarray:
    """(N, K) float32 softmax of (cosine to prototype / temperature); a row alone in its category has cosine 0 to it."""
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
