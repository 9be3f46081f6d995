"""One card per query: the picture, where the text of the first answer looked, ten answers marked right or wrong.

Marks are a colour and a sign, so that they can be read without colour vision. All text from a table is escaped.
"""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
from PIL import Image

from retrieval.index.embed import thumbnail

RIGHT, WRONG = "&#10003;", "&#10007;"
HEAT = (226, 88, 12)
SHOWN_CHARACTERS = 160
KINDS = {
    "all": "All",
    "right-at-1": "Right at 1",
    "wrong-at-1": "Wrong at 1",
    "found": "Found in ten",
    "missed": "Missed",
}


@dataclass(frozen=True)
class Shown:
    """A query on a page: its picture and its answers, best first; `right` is None where nothing is known."""

    name: str
    picture: Image.Image
    doc_ids: Sequence[str]
    scores: Sequence[float]
    right: Sequence[bool] | None

    @property
    def kinds(self) -> list[str]:
        """The filters that show this card."""
        if self.right is None:
            return []
        first = "right-at-1" if self.right and self.right[0] else "wrong-at-1"
        return [first, "found" if any(self.right[:10]) else "missed"]


def card(shown: Shown, documents: Mapping[str, Mapping[str, Any]], grid: tuple[int, int]) -> str:
    """The HTML of one query; `documents` are rows of documents.parquet by doc_id."""
    first = documents[shown.doc_ids[0]] if shown.doc_ids else None
    answers = "".join(
        _answer(rank, documents[name], score, None if shown.right is None else shown.right[rank - 1])
        for rank, (name, score) in enumerate(zip(shown.doc_ids, shown.scores, strict=True), start=1)
    )
    query = _frame(_image(thumbnail(shown.picture), "query"))
    return (
        f'<article class="query" data-kinds="{" ".join(shown.kinds)}">'
        f'<div><div class="caption">Query</div>{query}{_verdict(shown)}</div>'
        f"<div>{_looked(first, grid)}</div>"
        f'<ol class="answers">{answers}</ol></article>'
    )


def _verdict(shown: Shown) -> str:
    if shown.right is None:
        return f'<div class="verdict">{escape(shown.name)}</div>'
    if not any(shown.right):
        return f'<div class="verdict bad">{WRONG} not among the first {len(shown.right)}</div>'
    rank = list(shown.right).index(True) + 1
    style = "good" if rank == 1 else "bad"
    return f'<div class="verdict {style}">{RIGHT if rank == 1 else WRONG} first right answer at {rank}</div>'


def _looked(document: Mapping[str, Any] | None, grid: tuple[int, int]) -> str:
    if document is None:
        return ""
    if document["attention"] is None:
        head, why = '<div class="caption">First answer</div>', f'<div class="verdict">{_why(document)}</div>'
        return f"{head}{_frame(_picture(document))}{why}"
    head = '<div class="caption">Where its text looked</div>'
    heat = f'<img class="heat" alt="" src="data:image/png;base64,{_heat(document["attention"], grid)}">'
    return (
        f"{head}{_frame(_picture(document) + heat)}"
        f"{_gate('image', document['gate_image'])}{_gate('text', document['gate_text'])}"
    )


def _why(document: Mapping[str, Any]) -> str:
    if not document["has_image"]:
        return "no image: found by its text alone"
    return "no text: that of its neighbours stands in" if document["imputed"] else "no text: found by its image alone"


def _gate(name: str, value: float) -> str:
    share = min(max(value, 0.0), 1.0)
    return (
        f'<div class="gate" title="gate of the {name}, 0 shut to 1 open">'
        f'<span>{name}</span><i style="--share:{share:.0%}"></i><span>{value:.2f}</span></div>'
    )


def _heat(attention: bytes, grid: tuple[int, int]) -> str:
    """The attention map as a PNG of one pixel a cell; the browser's scaling makes it smooth."""
    level = np.frombuffer(attention, dtype=np.uint8).reshape(grid)
    pixels = np.empty((*grid, 4), dtype=np.uint8)
    pixels[..., :3] = HEAT
    pixels[..., 3] = (level * 0.8).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return base64.b64encode(stream.getvalue()).decode()


def _answer(rank: int, document: Mapping[str, Any], score: float, right: bool | None) -> str:
    mark = "" if right is None else f'<span class="mark">{RIGHT if right else WRONG}</span>'
    style = "answer right" if right or right is None else "answer"
    text = document["text"] or ""
    shown = escape(text[:SHOWN_CHARACTERS]) if text else "<em>no text</em>"
    return (
        f'<li class="{style}"><div class="caption"><span>{rank}</span><span>{score:.2f}</span></div>'
        f'{_frame(_picture(document) + mark)}<p title="{escape(text[:SHOWN_CHARACTERS], quote=True)}">{shown}</p></li>'
    )


def _picture(document: Mapping[str, Any]) -> str:
    if document["thumbnail"] is None:
        return '<span class="empty">no image</span>'
    return _image(document["thumbnail"], "answer")


def _image(content: bytes, alt: str) -> str:
    return f'<img alt="{alt}" src="data:image/webp;base64,{base64.b64encode(content).decode()}">'


def _frame(inside: str) -> str:
    return f'<div class="frame">{inside}</div>'


def filters() -> str:
    """The row of filter buttons; page.js fills in the count."""
    buttons = "".join(f'<button type="button" data-kind="{kind}">{label}</button>' for kind, label in KINDS.items())
    return f'<div class="filters" role="group" aria-label="which queries to show">{buttons}<output></output></div>'
