"""One card per query: its picture, the attention of the first answer's text, ten answers marked right or wrong.

Marks are a colour and a sign, so that they can be read without colour vision.
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup
from PIL import Image

from retrieval.index.embed import thumbnail
from retrieval.report.templates import rendered

HEAT_COLOUR = (226, 88, 12)
SHOWN_CHARACTERS = 160
# Filters of the page: kind -> label of its button.
KINDS = {
    "all": "All",
    "right-at-1": "Right at 1",
    "wrong-at-1": "Wrong at 1",
    "found": "Found in ten",
    "missed": "Missed",
}


@dataclass(frozen=True)
class Shown:
    """A query on a page: its picture and its answers, best first; `right` is None without judgements."""

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

    @property
    def first_right(self) -> int | None:
        """Rank of the first right answer; None if there is none."""
        return list(self.right).index(True) + 1 if self.right and any(self.right) else None


def card(shown: Shown, documents: Mapping[str, Mapping[str, Any]], grid: tuple[int, int]) -> Markup:
    """HTML of one query.

    Args:
        documents: rows of the index by doc_id. grid: rows and columns of the attention map.
    """
    first = documents[shown.doc_ids[0]] if shown.doc_ids else None
    answers = [
        {
            "document": documents[name],
            "text": (documents[name]["text"] or "")[:SHOWN_CHARACTERS],
            "score": score,
            "right": None if shown.right is None else shown.right[place],
        }
        for place, (name, score) in enumerate(zip(shown.doc_ids, shown.scores, strict=True))
    ]
    heat = None if first is None or first["attention"] is None else heat_map(first["attention"], grid)
    return rendered(
        "card.html.j2", shown=shown, query=thumbnail(shown.picture), first=first, heat=heat, answers=answers
    )


def heat_map(attention: bytes, grid: tuple[int, int]) -> bytes:
    """The attention map as a PNG of one pixel a patch; the browser scales it smoothly."""
    level = np.frombuffer(attention, dtype=np.uint8).reshape(grid)
    pixels = np.empty((*grid, 4), dtype=np.uint8)
    pixels[..., :3] = HEAT_COLOUR
    pixels[..., 3] = (level * 0.8).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()
