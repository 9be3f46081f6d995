"""`evaluate` module: Discounted gain (2^relevance - 1) of the first 10 answers / that of the best order."""

import retrieval.evaluation.evaluate_base
import retrieval.evaluation.metrics


class NdcgAt10(retrieval.evaluation.evaluate_base.RankingMetric):
    """Discounted gain (2^relevance - 1) of the first 10 answers / that of the best order."""

    metric_name = "ndcg_at_10"
    definition = "Discounted gain (2^relevance - 1) of the first 10 answers / that of the best order."
    function = staticmethod(retrieval.evaluation.metrics.ndcg_at_10)
