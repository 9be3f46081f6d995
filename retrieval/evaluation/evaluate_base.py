"""Base class of the `evaluate` modules in metrics_hub/: inputs, description, call of the metric.

Each module is loaded by path, offline: `evaluate.load("retrieval/evaluation/metrics_hub/recall_at_k")`. It names one
metric of metrics.py and adds nothing to it.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import evaluate
from datasets import Features, Value
from datasets import Sequence as ListOf

from retrieval.evaluation.metrics import mean_over_queries

INPUTS = """
Args:
    predictions: per query {"doc_ids": answers in any order, "scores": their scores}; ties are broken by doc_id.
    references: per query {"doc_ids": judged documents, "relevance": 0 or more each}.
Returns:
    the mean over queries with a relevant document, and `skipped`, the number of queries without one.
"""


class RankingMetric(evaluate.Metric):
    """A mean over queries of one pure metric; a subclass sets the four fields."""

    metric_name = ""
    definition = ""
    function: Callable[..., float]
    defaults: Mapping[str, int] = {}

    def _info(self) -> evaluate.MetricInfo:
        features = Features(
            {
                "predictions": {"doc_ids": ListOf(Value("string")), "scores": ListOf(Value("float64"))},
                "references": {"doc_ids": ListOf(Value("string")), "relevance": ListOf(Value("int64"))},
            }
        )
        return evaluate.MetricInfo(
            description=self.definition, citation="", inputs_description=INPUTS, features=features
        )

    def _compute(
        self,
        predictions: Sequence[Mapping[str, Sequence[Any]]],
        references: Sequence[Mapping[str, Sequence[Any]]],
        **options: int,
    ) -> dict[str, float | int]:
        unknown = options.keys() - self.defaults.keys()
        if unknown:
            raise ValueError(f"{self.metric_name} takes {sorted(self.defaults) or 'no options'}, not {sorted(unknown)}")
        metric = partial(self.function, **{**self.defaults, **options})
        mean, skipped = mean_over_queries(metric, predictions, references)
        return {self.metric_name: mean, "skipped": skipped}
