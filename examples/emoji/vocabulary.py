"""Words of the demo data: categories with their groups, and document texts.

The English CLDR label is the name of the class, and shortcodes nearly repeat it. The hard setting therefore uses no
shortcodes and removes every word of the label, in any inflection, from every source. Related words, other languages, a
coarse group or nothing remain, as in the texts of shops and forums.
"""

import json
import re
import unicodedata
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from examples.emoji.drawings import plain_key
from examples.emoji.packages import WORDS_PACKAGE

LANGUAGES = ("de", "es", "fr", "it", "ja", "nl", "pl", "pt", "ru")
# The emojibase group of skin tones and hair styles: parts of emoji, not emoji.
COMPONENT_GROUP = 2
LONG_STEM = 4  # a stem of at least this many letters is also found inside of a word
WORD = re.compile(r"[^\W_]+")
SUFFIXES = ("ings", "ing", "ies", "ied", "edly", "ed", "es", "s", "y", "e")


@dataclass(frozen=True)
class Category:
    """One emoji without skin tones: the class of the demo data."""

    key: str
    label: str
    group: int
    subgroup: int
    leaf: str
    tags: tuple[str, ...] = ()
    shortcodes: tuple[str, ...] = ()
    translations: dict[str, tuple[str, ...]] = field(default_factory=dict)


def _folded(text: str) -> str:
    decomposed = unicodedata.normalize("NFKD", text.casefold())
    return "".join(character for character in decomposed if not unicodedata.combining(character))


def stem(word: str) -> str:
    """Return the stem of a word: folded, without the first matching English suffix that leaves three letters.

    A doubled last consonant becomes single ("running" -> "run"). Stems are only compared, they need not be words.
    """
    folded = _folded(word)
    for suffix in SUFFIXES:
        if folded.endswith(suffix) and len(folded) - len(suffix) >= 3:
            root = folded[: -len(suffix)]
            doubled = suffix in ("ing", "ings", "ed") and root[-1] == root[-2] and len(root) > 3
            return root[:-1] if doubled else root
    return folded


def is_label_word(word: str, label: str) -> bool:
    """Return whether a word is a word of the label: equal stems, or a stem of four letters or more inside the word."""
    stems = {stem(part) for part in WORD.findall(label)}
    folded = _folded(word)
    return stem(word) in stems or folded in stems or any(len(one) >= LONG_STEM and one in folded for one in stems)


def without_label(text: str, label: str) -> str:
    """Remove every word of the label from a text; the other words keep their order, one space between them."""
    return " ".join(word for word in WORD.findall(text) if not is_label_word(word, label))


def document_text(category: Category, source: str, *, language: str, hard: bool) -> str:
    """Return the text of a document of a category from one source; "" if the source has no words.

    Args:
        category: the class.
        source: "tags", "shortcodes", "language", "subgroup" or "nothing".
        language: language code, for the source "language".
        hard: remove every word of the English label.
    """
    phrases = {
        "tags": category.tags,
        "shortcodes": tuple(code.replace("_", " ") for code in category.shortcodes),
        "language": category.translations.get(language, ()),
        "subgroup": (category.leaf.replace("-", " "),),
        "nothing": (),
    }[source]
    if hard:
        phrases = tuple(without_label(phrase, category.label) for phrase in phrases)
    return ", ".join(dict.fromkeys(phrase for phrase in phrases if phrase))


def _entries(folder: Path, language: str) -> dict[str, dict[str, Any]]:
    entries = json.loads((folder / language / "data.json").read_text(encoding="utf-8"))
    return {plain_key(entry["hexcode"]): entry for entry in entries}


def read_categories(node_modules: Path) -> list[Category]:
    """Read every base emoji with its words, in the order of emojibase.

    Raises:
        ValueError: the folder lacks emojibase-data or one of its languages.
    """
    folder = node_modules / WORDS_PACKAGE
    if not (folder / "en" / "data.json").is_file():
        raise ValueError(f"{node_modules} lacks {WORDS_PACKAGE}; remove the cache folder and run again")
    subgroups = json.loads((folder / "meta" / "groups.json").read_text(encoding="utf-8"))["subgroups"]
    codes = json.loads((folder / "en" / "shortcodes" / "emojibase.json").read_text(encoding="utf-8"))
    shortcodes = {plain_key(key): (value,) if isinstance(value, str) else tuple(value) for key, value in codes.items()}
    languages = {code: _entries(folder, code) for code in LANGUAGES if (folder / code / "data.json").is_file()}
    if set(languages) != set(LANGUAGES):
        raise ValueError(f"{folder} lacks the languages {sorted(set(LANGUAGES) - set(languages))}; reinstall it")
    categories = []
    for key, entry in _entries(folder, "en").items():
        if entry.get("group", COMPONENT_GROUP) == COMPONENT_GROUP:
            continue
        translations = {code: tuple(words.get(key, {}).get("tags", ())) for code, words in languages.items()}
        leaf = subgroups[str(entry["subgroup"])]
        texts = (tuple(entry.get("tags", ())), shortcodes.get(key, ()), translations)
        categories.append(Category(key, entry["label"], entry["group"], entry["subgroup"], leaf, *texts))
    return categories
