"""Impute the text shift of documents without text from their nearest neighbours by image.

If text moves most documents towards their queries, a document without text is ranked lower for that reason alone. Its
shift is therefore imputed: the mean `text_shift` of the most similar documents by image that have text (ours).

Letters: N documents, D model width.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from retrieval.index import vector_search

NEIGHBOURS = 10

Array = NDArray[np.float32]


def impute(
    embeds_ND: Array,
    image_ND: Array,
    shift_ND: Array,
    *,
    has_image: NDArray[np.bool_],
    has_text: NDArray[np.bool_],
) -> tuple[Array, NDArray[np.bool_]]:
    """z = norm(u + mean shift of the 10 nearest by <u, u'>) for documents with an image and no text.

    Args:
        embeds_ND: document embeddings z, unit rows.
        image_ND: image embeddings u; rows without an image are not read.
        shift_ND: what text added to each document.
        has_image: (N,).
        has_text: (N,).

    Returns:
        (embeddings, mask of the rows that were imputed). Nothing changes when no document has both.
    """
    source, target = has_image & has_text, has_image & ~has_text
    if not source.any() or not target.any():
        return embeds_ND, np.zeros(len(embeds_ND), dtype=np.bool_)
    near = vector_search.build(np.ascontiguousarray(image_ND[source]))
    rows_TK, _ = near.search(np.ascontiguousarray(image_ND[target]), NEIGHBOURS)
    image_TD, shift_SD = torch.from_numpy(image_ND[target]), torch.from_numpy(shift_ND[source])
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
