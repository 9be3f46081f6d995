"""Emoji tasks, and the tables that governance and training may read.

Two training modes, scored on the same tasks. Inductive (reported): governance and training read the training catalogue
alone; documents of validation and test categories first appear when the index is built. Transductive: they may also
read the documents of the whole catalogue, but no query and no click of a validation or test category.

Facts from `truth/` define slices and bootstrap categories; no system may read them.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from benchmarks.immr.protocol.task import Task
from examples.emoji.packages import styles_of

QUERIES = ("test", "seen", "validation", "extra")
CATALOGUE_OF_MODE = {"inductive": "train_catalogue.parquet", "transductive": "catalogue.parquet"}
TEXT_FACTS = {
    "tags": "own",
    "shortcodes": "own",
    "subgroup": "generic",
    "language": "other_language",
    "nothing": "empty",
}
HEAD_SHARE, BODY_SHARE = 0.5, 0.8  # cumulative share of all events, largest categories first


@dataclass(frozen=True)
class TrainingTables:
    """Paths of the tables that governance and training may read in one mode."""

    behaviour: Path
    queries: Path
    catalogue: Path


def training_tables(folder: Path, *, mode: str = "inductive") -> TrainingTables:
    """The three tables of a training mode.

    Raises:
        ValueError: an unknown mode, or a folder without the tables.
    """
    if mode not in CATALOGUE_OF_MODE:
        raise ValueError(f"mode is {mode!r}; it must be one of {list(CATALOGUE_OF_MODE)}")
    paths = [folder / name for name in ("behaviour.parquet", "queries.parquet", CATALOGUE_OF_MODE[mode])]
    for path in paths:
        _existing(path)
    return TrainingTables(*paths)


def emoji_settings(folder: Path) -> dict[str, Any]:
    """Split, noise, number of events, setting and seed of a data folder."""
    settings: dict[str, Any] = json.loads(_existing(folder / "emoji.json").read_text(encoding="utf-8"))["settings"]
    return settings


def emoji_task(folder: Path, queries: str = "test") -> Task:
    """Task of one set of queries against the catalogue.

    Args:
        folder: data folder.
        queries: "test" (clean drawings of unseen categories in styles of the training data), "extra" (the same
            categories in styles outside the training data), "seen" (held-out drawings of training categories) or
            "validation". The validation task contains no test document: hyperparameters are chosen on it before the
            test split is read.

    Returns:
        The task. `unseen_documents` are those of the test (validation) categories, none for "seen". A bootstrap
        category is a group of twins: categories that share an identical drawing in a training style.

    Raises:
        ValueError: unknown queries, or a missing table ("extra" needs data built with --extra-styles).
    """
    if queries not in QUERIES:
        raise ValueError(f"queries is {queries!r}; it must be one of {list(QUERIES)}")
    settings = emoji_settings(folder)
    truth = {row["doc_id"]: row for row in _rows(folder / "truth/catalogue.parquet")}
    split = "validation" if queries == "validation" else "test"
    documents = pq.read_table(_existing(folder / "catalogue.parquet"))
    if queries == "validation":
        kept = [name for name, row in truth.items() if row["split"] != "test"]
        documents = documents.filter(pc.is_in(documents["doc_id"], pa.array(kept, pa.string())))
    ids = set(documents["doc_id"].to_pylist())
    merged = [(row["doc_id"], row["same_as"]) for row in _rows(folder / "merged.parquet")]
    query_table = pq.read_table(_existing(folder / f"{queries}_queries.parquet"))
    query_ids = query_table["query_id"].to_pylist()
    qrels: dict[str, dict[str, int]] = {}
    for row in _rows(folder / f"{queries}_qrels.parquet"):
        qrels.setdefault(row["query_id"], {})[row["doc_id"]] = row["relevance"]
    about = {row["query_id"]: row for row in _rows(folder / "truth/queries.parquet")}
    twins = {row["category"]: row["twins"] for row in truth.values()}
    return Task(
        name=f"emoji/{settings['setting']}/{settings['split']}/{queries}",
        documents=documents,
        queries=query_table,
        qrels=qrels,
        category_of_query={query: twins[about[query]["category"]] for query in query_ids},
        merged=[pair for pair in merged if pair[0] in ids],
        unseen_documents=set() if queries == "seen" else {name for name in ids if truth[name]["split"] == split},
        document_facts={name: _document_facts(truth[name]) for name in ids},
        query_facts=_query_facts(folder, query_ids, about, truth),
    )


def _document_facts(row: Mapping[str, str]) -> dict[str, str]:
    return {"text": TEXT_FACTS[row["text_source"]], "image": "clean", "style": row["style"]}


def _query_facts(
    folder: Path, query_ids: Iterable[str], about: Mapping[str, Any], truth: Mapping[str, Any]
) -> dict[str, dict[str, str]]:
    """Style, whether training used it, and frequency band: of the category, or of its leaf if it has no events."""
    table = pq.read_table(folder / "catalogue.parquet", columns=["doc_id", "leaf"])
    leaf_of_document = dict(zip(table["doc_id"].to_pylist(), table["leaf"].to_pylist(), strict=True))
    leaf = {row["category"]: leaf_of_document[name] for name, row in truth.items()}
    events = pq.read_table(_existing(folder / "queries.parquet"), columns=["query_id"])["query_id"].to_pylist()
    categories = [about[event]["category"] for event in events]
    own, of_leaf = bands(categories), bands(leaf[category] for category in categories)
    untrained = {style.name for style in styles_of("extra")}
    found = {}
    for query in query_ids:
        style, category = about[query]["style"], about[query]["category"]
        band = own.get(category) or of_leaf.get(leaf[category], "tail")
        found[query] = {"style": style, "training": "never" if style in untrained else "trained", "band": band}
    return found


def bands(events: Iterable[str]) -> dict[str, str]:
    """Frequency band (head, body or tail) of every name in the events.

    Names are sorted by falling count (ties by name). With the share of all events that come before a name: below 0.5 is
    the head, below 0.8 the body, the rest the tail.
    """
    counts = Counter(events)
    total, before, found = counts.total(), 0, {}
    for name in sorted(counts, key=lambda one: (-counts[one], one)):
        share = before / total
        found[name] = "head" if share < HEAD_SHARE else "body" if share < BODY_SHARE else "tail"
        before += counts[name]
    return found


def _existing(path: Path) -> Path:
    if not path.exists():
        remedy = "python -m examples.emoji" + (" --extra-styles" if path.stem.startswith("extra_") else "")
        raise ValueError(f"{path.parent.name}/{path.name} is missing: build the data with `{remedy}`")
    return path


def _rows(path: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(_existing(path)).to_pylist()
    return rows
