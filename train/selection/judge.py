"""Judges candidates on queries of held-out categories, as the published index would answer them.

The gallery is the full catalogue: documents of trained categories, of held-out ones, and those that nobody clicked.
Scores are calibrated as the index does it.

Letters: Q queries, N documents, D width, C held-out categories, F metrics.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from train.encoders.pair import EncoderPair, embed_rows
from train.inputs.cache import FeatureCache
from train.inputs.samples import GovernedSamples
from train.selection.held_out import CALIBRATION_ROWS, ValidationGallery, held_out_metrics

MOST_DOCUMENTS = 200_000  # of the gallery; those of held-out categories always belong to it


@dataclass(frozen=True)
class HeldOutRows:
    """Rows of each side that judge a candidate.

    Attributes:
        queries: (Q,) held-out queries. calibration: training queries that calibrate scores.
        documents: (N,) documents with an image, all of them up to `MOST_DOCUMENTS`.
    """

    queries: np.ndarray
    calibration: np.ndarray
    documents: np.ndarray

    @classmethod
    def of(cls, samples: GovernedSamples) -> "HeldOutRows":
        """The held-out rows of the governed data; `queries` may be empty."""
        labels = samples.labels
        trained = np.flatnonzero(~labels.query_validation)
        documents = np.flatnonzero(samples.document_has_image)
        held = labels.document_validation[documents]
        rest = evenly(documents[~held], max(0, MOST_DOCUMENTS - int(held.sum())))
        return cls(
            queries=np.flatnonzero(labels.query_validation),
            calibration=evenly(trained, CALIBRATION_ROWS),
            documents=np.sort(np.concatenate([documents[held], rest])),
        )


def evenly(rows: np.ndarray, most: int) -> np.ndarray:
    """At most `most` evenly spaced rows.

    >>> evenly(np.arange(10), 4).tolist()
    [0, 2, 5, 7]
    """
    count = min(len(rows), most)
    return rows[np.arange(count) * len(rows) // max(count, 1)]


def image_metrics(
    encoders: EncoderPair, cache: FeatureCache, samples: GovernedSamples, rows: HeldOutRows
) -> tuple[np.ndarray, float]:
    """((C, F) metrics of every held-out category, documents embedded by image alone; gap between the sides).

    The gap is the length of the difference between the mean embeddings of training queries and of documents: 0 where
    the two sides lie alike, at most 2. Training should not drive them apart.
    """
    images_ND = _embedded(encoders, cache.document_inputs, rows.documents, side="document")
    queries = np.concatenate([rows.queries, rows.calibration])
    embeds_QD = _embedded(encoders, cache.query_inputs, queries, side="query")
    gallery = ValidationGallery(
        queries=embeds_QD[: len(rows.queries)],
        query_labels=samples.labels.query[rows.queries],
        images=images_ND,
        labels=samples.labels.document[rows.documents],
        has_image=np.ones(len(images_ND), dtype=bool),
        has_text=np.zeros(len(images_ND), dtype=bool),
        calibration=embeds_QD[len(rows.queries) :],
    )
    values_CF = held_out_metrics(gallery, images_ND, torch.zeros_like(images_ND))
    if not len(gallery.calibration) or not len(images_ND):
        return values_CF, 0.0
    return values_CF, float((gallery.calibration.mean(0) - images_ND.mean(0)).norm())


def _embedded(encoders: EncoderPair, inputs: Any, rows: np.ndarray, *, side: str) -> Tensor:
    parts = [embeds.float().cpu() for _, embeds in embed_rows(encoders, inputs, rows, side=side)]
    return torch.cat(parts) if parts else torch.empty(0, encoders.image_head.projection.weight.shape[0])
