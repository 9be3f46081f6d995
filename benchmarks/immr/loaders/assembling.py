"""What the loaders share: rows to a Task, parts by category, groups of names."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from benchmarks.immr.protocol.task import Task

PARTS = ("train", "validation", "test")
SPLITS = (0, 1, 2)
TENTHS = 10


@dataclass(frozen=True)
class Document:
    """One document; `image` is a path, bytes or None; `group` is its category (None: a distractor)."""

    doc_id: str
    image: str | bytes | None
    text: str
    leaf: str
    group: str | None


@dataclass(frozen=True)
class Query:
    """One query with the documents that are right for it; `group` is what the bootstrap draws as one."""

    query_id: str
    image: str | bytes
    relevant: frozenset[str]
    group: str


def part_of(group: str, *, split: int) -> str:
    """The part of a category: "train", "validation" or "test", by a hash of its name.

    Tenths as in the emoji data: split s tests on the tenths 2s and 2s + 1 and validates on 6 + s, so that the three
    splits have disjoint test sets.

    Raises:
        ValueError: a split other than 0, 1, 2.
    """
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}; it must be one of {list(SPLITS)}")
    tenth = int.from_bytes(hashlib.sha256(group.encode()).digest()[:8], "big") % TENTHS
    return {2 * split: "test", 2 * split + 1: "test", 6 + split: "validation"}.get(tenth, "train")


def checked_part(part: str, known: Sequence[str] = PARTS) -> str:
    """The part itself.

    Raises:
        ValueError: it is none of `known`.
    """
    if part not in known:
        raise ValueError(f"part is {part!r}; it must be one of {list(known)}")
    return part


def existing(path: Path, *, what: str) -> Path:
    """The path itself.

    Raises:
        ValueError: there is nothing at it; says what is missing.
    """
    if not path.exists():
        raise ValueError(f"{path.parent.name}/{path.name} is missing: {what}")
    return path


def assembled(
    name: str,
    documents: Sequence[Document],
    queries: Sequence[Query],
    *,
    merged: Sequence[tuple[str, str]] = (),
    unseen: Iterable[str] = (),
    query_facts: Mapping[str, Mapping[str, str]] | None = None,
) -> Task:
    """The Task of rows; facts of a document: whether it has its own text, and a picture.

    Args:
        name: of the task.
        documents: the catalogue.
        queries: those without a relevant document in the catalogue are left out.
        merged: (doc_id, same_as) pairs of identical documents.
        unseen: doc_ids of categories that training never saw.
        query_facts: {query_id: {fact: value}}.

    Raises:
        ValueError: no document, or no query with a relevant document.
    """
    ids = {one.doc_id for one in documents}
    asked = [one for one in queries if one.relevant & ids]
    if not asked:
        raise ValueError(
            f"{name}: {len(documents)} documents and no query with a relevant one; is the folder complete?"
        )
    cells: list[str | bytes | None] = [*(one.image for one in documents), *(one.image for one in asked)]
    pictures = [cell for cell in cells if cell is not None]
    kind = pa.binary() if pictures and isinstance(pictures[0], bytes) else pa.string()
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
                "query_id": pa.array([one.query_id for one in asked], pa.string()),
                "image": pa.array([one.image for one in asked], kind),
            }
        ),
        qrels={one.query_id: dict.fromkeys(sorted(one.relevant & ids), 1) for one in asked},
        category_of_query={one.query_id: one.group for one in asked},
        merged=[pair for pair in merged if ids.issuperset(pair)],
        unseen_documents=ids & set(unseen),
        document_facts=facts,
        query_facts={} if query_facts is None else query_facts,
    )
