"""Measure a large live index: build, open, search, filter, change; the build beside bare FAISS.

The vectors are SYNTHETIC: directions around random centres, as embeddings of catalogues are. Each query is close to one
of them. Searches are single queries in one thread. `open` is measured in a new process.
"""

import itertools
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import psutil
import pyarrow as pa

from benchmarks import result_file
from retrieval.index import EXACT_BELOW, changes, vector_search
from retrieval.index.folder import Change, load_index, save_index, writing
from retrieval.index.store import Index

QUERIES, K, BATCH = 300, 10, 1_000
CENTRES, SPREAD, NEARNESS = 2_000, 0.9, 0.5
CHURN = 0.3
FILTERS = {"a hundredth": "price < 0.01", "a tenth": "price < 0.1", "half": "price < 0.5"}
OPEN = """
import sys, time
from pathlib import Path
import psutil
from retrieval.index.folder import load_index
memory = psutil.Process().memory_info
before, start = memory().rss, time.perf_counter()
index = load_index(Path(sys.argv[1]))
print(time.perf_counter() - start, memory().rss - before, len(index))
"""


def unit_rows(vectors_ND: np.ndarray) -> np.ndarray:
    found: np.ndarray = vectors_ND / np.linalg.norm(vectors_ND, axis=1, keepdims=True)
    return found.astype(np.float32)


