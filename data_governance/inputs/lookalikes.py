"""Ids that look alike and are not equal."""

import unicodedata

from modeling_oclear.visible_text_oclear import is_visible


def lookalike(name: str) -> str:
    """An id as it looks: two ids with the same value differ only in composition, width, case of spaces or invisibles.

    >>> lookalike("e\u0301 ") == lookalike("\u00e9")
    True
    """
    shown = "".join(letter for letter in unicodedata.normalize("NFKC", name) if is_visible(letter) or letter == " ")
    return unicodedata.normalize("NFC", shown).strip()
