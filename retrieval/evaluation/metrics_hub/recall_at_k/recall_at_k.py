"""`evaluate` module: Share of queries with a relevant document among the first k answers."""

import retrieval.evaluation.evaluate_base
import retrieval.evaluation.metrics


class RecallAtK(retrieval.evaluation.evaluate_base.RankingMetric):
    """Share of queries with a relevant document among the first k answers."""

    metric_name = "recall_at_k"
    definition = "Share of queries with a relevant document among the first k answers."
    function = staticmethod(retrieval.evaluation.metrics.recall_at_k)
    defaults = {"k": 10}
