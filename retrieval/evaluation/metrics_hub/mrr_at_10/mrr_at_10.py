"""`evaluate` module: Mean of 1 / rank of the first relevant answer, 0 beyond rank 10."""

import retrieval.evaluation.evaluate_base
import retrieval.evaluation.metrics


class MrrAt10(retrieval.evaluation.evaluate_base.RankingMetric):
    """Mean of 1 / rank of the first relevant answer, 0 beyond rank 10."""

    metric_name = "mrr_at_10"
    definition = "Mean of 1 / rank of the first relevant answer, 0 beyond rank 10."
    function = staticmethod(retrieval.evaluation.metrics.mrr_at_10)
