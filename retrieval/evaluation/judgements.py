"""Galleries and relevance judgements: read, check and group them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from retrieval.tables import Table

MAX_SLICE_VALUES = 20  # a column with more distinct values is an id or free text, not a slice


@dataclass(frozen=True)
class Gallery:
    """Documents that can be answers: sorted ids, and for each the group of ids that are one document."""

    doc_ids: list[str]
    group: NDArray[np.int64]

    @property
    def documents(self) -> int:
        return int(np.unique(self.group).size)

    def rows(self, doc_ids: Iterable[str]) -> NDArray[np.int64]:
        """Row of every id in this gallery, -1 where it is not a member."""
        place = {name: row for row, name in enumerate(self.doc_ids)}
        return np.asarray([place.get(name, -1) for name in doc_ids], dtype=np.int64)

    def unmerged(self) -> "Gallery":
        return Gallery(self.doc_ids, np.arange(len(self.doc_ids)))


@dataclass(frozen=True)
class Judgements:
    """Relevance of gallery documents by query, with the number of rejected rows by reason.

    relevance[query_id][doc_id] >= 1. `slices[column][value]` is the same, restricted to the qrels rows with that value.
    """

    relevance: Mapping[str, Mapping[str, int]]
    slices: Mapping[str, Mapping[str, Mapping[str, Mapping[str, int]]]] = field(default_factory=dict)
    unknown_queries: int = 0
    unknown_documents: int = 0
    outside_gallery: int = 0


def build_gallery(
    catalogue_ids: Iterable[str], members: Iterable[str] | None, same: Iterable[tuple[str, str]]
) -> Gallery:
    """The gallery: catalogue ids, restricted to `members` when given, grouped by the pairs `same`.

    Args:
        catalogue_ids: all document ids.
        members: ids of the gallery (None = the whole catalogue); ids that the catalogue lacks are ignored.
        same: (doc_id, same_as) pairs; groups are their connected components, also through ids outside the gallery.

    Raises:
        ValueError: no document is left.
    """
    ids = set(catalogue_ids)
    kept = sorted(ids if members is None else ids & set(members))
    if not kept:
        raise ValueError("the gallery names no document of the catalogue: were the two written together?")
    root = connected(same)
    number: dict[str, int] = {}
    group = [number.setdefault(root.get(name, name), len(number)) for name in kept]
    return Gallery(kept, np.asarray(group, dtype=np.int64))


def connected(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """The smallest name of its connected component, for every name in a pair."""
    listed = list(pairs)
    names = sorted({name for pair in listed for name in pair})
    if not names:
        return {}
    place = {name: row for row, name in enumerate(names)}
    row_E, column_E = zip(*((place[one], place[other]) for one, other in listed), strict=True)
    graph = coo_array((np.ones(len(listed), dtype=np.int8), (row_E, column_E)), shape=(len(names), len(names)))
    _, component = connected_components(graph, directed=False)
    # Names are sorted, so the first of a component is its smallest.
    _, first = np.unique(component, return_index=True)
    return {name: names[first[group]] for name, group in zip(names, component, strict=True)}


def read_judgements(qrels: Table, *, queries: Iterable[str], catalogue: Iterable[str], gallery: Gallery) -> Judgements:
    """Check the qrels and keep the rows of this gallery.

    Args:
        qrels: checked table of query_id, doc_id, relevance.
        queries: known query ids; rows of other queries are counted and left out.
        catalogue: known document ids; likewise.
        gallery: rows of documents outside it are left out and counted apart, since that is no mistake.

    Raises:
        ValueError: a relevance is missing or negative, or a pair of query and document comes twice; names the row.
    """
    column = qrels.read(["query_id", "doc_id", "relevance", *slice_columns(qrels, QRELS_COLUMNS)])
    known_queries, known_documents, members = set(queries), set(catalogue), set(gallery.doc_ids)
    relevance: dict[str, dict[str, int]] = {}
    slices: dict[str, dict[str, dict[str, dict[str, int]]]] = {}
    rejected = {"query": 0, "document": 0, "gallery": 0}
    seen: set[tuple[str, str]] = set()
    for row, (query, document, value) in enumerate(
        zip(column["query_id"], column["doc_id"], column["relevance"], strict=True)
    ):
        _check_row(qrels.name, row, (query, document), value, seen)
        reason = _rejected(query in known_queries, document in known_documents, document in members)
        if reason is not None:
            rejected[reason] += 1
        elif value > 0:
            relevance.setdefault(query, {})[document] = value
            for name in column.keys() - QRELS_COLUMNS:
                by_value = slices.setdefault(name, {}).setdefault(str(column[name][row]), {})
                by_value.setdefault(query, {})[document] = value
    return Judgements(relevance, slices, rejected["query"], rejected["document"], rejected["gallery"])


QRELS_COLUMNS = frozenset({"query_id", "doc_id", "relevance"})


def _check_row(name: str, row: int, pair: tuple[str, str], value: Any, seen: set[tuple[str, str]]) -> None:
    if value is None or value < 0:
        raise ValueError(f"{name}: row {row} has relevance {value}; it must be 0 or more")
    if pair in seen:
        raise ValueError(f"{name}: query {pair[0]!r} and document {pair[1]!r} come twice, again in row {row}; keep one")
    seen.add(pair)


def _rejected(query_known: bool, document_known: bool, member: bool) -> str | None:
    if not query_known:
        return "query"
    if not document_known:
        return "document"
    return None if member else "gallery"


def slice_columns(table: Table, besides: Iterable[str]) -> list[str]:
    """Further columns that divide a table into few slices: strings, integers or booleans with 2 to 20 values."""
    found = []
    for name, kind in table.types.items():
        if name in besides or not str(kind).startswith(("string", "large_string", "int", "uint", "bool", "dictionary")):
            continue
        if 2 <= len(set(table.read([name])[name])) <= MAX_SLICE_VALUES:
            found.append(name)
    return found


def warnings_of(judgements: Judgements) -> Sequence[str]:
    """One line for each kind of qrels row that names something unknown."""
    lines = []
    if judgements.unknown_queries:
        lines.append(f"qrels: {judgements.unknown_queries} rows name a query that the query table lacks; left out")
    if judgements.unknown_documents:
        lines.append(f"qrels: {judgements.unknown_documents} rows name a document that the catalogue lacks; left out")
    return lines
