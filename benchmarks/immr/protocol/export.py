"""Write a task as the Parquet tables of governance, training and evaluation.

A training subset becomes behaviour, queries and catalogue; a test subset queries, qrels and galleries. Behaviour holds
one click for every relevant document: true labels, not a click log.
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Features, Value

from benchmarks.immr.protocol.task import Task
from retrieval.tables import CATALOGUE, GALLERY, MERGE, QRELS, QUERIES

ROWS_PER_GROUP = 1000
BEHAVIOUR = Features({"query_id": Value("string"), "doc_id": Value("string"), "clicks": Value("int64")})
Row = Mapping[str, Any]


def image_struct(image: Any, *, read: bool) -> dict[str, Any] | None:
    """The Image struct {bytes, path} of an image of a Task.

    Args:
        image: bytes, a path, the struct itself, or None.
        read: read an image given as a path into bytes.

    Raises:
        ValueError: the file to read does not exist.
    """
    if image is None or isinstance(image, dict):
        struct = image
    elif isinstance(image, bytes):
        struct = {"bytes": image, "path": None}
    else:
        struct = {"bytes": None, "path": str(image)}
    if not read or struct is None or struct["bytes"] is not None:
        return struct
    path = Path(struct["path"])
    if not path.is_file():
        raise ValueError(f"the image {path.parent.name}/{path.name} is missing: extract all images of the data set")
    return {"bytes": path.read_bytes(), "path": None}


def write_rows(rows: Iterable[Row], features: Features, path: Path) -> None:
    """Write rows to Parquet in groups of 1,000, so that the images of a catalogue need not fit into memory."""
    path.parent.mkdir(parents=True, exist_ok=True)
    schema = features.arrow_schema
    with pq.ParquetWriter(path, schema) as writer:
        batch: list[Row] = []
        for row in rows:
            batch.append(row)
            if len(batch) == ROWS_PER_GROUP:
                writer.write_table(pa.Table.from_pylist(batch, schema=schema))
                batch = []
        writer.write_table(pa.Table.from_pylist(batch, schema=schema))


def write_tables(task: Task, folder: Path, *, behaviour: bool = False) -> None:
    """Write catalogue, queries, qrels, gallery_unseen and merged, and optionally behaviour.

    Args:
        task: from any loader, or from the emoji data.
        folder: new or empty.
        behaviour: also write the qrels as clicks, for a subset to train on.

    Raises:
        ValueError: the folder is not empty, or an image is missing.
    """
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder.name} is not empty; name a new folder for the tables")
    tables: dict[str, tuple[Iterable[Row], Features]] = {
        "catalogue": (_documents(task), CATALOGUE.columns),
        "queries": (_queries(task), QUERIES.columns),
        "qrels": (_pairs(task, "relevance"), QRELS.columns),
        "gallery_unseen": ([{"doc_id": name} for name in sorted(task.unseen_documents)], GALLERY.columns),
        "merged": ([{"doc_id": one, "same_as": other} for one, other in task.merged], MERGE.columns),
    }
    if behaviour:
        tables["behaviour"] = (_pairs(task, "clicks"), BEHAVIOUR)
    for name, (rows, features) in tables.items():
        write_rows(rows, features, folder / f"{name}.parquet")


def _documents(task: Task) -> Iterator[Row]:
    names = [name for name in ("doc_id", "text", "leaf", "image") if name in task.documents.schema.names]
    for batch in task.documents.select(names).to_batches(max_chunksize=ROWS_PER_GROUP):
        for row in batch.to_pylist():
            yield {"leaf": "", **row, "text": row["text"] or "", "image": image_struct(row["image"], read=True)}


def _queries(task: Task) -> Iterator[Row]:
    for batch in task.queries.select(["query_id", "image"]).to_batches(max_chunksize=ROWS_PER_GROUP):
        for row in batch.to_pylist():
            yield {**row, "image": image_struct(row["image"], read=True)}


def _pairs(task: Task, value: str) -> Iterator[Row]:
    for query, relevant in task.qrels.items():
        for document, relevance in relevant.items():
            yield {"query_id": query, "doc_id": document, value: relevance if value == "relevance" else 1}
