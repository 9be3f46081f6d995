"""Search an index with query pictures."""

import datetime
import decimal
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from retrieval.encoder import RetrievalEncoder
from retrieval.index.store import Index
from retrieval.pictures import PictureError, read_picture

# Documents that are looked at together, at most, to find k different groups, and in all to find k that are not alike.
MOST_LOOKED_AT = 10_000
MOST_SAME = 20  # folded documents that an answer names


@dataclass(frozen=True)
class SearchOptions:
    """What a search returns.

    Attributes:
        k: answers per picture; all documents if the index has fewer.
        where: condition on the fields, such as "price < 50 and brand = 'x'" (fields.py); None = all documents.
        group_by: a field of which each value is answered once, such as a product number; documents without a value are
            groups of their own. None = no groups.
        fold: cosine from which a document is folded into a better answer, such as 0.99; None = none is folded.

    Raises:
        ValueError: k below 1, or fold not above 0 and at most 1.
    """

    k: int = 10
    where: str | None = None
    group_by: str | None = None
    fold: float | None = None

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ValueError(f"k is {self.k}, it must be at least 1")
        if self.fold is not None and not 0 < self.fold <= 1:
            raise ValueError(f"fold is {self.fold}; it is a cosine: above 0 and at most 1")


@dataclass(frozen=True)
class Answers:
    """The answers to one picture: the picture as the model saw it, and rows of the index documents with scores.

    Attributes:
        scores: inner product of query and document, less half the document's hubness where the index is calibrated;
            higher is better, comparable between the answers to one picture only.
        same: for each answer, the rows that were folded into it; empty without folding.
    """

    query: str
    picture: Image.Image
    rows: list[int]
    scores: list[float]
    same: list[list[int]] = field(default_factory=list)

    def lines(self, index: Index) -> list[dict[str, Any]]:
        """One JSON-ready object per answer: query, rank, doc_id, score, text, leaf, and fields and same if any."""
        return [{"query": self.query} | line for line in lines_of(index, Ranked(self.rows, self.scores, self.same))]


@dataclass(frozen=True)
class Ranked:
    """Rows of an index, best first, with scores and the rows folded into each; `same` is empty without folding."""

    rows: list[int]
    scores: list[float]
    same: list[list[int]]


def lines_of(index: Index, ranked: Ranked) -> list[dict[str, Any]]:
    """One JSON-ready object per answer: rank, doc_id, score, text, leaf, and fields and same if there are any."""
    rows = pa.array(ranked.rows, pa.int64())
    found = index.documents.select(["doc_id", "text", "leaf"]).take(rows).to_pylist()
    fields = index.fields.take(rows).to_pylist() if index.fields.num_columns else []
    ids = index.documents.column("doc_id")
    names = [ids.take(pa.array(same, pa.int64())).to_pylist() for same in ranked.same]
    lines = []
    for place, (row, score) in enumerate(zip(found, ranked.scores, strict=True)):
        line = {"rank": place + 1, "doc_id": row["doc_id"], "score": score, "text": row["text"], "leaf": row["leaf"]}
        if fields:
            line["fields"] = json_ready(fields[place])
        if names:
            line["same"] = names[place]
        lines.append(line)
    return lines


def json_ready(value: Any) -> Any:
    """A value of a table as JSON holds it: dates, times and decimals as text, numbers that are not finite as None."""
    if isinstance(value, dict):
        return {name: json_ready(one) for name, one in value.items()}
    if isinstance(value, list):
        return [json_ready(one) for one in value]
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, datetime.timedelta | decimal.Decimal):
        return str(value)
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value


