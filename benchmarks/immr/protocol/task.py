"""A retrieval task of the benchmark, and what a system's vectors score on it.

Everything a metric needs is the rank of a query's first relevant document, so that is all that is kept: once for the
whole task, once with identical drawings told apart, once for each slice of the documents.

Letters: Q queries, N documents in the order of the tables, D width, G groups of identical documents.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray

from benchmarks.immr.protocol.scores import METRICS, NO_PART, Scores
from benchmarks.immr.protocol.slices import document_slices, slices
from benchmarks.immr.protocol.statistics import holm, paired
from retrieval.evaluation.judgements import Gallery, build_gallery
from retrieval.evaluation.metrics import ranking

__all__ = ["METRICS", "Scores", "Task", "evaluate", "holm", "paired", "slices"]

DOCUMENT_COLUMNS = ("doc_id", "image", "text")
QUERY_COLUMNS = ("query_id", "image")
QUERIES_AT_ONCE = 512
NEVER = np.iinfo(np.int64).max  # place of a document that is not indexed

Matrix = NDArray[np.float64]
Ranks = NDArray[np.int64]
Facts = Mapping[str, Mapping[str, str]]


@dataclass(frozen=True)
class Task:
    """Who asks, who may answer, and what is right.

    Attributes:
        name: of the data set, its setting and its queries.
        documents: doc_id, image (bytes, a path, the Image struct, or null = missing), text ("" = missing), maybe leaf.
        queries: query_id, image.
        qrels: {query_id: {doc_id: relevance >= 1}}.
        category_of_query: what is drawn anew as one in the bootstrap: queries that are right or wrong together.
        merged: (doc_id, same_as) pairs of identical documents; they count as one.
        unseen_documents: documents of categories that training never saw: the small gallery.
        document_facts: {doc_id: {fact: value}}; each fact with few values becomes slices of the documents.
        query_facts: {query_id: {fact: value}}; likewise of the queries.

    Raises:
        ValueError: a column is missing, an id comes twice, qrels name something unknown, a query has no category.
    """

    name: str
    documents: pa.Table
    queries: pa.Table
    qrels: Mapping[str, Mapping[str, int]]
    category_of_query: Mapping[str, str]
    merged: Sequence[tuple[str, str]] = ()
    unseen_documents: Collection[str] = frozenset()
    document_facts: Facts = field(default_factory=dict)
    query_facts: Facts = field(default_factory=dict)

    def __post_init__(self) -> None:
        documents = _ids(self.documents, DOCUMENT_COLUMNS, f"{self.name}: documents")
        queries = _ids(self.queries, QUERY_COLUMNS, f"{self.name}: queries")
        for query, judged in self.qrels.items():
            if query not in queries:
                raise ValueError(f"{self.name}: qrels name the query {query!r}, which the query table lacks")
            wrong = [name for name, value in judged.items() if name not in documents or value < 1]
            if wrong:
                raise ValueError(
                    f"{self.name}: qrels of query {query!r} hold {wrong[0]!r}: {judged[wrong[0]]}; each must be a "
                    "document of the task with relevance 1 or more"
                )
        lacking = [query for query in self.qrels if query not in self.category_of_query]
        if lacking:
            raise ValueError(f"{self.name}: query {lacking[0]!r} has qrels but no category")
        strangers = set(self.unseen_documents) - documents
        if strangers:
            raise ValueError(f"{self.name}: unseen_documents hold {min(strangers)!r}, which is no document of the task")

    @property
    def doc_ids(self) -> list[str]:
        """Document ids in the order of the rows: (N,)."""
        return self.documents.column("doc_id").to_pylist()

    @property
    def query_ids(self) -> list[str]:
        """Query ids in the order of the rows: (Q,)."""
        return self.queries.column("query_id").to_pylist()


def _ids(table: pa.Table, columns: Sequence[str], name: str) -> set[str]:
    lacking = [column for column in columns if column not in table.schema.names]
    if lacking:
        raise ValueError(f"{name} lack the columns {lacking}; they have {table.schema.names}")
    ids: list[str] = table.column(columns[0]).to_pylist()
    if len(set(ids)) != len(ids) or not all(ids):
        raise ValueError(f"{name}: every row needs a {columns[0]} of its own, neither empty nor twice")
    return set(ids)


def evaluate(
    task: Task,
    query_embeds: ArrayLike,
    document_embeds: ArrayLike,
    *,
    gallery: Collection[str] | None = None,
    split: int = 0,
) -> Scores:
    """Ranks the gallery by inner product for every query; ties by doc_id after rounding, as retrieval does.

    Args:
        task: what is asked.
        query_embeds: (Q, D) in the order of task.queries.
        document_embeds: (N, D) in the order of task.documents; a row of NaN is a document that could not be indexed:
            it is never found, and counts where it is relevant.
        gallery: doc_ids that may answer (None = all).
        split: kept in the scores, for pooling.

    Raises:
        ValueError: shapes that do not fit, a query with NaN, an empty gallery, no query with a relevant document.
    """
    query_QD, document_ND = _checked(task, query_embeds, document_embeds)
    query_ids, doc_ids = task.query_ids, task.doc_ids
    answers = build_gallery(doc_ids, gallery, task.merged)
    row_of = {name: row for row, name in enumerate(answers.doc_ids)}
    judged = [[row_of[name] for name in task.qrels.get(query, {}) if name in row_of] for query in query_ids]
    asked = [row for row, right in enumerate(judged) if right]
    if not asked:
        raise ValueError(f"{task.name}: no query has a relevant document in the gallery of {len(answers.doc_ids)}")
    parts = {name: {row_of[doc] for doc in docs & row_of.keys()} for name, docs in document_slices(task).items()}
    place = {name: row for row, name in enumerate(doc_ids)}
    places = _places(query_QD, document_ND[[place[name] for name in answers.doc_ids]], asked)
    array = _ranks(places, judged, answers, parts)
    rank, unmerged = array.pop("rank"), array.pop("unmerged")
    names = tuple(query_ids[row] for row in asked)
    return Scores(
        names,
        tuple(task.category_of_query[query] for query in names),
        rank,
        unmerged,
        {name: values for name, values in array.items() if values.any()},
        documents=answers.documents,
        skipped=len(query_ids) - len(asked),
        split=split,
    )


def _checked(task: Task, query_embeds: ArrayLike, document_embeds: ArrayLike) -> tuple[Matrix, Matrix]:
    query_QD = np.asarray(query_embeds, dtype=np.float64)
    document_ND = np.asarray(document_embeds, dtype=np.float64)
    rows = task.queries.num_rows, task.documents.num_rows
    fits = query_QD.ndim == document_ND.ndim == 2 and query_QD.shape[1] == document_ND.shape[1]
    if not fits or (len(query_QD), len(document_ND)) != rows:
        raise ValueError(
            f"{task.name}: vectors of shapes {query_QD.shape} and {document_ND.shape}; the task has {rows[0]} queries "
            f"and {rows[1]} documents, and both sides need one width"
        )
    if not np.isfinite(query_QD).all():
        raise ValueError(f"{task.name}: a query vector is not finite; leave out queries that cannot be embedded")
    return query_QD, document_ND


def _places(query_QD: Matrix, document_ND: Matrix, asked: Sequence[int]) -> Iterator[tuple[int, Ranks]]:
    """(row of the query, (N,) place 0.. of every document in its ranking; NEVER for one that is not indexed)."""
    indexed = np.flatnonzero(np.isfinite(document_ND).all(axis=1))
    for start in range(0, len(asked), QUERIES_AT_ONCE):
        rows = asked[start : start + QUERIES_AT_ONCE]
        order_QN = ranking(query_QD[rows] @ document_ND[indexed].T)
        for row, order_N in zip(rows, order_QN, strict=True):
            place_N = np.full(len(document_ND), NEVER, dtype=np.int64)
            place_N[indexed[order_N]] = np.arange(len(indexed))
            yield row, place_N


def _ranks(
    places: Iterable[tuple[int, Ranks]],
    judged: Sequence[Sequence[int]],
    gallery: Gallery,
    parts: Mapping[str, Collection[int]],
) -> dict[str, Ranks]:
    """Rank of the first relevant document: merged, unmerged, and of every slice of the documents."""
    groups_of_all = gallery.documents  # counted once: the property sorts
    found: dict[str, list[int]] = {"rank": [], "unmerged": [], **{name: [] for name in parts}}
    for row, place_N in places:
        best_G = np.full(groups_of_all, NEVER, dtype=np.int64)
        np.minimum.at(best_G, gallery.group, place_N)
        groups = {int(gallery.group[document]) for document in judged[row]}
        found["rank"].append(_first(best_G, groups))
        found["unmerged"].append(_first(place_N, set(judged[row])))
        for name, members in parts.items():
            kept = {int(gallery.group[document]) for document in judged[row] if document in members}
            found[name].append(_first(best_G, kept, hidden=groups - kept) if kept else NO_PART)
    return {name: np.asarray(ranks, dtype=np.int64) for name, ranks in found.items()}


def _first(place_G: Ranks, wanted: set[int], *, hidden: Collection[int] = ()) -> int:
    """Rank from 1 of the first wanted one when the hidden ones leave the ranking; all + 1 when it is never found."""
    first = int(place_G[list(wanted)].min())
    if first == NEVER:
        return len(place_G) + 1
    before = sum(int(place_G[one]) < first for one in hidden)
    return 1 + int(np.count_nonzero(place_G < first)) - before
