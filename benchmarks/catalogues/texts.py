"""Texts of documents: rich, poor, in another language, or none.

No word of the category's name is in them, in any inflection, unless that is asked for.
"""

import numpy as np

from benchmarks.catalogues.domain import Category
from examples.emoji.vocabulary import without_label

EMPTY_SHARE = 0.1  # of poor texts
LEAF_SHARE = 0.25  # of poor texts: the shelf instead of a name or a tag


def without_name(phrases: tuple[str, ...], category: Category) -> tuple[str, ...]:
    """Return the phrases without any word of the category's name, in any inflection; each once, none empty."""
    return tuple(dict.fromkeys(text for one in phrases if (text := without_label(one, category.label))))


def text_of(category: Category, kind: str, generator: np.random.Generator) -> str:
    """Return the text of one document.

    Args:
        category: of the document.
        kind: one of cell.TEXTS.
        generator: of this document.

    Raises:
        ValueError: kind is "other" and the domain has words of one language only.
    """
    if kind == "none":
        return ""
    if kind == "other":
        if not category.other:
            raise ValueError(f"the domain of {category.key!r} has no words in another language; choose another text")
        language = sorted(category.other)[int(generator.integers(len(category.other)))]
        return ", ".join(without_name(category.other[language], category))
    if kind == "rich_with_name":
        return ", ".join(dict.fromkeys((*category.names[:1], category.label, *category.tags)))
    tags = without_name(category.tags, category)
    if kind == "rich":
        return ", ".join(dict.fromkeys((*tags, *without_name(category.names, category))))
    draw = generator.random()
    names = without_name(category.names, category)
    leaf = without_name((category.leaf.replace("-", " "),), category)
    if draw < EMPTY_SHARE:
        return ""
    first = leaf if draw < EMPTY_SHARE + LEAF_SHARE else ()
    for source in (first, (*names, *tags), leaf):
        if source:
            return source[int(generator.integers(len(source)))]
    return ""
