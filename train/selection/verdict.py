"""Compares a candidate with the frozen encoder on held-out categories.

Differences are paired, with intervals over categories, because queries of one category are right or wrong together.

Letters: C held-out categories, F metrics.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from retrieval.evaluation.intervals import paired_difference
from train.selection.held_out import METRICS, metric_means

FROZEN = "frozen"
LEAST_CATEGORIES = 10
LEVEL = 0.9  # of the two-sided interval: its lower end is the one-sided 95% bound, which is what safety asks for
DECIDING, MRR = METRICS.index("ndcg"), METRICS.index("mrr_at_10")


@dataclass(frozen=True)
class Verdict:
    """Metrics of one candidate, and its paired difference in ndcg to the frozen encoder.

    Attributes:
        means: by metric. difference, low, high: mean and 90% interval over categories; 0 for the frozen encoder.
        is_safe: surely not worse than the frozen encoder: `low` is at least 0, mrr_at_10 is not lower, and of no metric
            does the whole interval lie below 0.
    """

    name: str
    means: dict[str, float]
    difference: float
    low: float
    high: float
    is_safe: bool

    def to_json(self) -> dict[str, Any]:
        """A row of the table in training.json."""
        return {
            "candidate": self.name,
            **self.means,
            "difference": round(self.difference, 4),
            "low": round(self.low, 4),
            "high": round(self.high, 4),
            "safe": self.is_safe,
        }


def verdict(name: str, values_CF: np.ndarray, frozen_CF: np.ndarray) -> Verdict:
    """Compare a candidate with the frozen encoder on the same categories."""
    means = {metric: round(value, 4) for metric, value in zip(METRICS, metric_means(values_CF), strict=True)}
    if not len(values_CF):
        return Verdict(name, means, 0.0, 0.0, 0.0, is_safe=name == FROZEN)
    category = np.arange(len(values_CF))
    found = [
        paired_difference(ours, theirs, category, level=LEVEL)
        for ours, theirs in zip(values_CF.T, frozen_CF.T, strict=True)
    ]
    difference, low, high = found[DECIDING]
    is_safe = low >= 0 and found[MRR][0] >= 0 and all(end >= 0 for _, _, end in found)
    return Verdict(name, means, difference, low, high, is_safe=name == FROZEN or is_safe)


def best(verdicts: Mapping[str, Verdict], *, categories: int) -> str:
    """The safe candidate with the highest ndcg; the frozen encoder where too few categories judge."""
    if categories < LEAST_CATEGORIES:
        return FROZEN
    safe = [name for name, one in verdicts.items() if one.is_safe]
    return max(safe, key=lambda name: verdicts[name].means["ndcg"])
