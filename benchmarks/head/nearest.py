"""Measure time and recall of the index of hard classes.

Hard classes only pay if finding them costs little compared with a step, and the index is rebuilt often, since
prototypes move. Ours is compared with a common FAISS index, `IVF,SQ8`, with as many cells and as many of them searched.
Synthetic prototypes come in leaves of 50, with cosine .8 to the leaf's centre.

    build_s    reading the prototypes included          find_s   for 256 positives
    recall     share of the exact 10 nearest classes that are found
    index_gib  of the index, without the rows           step_s   of the head itself at 100,000 sampled rows

Letters: P positives, D width, K neighbours.
"""

import argparse
import math
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import faiss
import numpy as np
import torch
from torch.nn import functional

from benchmarks.head.heads import Ours
from benchmarks.head.step import HeadSize
from benchmarks.head.trial import random_batch
from benchmarks.result_file import write_result
from runtime.threads import num_threads
from train.class_weights.hard_classes import Index, NearestClasses
from train.class_weights.nearest_index import PROBES, cells_for
from train.class_weights.shard import ClassShard
from train.parallel.topology import use_huge_pages

LEAF, COSINE, DRAWN = 50, 0.8, 100_000
POSITIVES, NEIGHBOURS, ROWS_AT_ONCE = 256, 10, 2**18


def random_leaves(shard: ClassShard) -> None:
    """Write unit prototypes, keyed by the shard's seed, with `COSINE` to the centre of their leaf."""
    generator = torch.Generator().manual_seed(shard.seed)
    width = shard.hidden_size
    for low in range(0, len(shard.weight), LEAF * 4096):
        rows = shard.weight[low : low + LEAF * 4096]
        centre = functional.normalize(torch.randn(-(-len(rows) // LEAF), width, generator=generator), dim=1)
        own = functional.normalize(torch.randn(len(rows), width, generator=generator), dim=1)
        rows.copy_(COSINE * centre.repeat_interleave(LEAF, dim=0)[: len(rows)] + math.sqrt(1 - COSINE**2) * own)


def faiss_index(shard: ClassShard) -> Index:
    """Baseline: FAISS inverted file with 8 bits a number, and as many cells as ours."""
    cells = math.prod(cells_for(shard.num_classes))
    index: Any = faiss.index_factory(shard.hidden_size, f"IVF{cells},SQ8", faiss.METRIC_INNER_PRODUCT)
    sample = np.sort(np.random.default_rng(0).choice(shard.num_classes, 39 * cells, replace=False))
    index.train(shard.prototypes(torch.from_numpy(sample)).numpy())
    for low in range(0, shard.num_classes, ROWS_AT_ONCE):
        index.add(shard.prototypes(torch.arange(low, min(low + ROWS_AT_ONCE, shard.num_classes))).numpy())
    index.nprobe = PROBES
    found: Index = index
    return found


def exact(shard: ClassShard, query_PD: np.ndarray) -> np.ndarray:
    """(P, K + 1) nearest classes by exact search, the positive itself included."""
    best_PK = torch.full((len(query_PD), NEIGHBOURS + 1), -2.0)
    id_PK = torch.zeros_like(best_PK, dtype=torch.int64)
    for low in range(0, shard.num_classes, ROWS_AT_ONCE):
        rows = shard.prototypes(torch.arange(low, min(low + ROWS_AT_ONCE, shard.num_classes)))
        score, place = (torch.from_numpy(query_PD) @ rows.T).topk(min(NEIGHBOURS + 1, len(rows)), dim=1)
        best_PK, order = torch.cat([best_PK, score], dim=1).topk(NEIGHBOURS + 1, dim=1)
        id_PK = torch.cat([id_PK, place + low], dim=1).gather(1, order)
    return id_PK.numpy()


def metrics_of(name: str, index: Index, build_s: float, queries: np.ndarray, true_PK: np.ndarray) -> dict[str, Any]:
    """Times, recall and size of one index."""
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        _, id_PK = index.search(queries, NEIGHBOURS + 1)
        seconds.append(time.perf_counter() - start)
    hits = [len(set(a) & set(b)) / (NEIGHBOURS + 1) for a, b in zip(true_PK.tolist(), id_PK.tolist(), strict=True)]
    held: Any = getattr(index, "index", index)
    size = len(faiss.serialize_index(held).tobytes()) / 2**30
    metrics = {
        "build_s": round(build_s, 2),
        "find_s": round(median(seconds), 4),
        "recall": round(float(np.mean(hits)), 4),
    }
    return {"index": name, **metrics, "index_gib": round(size, 3)}


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Measure every size."""
    rows = [row for classes in args.classes for row in rows_at(classes, args.hidden_size, steps=args.steps)]
    return {"rows": rows, "threads": args.threads}


def rows_at(classes: int, width: int, *, steps: int) -> list[dict[str, Any]]:
    """Measure both indexes and a step of the head at one size."""
    size = HeadSize(
        classes=classes, hidden_size=width, rate=min(1.0, DRAWN / classes), batch_size=128, optimizer="rowwise_adagrad"
    )
    head = Ours(size)
    random_leaves(head.shard)
    stream = np.random.default_rng(1)
    positives = torch.from_numpy(np.sort(stream.choice(classes, POSITIVES, replace=False)))
    queries = head.shard.prototypes(positives).numpy()
    true_PK, rows = exact(head.shard, queries), []
    for name, build in (("ours", nearest(head.shard)._build), ("IVF,SQ8", lambda: faiss_index(head.shard))):
        start = time.perf_counter()
        index = build()
        rows.append(metrics_of(name, index, time.perf_counter() - start, queries, true_PK))
        del index
    taken = []
    for step in range(steps):
        embeds_BD, labels_B = random_batch(size, step)
        start = time.perf_counter()
        head.backward(head.forward(embeds_BD, labels_B, step))
        head.update()
        taken.append(time.perf_counter() - start)
    step_s = round(median(taken), 4)
    return [{"classes": classes, "hidden_size": width, **row, "step_s": step_s} for row in rows]


def nearest(shard: ClassShard) -> NearestClasses:
    """Ours, never rebuilt by itself."""
    return NearestClasses(shard, per_positive=NEIGHBOURS, refresh_every=10**9, also_every=10**9, seed=0)


def main(words: list[str] | None = None) -> int:
    use_huge_pages()
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.head.nearest",
        description=__doc__.split("\n")[0],
        epilog="example: python -m benchmarks.head.nearest --classes 1_000_000 10_000_000",
    )
    parser.add_argument("--classes", type=int, nargs="+", default=[1_000_000, 10_000_000])
    parser.add_argument("--hidden-size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=8, help="timed steps of the head, for comparison")
    parser.add_argument("--threads", type=int, default=num_threads())
    parser.add_argument(
        "--json", type=Path, help="result file; docs/head.md reads benchmarks/results/head_nearest_*.json"
    )
    args = parser.parse_args(words)
    torch.set_num_threads(args.threads)
    faiss.omp_set_num_threads(args.threads)
    # Fewer classes are searched without an index.
    if min(args.classes) < 20_000 or args.steps < 1:
        print("error: --classes takes numbers of at least 20,000, --steps of at least 1", file=sys.stderr)
        return 2
    write_result("head.nearest", measure(args), args.json, words)
    return 0


if __name__ == "__main__":
    sys.exit(main())
