"""Compare grouping documents into categories with graph methods.

The click logs are synthetic. Documents belong to categories of log-normal sizes (mean 6, at least 2), categories to
leaves of about 50 that the catalogue names. A query belongs to one category and clicks about ten documents, drawn by
popularity (Zipf with exponent 1 over the documents in random order); with probability `noise` a click goes to any
document. Content is weak: the features of a document or query are sqrt(.35) times its category's centre plus Gaussian
noise in 64 dimensions, and two centres of a leaf have cosine .5.

Every method gives each document one group. Precision, recall and F1 are over pairs of documents: in one group against
in one true category. Methods:

    components      connected components of documents that two or more queries clicked together
    leiden          Leiden (modularity, resolution 10) on Jaccard weights of all common clicks
    leiden_in_leaf  the same within leaves, at the resolution of five that scores best against the truth
    content         Leiden on mutual nearest neighbours of the features, without clicks
    ours            `organise_full.learn_in_rounds` with the default policy
"""

import random
import sys
import time
from dataclasses import dataclass
from typing import Any

import igraph
import numpy as np
from scipy.sparse import csr_array

from benchmarks import processes, result_file
from data_governance.grouping import assignments, evidence, feature_space
from data_governance.policy import Policy
from data_governance.stages import organise_full

WIDTH = 64
RHO = 0.35
KINSHIP = 0.5
PER_CATEGORY = 6
PER_LEAF = 50
CLICKS = 10
QUERIES_PER_DOCUMENT = 10 / 3
ZIPF = 1.0
RESOLUTIONS = (10.0, 30.0, 100.0, 300.0, 1000.0)
CONTENT_NEIGHBOURS = 5


@dataclass(frozen=True)
class ClickLog:
    """Unit features of both sides, edges (P, 2) of query and document, category and leaf of each document."""

    queries: np.ndarray
    documents: np.ndarray
    edges: np.ndarray
    truth: np.ndarray
    leaf: np.ndarray


