"""Category keys that survive from run to run, and what became of each old one.

In: the documents of the new categories and of a previous governed folder. Out: keys and events. Next: export.py.
"""

import hashlib

# Share of a category's documents that must be found in one other category to speak of the same.
SAME = 0.5


def fresh_key(documents: list[str]) -> str:
    """Twelve hexadecimal digits of sha256 of the smallest document id: it survives whatever else joins or leaves."""
    return hashlib.sha256(min(documents).encode()).hexdigest()[:12]


def keys(
    new: dict[int, list[str]], old: dict[str, list[str]]
) -> tuple[dict[int, str], list[tuple[str | None, str, str | None]]]:
    """(category -> key, events (old_key, event, new_key)).

    A new category takes the key of the old one with which it shares the most documents (ties: smaller key), if these
    are more than half of the smaller of the two and no larger overlap claims that key. Events: kept; merged and split
    where an old category's documents went to a category of another key; retired, new.
    """
    where = {doc: key for key, documents in old.items() for doc in documents}
    overlap: dict[tuple[int, str], int] = {}
    for category, documents in new.items():
        for doc in documents:
            if doc in where:
                overlap[category, where[doc]] = overlap.get((category, where[doc]), 0) + 1
    key_of: dict[int, str] = {}
    taken: set[str] = set()
    for (category, key), shared in sorted(overlap.items(), key=lambda item: (-item[1], item[0][1], item[0][0])):
        enough = shared > SAME * min(len(new[category]), len(old[key]))
        if enough and category not in key_of and key not in taken:
            key_of[category] = key
            taken.add(key)
    events: list[tuple[str | None, str, str | None]] = [(key, "kept", key) for key in sorted(taken)]
    for category in sorted(set(new) - set(key_of), key=lambda c: min(new[c])):
        key_of[category] = _unused(fresh_key(new[category]), taken | set(old))
        taken.add(key_of[category])
        parents = sorted({key for c, key in overlap if c == category})
        if parents:
            events += [(parent, "split", key_of[category]) for parent in parents]
        else:
            events.append((None, "new", key_of[category]))
    for key in sorted(set(old) - taken):
        heirs = sorted({key_of[c] for (c, k) in overlap if k == key})
        events += [(key, "merged", heir) for heir in heirs] or [(key, "retired", None)]
    return key_of, events


def _unused(key: str, taken: set[str]) -> str:
    while key in taken:
        key = hashlib.sha256(key.encode()).hexdigest()[:12]
    return key
