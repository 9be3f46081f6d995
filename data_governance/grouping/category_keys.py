"""Stable category keys from run to run, and the changes of each previous category."""

import hashlib
from collections import Counter

# Least share of documents that two categories must have in common to be the same. Of two documents one is enough, so a
# pair keeps its key when one document is exchanged.
SAME = 0.5
Event = tuple[str | None, str, str | None]


def fresh_key(documents: list[str]) -> str:
    """Twelve hexadecimal digits of sha256 of the smallest document id, which does not depend on the other documents."""
    return hashlib.sha256(min(documents).encode()).hexdigest()[:12]


def keys(new: dict[int, list[str]], old: dict[str, list[str]]) -> dict[int, str]:
    """Category -> key.

    A new category takes the key of the old one with which it shares the most documents (ties: smaller key), if these
    are at least half of the smaller of the two and no category with a larger overlap takes that key. The others get a
    fresh key that no old category has.
    """
    overlap = _overlap(new, old)
    key_of: dict[int, str] = {}
    taken: set[str] = set()
    for (category, key), shared in sorted(overlap.items(), key=lambda item: (-item[1], item[0][1], item[0][0])):
        enough = shared >= SAME * min(len(new[category]), len(old[key]))
        if enough and category not in key_of and key not in taken:
            key_of[category] = key
            taken.add(key)
    for category in sorted(set(new) - set(key_of), key=lambda c: min(new[c])):
        key_of[category] = _unused(fresh_key(new[category]), taken | set(old))
        taken.add(key_of[category])
    return key_of


def events(key_of: dict[int, str], new: dict[int, list[str]], old: dict[str, list[str]]) -> list[Event]:
    """Sorted (old_key, event, new_key): every old key, every new key, and every move of documents between them.

    For documents of old category o in new category n:

        kept     o = n
        split    o != n, and documents of o went to more than one new category
        merged   o != n, and n holds documents of more than one old category
        renamed  o != n, and neither: all remaining documents of o are in n, and n holds no others of old categories

    A part that left o and joined another category is both split and merged. `retired`: no document of o is left; `new`:
    n holds no document of an old category.
    """
    moves = sorted({(key, key_of[category]) for category, key in _overlap(new, old)})
    children, parents = Counter(o for o, _ in moves), Counter(n for _, n in moves)
    found: list[Event] = []
    for o, n in moves:
        if o == n:
            found.append((o, "kept", n))
            continue
        kinds = ["split"] * (children[o] > 1) + ["merged"] * (parents[n] > 1)
        found += [(o, kind, n) for kind in kinds or ["renamed"]]
    found += [(o, "retired", None) for o in old if o not in children]
    found += [(None, "new", key_of[category]) for category in new if key_of[category] not in parents]
    return sorted(found, key=lambda event: tuple(part or "" for part in event))


def _overlap(new: dict[int, list[str]], old: dict[str, list[str]]) -> dict[tuple[int, str], int]:
    """(category, old key) -> number of common documents."""
    where = {doc: key for key, documents in old.items() for doc in documents}
    return Counter((category, where[doc]) for category, documents in new.items() for doc in documents if doc in where)


def _unused(key: str, taken: set[str]) -> str:
    while key in taken:
        key = hashlib.sha256(key.encode()).hexdigest()[:12]
    return key
