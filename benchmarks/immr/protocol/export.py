"""A task as the tables that the commands of this repository read: govern, train and evaluate on any loaded catalogue.

Why: a loader is worth little when its catalogue cannot be trained on. Training parts become behaviour (every relevant
document one click: these are true labels, not a log), queries and catalogue; test parts queries, qrels and galleries.
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Features, Value

from benchmarks.immr.protocol.task import Task
from retrieval.tables import CATALOGUE, GALLERY, MERGE, QRELS, QUERIES

ROWS = 1000  # of a row group
BEHAVIOUR = Features({"query_id": Value("string"), "doc_id": Value("string"), "clicks": Value("int64")})
Row = Mapping[str, Any]


def picture(cell: Any, *, read: bool) -> dict[str, Any] | None:
    """The Image struct of a cell of a Task: bytes, a path, the struct itself, or None.

    Args:
        cell: the cell.
        read: a picture that is only a path is read into bytes.

    Raises:
        ValueError: the path to be read does not exist.
    """
    if cell is None or isinstance(cell, dict):
        struct = cell
    elif isinstance(cell, bytes):
        struct = {"bytes": cell, "path": None}
    else:
        struct = {"bytes": None, "path": str(cell)}
    if not read or struct is None or struct["bytes"] is not None:
        return struct
    path = Path(struct["path"])
    if not path.is_file():
        raise ValueError(f"the picture {path.parent.name}/{path.name} is missing: extract all images of the data set")
    return {"bytes": path.read_bytes(), "path": None}


def write_rows(rows: Iterable[Row], features: Features, path: Path) -> None:
    """Writes rows to Parquet, a thousand at a time: a catalogue need not fit into memory with its pictures."""
    path.parent.mkdir(parents=True, exist_ok=True)
    schema = features.arrow_schema
    with pq.ParquetWriter(path, schema) as writer:
        batch: list[Row] = []
        for row in rows:
            batch.append(row)
            if len(batch) == ROWS:
                writer.write_table(pa.Table.from_pylist(batch, schema=schema))
                batch = []
        writer.write_table(pa.Table.from_pylist(batch, schema=schema))


def write_tables(task: Task, folder: Path, *, behaviour: bool = False) -> None:
    """Writes catalogue, queries, qrels, gallery_unseen and merged, for training parts behaviour too.

    Args:
        task: of any loader, or of the emoji data.
        folder: new or empty.
        behaviour: also write the qrels as clicks, for a part that may be trained on.

    Raises:
        ValueError: the folder holds something, or a picture is missing.
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
    for batch in task.documents.select(names).to_batches(max_chunksize=ROWS):
        for row in batch.to_pylist():
            yield {"leaf": "", **row, "text": row["text"] or "", "image": picture(row["image"], read=True)}


def _queries(task: Task) -> Iterator[Row]:
    for batch in task.queries.select(["query_id", "image"]).to_batches(max_chunksize=ROWS):
        for row in batch.to_pylist():
            yield {**row, "image": picture(row["image"], read=True)}


def _pairs(task: Task, value: str) -> Iterator[Row]:
    for query, judged in task.qrels.items():
        for document, relevance in judged.items():
            yield {"query_id": query, "doc_id": document, value: relevance if value == "relevance" else 1}
