"""Evaluation protocol of the demo data: splits, documents, held-out drawings.

Queries and documents are drawn by different artists, and test categories are not in the training data. The split
depends on its number only, not on the seed, so that runs with different seeds have the same test set. Categories with a
pixel-identical drawing in any style ("twins") are in the same split: otherwise the document of a test query could be in
the training data.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from examples.emoji.drawings import Drawing
from examples.emoji.keys import keyed_digest, keyed_generator, opaque_id
from examples.emoji.packages import styles_of
from examples.emoji.vocabulary import LANGUAGES, Category, document_text

SPLITS = (0, 1, 2)
# Tenths of the categories. Test: {0,1}, {2,3} or {4,5}; validation: 6, 7 or 8; training: all others.
TENTHS = 10
PROTOCOL_SEED = 0
MIN_CATEGORIES = 20
HELD_OUT_SHARE = 0.2
# Probability of each text source of a document.
SOURCE_WEIGHTS = {
    "main": {"tags": 0.35, "shortcodes": 0.2, "language": 0.2, "subgroup": 0.15, "nothing": 0.1},
    "hard": {"tags": 0.45, "language": 0.25, "subgroup": 0.15, "nothing": 0.15},
}
# Factor on the probability of a source that another document of the category has: it is seldom repeated.
REPEATED_SOURCE = 0.1
Drawings = Mapping[str, Mapping[str, Drawing]]


@dataclass(frozen=True)
class Document:
    """One document: the clean drawing of a category in a document style, with the text of one source."""

    doc_id: str
    category: str
    style: str
    text: str
    source: str
    language: str


def with_queries_and_documents(
    categories: Sequence[Category], present: Mapping[str, Collection[str]], *, limit: int | None = None
) -> list[Category]:
    """Return the categories that have a query drawing and a document drawing.

    Args:
        categories: all categories.
        present: {style: category keys with a drawing}.
        limit: keep this many, subgroup by subgroup; None = all.

    Raises:
        ValueError: fewer than 20 are left.
    """
    with_query = {key for style in styles_of("query") for key in present[style.name]}
    with_document = {key for style in styles_of("document") for key in present[style.name]}
    kept = [one for one in categories if one.key in with_query and one.key in with_document]
    if limit is not None:
        order = sorted(
            kept,
            key=lambda one: (
                keyed_digest(PROTOCOL_SEED, "limit", one.leaf),
                keyed_digest(PROTOCOL_SEED, "limit", one.key),
            ),
        )
        chosen = {one.key for one in order[:limit]}
        kept = [one for one in kept if one.key in chosen]
    if len(kept) < MIN_CATEGORIES:
        raise ValueError(
            f"{len(kept)} categories have query and document drawings, at least {MIN_CATEGORIES} are needed; "
            "raise --limit-categories or leave it out"
        )
    return kept


def twin_groups(keys: Sequence[str], drawings: Drawings) -> dict[str, str]:
    """Map each category to the representative of its twins, the categories that share a pixel-identical drawing.

    Transitive over all styles. The representative is the first of the group in the order of `keys`; a category without
    twins is its own representative.
    """
    parent = {key: key for key in keys}

    def root(key: str) -> str:
        while parent[key] != key:
            key = parent[key]
        return key

    rank = {key: number for number, key in enumerate(keys)}
    for drawn in drawings.values():
        first: dict[str, str] = {}
        for key in keys:
            if key in drawn:
                one, other = root(key), root(first.setdefault(drawn[key].pixels, key))
                low, high = sorted((one, other), key=rank.__getitem__)
                parent[high] = low
    return {key: root(key) for key in keys}


def split_categories(categories: Sequence[Category], twins: Mapping[str, str], *, split: int) -> dict[str, str]:
    """Map each category key to "train", "validation" or "test", stratified by subgroup, twins in the same split.

    Systematic sampling: groups of twins, in the order (group, subgroup, hash), are assigned to the tenths 0..9 in turn.
    The three test splits use different tenths and are therefore pairwise disjoint.
    """
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}; it must be one of {list(SPLITS)}")
    by_key = {one.key: one for one in categories}
    units = sorted(
        {twins[one.key] for one in categories},
        key=lambda key: (by_key[key].group, by_key[key].subgroup, keyed_digest(PROTOCOL_SEED, "split", key)),
    )
    names = {2 * split: "test", 2 * split + 1: "test", 6 + split: "validation"}
    of_unit = {key: names.get(number % TENTHS, "train") for number, key in enumerate(units)}
    return {one.key: of_unit[twins[one.key]] for one in categories}


def held_out_drawings(categories: Sequence[Category], drawings: Drawings, *, seed: int) -> set[tuple[str, str]]:
    """Choose (style, category key) pairs that are not in the click log, as held-out queries of seen categories.

    One query drawing of a fifth of the categories that have all query styles.
    """
    styles = [style.name for style in styles_of("query")]
    full = [one.key for one in categories if all(one.key in drawings[style] for style in styles)]
    order = sorted(full, key=lambda key: keyed_digest(seed, "held out", key))
    chosen = order[: round(HELD_OUT_SHARE * len(order))]
    return {(styles[keyed_digest(seed, "held out style", key)[0] % len(styles)], key) for key in chosen}


def make_documents(
    categories: Sequence[Category], drawings: Drawings, *, setting: str, seed: int
) -> dict[str, list[Document]]:
    """Create a document with id and text for every document drawing: {category key: documents in order of styles}."""
    documents: dict[str, list[Document]] = {}
    for category in categories:
        taken: list[str] = []
        documents[category.key] = []
        for style in styles_of("document"):
            if category.key not in drawings[style.name]:
                continue
            source, language, text = _draw_text(category, style.name, taken, setting=setting, seed=seed)
            taken.append(source)
            doc_id = opaque_id(seed, "document", style.name, category.key)
            documents[category.key].append(Document(doc_id, category.key, style.name, text, source, language))
    return documents


def _draw_text(
    category: Category, style: str, taken: Sequence[str], *, setting: str, seed: int
) -> tuple[str, str, str]:
    generator = keyed_generator(seed, "text", style, category.key)
    languages = [code for code in LANGUAGES if document_text(category, "language", language=code, hard=True)]
    language = str(generator.choice(languages)) if languages else LANGUAGES[0]
    hard = setting == "hard"
    texts = {
        source: document_text(category, source, language=language, hard=hard) for source in SOURCE_WEIGHTS[setting]
    }
    weights = {
        source: SOURCE_WEIGHTS[setting][source] * (REPEATED_SOURCE if source in taken else 1.0)
        for source, text in texts.items()
        if text or source == "nothing"
    }
    total = sum(weights.values())
    source = str(generator.choice(list(weights), p=[weight / total for weight in weights.values()]))
    return source, language if source == "language" else "", texts[source]
