"""Impute the text shift of documents without text from their nearest neighbours by image.

If text moves most documents towards their queries, a document without text is ranked lower for that reason alone. Its
shift is therefore imputed: the mean `text_shift` of the most similar documents by image that have text (ours).

Letters: N documents, D model width.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from retrieval.index import vector_search

NEIGHBOURS = 10
MOST_DONORS = 10_000  # kept for documents that are added later: 10 MB at width 256

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Donors:
    """Documents with image and text: (S, D) image embeddings u, (S, D) what their text added."""

    image_SD: Array
    shift_SD: Array


def some_donors(image_ND: Array, shift_ND: Array, both: NDArray[np.bool_]) -> Donors:
    """At most MOST_DONORS of the documents with image and text, chosen at random."""
    rows = np.flatnonzero(both)
    if len(rows) > MOST_DONORS:
        rows = np.sort(np.random.default_rng(0).choice(rows, MOST_DONORS, replace=False))
    return Donors(image_ND[rows], shift_ND[rows])


def impute(
    embeds_ND: Array,
    image_ND: Array,
    shift_ND: Array,
    *,
    has_image: NDArray[np.bool_],
    has_text: NDArray[np.bool_],
    donors: Donors | None = None,
) -> tuple[Array, NDArray[np.bool_]]:
    """z = norm(u + mean shift of the 10 nearest by <u, u'>) for documents with an image and no text.

    Args:
        embeds_ND: document embeddings z, unit rows.
        image_ND: image embeddings u; rows without an image are not read.
        shift_ND: what text added to each document.
        has_image: (N,).
        has_text: (N,).
        donors: whose text shift is taken; None = the documents among these that have both.

    Returns:
        (embeddings, mask of the rows that were imputed). Nothing changes when no document has both.
    """
    source, target = has_image & has_text, has_image & ~has_text
    if donors is None:
        donors = Donors(image_ND[source], shift_ND[source])
    if not len(donors.image_SD) or not target.any():
        return embeds_ND, np.zeros(len(embeds_ND), dtype=np.bool_)
    near = vector_search.build(np.ascontiguousarray(donors.image_SD))
    rows_TK, _ = near.search(np.ascontiguousarray(image_ND[target]), NEIGHBOURS)
    image_TD, shift_SD = torch.from_numpy(image_ND[target]), torch.from_numpy(donors.shift_SD)
    filled_ND = embeds_ND.copy()
    filled_ND[target] = shifted(image_TD, shift_SD, torch.from_numpy(rows_TK)).numpy()
    return filled_ND, target


def shifted(image_TD: Tensor, shift_SD: Tensor, near_TK: Tensor) -> Tensor:
    """unit(u + mean shift of the neighbours) for T documents without text.

    Args:
        image_TD: their image embeddings u.
        shift_SD: text shifts of S documents with image and text.
        near_TK: rows of `shift_SD`, the nearest by image; -1 where approximate search found fewer.
    """
    if bool((near_TK >= 0).all()):
        return functional.normalize(image_TD + shift_SD[near_TK].mean(1), dim=1)
    found_TK1 = (near_TK >= 0)[:, :, None]
    mean_TD = (shift_SD[near_TK.clamp(min=0)] * found_TK1).sum(1) / found_TK1.sum(1).clamp(min=1)
    return functional.normalize(image_TD + mean_TD, dim=1)
