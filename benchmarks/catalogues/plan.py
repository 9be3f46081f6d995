"""Parts of a cell without pixels: categories, documents, query pictures, clicks.

Nothing here was measured on people: the clicks are simulated.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import numpy as np

from benchmarks.catalogues.cell import Cell
from benchmarks.catalogues.domain import Category, Domain, confusable
from benchmarks.catalogues.texts import text_of
from examples.emoji.behaviour import DAYS, POSITIONS, START
from examples.emoji.keys import keyed_digest, keyed_generator, opaque_id

SEEN_SHARE = 0.25  # of the categories with query pictures, at most: one drawing of each is held out


@dataclass(frozen=True)
class Document:
    """One document; `drawing` counts the artist's drawings of the category, `copy` its recoloured copies."""

    doc_id: str
    category: str
    artist: str
    drawing: int
    copy: int
    text: str


@dataclass(frozen=True)
class Picture:
    """One query picture of a category, after a drawing of an artist."""

    query_id: str
    number: int
    category: str
    artist: str
    drawing: int


@dataclass(frozen=True)
class Click:
    """One row of the behaviour: a clicked document of a query picture, and how often."""

    query_id: str
    doc_id: str
    clicks: int
    position: int
    right: bool
    impressions: int
    at: datetime


@dataclass(frozen=True)
class Plan:
    """All parts of a cell; keys of `documents` are category keys."""

    categories: Sequence[Category]
    roles: Mapping[str, str]
    documents: Mapping[str, Sequence[Document]]
    events: Sequence[Picture]
    seen: Sequence[Picture]
    test: Sequence[Picture]
    clicks: Sequence[Click]


def make_plan(cell: Cell, domain: Domain) -> Plan:
    """Choose categories, documents, query pictures and clicks of a cell.

    Raises:
        ValueError: the domain has too few categories.
    """
    categories = _chosen(cell, domain)
    by_key = {one.key: one for one in categories}
    wanted = _wanted_documents(cell, categories)
    documents, drawings = {}, {}
    for one in categories:
        shown, asked = _shares(cell, domain, one.key, wanted[one.key])
        documents[one.key] = _documents(cell, domain, one, shown, wanted[one.key])
        drawings[one.key] = asked
    roles = _roles(cell, categories, documents)
    clicked = [one.key for one in categories if roles[one.key] == "clicked"]
    counts = _picture_counts(cell, clicked)
    held_out = _held_out(cell, counts)
    events = _events(cell, counts, drawings, held_out)
    seen = [
        _picture(cell, "seen", key, drawings[key], -1, number=len(events) + row) for row, key in enumerate(held_out)
    ]
    test = _test_pictures(cell, [key for key in roles if roles[key] == "test"], drawings, len(events) + len(seen))
    similar = confusable([by_key[key] for key in clicked], seed=cell.seed)
    clicks = _clicks(cell, events, documents, similar)
    return Plan(categories, roles, documents, events, seen, test, clicks)


def _chosen(cell: Cell, domain: Domain) -> list[Category]:
    """The categories of the cell: random, those with enough artists for all documents first."""
    need = min(cell.documents[1], max(len(one) for one in domain.drawings.values()) - 1)
    rich = {one.key: min(len(domain.drawings[one.key]) - 1, need) for one in domain.categories}
    enough = cell.documents[1] > 3
    order = sorted(
        domain.categories,
        key=lambda one: (-rich[one.key] if enough else 0, keyed_digest(cell.seed, "category", one.key)),
    )
    if len(order) < cell.categories:
        raise ValueError(f"{domain.name} has {len(order)} categories; a cell cannot have {cell.categories}")
    return sorted(order[: cell.categories], key=lambda one: keyed_digest(cell.seed, "category", one.key))


def _wanted_documents(cell: Cell, categories: Sequence[Category]) -> dict[str, int]:
    low, high = cell.documents
    return {
        one.key: int(keyed_generator(cell.seed, "number of documents", one.key).integers(low, high + 1))
        for one in categories
    }


def _shares(cell: Cell, domain: Domain, key: str, wanted: int) -> tuple[list[str], list[tuple[str, int]]]:
    """Artists of the documents, and (artist, drawing) of the queries: never the same artist."""
    role = {one.name: one.role for one in domain.artists}
    drawn = domain.drawings[key]
    order = sorted(drawn, key=lambda name: keyed_digest(cell.seed, "artist", key, name))
    shown = [name for name in order if role[name] != "query"]
    if all(role[name] == "any" for name in order):
        shown = shown[: min(wanted, len(order) - 1)]
    asked = [name for name in order if name not in shown and role[name] != "document"]
    return shown, [(name, 0) for name in asked]


def _documents(cell: Cell, domain: Domain, category: Category, shown: Sequence[str], wanted: int) -> list[Document]:
    """First one drawing of each artist, then their other drawings, then recoloured copies."""
    drawn = domain.drawings[category.key]
    most = max(len(drawn[name]) for name in shown)
    rows = [(name, drawing, 0) for drawing in range(most) for name in shown if drawing < len(drawn[name])]
    copies = 1
    while len(rows) < wanted:
        rows += [(name, 0, copies) for name in shown]
        copies += 1
    found = []
    for name, drawing, copy in rows[:wanted]:
        place = (category.key, name, drawing, copy)
        text = text_of(category, cell.text, keyed_generator(cell.seed, "text", *place))
        doc_id = opaque_id(cell.seed, "document", *place)
        found.append(Document(doc_id, category.key, name, drawing, copy, text))
    return found


