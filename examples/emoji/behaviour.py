"""Simulation of the click log: popularity, position bias and noise.

Nothing here was measured on people. A query event is one upload of one image. Each of its clicks is on a document of
the right category or, with probability `noise`, on a document of a similar category (the same subgroup), the typical
error of people and of weak search systems.

The simulated result list has ten positions. A right document has a random position and is clicked with probability
proportional to 1/position among the right ones; the position of a wrong document is drawn proportional to 1/position,
so that wrong clicks are mostly at the top. The clicks of an event are on different documents as long as any are left.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import numpy as np

from examples.emoji.keys import keyed_generator, opaque_id
from examples.emoji.vocabulary import Category

CLICK_COUNTS = (0.80, 0.15, 0.05)  # probability of 1, 2 or 3 clicks in an event
ZIPF = 1.1  # exponent of the popularity of categories
POSITIONS = 10  # length of the simulated result list
START = datetime(2025, 1, 1)
DAYS = 90
DrawingKey = tuple[str, str]  # (style, category key)


@dataclass
class ClickedDocument:
    """One row of the log: a document clicked in a query event, and how often."""

    doc_id: str
    right: bool
    position: int
    clicks: int = 1


@dataclass(frozen=True)
class Event:
    """One query event: its drawing, time and clicked documents."""

    number: int
    query_id: str
    style: str
    category: str
    impressions: int
    at: datetime
    clicked: tuple[ClickedDocument, ...]


def event_drawings(drawings: Sequence[DrawingKey], *, events: int, seed: int) -> list[DrawingKey]:
    """Choose the drawing (style, category key) of every event.

    Every drawing is used once. The remaining events draw a category from Zipf(1.1) over a random ranking, and one of
    its drawings at random.

    Raises:
        ValueError: fewer events than drawings.
    """
    if events < len(drawings):
        raise ValueError(f"--events is {events}, but {len(drawings)} query drawings must each appear once; raise it")
    of_category: dict[str, list[DrawingKey]] = {}
    for one in sorted(drawings, key=lambda pair: (pair[1], pair[0])):
        of_category.setdefault(one[1], []).append(one)
    generator = keyed_generator(seed, "popularity")
    ranking = generator.permutation(sorted(of_category))
    weights = 1.0 / np.arange(1, len(ranking) + 1) ** ZIPF
    ranks = generator.choice(len(ranking), size=events - len(drawings), p=weights / weights.sum())
    chosen = sorted(drawings, key=lambda pair: (pair[1], pair[0]))
    for rank in ranks:
        choices = of_category[str(ranking[rank])]
        chosen.append(choices[int(generator.integers(len(choices)))])
    return [chosen[index] for index in generator.permutation(len(chosen))]


def confusable(categories: Sequence[Category]) -> dict[str, list[str]]:
    """Map each category key to the category keys of wrong clicks.

    These are the other categories of its subgroup; without any, those of the nearest subgroup of its group; without
    another subgroup in the group, those of the nearest subgroup (by its number in emojibase).

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
            own = one.group, one.subgroup
            nearest = min(others, key=lambda number: (group_of[number] != own[0], abs(number - own[1]), number))
            found[one.key] = list(members[nearest])
    return found


def simulate(
    drawings: Sequence[DrawingKey],
    documents: Mapping[str, Sequence[str]],
    confusions: Mapping[str, Sequence[str]],
    *,
    noise: float,
    seed: int,
) -> list[Event]:
    """Simulate one event per drawing.

    Args:
        drawings: (style, category key) of each event, from `event_drawings`.
        documents: {category key: its document ids}.
        confusions: {category key: category keys of wrong clicks}, from `confusable`.
        noise: probability that a click is wrong, 0..1.
        seed: of all random choices.
    """
    if not 0 <= noise <= 1:
        raise ValueError(f"--noise is {noise}; it is the probability of a wrong click and must be in 0..1")
    found = []
    for number, (style, category) in enumerate(drawings):
        generator = keyed_generator(seed, "event", number)
        count = int(generator.choice(len(CLICK_COUNTS), p=CLICK_COUNTS)) + 1
        wrong = [doc_id for key in confusions[category] for doc_id in documents[key]]
        clicked = _clicks(generator, documents[category], wrong, count=count, noise=noise)
        impressions = count + int(generator.geometric(0.5)) - 1
        at = START + timedelta(seconds=int(generator.integers(DAYS * 86_400)))
        query_id = opaque_id(seed, "query", "event", number)
        found.append(Event(number, query_id, style, category, impressions, at, clicked))
    return found


def _clicks(
    generator: np.random.Generator, right: Sequence[str], wrong: Sequence[str], *, count: int, noise: float
) -> tuple[ClickedDocument, ...]:
    positions = dict(zip(right, generator.permutation(POSITIONS)[: len(right)] + 1, strict=True))
    rows: dict[str, ClickedDocument] = {}
    for _ in range(count):
        is_right = bool(generator.random() >= noise)
        pool = right if is_right else wrong
        fresh = [doc_id for doc_id in pool if doc_id not in rows] or list(pool)
        weights = np.array([1.0 / positions[doc_id] if is_right else 1.0 for doc_id in fresh])
        doc_id = fresh[int(generator.choice(len(fresh), p=weights / weights.sum()))]
        if doc_id in rows:
            rows[doc_id].clicks += 1
            continue
        if doc_id not in positions:
            positions[doc_id] = _free_position(generator, set(positions.values()))
        rows[doc_id] = ClickedDocument(doc_id, is_right, int(positions[doc_id]))
    return tuple(rows.values())


def _free_position(generator: np.random.Generator, taken: set[int]) -> int:
    free = np.array([position for position in range(1, POSITIONS + 1) if position not in taken])
    weights = 1.0 / free
    return int(generator.choice(free, p=weights / weights.sum()))
