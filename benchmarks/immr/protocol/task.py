"""A retrieval task: documents, image queries and relevance judgements.

Legend: Q queries, N documents, both in the order of the rows of their tables.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import pyarrow as pa

DOCUMENT_COLUMNS = ("doc_id", "image", "text")
QUERY_COLUMNS = ("query_id", "image")
MAX_SLICE_VALUES = 20  # a fact with more values is an id or free text and gives no slices

Facts = Mapping[str, Mapping[str, str]]


@dataclass(frozen=True)
class Task:
    """Queries, documents and relevance judgements of one retrieval task.

    Attributes:
        name: of the data set, its setting and its queries.
        documents: doc_id, image (bytes, a path, the Image struct, or null = missing), text ("" = missing), optional
            leaf.
        queries: query_id, image.
        qrels: {query_id: {doc_id: relevance >= 1}}.
        category_of_query: {query_id: category}; the bootstrap resamples whole categories.
        merged: (doc_id, same_as) pairs of identical documents, which count as one.
        unseen_documents: documents of categories outside the training data; they form the small gallery.
        document_facts: {doc_id: {fact: value}}; each fact with few values gives slices of the documents.
        query_facts: {query_id: {fact: value}}; likewise for queries.

    Raises:
        ValueError: a column is missing, an id is repeated, qrels contain an unknown id, a query has no category.
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
        documents = _unique_ids(self.documents, DOCUMENT_COLUMNS, f"{self.name}: documents")
        queries = _unique_ids(self.queries, QUERY_COLUMNS, f"{self.name}: queries")
        for query, relevance in self.qrels.items():
            if query not in queries:
                raise ValueError(f"{self.name}: the qrels contain the query {query!r}, which the query table lacks")
            wrong = [name for name, value in relevance.items() if name not in documents or value < 1]
            if wrong:
                raise ValueError(
                    f"{self.name}: the qrels of query {query!r} contain {wrong[0]!r}: {relevance[wrong[0]]}; each must "
                    "be a document of the task with relevance 1 or more"
                )
        lacking = [query for query in self.qrels if query not in self.category_of_query]
        if lacking:
            raise ValueError(f"{self.name}: query {lacking[0]!r} has qrels but no category")
        unknown = set(self.unseen_documents) - documents
        if unknown:
            raise ValueError(
                f"{self.name}: unseen_documents contains {min(unknown)!r}, which is no document of the task"
            )

    @property
    def doc_ids(self) -> list[str]:
        """Document ids in the order of the rows: (N,)."""
        return self.documents.column("doc_id").to_pylist()

    @property
    def query_ids(self) -> list[str]:
        """Query ids in the order of the rows: (Q,)."""
        return self.queries.column("query_id").to_pylist()

    def document_slices(self) -> dict[str, set[str]]:
        """{"document.FACT=VALUE": doc_ids} for every document fact with at most 20 values."""
        return _slice_members(self.document_facts, "document")

    def query_slices(self) -> dict[str, set[str]]:
        """{"query.FACT=VALUE": query_ids} for every query fact with at most 20 values."""
        return _slice_members(self.query_facts, "query")


def _unique_ids(table: pa.Table, columns: Sequence[str], name: str) -> set[str]:
    lacking = [column for column in columns if column not in table.schema.names]
    if lacking:
        raise ValueError(f"{name} lack the columns {lacking}; they have {table.schema.names}")
    ids: list[str] = table.column(columns[0]).to_pylist()
    if len(set(ids)) != len(ids) or not all(ids):
        raise ValueError(f"{name}: {columns[0]} must be unique and not empty in every row")
    return set(ids)


def _slice_members(facts: Facts, side: str) -> dict[str, set[str]]:
    by_fact: dict[str, dict[str, set[str]]] = {}
    for name, values in facts.items():
        for fact, value in values.items():
            by_fact.setdefault(fact, {}).setdefault(value, set()).add(name)
    return {
        f"{side}.{fact}={value}": members[value]
        for fact, members in by_fact.items()
        if len(members) <= MAX_SLICE_VALUES
        for value in sorted(members)
    }
