"""The text memory: kernel ridge regression from texts to prototypes, for documents without image.

With an image, the linear map (sentence_map.py) is better, since for a training document the memory repeats what it was
fitted to; without one, many single texts carry more than one map. Kernel ridge regression on a subset of regressors
(Quinonero-Candela and Rasmussen, JMLR 2005, section 5), with the kernel k(t, t') = exp(sharpness (<t, t'> - 1)) of unit
sentence vectors:

    A = argmin_A  sum_r |y_r - sum_k k(t_r, m_k) A_k|^2 + RIDGE sum_kl k(m_k, m_l) <A_k, A_l>

Every training text has a slot while there are enough; then it is plain kernel ridge regression.

Letters: R documents with text, K slots, H token width, D width.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

RIDGE = 3.0  # variance of the noise in units of that of a text by itself
RECALL_LENGTH = 10.0  # mean length of a recalled vector: the linear map, of length 1, then only breaks ties
JITTER = 1e-6
ROWS_PER_CHUNK = 4096


def kernel(left_RH: Tensor, right_KH: Tensor, *, sharpness: float) -> Tensor:
    """(R, K) similarity of unit rows: 1 for equal texts."""
    return torch.exp(sharpness * (left_RH @ right_KH.T - 1))


def chosen_slots(sentences_RH: Tensor, *, most: int) -> np.ndarray:
    """Rows of at most `most` different texts, evenly spaced over the rows."""
    _, first = np.unique(sentences_RH.numpy().astype(np.float16), axis=0, return_index=True)
    rows: np.ndarray = np.sort(first)
    count = min(most, len(rows))
    return rows[np.arange(count) * len(rows) // max(count, 1)]


def memory_values(sentences_RH: Tensor, targets_RD: Tensor, slots_KH: Tensor, *, sharpness: float) -> Tensor:
    """A (K, D) of the equation at the top of this file, in float64."""
    own_KK = kernel(slots_KH, slots_KH, sharpness=sharpness)
    gram_KK, moment_KD = RIDGE * own_KK, torch.zeros(len(slots_KH), targets_RD.shape[1], dtype=own_KK.dtype)
    for start in range(0, len(sentences_RH), ROWS_PER_CHUNK):
        part = slice(start, start + ROWS_PER_CHUNK)
        like_RK = kernel(sentences_RH[part], slots_KH, sharpness=sharpness)
        gram_KK += like_RK.T @ like_RK
        moment_KD += like_RK.T @ targets_RD[part]
    gram_KK.diagonal().add_(JITTER)
    return torch.linalg.solve(gram_KK, moment_KD)


@torch.no_grad()
def install_memory(fusion: Any, sentences_RH: Tensor, targets_RD: Tensor) -> int:
    """Fill the fusion's memory; unused slots stay zero. Returns the number of slots used.

    Args:
        sentences_RH: unit rows, float64. targets_RD: centred prototypes of their categories.
    """
    rows = chosen_slots(sentences_RH, most=len(fusion.memory))
    slots_KH, sharpness = sentences_RH[torch.from_numpy(rows)], float(fusion.config.memory_sharpness)
    values_KD = memory_values(sentences_RH, targets_RD, slots_KH, sharpness=sharpness)
    length = (kernel(slots_KH, slots_KH, sharpness=sharpness) @ values_KD).norm(dim=1).mean()
    fusion.memory.zero_()
    fusion.memory_value.zero_()
    fusion.memory[: len(rows)] = slots_KH.to(fusion.memory.dtype)
    fusion.memory_value[: len(rows)] = (values_KD * (RECALL_LENGTH / length if length > 0 else 0.0)).to(
        fusion.memory.dtype
    )
    return len(rows)
