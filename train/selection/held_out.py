"""Metrics on queries of held-out categories, as the published index would answer them.

The gallery is every governed document, trained, held out or never clicked. Documents without text get the mean text
shift of their neighbours and hubs are penalised, as the index does it.

Letters: Q queries, N documents, D width, C held-out categories, F metrics, K ranks.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from retrieval.evaluation.metrics import RANK_METRICS, SCORE_DECIMALS, rank_metrics
from retrieval.index.calibration import hubness
from retrieval.index.imputation import NEIGHBOURS, shifted
from train.inputs.cache import FeatureCache

CALIBRATION_ROWS = 4096
AT_ONCE = 256  # queries whose ranks are counted together
# ndcg here: 1 / log2(1 + rank of the first relevant document), at any rank. It moves with every query, so that a small
# validation set shows a gain that metrics of ten answers only hint at.
METRICS = (*RANK_METRICS, "ndcg")


@dataclass(frozen=True)
class ValidationGallery:
    """Held-out queries (Q, D) with their categories, all documents (N, D), and training queries for calibration."""

    queries: Tensor
    query_labels: np.ndarray
    images: Tensor
    labels: np.ndarray
    has_image: np.ndarray
    has_text: np.ndarray
    calibration: Tensor

    @property
    def has_queries(self) -> bool:
        """Whether there are held-out queries."""
        return len(self.queries) > 0

    @classmethod
    def of(cls, labels: Any, *, queries: Tensor, images: Tensor, cache: FeatureCache) -> "ValidationGallery":
        """Split the governed rows by their `validation` flags."""
        held = torch.from_numpy(labels.query_validation)
        trained = queries[~held]
        rows = np.arange(0, len(trained), max(1, len(trained) // CALIBRATION_ROWS))
        return cls(
            queries=queries[held],
            query_labels=labels.query[labels.query_validation],
            images=images,
            labels=labels.document,
            has_image=cache.document_has_image,
            has_text=np.asarray(np.asarray(cache.document_mask).any(1)),
            calibration=trained[torch.from_numpy(rows)],
        )


def with_neighbours_shift(gallery: ValidationGallery, embeds_ND: Tensor, shifts_ND: Tensor) -> Tensor:
    """Documents with an image and no text: unit(u + mean shift of the nearest documents by image that have both)."""
    source = np.flatnonzero(gallery.has_image & gallery.has_text)
    target = np.flatnonzero(gallery.has_image & ~gallery.has_text)
    if not len(source) or not len(target):
        return embeds_ND
    score_TS = gallery.images[target] @ gallery.images[source].T
    near_TK = score_TS.topk(min(NEIGHBOURS, len(source)), dim=1).indices
    filled = embeds_ND.clone()
    filled[target] = shifted(gallery.images[target], shifts_ND[source], near_TK)
    return filled


def held_out_metrics(gallery: ValidationGallery, embeds_ND: Tensor, shifts_ND: Tensor) -> np.ndarray:
    """(C, F): `METRICS` of every held-out category, each the mean over its queries; C = 0 without held-out queries."""
    if not gallery.has_queries:
        return np.zeros((0, len(METRICS)))
    documents_ND = with_neighbours_shift(gallery, embeds_ND, shifts_ND)
    score_QN = gallery.queries @ documents_ND.T
    if len(gallery.calibration):
        score_QN -= 0.5 * hubness(documents_ND, gallery.calibration)
    rank_Q = first_relevant_ranks(score_QN, torch.from_numpy(gallery.query_labels), torch.from_numpy(gallery.labels))
    found = {**rank_metrics(rank_Q), "ndcg": 1 / np.log2(1 + rank_Q)}
    _, inverse = np.unique(gallery.query_labels, return_inverse=True)
    size = np.bincount(inverse)
    return np.stack([np.bincount(inverse, found[name]) / size for name in METRICS], axis=1)


def first_relevant_ranks(score_QN: Tensor, labels_Q: Tensor, labels_N: Tensor) -> np.ndarray:
    """(Q,) rank of the first document of the query's category; N + 1 without one.

    Of equal scores the wrong ones count first, so that a model that embeds everything alike finds nothing.
    """
    ranks = []
    for score_PN, labels_P in zip(score_QN.split(AT_ONCE), labels_Q.split(AT_ONCE), strict=True):
        score_PN = torch.round(score_PN.double(), decimals=SCORE_DECIMALS)
        right_PN = labels_N == labels_P[:, None]
        best_P1 = score_PN.masked_fill(~right_PN, -torch.inf).amax(1, keepdim=True)
        ranks.append(1 + ((score_PN >= best_P1) & ~right_PN).sum(1))
    return torch.cat(ranks).numpy()


def metric_means(values_CF: np.ndarray) -> list[float]:
    """Mean over categories of every metric; 0 without categories."""
    return [float(value) for value in values_CF.sum(0) / max(len(values_CF), 1)]
