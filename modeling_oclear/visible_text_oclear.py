"""Tell visible text from text that shows nothing.

Governance, training, indexing and the published processor ask here, so that they agree on which texts are empty.
"""

import unicodedata

# Characters that are shown as nothing (Unicode: Default_Ignorable_Code_Point), and the blank of braille.
IGNORABLE = (
    (0x00AD, 0x00AD),
    (0x034F, 0x034F),
    (0x061C, 0x061C),
    (0x115F, 0x1160),
    (0x17B4, 0x17B5),
    (0x180B, 0x180F),
    (0x200B, 0x200F),
    (0x202A, 0x202E),
    (0x2060, 0x206F),
    (0x2800, 0x2800),
    (0x3164, 0x3164),
    (0xFE00, 0xFE0F),
    (0xFEFF, 0xFEFF),
    (0xFFA0, 0xFFA0),
    (0xFFF0, 0xFFFB),
    (0x1BCA0, 0x1BCA3),
    (0x1D173, 0x1D17A),
    (0xE0000, 0xE0FFF),
)

# No token of a usual vocabulary is longer. Texts are cut at this many characters per token before tokenising, which
# saves time on texts of megabytes and changes nothing else.
CHARACTERS_PER_TOKEN = 100


def readable(text: str, *, max_length: int) -> str:
    """What a tokenizer gets of a text of at most `max_length` tokens; "" for one that shows nothing."""
    # Tokenizers reject half of a surrogate pair: replace it by a question mark.
    cut = text[: max_length * CHARACTERS_PER_TOKEN].encode("utf-8", "replace").decode("utf-8").strip()
    return visible(cut)


def is_visible(text: str) -> bool:
    """Whether any character of a text is seen: no space, control, unassigned or ignorable character.

    >>> is_visible("\u200b \u00ad\t"), is_visible("a\u200b")
    (False, True)
    """
    # The first characters decide nearly always.
    return any(_is_seen(letter) for letter in text)


def _is_seen(letter: str) -> bool:
    if letter.isalnum() and letter.isascii():
        return True
    if letter.isspace() or unicodedata.category(letter) in ("Cc", "Cf", "Cs", "Cn"):
        return False
    return not any(low <= ord(letter) <= high for low, high in IGNORABLE)


def visible(text: str | None) -> str:
    """The text, or "" where nothing of it can be seen."""
    return text if text and is_visible(text) else ""
