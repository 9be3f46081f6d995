"""Index a catalogue, search it with pictures, and evaluate the answers; the names below are the public API.

    encoder = retrieval.load_encoder("runs/demo/hub")
    catalogue = retrieval.read_table("catalogue.parquet", retrieval.CATALOGUE)
    index = retrieval.build_index(encoder, catalogue)
    answers = retrieval.search(encoder, index, [Path("photo.png")], options=retrieval.SearchOptions(k=10))

Names are loaded at first use, so that `import retrieval` reads neither torch nor FAISS.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from retrieval.encoder import RetrievalEncoder as RetrievalEncoder
    from retrieval.encoder import load_encoder as load_encoder
    from retrieval.encoder import load_query_encoder as load_query_encoder
    from retrieval.evaluation import metrics as metrics
    from retrieval.evaluation.evaluate import Evaluation as Evaluation
    from retrieval.evaluation.evaluate import EvaluationTables as EvaluationTables
    from retrieval.evaluation.evaluate import evaluate as evaluate
    from retrieval.index.embed import Changes as Changes
    from retrieval.index.folder import load_index as load_index
    from retrieval.index.folder import save_index as save_index
    from retrieval.index.search import Answers as Answers
    from retrieval.index.search import SearchOptions as SearchOptions
    from retrieval.index.search import search as search
    from retrieval.index.store import Index as Index
    from retrieval.index.store import build_index as build_index
    from retrieval.tables import CATALOGUE as CATALOGUE
    from retrieval.tables import GALLERY as GALLERY
    from retrieval.tables import MERGE as MERGE
    from retrieval.tables import QRELS as QRELS
    from retrieval.tables import QUERIES as QUERIES
    from retrieval.tables import Table as Table
    from retrieval.tables import read_table as read_table

# public name -> the module that defines it
_SOURCES = {
    "Answers": "retrieval.index.search",
    "CATALOGUE": "retrieval.tables",
    "Changes": "retrieval.index.embed",
    "Evaluation": "retrieval.evaluation.evaluate",
    "EvaluationTables": "retrieval.evaluation.evaluate",
    "GALLERY": "retrieval.tables",
    "Index": "retrieval.index.store",
    "MERGE": "retrieval.tables",
    "QRELS": "retrieval.tables",
    "QUERIES": "retrieval.tables",
    "RetrievalEncoder": "retrieval.encoder",
    "SearchOptions": "retrieval.index.search",
    "Table": "retrieval.tables",
    "build_index": "retrieval.index.store",
    "evaluate": "retrieval.evaluation.evaluate",
    "load_encoder": "retrieval.encoder",
    "load_index": "retrieval.index.folder",
    "load_query_encoder": "retrieval.encoder",
    "read_table": "retrieval.tables",
    "save_index": "retrieval.index.folder",
    "search": "retrieval.index.search",
}

__all__ = [
    "CATALOGUE",
    "GALLERY",
    "MERGE",
    "QRELS",
    "QUERIES",
    "Answers",
    "Changes",
    "Evaluation",
    "EvaluationTables",
    "Index",
    "RetrievalEncoder",
    "SearchOptions",
    "Table",
    "build_index",
    "evaluate",
    "load_encoder",
    "load_index",
    "load_query_encoder",
    "metrics",
    "read_table",
    "save_index",
    "search",
]


def __getattr__(name: str) -> Any:
    if name == "metrics":
        return importlib.import_module("retrieval.evaluation.metrics")
    if name not in _SOURCES:
        raise AttributeError(f"module 'retrieval' has no attribute {name!r}")
    return getattr(importlib.import_module(_SOURCES[name]), name)


def __dir__() -> list[str]:
    return __all__
