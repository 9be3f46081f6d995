"""`evaluate` module: Mean over queries of the average precision over the whole ranking."""

import retrieval.evaluation.evaluate_base
import retrieval.evaluation.metrics


class MeanAveragePrecision(retrieval.evaluation.evaluate_base.RankingMetric):
    """Mean over queries of the average precision over the whole ranking."""

    metric_name = "mean_average_precision"
    definition = "Mean over queries of the average precision over the whole ranking."
    function = staticmethod(retrieval.evaluation.metrics.average_precision)
