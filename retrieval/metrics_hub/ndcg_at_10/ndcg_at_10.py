"""`evaluate` module: Discounted gain (2^relevance - 1) of the first 10 answers / that of the best order.

In: answers and judgements as lists. Out: {"ndcg_at_10": mean, "skipped": count}. Next: the user.
"""

import retrieval.evaluate_base
import retrieval.metrics


class NdcgAt10(retrieval.evaluate_base.RankingMetric):
    """Discounted gain (2^relevance - 1) of the first 10 answers / that of the best order."""

    metric_name = "ndcg_at_10"
    definition = "Discounted gain (2^relevance - 1) of the first 10 answers / that of the best order."
    function = staticmethod(retrieval.metrics.ndcg_at_10)
