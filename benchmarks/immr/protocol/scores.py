"""Scores of a system on a task: the rank of each query's first relevant document.

Recall at any k and the reciprocal rank are functions of that rank, so one file per experiment is small and two systems
can be compared query by query later. The metrics equal those of retrieval/evaluation/metrics.py; the tests compare the
two.

Legend: Q queries, M metrics.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray

from retrieval.evaluation.intervals import intervals
from retrieval.evaluation.metrics import RANK_METRICS, rank_metrics

METRICS = RANK_METRICS
NOT_IN_SLICE = 0  # rank of a query without a relevant document in a slice

Ranks = NDArray[np.int64]


@dataclass(frozen=True)
class Scores:
    """Ranks of one system on one task: a row for each query that has a relevant document in the gallery.

    Attributes:
        query_ids: (Q,) in the order of the task.
        category: (Q,) category of the query; the bootstrap resamples whole categories.
        rank: (Q,) rank of the first relevant document, identical documents counted once; documents + 1 = never found.
        unmerged: (Q,) the same with identical documents counted separately.
        slice_ranks: {slice of the documents: (Q,) rank with the query's other relevant documents removed from the
            ranking; 0 = no relevant document in this slice}.
        documents: number of documents in the gallery, identical ones counted once.
        skipped: number of queries without a relevant document in the gallery.
        split: number of the split; the bootstrap resamples categories within splits.
    """

    query_ids: tuple[str, ...]
    category: tuple[str, ...]
    rank: Ranks
    unmerged: Ranks
    slice_ranks: Mapping[str, Ranks] = field(default_factory=dict)
    documents: int = 0
    skipped: int = 0
    split: int = 0

    @property
    def recall_at_1(self) -> NDArray[np.float64]:
        """(Q,) 1.0 where the first result is relevant."""
        return rank_metrics(self.rank)["recall_at_1"]

    @property
    def recall_at_10(self) -> NDArray[np.float64]:
        """(Q,) 1.0 where one of the first ten results is relevant."""
        return rank_metrics(self.rank)["recall_at_10"]

    @property
    def mrr_at_10(self) -> NDArray[np.float64]:
        """(Q,) 1 / rank of the first relevant result, 0 beyond rank 10."""
        return rank_metrics(self.rank)["mrr_at_10"]

    def values(self) -> NDArray[np.float64]:
        """(Q, M): the metrics in the order of METRICS."""
        return np.stack([*rank_metrics(self.rank).values()], axis=1)

    def subset(self, rows: ArrayLike) -> "Scores":
        """The scores of some queries; `rows` is a mask (Q,) or row numbers."""
        index = np.arange(len(self.query_ids))[np.asarray(rows)]
        return replace(
            self,
            query_ids=tuple(self.query_ids[row] for row in index),
            category=tuple(self.category[row] for row in index),
            rank=self.rank[index],
            unmerged=self.unmerged[index],
            slice_ranks={name: ranks[index] for name, ranks in self.slice_ranks.items()},
        )

    def document_slice(self, name: str) -> "Scores":
        """Scores of one slice of the documents: the queries that have a relevant document in it."""
        rank = self.slice_ranks[name]
        return replace(self, rank=rank, unmerged=rank, slice_ranks={}).subset(rank != NOT_IN_SLICE)

    def metrics(self, *, draws: int = 2000) -> dict[str, Any]:
        """Means with 95% intervals over categories, means with identical documents counted separately, and counts."""
        found: dict[str, Any] = {"queries": len(self.query_ids), "documents": self.documents, "skipped": self.skipped}
        if not self.query_ids:
            return found
        values_QM = self.values()
        spans = intervals(values_QM, np.asarray(self.category), draws=draws)
        unmerged_M = replace(self, rank=self.unmerged).values().mean(axis=0)
        means = zip(METRICS, values_QM.mean(axis=0), strict=True)
        return {
            **{name: round(float(mean), 6) for name, mean in means},
            "intervals": {n: [round(low, 6), round(high, 6)] for n, (low, high) in zip(METRICS, spans, strict=True)},
            "unmerged": {name: round(float(mean), 6) for name, mean in zip(METRICS, unmerged_M, strict=True)},
            **found,
        }

    def table(self) -> pa.Table:
        """One row per query: query_id, category, rank, unmerged, and a column `slice NAME` for each slice.

        The counts are stored in the schema metadata, so that from_table() restores equal scores.
        """
        columns: dict[str, Any] = {
            "query_id": pa.array(self.query_ids, pa.string()),
            "category": pa.array(self.category, pa.string()),
            "rank": pa.array(self.rank, pa.int64()),
            "unmerged": pa.array(self.unmerged, pa.int64()),
        }
        columns |= {f"slice {name}": pa.array(ranks, pa.int64()) for name, ranks in self.slice_ranks.items()}
        counts = {name: str(getattr(self, name)) for name in ("documents", "skipped", "split")}
        return pa.table(columns).replace_schema_metadata(counts)

    @classmethod
    def from_table(cls, table: pa.Table) -> "Scores":
        """Restore the scores from a table written by table(), for example read back from Parquet."""
        counts = {key.decode(): int(value) for key, value in (table.schema.metadata or {}).items() if value.isdigit()}
        column = {name: table.column(name) for name in table.schema.names}
        sliced = {name.removeprefix("slice "): column[name].to_numpy() for name in column if name.startswith("slice ")}
        return cls(
            tuple(column["query_id"].to_pylist()),
            tuple(column["category"].to_pylist()),
            column["rank"].to_numpy(),
            column["unmerged"].to_numpy(),
            sliced,
            **{name: counts[name] for name in ("documents", "skipped", "split")},
        )
