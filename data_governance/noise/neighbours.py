"""Nearest neighbours by cosine, exact or approximate with measured recall.

The quality of cleaning depends on recall, so an approximate search is compared with the exact one on a sample every
time, re-ranks more candidates while its recall is too low, and is replaced by the exact search if that is not enough.

Letters: B rows of the base, N query rows, W width, C results.
"""

from dataclasses import dataclass

import faiss
import numpy as np

# Largest number of comparisons for the exact search.
EXACT_PRODUCTS = 10**10
SAMPLE = 500
LEAST_RECALL = 0.98
# Candidates re-ranked exactly, per result.
FACTORS = (10, 20, 60)


@dataclass(frozen=True)
class Found:
    """Search results.

    Attributes:
        cosine, index: (N, C); index -1 beyond the last.
        recall: share of sampled rows whose true nearest is among the results; 1 for an exact search, NaN if unknown.
    """

    cosine: np.ndarray
    index: np.ndarray
    recall: float
    method: str


def nearest(base_BW: np.ndarray, rows_NW: np.ndarray, count: int, *, products: int = EXACT_PRODUCTS) -> Found:
    """The `count` nearest base rows of every row: exact up to `products` comparisons, else by 4-bit codes, re-ranked.

    The codes are those of FAISS's fast-scan product quantiser with at most 64 sub-spaces of two or more dimensions.
    """
    count = min(count, len(base_BW))
    exact = faiss.IndexFlatIP(base_BW.shape[1])
    exact.add(base_BW)
    parts = int(np.gcd(base_BW.shape[1], 64))
    parts = parts if base_BW.shape[1] >= 2 * parts else parts // 2
    if len(base_BW) * len(rows_NW) > products and parts >= 8 and len(base_BW) >= 1_000:
        codes = faiss.IndexPQFastScan(base_BW.shape[1], parts, 4, faiss.METRIC_INNER_PRODUCT)
        codes.train(base_BW)
        codes.add(base_BW)
        index = faiss.IndexRefine(codes, exact)
        # Every n-th row, not the first ones: rows are sorted by id.
        sample = rows_NW[:: max(len(rows_NW) // SAMPLE, 1)]
        truth = exact.search(sample, 1)[1]
        for factor in FACTORS:
            index.k_factor = factor
            recall = float((index.search(sample, count)[1] == truth).any(axis=1).mean())
            if recall >= LEAST_RECALL:
                return Found(*index.search(rows_NW, count), recall, f"PQ{parts}x4fs, re-ranked x{factor}")
    return Found(*exact.search(rows_NW, count), 1.0, "exact")


def nearest_in_cells(
    base_BW: np.ndarray, cell_B: np.ndarray, centre_KW: np.ndarray, rows_NW: np.ndarray, near: Found, count: int
) -> Found:
    """The `count` nearest base rows in the cells `near` (N, P) of each row, by an inverted file.

    The cells are those of the category prototypes, whose nearest are already known, so nothing is trained.
    """
    from faiss.contrib import ivf_tools

    width = base_BW.shape[1]
    index = faiss.IndexIVFFlat(faiss.IndexFlatIP(width), width, len(centre_KW), faiss.METRIC_INNER_PRODUCT)
    index.quantizer.add(centre_KW)
    index.is_trained = True
    ivf_tools.add_preassigned(index, base_BW, cell_B.astype(np.int64))
    index.nprobe = near.index.shape[1]
    cosine, found = ivf_tools.search_preassigned(index, rows_NW, count, near.index.astype(np.int64), near.cosine)
    at = np.arange(len(rows_NW))[:: max(len(rows_NW) // SAMPLE, 1)]
    exact = faiss.IndexFlatIP(width)
    recall = float("nan")
    if len(at):
        exact.add(base_BW)
        truth = exact.search(rows_NW[at], count)[1]
        recall = float(np.mean([np.isin(truth[i], found[row]).mean() for i, row in enumerate(at)]))
    return Found(cosine, found, recall, f"{len(centre_KW)} prototype cells, {index.nprobe} read")
