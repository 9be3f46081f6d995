"""What text would have added to documents that have none, guessed from their nearest neighbours by image.

When text moves most documents, one without text stays behind and sinks in the ranking for that alone. Its shift is
therefore imputed: the mean `text_shift` of the documents that look most like it and do have text (ours).

Letters: N documents, D model width.
"""

import numpy as np
from numpy.typing import NDArray

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
    found_TK1 = (rows_TK >= 0)[:, :, None]
    shift_TD = (shift_ND[source][rows_TK] * found_TK1).sum(axis=1) / np.maximum(found_TK1.sum(axis=1), 1)
    moved_TD = image_ND[target] + shift_TD
    filled_ND = embeds_ND.copy()
    filled_ND[target] = moved_TD / np.linalg.norm(moved_TD, axis=1, keepdims=True)
    return filled_ND, target
