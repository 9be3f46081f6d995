"""What a domain offers: categories with words, and drawings by several artists."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from examples.emoji.keys import keyed_digest

MOST_SIMILAR = 8  # categories that wrong clicks of one category fall on


class UnavailableError(ValueError):
    """A domain cannot be had on this machine; its cells are skipped."""


@dataclass(frozen=True)
class Artist:
    """One source of drawings; `role` is "query", "document" or "any"."""

    name: str
    package: str
    version: str
    licence: str
    project: str
    role: str = "any"


@dataclass(frozen=True)
class Category:
    """One class of a domain.

    Attributes:
        key: its name in the domain.
        label: words that are removed from texts.
        leaf: shelf of the shop.
        near: what similar categories share: words, or names of groups.
        tags: words of one language, without regard to `label`.
        names: other names of the category.
        other: {language: tags in it}.
    """

    key: str
    label: str
    leaf: str
    near: tuple[str, ...]
    tags: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    other: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Domain:
    """Everything that data sets of one domain are chosen from.

    Attributes:
        name: "emoji", "icons" or "furniture".
        categories: in a fixed order.
        drawings: {category key: {artist: PNG pictures with transparency, the usual one first}}.
        artists: of the drawings.
        painted: whether drawings are shapes of one colour, painted when a picture is made.
        words: sources of the texts that are no artist of drawings.
    """

    name: str
    categories: Sequence[Category]
    drawings: Mapping[str, Mapping[str, Sequence[bytes]]]
    artists: Sequence[Artist]
    painted: bool
    words: Sequence[Artist] = ()


def confusable(categories: Iterable[Category], *, seed: int) -> dict[str, list[str]]:
    """Map each category key to those of the most similar others, on which its wrong clicks fall.

    Similarity is the sum of log(number of categories / those with it) over everything that two categories share. Equal
    similarity is ordered by a keyed hash; a category that shares nothing has random ones.

    Raises:
        ValueError: there is only one category.
    """
    found = list(categories)
    if len(found) < 2:
        raise ValueError("a wrong click needs a second clicked category; raise categories or clicked")
    count = Counter(name for one in found for name in set(one.near))
    with_name: dict[str, list[str]] = {}
    for one in found:
        for name in set(one.near):
            with_name.setdefault(name, []).append(one.key)
    keys = [one.key for one in found]
    similar = {}
    for one in found:
        score: dict[str, float] = {}
        for name in set(one.near):
            for key in with_name[name]:
                score[key] = score.get(key, 0.0) + math.log(len(found) / count[name])
        score.pop(one.key, None)
        order = sorted(score, key=lambda key: (-round(score[key], 9), keyed_digest(seed, "similar", one.key, key)))
        if not order:
            others = [key for key in keys if key != one.key]
            order = sorted(others, key=lambda key: keyed_digest(seed, "similar", one.key, key))
        similar[one.key] = order[:MOST_SIMILAR]
    return similar