def _roles(cell: Cell, categories: Sequence[Category], documents: Mapping[str, Sequence[Document]]) -> dict[str, str]:
    """Map each category key to "test", "clicked" or "never": clicked until the share of documents is reached."""
    order = sorted((one.key for one in categories), key=lambda key: keyed_digest(cell.seed, "role", key))
    roles = dict.fromkeys(order[: cell.test_categories], "test")
    others = order[cell.test_categories :]
    most = cell.clicked * sum(len(documents[key]) for key in others)
    reached = 0
    for key in others:
        roles[key] = "clicked" if reached < most else "never"
        reached += len(documents[key])
    return roles


def _picture_counts(cell: Cell, clicked: Sequence[str]) -> dict[str, int]:
    """Number of query pictures of each category that has any: one each, the others by Zipf popularity."""
    total = max(2, round(cell.pictures * len(clicked)))
    generator = keyed_generator(cell.seed, "popularity")
    ranking = [str(key) for key in generator.permutation(sorted(clicked))]
    counts = dict.fromkeys(ranking[:total], 1)
    weights = 1.0 / np.arange(1, len(ranking) + 1) ** cell.skew
    if total > len(ranking):
        for rank in generator.choice(len(ranking), size=total - len(ranking), p=weights / weights.sum()):
            counts[ranking[rank]] += 1
    return counts


def _held_out(cell: Cell, counts: Mapping[str, int]) -> list[str]:
    """Categories with a held-out query picture."""
    order = sorted(counts, key=lambda key: keyed_digest(cell.seed, "held out", key))
    return order[: max(1, min(cell.test_queries, round(SEEN_SHARE * len(order))))]


def _picture(
    cell: Cell, kind: str, key: str, drawings: Sequence[tuple[str, int]], which: int, *, number: int
) -> Picture:
    artist, drawing = drawings[which % len(drawings)]
    return Picture(opaque_id(cell.seed, "query", kind, number), number, key, artist, drawing)


def _events(
    cell: Cell,
    counts: Mapping[str, int],
    drawings: Mapping[str, Sequence[tuple[str, int]]],
    held_out: Sequence[str],
) -> list[Picture]:
    """The clicked query pictures; a held-out drawing is not among them where the category has another."""
    aside = set(held_out)
    rows = [(key, which) for key, count in counts.items() for which in range(count)]
    order = keyed_generator(cell.seed, "order of events").permutation(len(rows))
    found = []
    for number, row in enumerate(order):
        key, which = rows[row]
        usable = drawings[key][:-1] if key in aside and len(drawings[key]) > 1 else drawings[key]
        found.append(_picture(cell, "event", key, usable, which, number=number))
    return found


def _test_pictures(
    cell: Cell, keys: Sequence[str], drawings: Mapping[str, Sequence[tuple[str, int]]], first: int
) -> list[Picture]:
    """Queries of the test categories: one each, then a second by another artist, up to the most."""
    most = max(len(drawings[key]) for key in keys)
    rows = [(key, which) for which in range(most) for key in keys if which < len(drawings[key])]
    return [
        _picture(cell, "test", key, drawings[key], which, number=first + number)
        for number, (key, which) in enumerate(rows[: cell.test_queries])
    ]


def _clicks(
    cell: Cell,
    events: Sequence[Picture],
    documents: Mapping[str, Sequence[Document]],
    similar: Mapping[str, Sequence[str]],
) -> list[Click]:
    """Simulate the clicks of every query picture.

    A right document is drawn with probability proportional to 1/position in a random order, so that some are clicked
    often and others never. A wrong one is a random document of a similar category, at a position drawn likewise.
    """
    found = []
    for event in events:
        generator = keyed_generator(cell.seed, "event", event.number)
        right = [one.doc_id for one in documents[event.category]]
        wrong = [one.doc_id for key in similar[event.category] for one in documents[key]]
        places = dict(zip(right, generator.permutation(max(POSITIONS, len(right))) + 1, strict=False))
        weights = np.array([1.0 / places[doc_id] for doc_id in right])
        ranks = 1.0 / np.arange(1, POSITIONS + 1)
        rows: dict[str, list[int]] = {}
        count = 1 + int(generator.poisson(cell.clicks - 1))
        for _ in range(count):
            if generator.random() >= cell.noise:
                doc_id = right[int(generator.choice(len(right), p=weights / weights.sum()))]
                position = int(places[doc_id])
            else:
                doc_id = wrong[int(generator.integers(len(wrong)))]
                position = 1 + int(generator.choice(POSITIONS, p=ranks / ranks.sum()))
            rows.setdefault(doc_id, [0, position])[0] += 1
        impressions = count + int(generator.geometric(0.5)) - 1
        at = START + timedelta(seconds=int(generator.integers(DAYS * 86_400)))
        found += [
            Click(event.query_id, doc_id, clicks, position, doc_id in places, impressions, at)
            for doc_id, (clicks, position) in rows.items()
        ]
    return found
