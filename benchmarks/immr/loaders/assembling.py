"""Shared by the loaders: build a Task from rows, split categories, connect groups."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from benchmarks.immr.protocol.task import Task

SUBSETS = ("train", "validation", "test")
SPLITS = (0, 1, 2)


@dataclass(frozen=True)
class Document:
    """One document; `image` is a path, bytes or None; `group` is its category (None for a distractor)."""

    doc_id: str
    image: str | bytes | None
    text: str
    leaf: str
    group: str | None


@dataclass(frozen=True)
class Query:
    """One query with its relevant documents; `group` is its category in the bootstrap."""

    query_id: str
    image: str | bytes
    relevant: frozenset[str]
    group: str


def subset_of(group: str, *, split: int) -> str:
    """Subset of a category ("train", "validation" or "test"), by a hash of its name.

    Tenths as in the emoji data: split s tests on tenths 2s and 2s + 1 and validates on 6 + s, so that the three splits
    have disjoint test sets.

    Raises:
        ValueError: a split other than 0, 1, 2.
    """
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}; it must be one of {list(SPLITS)}")
    tenth = int.from_bytes(hashlib.sha256(group.encode()).digest()[:8], "big") % 10
    return {2 * split: "test", 2 * split + 1: "test", 6 + split: "validation"}.get(tenth, "train")


def checked_subset(subset: str) -> str:
    """Return the subset if it is one of SUBSETS.

    Raises:
        ValueError: it is not.
    """
    if subset not in SUBSETS:
        raise ValueError(f"subset is {subset!r}; it must be one of {list(SUBSETS)}")
    return subset


def existing_path(path: Path, *, what: str) -> Path:
    """Return the path if it exists.

    Args:
        what: remedy for the error message.

    Raises:
        ValueError: it does not exist.
    """
    if not path.exists():
        raise ValueError(f"{path.parent.name}/{path.name} is missing: {what}")
    return path


def build_task(
    name: str,
    documents: Sequence[Document],
    queries: Sequence[Query],
    *,
    merged: Sequence[tuple[str, str]] = (),
    unseen: Iterable[str] = (),
    query_facts: Mapping[str, Mapping[str, str]] | None = None,
) -> Task:
    """Build a Task; the facts of a document are whether it has a text and an image.

    Args:
        name: name of the task.
        documents: the catalogue.
        queries: queries without a relevant document in the catalogue are left out.
        merged: (doc_id, same_as) pairs of identical documents.
        unseen: doc_ids of categories outside the training data.
        query_facts: {query_id: {fact: value}}.

    Raises:
        ValueError: no document, or no query with a relevant document.
    """
    ids = {one.doc_id for one in documents}
    answerable = [one for one in queries if one.relevant & ids]
    if not answerable:
        raise ValueError(
            f"{name}: {len(documents)} documents and no query with a relevant one; is the folder complete?"
        )
    images = [
        image for image in (*(one.image for one in documents), *(one.image for one in answerable)) if image is not None
    ]
    kind = pa.binary() if images and isinstance(images[0], bytes) else pa.string()
    table = pa.table(
        {
            "doc_id": pa.array([one.doc_id for one in documents], pa.string()),
            "image": pa.array([one.image for one in documents], kind),
            "text": pa.array([one.text for one in documents], pa.string()),
            "leaf": pa.array([one.leaf for one in documents], pa.string()),
        }
    )
    facts = {
        one.doc_id: {"text": "own" if one.text else "empty", "image": "missing" if one.image is None else "clean"}
        for one in documents
    }
    return Task(
        name=name,
        documents=table,
        queries=pa.table(
            {
                "query_id": pa.array([one.query_id for one in answerable], pa.string()),
                "image": pa.array([one.image for one in answerable], kind),
            }
        ),
        qrels={one.query_id: dict.fromkeys(sorted(one.relevant & ids), 1) for one in answerable},
        category_of_query={one.query_id: one.group for one in answerable},
        merged=[pair for pair in merged if ids.issuperset(pair)],
        unseen_documents=ids & set(unseen),
        document_facts=facts,
        query_facts={} if query_facts is None else query_facts,
    )