def synthetic_log(documents: int, *, noise: float, seed: int) -> ClickLog:
    """Draw the log of the module's docstring.

    Raises:
        ValueError: when there are too few documents for two categories.
    """
    if documents < 2 * PER_CATEGORY:
        raise ValueError(f"--documents {documents}: at least {2 * PER_CATEGORY}.")
    rng = np.random.default_rng(seed)
    count = documents // PER_CATEGORY
    share = rng.lognormal(0, 0.5, count)
    more = rng.choice(count, documents - 2 * count, p=share / share.sum())
    truth = rng.permutation(np.concatenate([np.repeat(np.arange(count), 2), more]))
    leaves = max(count // PER_LEAF, 1)
    leaf = np.arange(count) % leaves
    kin = feature_space.unit_rows(rng.standard_normal((leaves, WIDTH), dtype=np.float32))
    own = feature_space.unit_rows(rng.standard_normal((count, WIDTH), dtype=np.float32))
    centre = feature_space.unit_rows(np.float32(KINSHIP**0.5) * kin[leaf] + np.float32((1 - KINSHIP) ** 0.5) * own)
    popularity = 1 / (1 + rng.permutation(documents)) ** ZIPF
    asked = rng.choice(count, int(documents * QUERIES_PER_DOCUMENT), p=share / share.sum())
    query = np.repeat(np.arange(len(asked)), 1 + rng.poisson(CLICKS - 1, len(asked)))
    clicked = drawn_documents(truth, popularity, asked[query], rng)
    wrong = rng.random(len(query)) < noise
    clicked[wrong] = rng.integers(0, documents, int(wrong.sum()))
    edges = np.unique(np.stack([query, clicked], axis=1), axis=0)
    return ClickLog(features(centre[asked], rng), features(centre[truth], rng), edges, truth, leaf[truth])


def describe(log: ClickLog) -> dict[str, Any]:
    """Statistics of a log.

    Returns:
        Counts, width, mean cosine of a document to the others of its category, mean cosine of a category's mean to the
        nearest one of its leaf, quantiles of the category sizes and the largest.
    """
    size = np.bincount(log.truth)
    total = np.zeros((len(size), log.documents.shape[1]))
    np.add.at(total, log.truth, log.documents)
    within = ((total**2).sum(axis=1) - size) / np.maximum(size * (size - 1), 1)
    mean = feature_space.unit_rows(total)
    leaf = np.zeros(len(size), dtype=np.int64)
    leaf[log.truth] = log.leaf
    nearest = np.full(len(size), -1.0)
    for one in np.unique(leaf):
        mine = np.flatnonzero(leaf == one)
        cosine = mean[mine] @ mean[mine].T
        np.fill_diagonal(cosine, -1.0)
        nearest[mine] = cosine.max(axis=1)
    low, middle, high = (int(value) for value in np.quantile(size, [0.05, 0.5, 0.95]))
    return {
        "documents": len(log.documents),
        "categories": len(size),
        "leaves": len(np.unique(leaf)),
        "queries": len(log.queries),
        "edges": len(log.edges),
        "width": log.documents.shape[1],
        "cosine_within": round(float(within[size > 1].mean()), 4),
        "cosine_of_means_to_nearest_other": round(float(nearest.mean()), 4),
        "sizes_5_50_95": [low, middle, high],
        "largest": int(size.max()),
    }


def drawn_documents(
    truth: np.ndarray, popularity: np.ndarray, category: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Draw one document of each given category by popularity, by inverting the cumulative sum."""
    order = np.argsort(truth, kind="stable")
    total = np.concatenate([[0], np.cumsum(popularity[order])])
    start = np.searchsorted(truth[order], np.arange(int(truth.max()) + 2))
    low, high = total[start[category]], total[start[category + 1]]
    at = np.searchsorted(total, low + rng.random(len(category)) * (high - low), side="right") - 1
    return np.asarray(order[np.clip(at, start[category], start[category + 1] - 1)])


def features(centre: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Unit features around the given centres."""
    noise = rng.standard_normal(centre.shape, dtype=np.float32) * np.float32(((1 - RHO) / WIDTH) ** 0.5)
    return feature_space.unit_rows(np.float32(RHO**0.5) * centre + noise)


def pair_scores(group: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Precision, recall and F1 over pairs of documents, from the contingency table."""

    def pairs(labels: np.ndarray) -> int:
        size = np.unique(labels, return_counts=True)[1]
        return int((size * (size - 1) // 2).sum())

    both = pairs(group.astype(np.int64) * (int(truth.max()) + 1) + truth)
    found, real = pairs(group), pairs(truth)
    scores = {"precision": both / max(found, 1), "recall": both / max(real, 1), "f1": 2 * both / max(found + real, 1)}
    return {name: round(value, 4) for name, value in scores.items()}


def co_clicks(log: ClickLog) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs of documents (P, 2), number of queries that clicked both (P,), Jaccard weight (P,)."""
    shape = (len(log.queries), len(log.documents))
    clicks = csr_array((np.ones(len(log.edges)), (log.edges[:, 0], log.edges[:, 1])), shape=shape)
    both = csr_array(clicks.T @ clicks).tocoo()
    upper = both.row < both.col
    size = np.asarray(clicks.sum(axis=0)).ravel()
    row, column, count = both.row[upper], both.col[upper], both.data[upper]
    return np.stack([row, column], axis=1), count, count / (size[row] + size[column] - count)


def by_components(log: ClickLog) -> np.ndarray:
    """(D,) connected component of each document."""
    pairs, count, _ = co_clicks(log)
    graph = igraph.Graph(n=len(log.documents), edges=pairs[count >= 2].tolist())
    return np.array(graph.connected_components().membership)


def by_leiden(log: ClickLog) -> np.ndarray:
    """(D,) Leiden community of each document."""
    pairs, _, weight = co_clicks(log)
    return leiden(len(log.documents), pairs, weight)


def by_leiden_in_leaf(log: ClickLog) -> np.ndarray:
    """Leiden within leaves, at the resolution with the best F1 against the truth: an upper bound of the method."""
    pairs, _, weight = co_clicks(log)
    inside = log.leaf[pairs[:, 0]] == log.leaf[pairs[:, 1]]
    tried = [leiden(len(log.documents), pairs[inside], weight[inside], resolution=r) for r in RESOLUTIONS]
    return max(tried, key=lambda group: pair_scores(group, log.truth)["f1"])


def by_content(log: ClickLog) -> np.ndarray:
    """Leiden on mutual nearest neighbours within the leaf, weighted by their cosine."""
    rows, columns = [], []
    for leaf in np.unique(log.leaf):
        mine = np.flatnonzero(log.leaf == leaf)
        found = assignments.neighbours(log.documents[mine], log.documents[mine], CONTENT_NEIGHBOURS + 1)[1]
        rows.append(np.repeat(mine, found.shape[1]))
        columns.append(mine[found.ravel()])
    chosen = np.unique(np.stack([np.concatenate(rows), np.concatenate(columns)], axis=1), axis=0)
    name = chosen[:, 0] * len(log.documents) + chosen[:, 1]
    mutual = np.isin(chosen[:, 1] * len(log.documents) + chosen[:, 0], name) & (chosen[:, 0] < chosen[:, 1])
    pairs = chosen[mutual]
    weight = (log.documents[pairs[:, 0]] * log.documents[pairs[:, 1]]).sum(axis=1)
    return leiden(len(log.documents), pairs, np.maximum(weight, 1e-6))


def leiden(documents: int, pairs: np.ndarray, weight: np.ndarray, *, resolution: float = RESOLUTIONS[0]) -> np.ndarray:
    """Communities of a weighted graph, with a fixed seed."""
    graph = igraph.Graph(n=documents, edges=pairs.tolist())
    igraph.set_random_number_generator(random.Random(0))
    found = graph.community_leiden(
        objective_function="modularity", weights=weight.tolist(), resolution=resolution, n_iterations=10
    )
    return np.array(found.membership)


def by_organise(log: ClickLog) -> tuple[np.ndarray, dict[str, object]]:
    """Groups of the organise stage after its last round, and the stage's notes."""
    queries, documents = len(log.queries), len(log.documents)
    every_query, every_document = np.ones(queries, dtype=bool), np.ones(documents, dtype=bool)
    clicks = evidence.click_matrix(log.edges, (queries, documents), np.ones(len(log.edges)))
    graph = assignments.ClickGraph(clicks, evidence.query_leaf(clicks, log.leaf), log.leaf, every_document)
    view = evidence.View(
        feature_space.prepared(log.queries, every_query, [WIDTH], [False]),
        feature_space.prepared(log.documents, every_document, [WIDTH], [False]),
    )
    ids = [str(i) for i in range(queries)], [str(i) for i in range(documents)]
    found, notes = organise_full.learn_in_rounds(
        evidence.Evidence(*ids, (view,), log.edges, np.ones(len(log.edges)), graph), policy=Policy()
    )
    return found.group, notes


METHODS = {
    "components": by_components,
    "content": by_content,
    "leiden": by_leiden,
    "leiden_in_leaf": by_leiden_in_leaf,
}


def setting(documents: int, *, noise: float, seed: int) -> dict[str, Any]:
    """Scores and CPU seconds of every method on one log."""
    log = synthetic_log(documents, noise=noise, seed=seed)
    metrics: dict[str, Any] = {"noise": noise, "queries": len(log.queries), "clicks": len(log.edges)}
    for name, method in METHODS.items():
        start = time.process_time()
        metrics[name] = {**pair_scores(method(log), log.truth), "cpu_seconds": round(time.process_time() - start, 2)}
    start = time.process_time()
    group, notes = by_organise(log)
    seconds = round(time.process_time() - start, 2)
    metrics["ours"] = {**pair_scores(group, log.truth), "cpu_seconds": seconds, "peak_gib": processes.peak_gib()}
    return {**metrics, "stage": notes}


def main(words: list[str] | None = None) -> int:
    parser = result_file.command_parser(
        "governance.organising", str(__doc__), example="python -m benchmarks.governance.organising --documents 30000"
    )
    parser.add_argument("--documents", type=int, default=1_500)
    parser.add_argument("--noise", type=float, nargs="+", default=[0.2, 0.45], help="shares of clicks on any document")
    options = parser.parse_args(words)
    try:
        found = [setting(options.documents, noise=noise, seed=options.seed) for noise in options.noise]
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    metrics = {"simulated": True, "documents": options.documents, "settings": found}
    result_file.write_result("governance.organising", metrics, options.json, words)
    return 0


if __name__ == "__main__":
    sys.exit(main())
