"""Inner-product search with FAISS: exact when small, a quantised inverted file when large.

Below EXACT_BELOW vectors every product is computed. Above, an inverted file with 4-bit product quantisation finds ten
times as many candidates as wanted and the stored full vectors order them again (`IVF,PQx4fsr,RFlat`, k_factor 10;
Andre et al., "Quicker ADC", TPAMI 2019; Douze et al., "The Faiss library", 2024). The number of probed lists doubles
until a sample of queries finds 95% of the exact ten best; the recall reached is reported.

A search may be restricted to some rows. Few of them are compared one by one, which is exact; many are searched in the
inverted file with a selector.

Letters: N vectors, E their width (model width, plus one for the calibration), Q queries, K answers, F fetched rows.
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
# Up to this many allowed rows are compared one by one, which is exact; to fetch more of them costs more than a search.
COMPARED_ONE_BY_ONE = 10_000
FILTER_PROBES = 8  # times as many lists under a filter: the best that are left may lie farther away

library: Any = faiss  # its stubs lack the arguments that its Python layer adds

Array = NDArray[np.float32]
Rows = NDArray[np.int64]
Scores = NDArray[np.float64]
Mask = NDArray[np.bool_]


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

    def search(self, queries_QE: Array, k: int, *, allowed_N: Mask | None = None) -> tuple[Rows, Scores]:
        """The k best rows of every query, best first, ties by row.

        Args:
            queries_QE: queries as wide as the vectors.
            k: answers per query; cut to N when larger.
            allowed_N: rows that may be answers; None = all.

        Returns:
            (rows_QK, scores_QK); a row of -1 with score -inf is no answer (few rows are allowed, or approximate search
            found no more).

        Raises:
            ValueError: another width, not finite, or k below 1.
        """
        return _best(*self.candidates(queries_QE, k, allowed_N=allowed_N), min(k, self.size))

    def candidates(self, queries_QE: Array, k: int, *, allowed_N: Mask | None = None) -> tuple[Rows, Scores]:
        """At least the k best rows of every query, in no fixed order; arguments, result and errors as in `search`."""
        check_queries(queries_QE, k, width=self.width)
        fetched = min(self.size, k + SLACK)
        count = self.size if allowed_N is None else int(allowed_N.sum())
        if count == self.size:
            return _rounded(*self.index.search(_padded(queries_QE, self.index.d), fetched))
        assert allowed_N is not None
        if count <= COMPARED_ONE_BY_ONE:
            rows_C = np.flatnonzero(allowed_N)
            return _compared(queries_QE, self._view()[rows_C, : self.width], rows_C, fetched)
        bits = np.packbits(allowed_N, bitorder="little")  # the selector keeps no reference to it
        scores, rows = self.index.search(
            _padded(queries_QE, self.index.d), fetched, params=self._parameters(library.IDSelectorBitmap(bits), count)
        )
        return _rounded(scores, rows)

    def _parameters(self, selector: Any, count: int) -> Any:
        """Search parameters with a selector: the fewer rows are allowed, the more lists hold as many of them."""
        if self.exact:
            return library.SearchParameters(sel=selector)
        ivf = faiss.extract_index_ivf(self.index)
        probes = min(int(np.ceil(FILTER_PROBES * ivf.nprobe * self.size / count)), ivf.nlist)
        inner = library.SearchParametersIVF(sel=selector, nprobe=probes)
        return library.IndexRefineSearchParameters(k_factor=REFINE_FACTOR, base_index_params=inner)

    def _view(self) -> Array:
        """The stored vectors (N, at least E) without a copy."""
        store: Any = self.index if self.exact else faiss.downcast_index(self.index.refine_index)
        flat: Array = faiss.rev_swig_ptr(store.get_xb(), self.size * store.d)
        return flat.reshape(self.size, store.d)

    def vectors(self) -> Array:
        """The stored vectors (N, E), in full precision for both kinds."""
        return self._view()[:, : self.width].copy()

    def rows(self, rows_C: Rows) -> Array:
        """Some of the stored vectors (C, E)."""
        return np.ascontiguousarray(self._view()[rows_C, : self.width])


@dataclass(frozen=True)
class ChangedSearcher:
    """A searcher with vectors added behind its own and rows that are gone; answers as `Searcher` does.

    Attributes:
        base: searched with a selector. added_ME: compared one by one; their rows follow those of the base.
        alive_N: of base and added rows; the others are never answers.
    """

    base: Searcher
    added_ME: Array
    alive_N: Mask

    @property
    def size(self) -> int:
        return self.base.size + len(self.added_ME)

    @property
    def width(self) -> int:
        return self.base.width

    @property
    def kind(self) -> str:
        return self.base.kind

    @property
    def recall_at_10(self) -> float:
        return self.base.recall_at_10

    @property
    def exact(self) -> bool:
        return self.base.exact

    def search(self, queries_QE: Array, k: int, *, allowed_N: Mask | None = None) -> tuple[Rows, Scores]:
        """See `Searcher.search`."""
        alive_N = self.alive_N if allowed_N is None else self.alive_N & allowed_N
        rows_QF, scores_QF = self.base.candidates(queries_QE, k, allowed_N=alive_N[: self.base.size])
        added = self._added(queries_QE, alive_N[self.base.size :], k + SLACK)
        rows_QF = np.concatenate([rows_QF, added[0]], axis=1)
        scores_QF = np.concatenate([scores_QF, added[1]], axis=1)
        return _best(rows_QF, scores_QF, min(k, self.size))

    def _added(self, queries_QE: Array, alive_M: Mask, fetched: int) -> tuple[Rows, Scores]:
        """The best of the added rows that are alive; see `Searcher.candidates`."""
        count = int(alive_M.sum())
        if 2 * count < len(alive_M):
            rows_C = np.flatnonzero(alive_M)
            return _compared(queries_QE, self.added_ME[rows_C], rows_C + self.base.size, min(fetched, count))
        # Comparing the others too is cheaper than copying these.
        rows_M = np.where(alive_M, np.arange(len(alive_M)) + self.base.size, -1)
        return _compared(queries_QE, self.added_ME, rows_M, min(fetched, len(alive_M)))

    def vectors(self) -> Array:
        """All stored vectors, those of rows that are gone too."""
        return np.concatenate([self.base.vectors(), self.added_ME])

    def rows(self, rows_C: Rows) -> Array:
        """Some of the stored vectors (C, E)."""
        found_CE = np.empty((len(rows_C), self.width), dtype=np.float32)
        of_base_C = rows_C < self.base.size
        found_CE[of_base_C] = self.base.rows(rows_C[of_base_C])
        found_CE[~of_base_C] = self.added_ME[rows_C[~of_base_C] - self.base.size]
        return found_CE


def check_queries(queries_QE: Array, k: int, *, width: int) -> None:
    """Raise ValueError for queries of another width, values that are not finite, or k below 1."""
    if queries_QE.ndim != 2 or queries_QE.shape[1] != width:
        raise ValueError(f"queries of shape {queries_QE.shape} do not fit an index of width {width}")
    if k < 1:
        raise ValueError(f"k is {k}, it must be at least 1")
    _check_finite(queries_QE, "query")


def _compared(queries_QE: Array, vectors_CE: Array, rows_C: Rows, fetched: int) -> tuple[Rows, Scores]:
    """The `fetched` best of C rows for every query, by comparing all of them; padded with -1 where C is smaller.

    A row of -1 is no answer.
    """
    scores_QC = queries_QE @ vectors_CE.T
    scores_QC[:, rows_C < 0] = -np.inf
    found = min(fetched, len(rows_C))
    if found < len(rows_C):
        places_QF = np.argpartition(-scores_QC, found - 1, axis=1)[:, :found]
    else:
        places_QF = np.broadcast_to(np.arange(found), (len(queries_QE), found))
    rows_QF = np.pad(rows_C[places_QF], ((0, 0), (0, fetched - found)), constant_values=-1)
    scores_QF = np.take_along_axis(scores_QC, places_QF, axis=1)
    return _rounded(np.pad(scores_QF, ((0, 0), (0, fetched - found))), rows_QF)


def _best(rows_QF: Rows, scores_QF: Scores, k: int) -> tuple[Rows, Scores]:
    """The k best rows of every query, best first, ties by row."""
    order_QK = np.lexsort((rows_QF, -scores_QF), axis=1)[:, :k]
    return np.take_along_axis(rows_QF, order_QK, axis=1), np.take_along_axis(scores_QF, order_QK, axis=1)


def _rounded(scores_QF: Array, rows_QF: Rows) -> tuple[Rows, Scores]:
    rounded_QF = np.round(np.asarray(scores_QF, dtype=np.float64), SCORE_DECIMALS).astype(np.float64)
    rounded_QF[rows_QF < 0] = -np.inf
    return rows_QF, rounded_QF


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
    """Map a FAISS file that write() wrote into memory: opening is fast, and pages are read when they are needed.

    Raises:
        ValueError: the file is missing, damaged, or of another width.
    """
    try:
        index = faiss.read_index(path, faiss.IO_FLAG_MMAP_IFC)
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
