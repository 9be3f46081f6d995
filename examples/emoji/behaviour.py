"""The SIMULATED click log: query events over training categories, with popularity, position bias and noise.

Nothing here was measured on people. A query event is one upload of one picture; its clicks mostly land on documents of
the right category and, with probability `noise` each, on a document of a similar category (the same subgroup), which
is the mistake that people and weak search systems make.

The list that was shown has ten places. A right document stands anywhere and is clicked with a chance that falls as
1/position among the right ones; a wrong click follows the position bias alone, so that wrong clicks crowd the top.
Every click of an event falls on another document, until the category has no more: then the same document again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import numpy as np

from examples.emoji.keys import keyed_generator, opaque_id
from examples.emoji.vocabulary import Category

CLICK_SHARES = (0.80, 0.15, 0.05)
ZIPF = 1.1
PLACES = 10
START = datetime(2025, 1, 1)
DAYS = 90
Drawn = tuple[str, str]


@dataclass
class ClickedDocument:
    """One row of the log: a document that one query event clicked, once or more."""

    doc_id: str
    right: bool
    position: int
    clicks: int = 1


@dataclass(frozen=True)
class Event:
    """One query event: the drawing behind it, when it was and what was clicked."""

    number: int
    query_id: str
    style: str
    category: str
    impressions: int
    at: datetime
    clicked: tuple[ClickedDocument, ...]


def event_drawings(drawn: Sequence[Drawn], *, events: int, seed: int) -> list[Drawn]:
    """Choose the drawing (style, category key) behind every event.

    Every drawing comes once; the remaining events follow Zipf(1.1) over a random ranking of the categories, a drawing
    of the category at random.

    Raises:
        ValueError: fewer events than drawings.
    """
    if events < len(drawn):
        raise ValueError(f"--events is {events}, but {len(drawn)} query drawings must each appear once; raise it")
    of_category: dict[str, list[Drawn]] = {}
    for one in sorted(drawn, key=lambda pair: (pair[1], pair[0])):
        of_category.setdefault(one[1], []).append(one)
    generator = keyed_generator(seed, "popularity")
    ranking = generator.permutation(sorted(of_category))
    weights = 1.0 / np.arange(1, len(ranking) + 1) ** ZIPF
    picked = generator.choice(len(ranking), size=events - len(drawn), p=weights / weights.sum())
    chosen = sorted(drawn, key=lambda pair: (pair[1], pair[0]))
    for rank in picked:
        choices = of_category[str(ranking[rank])]
        chosen.append(choices[int(generator.integers(len(choices)))])
    return [chosen[index] for index in generator.permutation(len(chosen))]


def confusable(categories: Sequence[Category]) -> dict[str, list[str]]:
    """Map each category key to those that a wrong click may land on.

    The other categories of its subgroup; where there is none, those of the nearest subgroup of its group; where the
    group has no other, those of the nearest subgroup (by its number in emojibase).

    Raises:
        ValueError: there is only one category.
    """
    if len(categories) < 2:
        raise ValueError("a wrong click needs a second training category; raise --limit-categories")
    members: dict[int, list[str]] = {}
    group_of: dict[int, int] = {}
    for one in categories:
        members.setdefault(one.subgroup, []).append(one.key)
        group_of[one.subgroup] = one.group
    found = {}
    for one in categories:
        found[one.key] = [key for key in members[one.subgroup] if key != one.key]
        if not found[one.key]:
            others = [number for number in members if number != one.subgroup]
            home = one.group, one.subgroup
            near = min(others, key=lambda number: (group_of[number] != home[0], abs(number - home[1]), number))
            found[one.key] = list(members[near])
    return found


def simulate(
    drawings: Sequence[Drawn],
    documents: Mapping[str, Sequence[str]],
    confusions: Mapping[str, Sequence[str]],
    *,
    noise: float,
    seed: int,
) -> list[Event]:
    """Simulate one event per drawing.

    Args:
        drawings: (style, category key) behind each event, from `event_drawings`.
        documents: {category key: its document ids}.
        confusions: {category key: category keys of wrong clicks}, from `confusable`.
        noise: probability that a click is wrong, 0..1.
        seed: of all random choices.
    """
    if not 0 <= noise <= 1:
        raise ValueError(f"--noise is {noise}; it is the share of wrong clicks and must lie in 0..1")
    found = []
    for number, (style, category) in enumerate(drawings):
        generator = keyed_generator(seed, "event", number)
        count = int(generator.choice(len(CLICK_SHARES), p=CLICK_SHARES)) + 1
        wrong = [doc_id for key in confusions[category] for doc_id in documents[key]]
        clicked = _clicks(generator, documents[category], wrong, count=count, noise=noise)
        looks = count + int(generator.geometric(0.5)) - 1
        at = START + timedelta(seconds=int(generator.integers(DAYS * 86_400)))
        query_id = opaque_id(seed, "query", "event", number)
        found.append(Event(number, query_id, style, category, looks, at, clicked))
    return found


def _clicks(
    generator: np.random.Generator, right: Sequence[str], wrong: Sequence[str], *, count: int, noise: float
) -> tuple[ClickedDocument, ...]:
    places = dict(zip(right, generator.permutation(PLACES)[: len(right)] + 1, strict=True))
    rows: dict[str, ClickedDocument] = {}
    for _ in range(count):
        is_right = bool(generator.random() >= noise)
        pool = right if is_right else wrong
        fresh = [doc_id for doc_id in pool if doc_id not in rows] or list(pool)
        weights = np.array([1.0 / places[doc_id] if is_right else 1.0 for doc_id in fresh])
        doc_id = fresh[int(generator.choice(len(fresh), p=weights / weights.sum()))]
        if doc_id in rows:
            rows[doc_id].clicks += 1
            continue
        if doc_id not in places:
            places[doc_id] = _free_place(generator, set(places.values()))
        rows[doc_id] = ClickedDocument(doc_id, is_right, int(places[doc_id]))
    return tuple(rows.values())


def _free_place(generator: np.random.Generator, taken: set[int]) -> int:
    free = np.array([place for place in range(1, PLACES + 1) if place not in taken])
    weights = 1.0 / free
    return int(generator.choice(free, p=weights / weights.sum()))
