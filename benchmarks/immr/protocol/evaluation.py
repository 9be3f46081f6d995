"""Rank the documents of a task for every query, and split the scores into slices.

Only the rank of the first relevant document of each query is kept: for the whole task, with identical documents
counted separately, and for each slice of the documents.

Legend: Q queries, N documents, D embedding width, G groups of identical documents.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from benchmarks.immr.protocol.scores import NOT_IN_SLICE, Scores
from benchmarks.immr.protocol.task import Task
from retrieval.evaluation.judgements import Gallery, build_gallery
from retrieval.evaluation.metrics import ranking

QUERIES_PER_CHUNK = 512
NOT_INDEXED = np.iinfo(np.int64).max  # position of a document that is not in the index

Matrix = NDArray[np.float64]
Ranks = NDArray[np.int64]


def evaluate(
    task: Task,
    query_embeds: ArrayLike,
    document_embeds: ArrayLike,
    *,
    gallery: Collection[str] | None = None,
    split: int = 0,
) -> Scores:
    """Rank the gallery by inner product for every query; ties after rounding go by doc_id, as in retrieval/.

    Args:
        task: the queries, documents and judgements.
        query_embeds: (Q, D) in the order of task.queries.
        document_embeds: (N, D) in the order of task.documents; a row of NaN is a document that could not be indexed: it
            is never retrieved, but still counts as relevant.
        gallery: doc_ids to search (None = all).
        split: number of the split, kept in the scores for pooling.

    Raises:
        ValueError: shapes do not fit, a query has NaN, the gallery is empty, no query has a relevant document.
    """
    query_QD, document_ND = _checked(task, query_embeds, document_embeds)
    query_ids, doc_ids = task.query_ids, task.doc_ids
    searched = build_gallery(doc_ids, gallery, task.merged)
    row_of = {name: row for row, name in enumerate(searched.doc_ids)}
    relevant = [[row_of[name] for name in task.qrels.get(query, {}) if name in row_of] for query in query_ids]
    answerable = [row for row, right in enumerate(relevant) if right]
    if not answerable:
        raise ValueError(f"{task.name}: no query has a relevant document in the gallery of {len(searched.doc_ids)}")
    slices = {name: {row_of[doc] for doc in docs & row_of.keys()} for name, docs in task.document_slices().items()}
    table_row = {name: row for row, name in enumerate(doc_ids)}
    positions = _positions(query_QD, document_ND[[table_row[name] for name in searched.doc_ids]], answerable)
    ranks = _ranks(positions, relevant, searched, slices)
    rank, unmerged = ranks.pop("rank"), ranks.pop("unmerged")
    names = tuple(query_ids[row] for row in answerable)
    return Scores(
        names,
        tuple(task.category_of_query[query] for query in names),
        rank,
        unmerged,
        {name: values for name, values in ranks.items() if values.any()},
        documents=searched.documents,
        skipped=len(query_ids) - len(answerable),
        split=split,
    )


def slices(task: Task, scores: Scores) -> dict[str, Scores]:
    """Scores of every slice that contains a query.

    A slice of documents measures how well documents of one kind are found, for example those with a text in another
    language: only they count as relevant, and the query's other relevant documents are removed from the ranking. A
    slice of queries is a subset of the rows.

    Args:
        task: the evaluated task.
        scores: from evaluate().

    Returns:
        {"document.FACT=VALUE" or "query.FACT=VALUE": Scores}. A slice of documents holds the queries that have a
        relevant document in it; its `unmerged` repeats its rank, since slices count identical documents once.
    """
    found = {name: scores.document_slice(name) for name in scores.slice_ranks}
    for name, members in task.query_slices().items():
        rows = [row for row, query in enumerate(scores.query_ids) if query in members]
        if rows:
            found[name] = replace(scores.subset(rows), slice_ranks={})
    return found


def _checked(task: Task, query_embeds: ArrayLike, document_embeds: ArrayLike) -> tuple[Matrix, Matrix]:
    query_QD = np.asarray(query_embeds, dtype=np.float64)
    document_ND = np.asarray(document_embeds, dtype=np.float64)
    rows = task.queries.num_rows, task.documents.num_rows
    fits = query_QD.ndim == document_ND.ndim == 2 and query_QD.shape[1] == document_ND.shape[1]
    if not fits or (len(query_QD), len(document_ND)) != rows:
        raise ValueError(
            f"{task.name}: embeddings of shapes {query_QD.shape} and {document_ND.shape}; the task has {rows[0]} "
            f"queries and {rows[1]} documents, and both need one width"
        )
    if not np.isfinite(query_QD).all():
        raise ValueError(f"{task.name}: a query embedding is not finite; leave out queries that cannot be embedded")
    return query_QD, document_ND


def _positions(query_QD: Matrix, document_ND: Matrix, rows: Sequence[int]) -> Iterator[tuple[int, Ranks]]:
    """(query row, (N,) position from 0 of every document in its ranking) for the query rows `rows`."""
    indexed = np.flatnonzero(np.isfinite(document_ND).all(axis=1))
    for start in range(0, len(rows), QUERIES_PER_CHUNK):
        chunk = rows[start : start + QUERIES_PER_CHUNK]
        order_QN = ranking(query_QD[chunk] @ document_ND[indexed].T)
        for row, order_N in zip(chunk, order_QN, strict=True):
            position_N = np.full(len(document_ND), NOT_INDEXED, dtype=np.int64)
            position_N[indexed[order_N]] = np.arange(len(indexed))
            yield row, position_N


def _ranks(
    positions: Iterable[tuple[int, Ranks]],
    relevant: Sequence[Sequence[int]],
    gallery: Gallery,
    slices: Mapping[str, Collection[int]],
) -> dict[str, Ranks]:
    """Rank of the first relevant document: merged, unmerged, and for every slice of the documents."""
    num_groups = gallery.documents  # read once: the property sorts
    found: dict[str, list[int]] = {"rank": [], "unmerged": [], **{name: [] for name in slices}}
    for row, position_N in positions:
        best_G = np.full(num_groups, NOT_INDEXED, dtype=np.int64)
        np.minimum.at(best_G, gallery.group, position_N)
        groups = {int(gallery.group[document]) for document in relevant[row]}
        found["rank"].append(_first_rank(best_G, groups))
        found["unmerged"].append(_first_rank(position_N, set(relevant[row])))
        for name, members in slices.items():
            kept = {int(gallery.group[document]) for document in relevant[row] if document in members}
            found[name].append(_first_rank(best_G, kept, hidden=groups - kept) if kept else NOT_IN_SLICE)
    return {name: np.asarray(ranks, dtype=np.int64) for name, ranks in found.items()}


def _first_rank(position_G: Ranks, wanted: set[int], *, hidden: Collection[int] = ()) -> int:
    """Rank from 1 of the first wanted entry with the hidden ones removed; all + 1 when none is retrieved."""
    first = int(position_G[list(wanted)].min())
    if first == NOT_INDEXED:
        return len(position_G) + 1
    before = sum(int(position_G[one]) < first for one in hidden)
    return 1 + int(np.count_nonzero(position_G < first)) - before
