"""`evaluate` module: Relevant documents among the first k answers / relevant documents."""

import retrieval.evaluation.evaluate_base
import retrieval.evaluation.metrics


class TrecRecallAtK(retrieval.evaluation.evaluate_base.RankingMetric):
    """Relevant documents among the first k answers / relevant documents."""

    metric_name = "trec_recall_at_k"
    definition = "Relevant documents among the first k answers / relevant documents."
    function = staticmethod(retrieval.evaluation.metrics.trec_recall_at_k)
    defaults = {"k": 10}
