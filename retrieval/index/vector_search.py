"""Inner-product search with FAISS: exact when small, a quantised inverted file when large.

Below EXACT_BELOW vectors every product is computed. Above, an inverted file with 4-bit product quantisation finds ten
times as many candidates as wanted and the stored full vectors order them again (`IVF,PQx4fsr,RFlat`, k_factor 10;
Andre et al., "Quicker ADC", TPAMI 2019; Douze et al., "The Faiss library", 2024). The number of probed lists doubles
until a sample of queries finds 95% of the exact ten best; the recall reached is reported.

Letters: N vectors, E their width (model width, plus one for the calibration), Q queries, K answers.
"""

from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from retrieval.evaluation.metrics import SCORE_DECIMALS
from retrieval.index import EXACT_BELOW

REFINE_FACTOR = 10  # with the default of 1, recall stays near 0.7
WANTED_RECALL = 0.95
SAMPLE_QUERIES = 256
SLACK = 64  # fetched beyond k, so that ties at the cut are broken by row
LEAST_TO_TRAIN = 1000

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Searcher:
    """A FAISS index over N vectors of width E; rows are numbered as the vectors were given."""

    index: Any
    size: int
    width: int
    kind: str
    recall_at_10: float

    @property
    def exact(self) -> bool:
        return self.kind == "Flat"

    def search(self, queries_QE: Array, k: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """The k best rows of every query, best first, ties by row.

        Args:
            queries_QE: queries as wide as the vectors.
            k: answers per query; cut to N when larger.

        Returns:
            (rows_QK, scores_QK); a row of -1 with score -inf is no answer (approximate search may run out of them).

        Raises:
            ValueError: another width, not finite, or k below 1.
        """
        if queries_QE.ndim != 2 or queries_QE.shape[1] != self.width:
            raise ValueError(f"queries of shape {queries_QE.shape} do not fit an index of width {self.width}")
        if k < 1:
            raise ValueError(f"k is {k}, it must be at least 1")
        _check_finite(queries_QE, "query")
        fetched = min(self.size, k + SLACK)
        scores, rows = self.index.search(_padded(queries_QE, self.index.d), fetched)
        score_QK = np.round(scores.astype(np.float64), SCORE_DECIMALS)
        score_QK[rows < 0] = -np.inf
        order = np.lexsort((rows, -score_QK), axis=1)[:, : min(k, self.size)]
        return np.take_along_axis(rows, order, axis=1), np.take_along_axis(score_QK, order, axis=1)

    def vectors(self) -> Array:
        """The stored vectors (N, E), in full precision for both kinds."""
        store = self.index if self.exact else faiss.downcast_index(self.index.refine_index)
        return np.ascontiguousarray(store.reconstruct_n(0, self.size)[:, : self.width])


def build(vectors_NE: Array, *, exact_below: int = EXACT_BELOW, sample_QE: Array | None = None) -> Searcher:
    """Build the exact index below `exact_below` vectors, the quantised one from there on.

    Args:
        vectors_NE: finite float32 vectors.
        exact_below: size from which the quantised index is used; its training needs at least 1,000 vectors.
        sample_QE: typical queries to tune the number of probed lists with; None takes some of the vectors themselves.

    Raises:
        ValueError: no vectors, or values that are not finite.
    """
    if vectors_NE.ndim != 2 or len(vectors_NE) == 0:
        raise ValueError(f"cannot build an index over an array of shape {vectors_NE.shape}: there is no document")
    _check_finite(vectors_NE, "document")
    size, width = vectors_NE.shape
    flat = faiss.IndexFlatIP(width)
    flat.add(np.ascontiguousarray(vectors_NE))
    exact = Searcher(flat, size, width, "Flat", 1.0)
    if size < max(exact_below, LEAST_TO_TRAIN):
        return exact
    return _quantised(vectors_NE, exact, sample_QE if sample_QE is not None and len(sample_QE) else vectors_NE)


def _quantised(vectors_NE: Array, exact: Searcher, sample_QE: Array) -> Searcher:
    part = 2 if exact.width <= 128 else 4  # components per sub-quantiser
    width = -(-exact.width // (2 * part)) * 2 * part
    lists = max(1, min(2 ** round(np.log2(np.sqrt(exact.size))), exact.size // 39))
    kind = f"IVF{lists},PQ{width // part}x4fsr,RFlat"
    index: Any = faiss.index_factory(width, kind, faiss.METRIC_INNER_PRODUCT)
    stored_NE = _padded(vectors_NE, width)
    index.train(stored_NE)
    index.add(stored_NE)
    index.k_factor = REFINE_FACTOR
    chosen = np.random.default_rng(0).permutation(len(sample_QE))[:SAMPLE_QUERIES]
    truth = exact.search(np.ascontiguousarray(sample_QE[chosen]), 10)[1][:, -1:]
    probes, recall = 1, 0.0
    while True:
        faiss.extract_index_ivf(index).nprobe = probes
        searcher = Searcher(index, exact.size, exact.width, kind, recall)
        # An answer counts when its score reaches the exact tenth best: equal documents are equally good.
        found = searcher.search(np.ascontiguousarray(sample_QE[chosen]), 10)[1]
        recall = float((found >= truth - 10.0**-SCORE_DECIMALS).mean())
        if recall >= WANTED_RECALL or probes >= lists:
            return Searcher(index, exact.size, exact.width, kind, round(recall, 4))
        probes = min(2 * probes, lists)


def write(searcher: Searcher, path: str) -> None:
    """Write the FAISS file; recall and kind are stored in index.json."""
    faiss.write_index(searcher.index, path)


def read(path: str, *, width: int, kind: str, recall_at_10: float) -> Searcher:
    """Read a FAISS file that write() wrote.

    Raises:
        ValueError: the file is missing, damaged, or of another width.
    """
    try:
        index = faiss.read_index(path)
    except RuntimeError as error:
        raise ValueError(f"{path} is no readable FAISS index: build the index again") from error
    if index.d < width:
        raise ValueError(f"{path} has width {index.d}, index.json says {width}: build the index again")
    return Searcher(index, int(index.ntotal), width, kind, recall_at_10)


def _padded(rows: Array, width: int) -> Array:
    """Add zero columns up to a width that the product quantiser can divide; products do not change."""
    return np.ascontiguousarray(np.pad(rows, ((0, 0), (0, width - rows.shape[1]))), dtype=np.float32)


def _check_finite(rows: Array, what: str) -> None:
    bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
    if bad.size:
        raise ValueError(f"the embedding of {what} {int(bad[0])} is not finite: the model's weights are damaged")
