"""Evaluate a published folder: embed test queries, rank the index, compute the metrics.

Letters: Q queries, D width, K ranked documents.
"""

import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from retrieval.encoder import RetrievalEncoder
from retrieval.evaluation.judgements import (
    Gallery,
    Judgements,
    build_gallery,
    read_judgements,
    slice_columns,
    warnings_of,
)
from retrieval.evaluation.scoring import Tally
from retrieval.index.store import Index
from retrieval.pictures import MOST_PIXELS_AT_ONCE, PictureError, decode
from retrieval.tables import Table
from runtime.environment import environment

APPROXIMATE_DEPTH = 1000  # answers fetched from an approximate index, whose whole ranking does not exist
ANSWERS_AT_ONCE = 4_000_000  # (query, answer) pairs held at a time

Array = NDArray[np.float32]
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EvaluationTables:
    """The checked tables of an evaluation; `members` (gallery) and `same` (merged ids) are optional."""

    catalogue: Table
    queries: Table
    qrels: Table
    members: Table | None = None
    same: Table | None = None


@dataclass(frozen=True)
class Evaluation:
    """The metrics object (JSON-ready) and one row per scored query."""

    metrics: dict[str, Any]
    per_query: pa.Table


def evaluate(
    encoder: RetrievalEncoder, index: Index, tables: EvaluationTables, *, calibrate: bool = True, batch_size: int = 64
) -> Evaluation:
    """Rank the gallery for every query and compute the metrics.

    Args:
        encoder: the query side.
        index: of the catalogue, or more; documents outside the gallery are left out before searching.
        tables: queries, catalogue, judgements.
        calibrate: whether to use the calibration of the index.
        batch_size: queries per forward pass.

    Raises:
        ValueError: index of another model, no document of the gallery in the index, no query with a relevant document
            and a readable image.
    """
    index.check_model(encoder.folder)
    gallery, judgements = _judge(tables)
    for line in warnings_of(judgements):
        logger.warning("warning: %s", line)
    # The index may hold more than the gallery (another command built it), and lacks what it skipped.
    row_I = gallery.rows(index.doc_ids)
    inside = np.flatnonzero(row_I >= 0)
    if inside.size == 0:
        raise ValueError("the index holds no document of the gallery: were index and catalogue made together?")
    searched = index.subset(inside)
    query_ids, embeds_QD, unreadable = embed_queries(encoder, tables.queries, batch_size=batch_size)
    tallies = _tallies(gallery, judgements)
    _rank(searched, query_ids, embeds_QD, row_I[inside], tallies, calibrate)
    best = tallies["merged"]
    if not best.rows:
        raise ValueError("no readable query has a relevant document in the gallery: do qrels and gallery fit together?")
    metrics = best.metrics()
    if tables.same is not None:
        metrics["unmerged"] = tallies["unmerged"].metrics()
    metrics["slices"] = _query_slices(tables.queries, best) | _qrels_slices(judgements, tallies)
    metrics["qrels"] = {
        "unknown_queries": judgements.unknown_queries,
        "unknown_documents": judgements.unknown_documents,
        "outside_gallery": judgements.outside_gallery,
    }
    metrics["not_indexed"] = len(gallery.doc_ids) - int(inside.size)
    metrics["unreadable_queries"] = unreadable
    metrics["skipped_documents"] = _skipped_documents(index, tables.catalogue)
    metrics["index"] = _about(searched, index, calibrate)
    metrics["environment"] = environment()
    return Evaluation(metrics, best.per_query())


def _skipped_documents(index: Index, catalogue: Table) -> list[dict[str, str]]:
    """What the index and the reader of the catalogue left out, each once, with the reasons."""
    rows = [*index.info["skipped"], *catalogue.skipped("doc_id")]
    return list({(row["doc_id"], row["reason"]): row for row in rows}.values())


def _judge(tables: EvaluationTables) -> tuple[Gallery, Judgements]:
    catalogue_ids = tables.catalogue.read(["doc_id"])["doc_id"]
    members = None if tables.members is None else tables.members.read(["doc_id"])["doc_id"]
    same: Sequence[tuple[str, str]] = []
    if tables.same is not None:
        column = tables.same.read(["doc_id", "same_as"])
        same = list(zip(column["doc_id"], column["same_as"], strict=True))
    gallery = build_gallery(catalogue_ids, members, same)
    query_ids = tables.queries.read(["query_id"])["query_id"]
    return gallery, read_judgements(tables.qrels, queries=query_ids, catalogue=catalogue_ids, gallery=gallery)


