"""`evaluate` module: Relevant documents among the first k answers / relevant documents.

In: answers and judgements as lists. Out: {"trec_recall_at_k": mean, "skipped": count}. Next: the user.
"""

import retrieval.evaluate_base
import retrieval.metrics


class TrecRecallAtK(retrieval.evaluate_base.RankingMetric):
    """Relevant documents among the first k answers / relevant documents."""

    metric_name = "trec_recall_at_k"
    definition = "Relevant documents among the first k answers / relevant documents."
    function = staticmethod(retrieval.metrics.trec_recall_at_k)
    defaults = {"k": 10}
