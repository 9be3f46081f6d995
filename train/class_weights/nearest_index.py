"""Approximate nearest-neighbour index of one rank's prototypes, fast to rebuild.

At ten million classes a usual inverted file takes minutes to fill, since every row is compared with thousands of cells
one by one, and holds a byte per number. Here a row is assigned to its cell through two levels of centres by matrix
products (about 2 sqrt(cells) comparisons) and stored as a 4-bit product code (an eighth of those bytes at width 128;
Andre, Kermarrec and Le Scouarnec, 2015); the candidates that the codes find are ranked by the current rows. All ranks
share one partition and one code book.

Letters: N rows of a block, D width, M sample, A coarse centres, B cells of each, P queries, K results, C candidates.
"""

import math
from collections.abc import Callable
from typing import Any

import faiss
import numpy as np
import torch
from torch import Tensor

ROWS_PER_CELL = 32  # rows of the sample that each cell is trained on
PROBES = 32
CANDIDATES = 4  # per neighbour: the codes are coarse, the exact rows decide
NUMBERS_AT_ONCE = 2**25  # in one block of rows
RowsOf = Callable[[Tensor], Tensor]


def cells_for(classes: int) -> tuple[int, int]:
    """(A, B): A coarse centres with B cells each, together a power of two near sqrt(classes)."""
    bits = max(2, round(math.log2(math.sqrt(classes))))
    return 2 ** (bits // 2), 2 ** (bits - bits // 2)


def empty_index(sample_MD: np.ndarray, *, classes: int) -> Any:
    """Index without rows: partition and code book trained on a sample of unit rows.

    Args:
        sample_MD: fp32; about `ROWS_PER_CELL` rows for each of the `cells_for(classes)`.
    """
    coarse_count, fine_count = cells_for(classes)
    coarse_AD = _centres(sample_MD, coarse_count)
    cell_M = (sample_MD @ coarse_AD.T).argmax(axis=1)
    fine_ABD = np.stack(
        [_centres(_members(sample_MD, cell_M == cell, fine_count), fine_count) for cell in range(coarse_count)]
    )
    width = sample_MD.shape[1]
    quantizer = faiss.IndexFlatIP(width)
    quantizer.add(fine_ABD.reshape(-1, width))
    index = faiss.IndexIVFPQ(
        quantizer, width, coarse_count * fine_count, _sub_vectors(width), 4, faiss.METRIC_INNER_PRODUCT
    )
    # Rows have unit length and candidates are ranked again: coding residuals would gain little.
    index.by_residual = False
    index.pq.cp.min_points_per_centroid = 1
    index.train(sample_MD[: 2**15])
    return index


def _sub_vectors(width: int) -> int:
    """Number of sub-vectors, coded with 4 bits each: at least 16 where the width allows, of at most 4 numbers."""
    most = min(4, max(1, width // 16))
    return width // max(size for size in range(1, most + 1) if width % size == 0)


def _members(sample_MD: np.ndarray, inside_M: np.ndarray, least: int) -> np.ndarray:
    """Rows of the sample in a coarse cell, padded with others to at least as many as the centres."""
    found = sample_MD[inside_M]
    return found if len(found) >= least else np.concatenate([found, sample_MD[: least - len(found)]])


def _centres(rows_ND: np.ndarray, count: int) -> np.ndarray:
    """(count, D) spherical k-means of a few rounds."""
    width = rows_ND.shape[1]
    means = faiss.Clustering(width, count)
    means.niter, means.seed, means.spherical, means.verbose = 4, 1, True, False
    means.min_points_per_centroid, means.max_points_per_centroid = 1, 2 * ROWS_PER_CELL
    found = faiss.IndexFlatIP(width)
    means.train(np.ascontiguousarray(rows_ND), found)
    centre_CD: np.ndarray = found.reconstruct_n(0, count)
    return centre_CD


class NearestIndex:
    """Search for the prototypes of the classes start..end by cosine.

    Args:
        template: from `empty_index`, the same on every rank. rows_of: (N,) class ids -> (N, D) fp32 unit rows.
        device: where rows are compared with centres.
    """

    def __init__(self, template: Any, rows_of: RowsOf, *, start: int, end: int, device: torch.device) -> None:
        self.rows_of = rows_of
        centre_CD = torch.from_numpy(template.quantizer.reconstruct_n(0, template.nlist)).to(device)
        coarse_count = 2 ** (int(math.log2(template.nlist)) // 2)
        fine_ABD = centre_CD.view(coarse_count, -1, template.d)
        coarse_AD = torch.nn.functional.normalize(fine_ABD.mean(dim=1), dim=1)
        at_once = max(1, NUMBERS_AT_ONCE // template.d)
        for low in range(start, end, at_once):
            ids_N = torch.arange(low, min(low + at_once, end))
            row_ND = rows_of(ids_N)
            cell_N = nearest_cells(row_ND.to(device), coarse_AD, fine_ABD).cpu().numpy()
            rows, ids = row_ND.cpu().contiguous().numpy(), ids_N.numpy()
            pointers = (faiss.swig_ptr(rows), faiss.swig_ptr(ids), faiss.swig_ptr(cell_N))
            template.add_core(len(rows), *pointers)
        self.index = faiss.IndexIVFPQFastScan(template)
        self.index.nprobe = min(PROBES, template.nlist)

    def search(self, query_PD: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """(P, K) cosines with the current rows, best first, and class ids, -1 where there are fewer than K."""
        _, id_PC = self.index.search(query_PD, CANDIDATES * count)
        held, place = np.unique(id_PC, return_inverse=True)
        row_ND = self.rows_of(torch.from_numpy(held[held >= 0])).cpu()
        if held[0] < 0:
            row_ND = torch.cat([row_ND.new_zeros(1, row_ND.shape[1]), row_ND])
        rows_PCD = row_ND[torch.from_numpy(place).view(id_PC.shape)]
        score_PC = torch.einsum("pd,pcd->pc", torch.from_numpy(query_PD), rows_PCD).numpy()
        score_PC[id_PC < 0] = -np.inf
        order_PK = np.lexsort((id_PC, -score_PC))[:, :count]
        return np.take_along_axis(score_PC, order_PK, 1), np.take_along_axis(id_PC, order_PK, 1)


def nearest_cells(row_ND: Tensor, coarse_AD: Tensor, fine_ABD: Tensor) -> Tensor:
    """(N,) int64 cell a B + b of each row: b is the nearest fine centre of a, the nearest coarse one."""
    coarse_N = (row_ND @ coarse_AD.T).argmax(dim=1)
    order_N = coarse_N.argsort(stable=True)
    counts = torch.bincount(coarse_N, minlength=len(coarse_AD)).tolist()
    fine = [
        (row_ND[part] @ centre_BD.T).argmax(dim=1)
        for part, centre_BD in zip(order_N.split(counts), fine_ABD, strict=True)
    ]
    cell_N = torch.empty_like(coarse_N)
    cell_N[order_N] = coarse_N[order_N] * fine_ABD.shape[1] + torch.cat(fine)
    return cell_N