def synthetic(documents: int, width: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(documents, queries): unit rows around common centres."""
    generator = np.random.default_rng(seed)
    centres = generator.standard_normal((CENTRES, width), dtype=np.float32)
    vectors = np.empty((documents, width), dtype=np.float32)
    for low in range(0, documents, 50_000):
        rows = vectors[low : low + 50_000]
        rows[:] = centres[generator.integers(CENTRES, size=len(rows))]
        rows += SPREAD * generator.standard_normal(rows.shape, dtype=np.float32)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    chosen = vectors[generator.choice(documents, QUERIES, replace=False)]
    noise = generator.standard_normal(chosen.shape, dtype=np.float32) * (NEARNESS / np.sqrt(width))
    return vectors, unit_rows(chosen + noise)


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    found = call()
    return time.perf_counter() - start, found


def of_searches(search: Callable[[np.ndarray], np.ndarray], queries: np.ndarray, tenth: np.ndarray) -> dict[str, float]:
    """Milliseconds and recall of single searches; an answer counts when its score reaches the exact tenth best."""
    search(queries[:1])
    spent, right = [], []
    for row in range(len(queries)):
        start = time.perf_counter()
        scores = search(queries[row : row + 1])
        spent.append(1000 * (time.perf_counter() - start))
        right.append(float((scores[0] >= tenth[row] - 1e-5).sum()) / K)
    low, high = np.percentile(spent, (50, 99))
    return {
        "p50_ms": round(float(low), 3),
        "p99_ms": round(float(high), 3),
        "recall_at_10": round(float(np.mean(right)), 4),
    }


def exact_tenth(vectors: np.ndarray, queries: np.ndarray, allowed: np.ndarray | None = None) -> np.ndarray:
    """Score of the exact tenth best document of each query."""
    best = np.full((len(queries), K), -np.inf, dtype=np.float32)
    for low in range(0, len(vectors), 100_000):
        scores = queries @ vectors[low : low + 100_000].T
        if allowed is not None:
            scores[:, ~allowed[low : low + 100_000]] = -np.inf
        best = -np.partition(-np.concatenate([best, scores], axis=1), K - 1, axis=1)[:, :K]
    found: np.ndarray = best.min(axis=1)
    return found


def documents_table(names: list[str]) -> pa.Table:
    return pa.table({"doc_id": pa.array(names, pa.string()), "text": pa.array(names, pa.string())})


def measured(documents: int, width: int, seed: int, folder: Path) -> dict[str, Any]:
    """All figures."""
    vectors, queries = synthetic(documents, width, seed)
    tenth = exact_tenth(vectors, queries)
    found: dict[str, Any] = {"documents": documents, "width": width}

    start = time.perf_counter()
    searcher = vector_search.build(vectors, sample_QE=queries[: QUERIES // 2])
    ours = time.perf_counter() - start
    kind = searcher.kind
    bare, _ = timed(lambda: _bare(kind, vectors))
    found |= {"kind": searcher.kind, "probed_lists": int(faiss.extract_index_ivf(searcher.index).nprobe)}
    found["build"] = {"seconds": round(ours, 1), "bare_faiss_seconds": round(bare, 1)}
    found["build"]["ours_over_bare"] = round(ours / bare, 2)
    names = [f"d{row:08d}" for row in range(documents)]
    found["save_seconds"] = round(_saved(searcher, names, folder, seed), 1)
    found["bytes_per_document"] = round(sum(file.stat().st_size for file in folder.rglob("*")) / documents)
    del searcher

    words = [sys.executable, "-c", OPEN, str(folder)]
    seconds, grown, _ = subprocess.run(words, capture_output=True, text=True, check=True).stdout.split()
    found["open"] = {"seconds": round(float(seconds), 3), "megabytes": round(int(grown) / 1e6)}

    opened, numbers = load_index(folder), itertools.count(2)
    found["search"] = {"all": of_searches(lambda query: opened.search(query, K)[1], queries, tenth)}
    for name, where in FILTERS.items():
        limit = exact_tenth(vectors, queries, opened.matching(where))

        def filtered(query: np.ndarray, where: str = where) -> np.ndarray:
            # Rows of a condition are kept: each one here is new, so that all of it is measured.
            new = f"{where} and price < {next(numbers)}"
            return opened.search(query, K, allowed_N=opened.matching(new))[1]

        found["search"][f"{name} of the documents"] = of_searches(filtered, queries, limit)

    found["changes"] = _changed(folder, vectors, names, queries, seed)
    found["peak_gigabytes"] = round(psutil.Process().memory_info().rss / 1e9, 2)
    return found


def _saved(searcher: Any, names: list[str], folder: Path, seed: int) -> float:
    """Seconds of writing an index with one field."""
    prices = np.random.default_rng(seed).random(len(names))
    info = {"model": "", "kind": searcher.kind, "width": searcher.width, "exact_below": EXACT_BELOW}
    info |= {"recall_at_10_against_exact": searcher.recall_at_10, "calibration": None, "skipped": [], "imputed": 0}
    index = Index(searcher, documents_table(names), info, pa.table({"price": prices}))
    return timed(lambda: save_index(index, folder))[0]


def _bare(kind: str, vectors: np.ndarray) -> Any:
    index: Any = faiss.index_factory(vectors.shape[1], kind, faiss.METRIC_INNER_PRODUCT)
    index.train(vectors)
    index.add(vectors)
    return index


def _changed(folder: Path, vectors: np.ndarray, names: list[str], queries: np.ndarray, seed: int) -> dict[str, Any]:
    """Rates of changes, and what they cost a search."""
    generator = np.random.default_rng(seed + 1)
    batches, spent = 10, 0.0
    current = vectors.copy()
    alive = np.ones(len(vectors), dtype=np.bool_)

    def put(rows: np.ndarray) -> float:
        fresh = unit_rows(current[rows] + 0.3 / np.sqrt(vectors.shape[1]) * generator.standard_normal((len(rows), 1)))
        current[rows] = fresh
        ids = [names[row] for row in rows]
        change = Change(fresh, documents_table(ids), pa.table({"price": generator.random(len(rows))}), ids)
        with writing(folder):
            return timed(lambda: changes.apply(folder, change, cause="upsert"))[0]

    order = generator.permutation(len(vectors))
    for batch in range(batches):
        spent += put(order[batch * BATCH : (batch + 1) * BATCH])
    found: dict[str, Any] = {"upserted_documents_per_second": round(batches * BATCH / spent)}
    seconds, _ = timed(lambda: changes.delete(folder, [names[row] for row in order[batches * BATCH :][:BATCH]]))
    found["deleted_documents_per_second"] = round(BATCH / seconds)
    alive[order[batches * BATCH :][:BATCH]] = False
    tenth = exact_tenth(current, queries, alive)
    index = load_index(folder)
    found["search after 10,000 upserts"] = of_searches(lambda query: index.search(query, K)[1], queries, tenth)

    start, half = (batches + 1) * BATCH, int(CHURN / 2 * len(vectors))
    put(order[start : start + half])
    gone = order[start + half : start + 2 * half]
    changes.delete(folder, [names[row] for row in gone])
    alive[gone] = False
    tenth = exact_tenth(current, queries, alive)
    churned = load_index(folder)
    found["search after 30% churn"] = of_searches(lambda query: churned.search(query, K)[1], queries, tenth)
    found["compaction_seconds"] = round(timed(lambda: changes.compact(folder))[0], 1)
    compacted = load_index(folder)
    found["search after compaction"] = of_searches(lambda query: compacted.search(query, K)[1], queries, tenth)
    return found


def main(words: list[str] | None = None) -> int:
    parser = result_file.command_parser(
        "live_index", str(__doc__), example="python -m benchmarks.live_index --documents 1000000 --width 256"
    )
    parser.add_argument("--documents", type=int, default=1_000_000)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--threads", type=int, default=1, help="of builds; searches use one (default: %(default)s)")
    options = parser.parse_args(words)
    faiss.omp_set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as place:
        found = measured(options.documents, options.width, options.seed, Path(place) / "index")
    result_file.write_result("live_index", found | {"threads": options.threads}, options.json, words)
    return 0


if __name__ == "__main__":
    sys.exit(main())
