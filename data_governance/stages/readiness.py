"""What the stages after admit, and training, cannot do without: clicks, two documents, pictures of documents."""

from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from data_governance.inputs import shards

LEAST = 2
ENOUGH = 50  # categories: a fifth is held out, and ten are the least that judge a training


def shortfalls(documents: pa.Table, log: Iterable[Path]) -> list[str]:
    """What is missing for a run and a training, each with its remedy; empty when nothing is.

    Args:
        documents: usable rows of the catalogue: doc_id, text, has_image and sha, None without a picture.
        log: shards of the usable rows of the behaviour log.
    """
    found = []
    if not pc.any(documents.column("has_image")).as_py():
        found.append("catalogue: no usable document has a picture, and training learns from pictures. Add some.")
    shown = zip(*(documents.column(name).to_pylist() for name in ("doc_id", "sha", "text")), strict=True)
    content = {doc_id: sha or f"text {text}" for doc_id, sha, text in shown}
    if len(set(content.values())) < LEAST:
        found.append(
            f"catalogue: {len(content)} usable document(s) with one content, and two categories are the least. Add "
            "documents with other pictures."
        )
        return found
    clicked = set[str]()
    for table in shards.batches(log, ["doc_id", "clicks"]):
        mine = table.filter(pc.greater(table.column("clicks"), 0)).column("doc_id")
        clicked |= {content[doc_id] for doc_id in pc.unique(mine).to_pylist()}
        if len(clicked) >= LEAST:
            return found
    if not clicked:
        found.append(
            "behaviour: no usable row has a click above 0, and categories are found by clicks. Add clicked rows."
        )
    else:
        found.append(
            "behaviour: all clicks fall on one document or its copies, and two categories are the least. Add clicks on "
            "other documents."
        )
    return found


def doubts(log: Iterable[Path]) -> list[str]:
    """What lets a run go through but leaves nothing to judge a training by; empty when nothing does.

    Args:
        log: shards of the usable rows of the behaviour log.
    """
    queries, documents = set[str](), set[str]()
    for table in shards.batches(log, ["query_id", "doc_id", "clicks"]):
        mine = table.filter(pc.greater(table.column("clicks"), 0))
        queries.update(pc.unique(mine.column("query_id")).to_pylist())
        documents.update(pc.unique(mine.column("doc_id")).to_pylist())
        if min(len(queries), len(documents)) >= ENOUGH:
            return []
    return [
        f"behaviour: {len(queries)} queries click on {len(documents)} documents. A training is judged on a fifth of "
        f"the categories, and with fewer than {ENOUGH} queries or clicked documents nobody can say whether it helped: "
        "the frozen encoder would be published. Bring a longer log."
    ]
