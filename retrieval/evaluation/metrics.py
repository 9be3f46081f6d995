"""Ranking metrics as pure functions of arrays: no model, no index, no file.

A query is given as two arrays. `ranked_N` holds the relevance of every answer in rank order (0 = not relevant).
`judged_R` holds the relevance of every relevant document of the gallery, found or not, in any order: documents that a
truncated ranking (approximate search) does not return still count as relevant.

Letters: N answers in rank order, R relevant documents of the gallery.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

SCORE_DECIMALS = 6  # scores are compared after rounding: equal documents tie however the matrix product was blocked


def _check(ranked: ArrayLike, judged: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    ranked_N, judged_R = np.asarray(ranked, dtype=np.int64), np.asarray(judged, dtype=np.int64)
    if ranked_N.ndim != 1 or judged_R.ndim != 1:
        raise ValueError(f"relevance must be one row per query, got shapes {ranked_N.shape} and {judged_R.shape}")
    if judged_R.size == 0 or judged_R.min() <= 0:
        raise ValueError("judged holds the relevant documents only (relevance >= 1) and at least one of them")
    if (ranked_N < 0).any():
        raise ValueError(f"relevance must be 0 or more, got {int(ranked_N.min())}")
    if np.count_nonzero(ranked_N) > judged_R.size:
        raise ValueError(f"{np.count_nonzero(ranked_N)} relevant answers, but only {judged_R.size} judged relevant")
    return ranked_N, judged_R


def recall_at_k(ranked: ArrayLike, judged: ArrayLike, *, k: int) -> float:
    """1 if any of the first k answers is relevant, else 0 (the recall of Stanford Online Products and In-Shop).

    Args:
        ranked: (N,) relevance of the answers in rank order, 0 = not relevant.
        judged: (R,) relevance >= 1 of all relevant documents of the gallery.
        k: how many answers count, at least 1.

    Returns:
        0.0 or 1.0; its mean over queries is the metric. Source: Oh Song et al., CVPR 2016, section 5.

    Raises:
        ValueError: no relevant document, negative relevance, k below 1.
    """
    ranked_N, _ = _check(ranked, judged)
    return float((ranked_N[: _at_least_one(k)] > 0).any())


def trec_recall_at_k(ranked: ArrayLike, judged: ArrayLike, *, k: int) -> float:
    """Relevant documents among the first k answers / relevant documents (the recall of TREC). Arguments as above."""
    ranked_N, judged_R = _check(ranked, judged)
    return float(np.count_nonzero(ranked_N[: _at_least_one(k)]) / judged_R.size)


def mrr_at_10(ranked: ArrayLike, judged: ArrayLike) -> float:
    """1 / rank of the first relevant answer when that rank is at most 10, else 0. Arguments as in recall_at_k."""
    ranked_N, _ = _check(ranked, judged)
    found = np.flatnonzero(ranked_N[:10])
    return float(1.0 / (found[0] + 1)) if found.size else 0.0


def ndcg_at_10(ranked: ArrayLike, judged: ArrayLike) -> float:
    """DCG@10 / DCG@10 of the best possible order, with DCG = sum_i (2^rel_i - 1) / log2(i + 1), ranks i from 1.

    Arguments as in recall_at_k. Gain: Burges et al., ICML 2005; discount: Jarvelin and Kekalainen, TOIS 2002.
    """
    ranked_N, judged_R = _check(ranked, judged)
    ideal_R = np.sort(judged_R)[::-1]
    return _dcg(ranked_N[:10]) / _dcg(ideal_R[:10])


def average_precision(ranked: ArrayLike, judged: ArrayLike) -> float:
    """Mean over relevant documents of (relevant answers up to its rank / its rank); one never returned counts 0.

    Arguments as in recall_at_k. Its mean over queries is `map`, over the whole ranking.
    """
    ranked_N, judged_R = _check(ranked, judged)
    rank_F = np.flatnonzero(ranked_N) + 1
    return float((np.arange(1, rank_F.size + 1) / rank_F).sum() / judged_R.size)


def _dcg(relevance_K: NDArray[np.int64]) -> float:
    gain_K = np.exp2(relevance_K.astype(np.float64)) - 1.0
    return float((gain_K / np.log2(np.arange(2, gain_K.size + 2))).sum())


def _at_least_one(k: int) -> int:
    if k < 1:
        raise ValueError(f"k is {k}, it must be at least 1")
    return k


Metric = Callable[[ArrayLike, ArrayLike], float]
METRICS: Mapping[str, Metric] = {
    "recall_at_1": lambda ranked, judged: recall_at_k(ranked, judged, k=1),
    "recall_at_5": lambda ranked, judged: recall_at_k(ranked, judged, k=5),
    "recall_at_10": lambda ranked, judged: recall_at_k(ranked, judged, k=10),
    "trec_recall_at_10": lambda ranked, judged: trec_recall_at_k(ranked, judged, k=10),
    "mrr_at_10": mrr_at_10,
    "ndcg_at_10": ndcg_at_10,
    "map": average_precision,
}


# Metrics that follow from the rank of the first relevant answer alone.
RANK_METRICS = ("recall_at_1", "recall_at_10", "mrr_at_10")


def rank_metrics(rank_Q: ArrayLike) -> dict[str, NDArray[np.float64]]:
    """RANK_METRICS of every query, by name, from the rank of its first relevant answer; the definitions are above.

    Args:
        rank_Q: (Q,) ranks from 1; any rank above 10 counts as not found.
    """
    ranks_Q = np.asarray(rank_Q, dtype=np.int64)
    return {
        "recall_at_1": (ranks_Q <= 1).astype(np.float64),
        "recall_at_10": (ranks_Q <= 10).astype(np.float64),
        "mrr_at_10": np.where(ranks_Q <= 10, 1.0 / np.maximum(ranks_Q, 1), 0.0),
    }


def ranking(scores_QN: ArrayLike) -> NDArray[np.int64]:
    """(Q, N) columns in rank order: highest score first after rounding to SCORE_DECIMALS, ties by column."""
    rounded_QN = np.round(np.asarray(scores_QN, dtype=np.float64), SCORE_DECIMALS)
    return np.argsort(-rounded_QN, axis=1, kind="stable")


def ranked_relevance(
    doc_ids: Sequence[str], scores: ArrayLike, relevance: Mapping[str, int]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Sort the answers of one query (highest score first, ties by doc_id) and look up their relevance.

    Args:
        doc_ids: (N,) answers in any order, each once.
        scores: (N,) their scores; compared after rounding to SCORE_DECIMALS.
        relevance: relevance by doc_id; documents that are not named have 0.

    Returns:
        (ranked_N, judged_R), the two arrays that every metric of this file takes. judged_R is empty when nothing is
        relevant: such a query is to be skipped, and counted.

    Raises:
        ValueError: lengths differ, a doc_id comes twice, a score is NaN, a relevance is negative.
    """
    scores_N = np.round(np.asarray(scores, dtype=np.float64), SCORE_DECIMALS)
    if scores_N.shape != (len(doc_ids),):
        raise ValueError(f"{len(doc_ids)} doc_ids but scores of shape {scores_N.shape}: one score per answer")
    if len(set(doc_ids)) != len(doc_ids):
        raise ValueError("a doc_id is answered twice: every answer may come once")
    if np.isnan(scores_N).any():
        raise ValueError("a score is NaN: every answer needs a number")
    if any(value < 0 for value in relevance.values()):
        raise ValueError("relevance must be 0 or more")
    order = sorted(range(len(doc_ids)), key=lambda row: (-scores_N[row], doc_ids[row]))
    ranked = [relevance.get(doc_ids[row], 0) for row in order]
    judged = [value for value in relevance.values() if value > 0]
    return np.asarray(ranked, dtype=np.int64), np.asarray(judged, dtype=np.int64)


def mean_over_queries(
    metric: Metric,
    predictions: Sequence[Mapping[str, Sequence[Any]]],
    references: Sequence[Mapping[str, Sequence[Any]]],
) -> tuple[float, int]:
    """The mean of one metric over queries given as lists, as the `evaluate` modules receive them.

    Args:
        metric: one of METRICS.
        predictions: per query {"doc_ids": answers in any order, "scores": their scores}.
        references: per query {"doc_ids": judged documents, "relevance": their relevance}.

    Returns:
        (mean over the queries that have a relevant document, number of queries skipped because they have none). The
        mean of no query is 0.0.
    """
    values, skipped = [], 0
    for answer, truth in zip(predictions, references, strict=True):
        relevance = {str(name): int(value) for name, value in zip(truth["doc_ids"], truth["relevance"], strict=True)}
        ranked_N, judged_R = ranked_relevance([str(name) for name in answer["doc_ids"]], answer["scores"], relevance)
        if judged_R.size:
            values.append(metric(ranked_N, judged_R))
        else:
            skipped += 1
    return (float(np.mean(values)) if values else 0.0), skipped