def search(
    encoder: RetrievalEncoder,
    index: Index,
    images: list[Path],
    *,
    options: SearchOptions,
    skipped: list[dict[str, str]] | None = None,
) -> list[Answers]:
    """Search with every picture.

    Args:
        encoder: the query side.
        index: built with the same weights.
        images: picture files.
        options: number of answers, filter, groups.
        skipped: pictures that cannot be used are appended to it with their reasons; None: they are errors.

    Raises:
        ValueError: no picture can be used, or without `skipped` one cannot; a condition or field that cannot be used,
            or the index belongs to another model.
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
        found += answers_of(encoder, index, [picture], [str(path)], options)
    if not found and skipped:
        raise ValueError(skipped[0]["skipped"])
    return found


def answers_of(
    encoder: RetrievalEncoder,
    index: Index,
    pictures: Sequence[Image.Image],
    names: Sequence[str],
    options: SearchOptions,
) -> list[Answers]:
    """The answers to some pictures, embedded in one forward pass; `names` say which is which.

    Raises:
        ValueError: a condition or field that cannot be used.
    """
    embeds_BD, seen = encoder.queries(pictures)
    found = ranked(index, embeds_BD, options)
    return [
        Answers(name, view, one.rows, one.scores, one.same) for name, view, one in zip(names, seen, found, strict=True)
    ]


def ranked(index: Index, embeds_QD: NDArray[np.float32], options: SearchOptions) -> list[Ranked]:
    """The answers to some embedded queries.

    Raises:
        ValueError: a condition or field that cannot be used.
    """
    allowed_N = None if options.where is None else index.matching(options.where)
    if options.group_by is None and options.fold is None:
        rows_QK, scores_QK = index.search(embeds_QD, options.k, allowed_N=allowed_N)
        return [_plain(rows_K, scores_K) for rows_K, scores_K in zip(rows_QK, scores_QK, strict=True)]
    group_N = None if options.group_by is None else index.group_codes(options.group_by)
    most = min(len(index), MOST_LOOKED_AT)
    found: dict[int, Ranked] = {}
    looked_at = min(4 * options.k, most)
    while len(found) < len(embeds_QD):
        waiting = [place for place in range(len(embeds_QD)) if place not in found]
        rows_QK, scores_QK = index.search(embeds_QD[waiting], looked_at, allowed_N=allowed_N)
        for place, rows_K, scores_K in zip(waiting, rows_QK, scores_QK, strict=True):
            one = _distinct(index, _plain(rows_K, scores_K), group_N, options)
            if len(one.rows) == options.k or looked_at == most or rows_K[-1] < 0:
                found[place] = one
        looked_at = min(4 * looked_at, most)
    if group_N is not None and options.fold is None and most < len(index):
        for place, one in found.items():
            _complete(index, embeds_QD[place : place + 1], one, group_N, options, allowed_N)
    return [found[place] for place in range(len(embeds_QD))]


def _complete(
    index: Index,
    embeds_1D: NDArray[np.float32],
    found: Ranked,
    group_N: NDArray[np.int64],
    options: SearchOptions,
    allowed_N: NDArray[np.bool_] | None,
) -> None:
    """Add further groups behind those of MOST_LOOKED_AT documents, by searching without the groups that are found."""
    while 0 < len(found.rows) < options.k:
        left_N = ~np.isin(group_N, group_N[found.rows])
        rows_1K, scores_1K = index.search(
            embeds_1D, MOST_LOOKED_AT, allowed_N=left_N if allowed_N is None else left_N & allowed_N
        )
        more = _distinct(index, _plain(rows_1K[0], scores_1K[0]), group_N, options)
        if not more.rows:
            return
        wanted = options.k - len(found.rows)
        found.rows.extend(more.rows[:wanted])
        found.scores.extend(more.scores[:wanted])


def _plain(rows_K: NDArray[np.int64], scores_K: NDArray[np.float64]) -> Ranked:
    kept = np.flatnonzero(rows_K >= 0)
    return Ranked(rows_K[kept].tolist(), [float(score) for score in scores_K[kept]], [])


def _distinct(index: Index, found: Ranked, group_N: NDArray[np.int64] | None, options: SearchOptions) -> Ranked:
    """The k best answers of different groups that are not alike."""
    best, seen = Ranked([], [], []), set[int]()
    units_KD = _unit_embeds(index, found.rows) if options.fold is not None else None
    chosen: list[int] = []
    for place, (row, score) in enumerate(zip(found.rows, found.scores, strict=True)):
        if group_N is not None and int(group_N[row]) in seen:
            continue
        if units_KD is not None and chosen:
            cosines = units_KD[chosen] @ units_KD[place]
            nearest = int(cosines.argmax())
            if cosines[nearest] >= options.fold:
                if len(best.same[nearest]) < MOST_SAME:
                    best.same[nearest].append(row)
                continue
        if len(best.rows) == options.k:
            if units_KD is None:
                break
            continue  # what follows may still be folded into an answer
        chosen.append(place)
        best.rows.append(row)
        best.scores.append(score)
        best.same.append([])
        if group_N is not None:
            seen.add(int(group_N[row]))
    return best if options.fold is not None else Ranked(best.rows, best.scores, [])


def _unit_embeds(index: Index, rows: Sequence[int]) -> NDArray[np.float32]:
    """Unit document embeddings of some rows, without the dimension of the calibration."""
    vectors_KE = index.searcher.rows(np.asarray(rows, dtype=np.int64))
    embeds_KD = vectors_KE[:, : vectors_KE.shape[1] - (1 if index.info["calibration"] else 0)]
    units_KD: NDArray[np.float32] = embeds_KD / np.linalg.norm(embeds_KD, axis=1, keepdims=True).clip(min=1e-12)
    return units_KD
