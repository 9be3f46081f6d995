"""Slices: the same scores on a part of the documents or of the queries.

A slice of documents asks how well documents of one kind are found (say, those whose text is in another language): only
those count as right, and the query's other relevant documents leave the ranking, so that they count neither as right
nor as wrong. A slice of queries is a subset of the rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from benchmarks.immr.protocol.scores import NO_PART, Scores

if TYPE_CHECKING:
    from benchmarks.immr.protocol.task import Task

MOST_VALUES = 20  # a fact with more values is an id or free text, not a slice


def _members(facts: Mapping[str, Mapping[str, str]], side: str) -> dict[str, set[str]]:
    by_fact: dict[str, dict[str, set[str]]] = {}
    for name, found in facts.items():
        for fact, value in found.items():
            by_fact.setdefault(fact, {}).setdefault(value, set()).add(name)
    return {
        f"{side}.{fact}={value}": members[value]
        for fact, members in by_fact.items()
        if len(members) <= MOST_VALUES
        for value in sorted(members)
    }


def document_slices(task: Task) -> dict[str, set[str]]:
    """{"document.FACT=VALUE": doc_ids} for every fact of documents with at most 20 values."""
    return _members(task.document_facts, "document")


def query_slices(task: Task) -> dict[str, set[str]]:
    """{"query.FACT=VALUE": query_ids} for every fact of queries with at most 20 values."""
    return _members(task.query_facts, "query")


def slices(task: Task, scores: Scores) -> dict[str, Scores]:
    """The scores of every slice that has a query, by name; the rank of a document slice is its own.

    Args:
        task: the task that was evaluated.
        scores: from task.evaluate.

    Returns:
        {"document.FACT=VALUE" or "query.FACT=VALUE": Scores}; a slice of documents holds the queries that have a
        relevant document in it, and its `unmerged` repeats its rank, since slices are scored on merged drawings only.
    """
    found = {}
    for name, rank in scores.slice_ranks.items():
        part = replace(scores, rank=rank, unmerged=rank, slice_ranks={}).subset(rank != NO_PART)
        found[name] = part
    for name, members in query_slices(task).items():
        rows = [row for row, query in enumerate(scores.query_ids) if query in members]
        if rows:
            found[name] = replace(scores.subset(rows), slice_ranks={})
    return found
