"""Hub calibration (CSLS): reduce the scores of documents that are close to most queries.

Some documents (hubs) are close to many queries whatever these show. Cross-domain similarity local scaling (Conneau et
al., ICLR 2018, section 2.3) subtracts from each product half the mean product of the document with its nearest queries,
here a sample of training queries from the published folder. Only the document's half is used, because the query's half
moves all answers alike; so one extra dimension is enough, and search stays one inner product:

    r(z) = mean of the 5 largest <z, q> over training queries q;   document [z, -r/2],   query [q, 1]

Embeddings of documents without image lack what all pictures have in common: they are far from every query, and any
document with an image would be ranked before them. Their vectors are scaled by one factor (ours), the mean r of
documents with image over their own mean r; the order among them does not change.

Letters: N documents, D model width, S sample of training queries.
"""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file
from torch import Tensor

FILE = "calibration.safetensors"
NEIGHBOURS = 5
CHUNK = 4096

Array = NDArray[np.float32]


def load_calibration(folder: Path, *, width: int) -> Array | None:
    """The (S, D) training queries of a published folder; None if it has none.

    Raises:
        ValueError: the file is damaged, lacks "query_embeds", or does not fit the model's width.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        sample = load_file(path)["query_embeds"]
    except (SafetensorError, KeyError) as error:
        raise ValueError(f"{path} holds no readable 'query_embeds': export the model again") from error
    if sample.ndim != 2 or sample.shape[1] != width or len(sample) == 0:
        raise ValueError(f"{path} holds 'query_embeds' of shape {sample.shape}, the model needs (queries, {width})")
    return np.ascontiguousarray(sample, dtype=np.float32)


def hubness(embeds_ND: Tensor, sample_SD: Tensor) -> Tensor:
    """r(z) of every document: mean of its NEIGHBOURS largest products with the sample (fewer if it is smaller).

    Args:
        embeds_ND: unit rows.
        sample_SD: unit rows of training queries.

    Returns:
        (N,) in [-1, 1].
    """
    count = min(NEIGHBOURS, len(sample_SD))
    return torch.cat([(rows_CD @ sample_SD.T).topk(count, dim=1).values.mean(1) for rows_CD in embeds_ND.split(CHUNK)])


def calibrated_documents(
    embeds_ND: Array, sample_SD: Array | None, *, has_image: NDArray[np.bool_], factor: float | None = None
) -> tuple[Array, float]:
    """(index vectors [z, -r(z)/2], those without image times a factor; the factor); z itself without a sample.

    Args:
        has_image: (N,).
        factor: of an earlier call, for documents that are added to the same index: so no vector depends on what comes
            later. None = the mean r of documents with image over that of the others; 1 if all have an image or none
            has, or a mean is not above 0.
    """
    if sample_SD is None:
        return embeds_ND, 1.0
    hubness_N = hubness(torch.from_numpy(embeds_ND), torch.from_numpy(sample_SD)).numpy()
    vectors_NE = np.concatenate([embeds_ND, -0.5 * hubness_N[:, None]], axis=1)
    if factor is None:
        factor = 1.0
        if has_image.any() and not has_image.all():
            usual, own = hubness_N[has_image].mean(), hubness_N[~has_image].mean()
            factor = float(usual / own) if min(usual, own) > 0 else 1.0
    if factor != 1:
        vectors_NE[~has_image] *= np.float32(factor)
    return vectors_NE, factor


def calibrated_queries(embeds_QD: Array, *, index_width: int, calibrate: bool = True) -> Array:
    """Query vectors as wide as the index: [q, 1], [q, 0] to ignore the calibration, or q where the index has none.

    Raises:
        ValueError: the index is neither as wide as the query nor one wider.
    """
    extra = index_width - embeds_QD.shape[1]
    if extra not in (0, 1):
        raise ValueError(f"the model gives {embeds_QD.shape[1]} dimensions, the index has {index_width}: rebuild it")
    return np.pad(embeds_QD, ((0, 0), (0, extra)), constant_values=1.0 if calibrate else 0.0)
