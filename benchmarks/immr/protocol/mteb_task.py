"""Export a task to mteb (image queries, image + text documents).

The mteb category is i2it. The format is that of mteb's Any2Any retrieval tasks, read by its own loader (mteb 2,
abstasks/retrieval_dataset_loaders.py): a folder with the configurations corpus (id, modality, text, image), queries
(id, modality, image) and qrels (query-id, corpus-id, score). mteb itself is imported only inside the functions that
need it.

mteb does not merge identical documents and breaks ties in another way: its hit_rate_at_k equals recall_at_k here with
identical documents counted separately.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, Features, Image, Value
from numpy.typing import ArrayLike

from benchmarks.immr.protocol.export import Row, image_struct, write_rows
from benchmarks.immr.protocol.task import Task

CORPUS = Features({"id": Value("string"), "modality": Value("string"), "text": Value("string"), "image": Image()})
QUERIES = Features({"id": Value("string"), "modality": Value("string"), "image": Image()})
QRELS = Features({"query-id": Value("string"), "corpus-id": Value("string"), "score": Value("int32")})
SPLIT = "test"


def corpus_rows(task: Task, *, read: bool = False) -> Iterator[Row]:
    """Rows of the corpus: text "" where there is none, modality "image,text", "image" or "text".

    Args:
        task: the task.
        read: read images given as paths into bytes.
    """
    columns = (task.documents.column(name) for name in ("doc_id", "text", "image"))
    for doc_id, text, image in zip(*columns, strict=True):
        struct, content = image_struct(image.as_py(), read=read), text.as_py() or ""
        kinds = [name for name, present in (("image", struct is not None), ("text", bool(content))) if present]
        yield {"id": doc_id.as_py(), "modality": ",".join(kinds), "text": content, "image": struct}


def query_rows(task: Task, *, read: bool = False) -> Iterator[Row]:
    """Rows of the queries that have a relevant document; arguments as in corpus_rows."""
    for query_id, image in zip(task.queries.column("query_id"), task.queries.column("image"), strict=True):
        if task.qrels.get(query_id.as_py()):
            yield {"id": query_id.as_py(), "modality": "image", "image": image_struct(image.as_py(), read=read)}


def qrels_rows(task: Task) -> Iterator[Row]:
    """One row per pair of a query and a relevant document."""
    for query, relevant in task.qrels.items():
        for document, score in relevant.items():
            yield {"query-id": query, "corpus-id": document, "score": score}


def write_mteb(task: Task, folder: Path) -> None:
    """Write the task as a data set folder: Parquet files and a README.md that declares the configurations.

    Args:
        task: images given as paths are read from disk, so that the folder is self-contained.
        folder: new or empty.

    Raises:
        ValueError: the folder is not empty.
    """
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder.name} is not empty; name a new folder for the mteb data set")
    tables: dict[str, tuple[Iterator[Row], Features]] = {
        "corpus": (corpus_rows(task, read=True), CORPUS),
        "queries": (query_rows(task, read=True), QUERIES),
        "qrels": (qrels_rows(task), QRELS),
    }
    lines = ["---", "configs:"]
    for name, (rows, features) in tables.items():
        write_rows(rows, features, folder / name / f"{SPLIT}.parquet")
        lines += [f"- config_name: {name}", "  data_files:", f"  - split: {SPLIT}", f"    path: {name}/{SPLIT}.parquet"]
    (folder / "README.md").write_text("\n".join([*lines, "---", "", f"# {task.name}", ""]), encoding="utf-8")
    (folder / "merged.json").write_text(json.dumps([list(pair) for pair in task.merged]) + "\n", encoding="utf-8")


def mteb_task(task: Task, *, licence: str = "not specified") -> Any:
    """An mteb retrieval task with its data loaded, for `mteb.evaluate`.

    Args:
        task: the task.
        licence: of the data, as mteb spells it ("cc-by-nc-4.0") or an address.

    Returns:
        An instance of a subclass of mteb's AbsTaskRetrieval.

    Raises:
        ImportError: mteb 2 is not installed.
    """
    from mteb.abstasks.retrieval import AbsTaskRetrieval
    from mteb.abstasks.task_metadata import TaskMetadata

    about = TaskMetadata(
        name="".join(part.capitalize() for part in task.name.replace("_", "/").split("/")) + "I2ITRetrieval",
        description="Image queries against documents that have an image and a text.",
        dataset={"path": "local", "revision": "local"},
        type="Any2AnyRetrieval",
        category="i2it",
        modalities=["image", "text"],
        eval_splits=[SPLIT],
        eval_langs=["eng-Latn"],
        main_score="hit_rate_at_1",
        license=licence,
    )
    found = type("ImmrRetrieval", (AbsTaskRetrieval,), {"metadata": about})()
    found.dataset = {
        "default": {
            SPLIT: {
                "corpus": Dataset.from_list([dict(row) for row in corpus_rows(task)], features=CORPUS),
                "queries": Dataset.from_list([dict(row) for row in query_rows(task)], features=QUERIES),
                "relevant_docs": {query: dict(relevant) for query, relevant in task.qrels.items()},
                "top_ranked": None,
            }
        }
    }
    found.data_loaded = True
    return found


class VectorSearch:
    """mteb search protocol over precomputed embeddings, to score any system on an mteb task.

    Args:
        task: source of the row ids.
        query_embeds: (Q, D) in the order of task.queries.
        document_embeds: (N, D) in the order of task.documents; rows of NaN are not indexed.
        name: of the system, "organisation/model".
    """

    def __init__(
        self, task: Task, query_embeds: ArrayLike, document_embeds: ArrayLike, *, name: str = "immr/vectors"
    ) -> None:
        self._query = dict(zip(task.query_ids, np.asarray(query_embeds, dtype=np.float64), strict=True))
        self._document = dict(zip(task.doc_ids, np.asarray(document_embeds, dtype=np.float64), strict=True))
        self._name = name
        self._ids: list[str] = []

    def index(self, corpus: Any, **kwargs: Any) -> None:
        """Store the ids of the corpus documents with a finite embedding."""
        self._ids = [name for name in corpus["id"] if np.isfinite(self._document[name]).all()]

    def search(self, queries: Any, *, top_k: int, **kwargs: Any) -> dict[str, dict[str, float]]:
        """The top_k documents of every query by inner product: {query: {document: score}}."""
        document_ND = np.stack([self._document[name] for name in self._ids])
        found = {}
        for query in queries["id"]:
            score_N = document_ND @ self._query[query]
            best = np.argsort(-score_N, kind="stable")[:top_k]
            found[query] = {self._ids[row]: float(score_N[row]) for row in best}
        return found

    @property
    def mteb_model_meta(self) -> Any:
        """Model metadata for mteb: the name only."""
        from mteb.models.model_meta import ModelMeta

        return ModelMeta.create_empty({"name": self._name, "revision": "local"})
