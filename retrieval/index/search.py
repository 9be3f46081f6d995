"""Search an index with query pictures."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from retrieval.encoder import RetrievalEncoder
from retrieval.index.store import Index
from retrieval.pictures import PictureError, read_picture


@dataclass(frozen=True)
class Answers:
    """The answers to one picture: the picture as the model saw it, and rows of the index documents with scores."""

    query: str
    picture: Image.Image
    rows: list[int]
    scores: list[float]

    def lines(self, index: Index) -> list[dict[str, Any]]:
        """One JSON-ready object per answer: query, rank, doc_id, score, text, leaf."""
        found = index.documents.select(["doc_id", "text", "leaf"]).take(self.rows).to_pylist()
        return [
            {
                "query": self.query,
                "rank": rank,
                "doc_id": row["doc_id"],
                "score": score,
                "text": row["text"],
                "leaf": row["leaf"],
            }
            for rank, (row, score) in enumerate(zip(found, self.scores, strict=True), start=1)
        ]


def search(
    encoder: RetrievalEncoder,
    index: Index,
    images: list[Path],
    *,
    k: int,
    skipped: list[dict[str, str]] | None = None,
) -> list[Answers]:
    """Search with every picture.

    Args:
        encoder: the query side.
        index: built with the same weights.
        images: picture files.
        k: answers per picture; all documents if the index has fewer.
        skipped: pictures that cannot be used are appended to it with their reasons; None: they are errors.

    Raises:
        ValueError: no picture can be used, or without `skipped` one cannot; k is below 1, or the index belongs to
            another model.
    """
    index.check_model(encoder.folder)
    found = []
    for path in images:
        try:
            picture = read_picture(path, **encoder.decoding)
        except PictureError as error:
            if skipped is None:
                raise
            skipped.append({"query": str(path), "skipped": str(error)})
            continue
        found += answers_of(encoder, index, [picture], [str(path)], k=k)
    if not found and skipped:
        raise ValueError(skipped[0]["skipped"])
    return found


def answers_of(
    encoder: RetrievalEncoder, index: Index, pictures: Sequence[Image.Image], names: Sequence[str], *, k: int
) -> list[Answers]:
    """The answers to some pictures, embedded in one forward pass; `names` say which is which.

    Raises:
        ValueError: k is below 1.
    """
    embeds_BD, seen = encoder.queries(pictures)
    found = []
    for name, view, rows_K, scores_K in zip(names, seen, *index.search(embeds_BD, k), strict=True):
        kept = np.flatnonzero(rows_K >= 0)
        found.append(Answers(name, view, rows_K[kept].tolist(), [float(score) for score in scores_K[kept]]))
    return found
