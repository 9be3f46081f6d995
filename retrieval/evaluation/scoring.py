"""Compute metrics from rankings: merged documents, slices, intervals, one row per query.

A Tally is one way to score (merged or not, all qrels or one slice of them). Rankings pass through all tallies one query
at a time, so that the full ranking of a large gallery is never stored.

Letters: K answers of one query in rank order, U gallery rows, Q queries, M metrics.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from retrieval.evaluation.intervals import intervals
from retrieval.evaluation.judgements import Gallery
from retrieval.evaluation.metrics import METRICS

TOP = 10  # answers of each query that the per-query table keeps

Relevance = Mapping[str, Mapping[str, int]]


@dataclass
class Tally:
    """Scores of one way to judge, filled by add().

    Args:
        gallery: documents and their groups; a group is one document.
        relevance: relevance by query and document; the relevance of a group is the largest of its members.
        hidden: per query, documents that are removed from the ranking before it is scored (a slice of the qrels counts
            the query's other relevant documents neither as right nor as wrong).
    """

    gallery: Gallery
    relevance: Relevance
    hidden: Relevance = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    skipped: int = 0

    def __post_init__(self) -> None:
        self._place = {name: row for row, name in enumerate(self.gallery.doc_ids)}
        self._merged = self.gallery.documents < len(self.gallery.doc_ids)
        self._value_U = np.zeros(len(self.gallery.doc_ids), dtype=np.int64)  # by group; zero again after every query
        self._categories: dict[frozenset[int], int] = {}

    def add(self, query_id: str, rows_K: NDArray[np.int64], scores_K: NDArray[np.float64]) -> None:
        """Score one query; `rows_K` are gallery rows in rank order, each at most once."""
        judged = self._by_group(self.relevance.get(query_id, {}))
        if not judged:
            self.skipped += 1
            return
        kept = self._first_of_each_group(rows_K, self._by_group(self.hidden.get(query_id, {})).keys() - judged.keys())
        rows_K, scores_K = rows_K[kept], scores_K[kept]
        groups, values = np.asarray(list(judged), dtype=np.int64), np.asarray(list(judged.values()), dtype=np.int64)
        self._value_U[groups] = values
        ranked_K = self._value_U[self.gallery.group[rows_K]]
        self._value_U[groups] = 0
        found = np.flatnonzero(ranked_K)
        self.rows.append(
            {
                "query_id": query_id,
                "category": self._categories.setdefault(frozenset(judged), len(self._categories)),
                "ranks": list(range(1, min(TOP, len(rows_K)) + 1)),
                "doc_ids": [self.gallery.doc_ids[row] for row in rows_K[:TOP]],
                "scores": [float(score) for score in scores_K[:TOP]],
                "relevance": [int(value) for value in ranked_K[:TOP]],
                "first_relevant_rank": int(found[0]) + 1 if found.size else None,
                **{name: metric(ranked_K, values) for name, metric in METRICS.items()},
            }
        )

    def _by_group(self, relevance: Mapping[str, int]) -> dict[int, int]:
        found: dict[int, int] = {}
        for name, value in relevance.items():
            group = int(self.gallery.group[self._place[name]])
            found[group] = max(value, found.get(group, 0))
        return found

    def _first_of_each_group(self, rows_K: NDArray[np.int64], hidden: set[int]) -> NDArray[np.int64]:
        group_K = self.gallery.group[rows_K]
        kept = np.sort(np.unique(group_K, return_index=True)[1]) if self._merged else np.arange(len(rows_K))
        return kept[~np.isin(group_K[kept], list(hidden))] if hidden else kept

    def metrics(self, queries: Sequence[str] | None = None) -> dict[str, Any]:
        """Means, 95% intervals over categories and counts; `queries` restricts to some of them."""
        wanted = None if queries is None else set(queries)
        rows = [row for row in self.rows if wanted is None or row["query_id"] in wanted]
        skipped = {"skipped": self.skipped} if wanted is None else {}
        if not rows:
            return {"queries": 0, "documents": self.gallery.documents, **skipped}
        values_QM = np.asarray([[row[name] for name in METRICS] for row in rows])
        spans = intervals(values_QM, [row["category"] for row in rows])
        return {
            **{name: round(float(mean), 6) for name, mean in zip(METRICS, values_QM.mean(axis=0), strict=True)},
            "queries": len(rows),
            "documents": self.gallery.documents,
            **skipped,
            "intervals": {
                name: [round(low, 6), round(high, 6)] for name, (low, high) in zip(METRICS, spans, strict=True)
            },
        }

    def per_query(self) -> pa.Table:
        """One row per scored query: its ten best answers, the first relevant rank, every metric."""
        return pa.Table.from_pylist(self.rows, schema=PER_QUERY)


PER_QUERY = pa.schema(
    [
        ("query_id", pa.string()),
        ("category", pa.int64()),
        ("ranks", pa.list_(pa.int64())),
        ("doc_ids", pa.list_(pa.string())),
        ("scores", pa.list_(pa.float64())),
        ("relevance", pa.list_(pa.int64())),
        ("first_relevant_rank", pa.int64()),
        *((name, pa.float64()) for name in METRICS),
    ]
)