def embed_queries(
    encoder: RetrievalEncoder, queries: Table, *, batch_size: int
) -> tuple[list[str], Array, list[dict[str, str]]]:
    """Embed the query pictures.

    Returns:
        (ids, (Q, D) unit rows, unreadable queries with their reasons, which are also logged).

    Raises:
        ValueError: no picture can be read.
    """
    ids: list[str] = []
    parts: list[Array] = []
    unreadable = queries.skipped("query_id")
    bar = tqdm(total=queries.num_rows, desc="queries", unit="query", file=sys.stderr)
    for batch in queries.batches(batch_size):
        pictures: list[Image.Image] = []
        waiting = 0
        for query_id, cell in zip(batch["query_id"], batch["image"], strict=True):
            try:
                picture = decode(cell, folder=queries.folder, **encoder.decoding)
                if picture is None:
                    raise PictureError("no image")
            except PictureError as error:
                unreadable.append({"query_id": query_id, "reason": str(error)})
                continue
            area = picture.width * picture.height
            if waiting + area > MOST_PIXELS_AT_ONCE and pictures:
                parts.append(encoder.queries(pictures)[0])
                pictures, waiting = [], 0
            waiting += area
            ids.append(query_id)
            pictures.append(picture)
        if pictures:
            parts.append(encoder.queries(pictures)[0])
        bar.update(len(batch["query_id"]))
    bar.close()
    for row in unreadable:
        logger.warning("skipped query %s: %s", row["query_id"], row["reason"])
    if not parts:
        raise ValueError(f"{queries.name}: no query has a readable image: {unreadable[0]['reason']}")
    return ids, np.concatenate(parts), unreadable


def _tallies(gallery: Gallery, judgements: Judgements) -> dict[str, Tally]:
    tallies = {
        "merged": Tally(gallery, judgements.relevance),
        "unmerged": Tally(gallery.unmerged(), judgements.relevance),
    }
    for column, by_value in judgements.slices.items():
        for value, relevance in by_value.items():
            tallies[f"{column}={value}"] = Tally(gallery, relevance, hidden=judgements.relevance)
    return tallies


def _rank(
    index: Index,
    query_ids: list[str],
    embeds_QD: Array,
    gallery_row: NDArray[np.int64],
    tallies: Mapping[str, Tally],
    calibrate: bool,
) -> None:
    depth = len(index.documents) if index.searcher.exact else min(APPROXIMATE_DEPTH, len(index.documents))
    step = max(1, ANSWERS_AT_ONCE // depth)
    for start in range(0, len(query_ids), step):
        rows_QK, scores_QK = index.search(embeds_QD[start : start + step], depth, calibrate=calibrate)
        for query_id, rows_K, scores_K in zip(query_ids[start : start + step], rows_QK, scores_QK, strict=True):
            found = rows_K >= 0
            for tally in tallies.values():
                tally.add(query_id, gallery_row[rows_K[found]], scores_K[found])


def _query_slices(queries: Table, tally: Tally) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in slice_columns(queries, ("query_id", "image")):
        column = queries.read(["query_id", name])
        members: dict[str, list[str]] = {}
        for query_id, value in zip(column["query_id"], column[name], strict=True):
            members.setdefault(str(value), []).append(query_id)
        found[name] = {value: tally.metrics(members[value]) for value in sorted(members)}
    return found


def _qrels_slices(judgements: Judgements, tallies: Mapping[str, Tally]) -> dict[str, Any]:
    return {
        column: {value: tallies[f"{column}={value}"].metrics() for value in sorted(by_value)}
        for column, by_value in judgements.slices.items()
    }


def _about(searched: Index, index: Index, calibrate: bool) -> dict[str, Any]:
    info = index.info
    return {
        "kind": searched.searcher.kind,
        "recall_at_10_against_exact": searched.searcher.recall_at_10,
        "ranking_depth": None if searched.searcher.exact else APPROXIMATE_DEPTH,
        "calibration": info["calibration"] if calibrate else None,
        "imputed": info["imputed"],
        "text": info["text"],
        "images": info["images"],
        "skipped": len(info["skipped"]),
    }
