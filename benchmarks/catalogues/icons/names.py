"""Names of icons: style and size removed, words in one order, synonyms joined.

Vendors name one thing differently: `trash-can-outline`, `bin-fill`, `delete-24-regular`. The key of a category is the
sorted tuple of the canonical words of its name.
"""

import re
from collections.abc import Iterable, Mapping

Key = tuple[str, ...]

# Words of equal meaning in icon names; the first word of each group stands for all.
SYNONYMS = (
    ("plus", "add"),
    ("minus", "subtract", "remove"),
    ("user", "person", "account"),
    ("users", "people", "persons", "accounts"),
    ("trash", "bin", "delete", "garbage", "dustbin"),
    ("gear", "cog", "settings", "setting"),
    ("mail", "envelope", "email"),
    ("phone", "telephone", "call"),
    ("x", "xmark", "close", "cancel", "times", "cross", "dismiss"),
    ("check", "checkmark", "tick", "done"),
    ("search", "magnify", "magnifier", "magnifer"),
    ("image", "picture", "photo"),
    ("file", "document", "doc"),
    ("home", "house"),
    ("alert", "warning", "exclamation", "caution"),
    ("question", "help"),
    ("info", "information"),
    ("chat", "comment", "message", "bubble"),
    ("off", "slash", "disabled"),
    ("microphone", "mic"),
    ("refresh", "reload", "sync"),
    ("chevron", "angle"),
    ("movie", "film"),
    ("money", "cash"),
    ("circle", "circled"),
    ("video", "videocam"),
    ("gamepad", "controller"),
    ("bicycle", "bike"),
    ("airplane", "plane", "aeroplane"),
    ("car", "automobile"),
    ("tv", "television"),
    ("puzzle", "jigsaw"),
    ("umbrella", "umbrellas"),
    ("eyeglasses", "glasses", "spectacles"),
)
CANONICAL = {word: group[0] for group in SYNONYMS for word in group}
# Words that name a style, an edition or nothing.
EMPTY_WORDS = frozenset(("icon", "symbol", "alt", "variant", "the", "of", "a", "can", "minimalistic", "simple"))
# A number after these words is the content of the drawing, not one of several drawings of one thing.
COUNTED = frozenset(
    ("number", "numeric", "dice", "battery", "signal", "wifi", "hexagon", "square", "circle", "box", "filter", "timer")
    + ("looks", "level", "bar", "bars", "star", "heading", "h", "column", "columns", "layout", "grid", "replay")
    + ("forward", "time", "clock", "zodiac", "view", "text", "list", "roman", "sound", "volume", "speaker", "person")
)
WORD = re.compile(r"[a-z]+|[0-9]+")


def without_suffix(name: str, suffixes: Iterable[str]) -> tuple[str, str]:
    """Return (name without its style suffix, the suffix); suffixes are given longest first."""
    for suffix in suffixes:
        if name.endswith(f"-{suffix}") and len(name) > len(suffix) + 1:
            return name[: -len(suffix) - 1], suffix
    return name, ""


def without_number(name: str) -> tuple[str, str]:
    """Return (name without a number at its end, the number), for vendors that number the drawings of one thing."""
    found = re.fullmatch(r"(.*?[a-z])-0*([0-9])", name)
    if found is None or any(word in COUNTED for word in WORD.findall(found[1])):
        return name, ""
    return found[1], found[2]


def words(name: str) -> list[str]:
    """Return the canonical words of a name, in its order."""
    found = [CANONICAL.get(word, word) for word in WORD.findall(name)]
    return [word for word in found if word not in EMPTY_WORDS] or found


def key_of(name: str) -> Key:
    """Return the category key of a name: its canonical words, sorted, each once."""
    return tuple(sorted(set(words(name))))


def joined_keys(keys: Mapping[Key, set[str]], aliases: Iterable[tuple[Key, Key]]) -> dict[Key, Key]:
    """Map each key to the representative of its aliases, joined only where no vendor draws both.

    Args:
        keys: {key: vendors with an icon of this key}.
        aliases: (alias, key) pairs; unknown aliases are ignored.
    """
    parent = {key: key for key in keys}
    vendors = {key: set(found) for key, found in keys.items()}

    def root(key: Key) -> Key:
        while parent[key] != key:
            key = parent[key]
        return key

    for alias, key in sorted(set(aliases)):
        if alias not in parent or key not in parent:
            continue
        one, other = root(alias), root(key)
        if one == other or vendors[one] & vendors[other]:
            continue
        # The name that more vendors use stands for the group.
        small, large = sorted((one, other), key=lambda name: (len(vendors[name]), name))
        parent[small] = large
        vendors[large] |= vendors.pop(small)
    return {key: root(key) for key in keys}
