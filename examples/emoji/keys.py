"""Keyed hashes: every random choice and every id of the demo data comes from (seed, names) and nothing else.

A generator that is shared by two steps makes the second depend on how often the first drew; one generator per named
purpose keeps every choice stable when another step, the number of workers or the size of the set changes.
"""

import hashlib

import numpy as np


def keyed_digest(seed: int, *names: object, size: int = 16) -> bytes:
    """Hash names under a seed: BLAKE2b keyed by the seed, `size` bytes."""
    text = "\x1f".join(str(name) for name in names).encode()
    return hashlib.blake2b(text, digest_size=size, key=f"oclear-emoji-{seed}".encode()).digest()


def keyed_generator(seed: int, *names: object) -> np.random.Generator:
    """Return the random generator of one purpose, for example `keyed_generator(0, "clicks")`."""
    return np.random.default_rng(int.from_bytes(keyed_digest(seed, *names), "big"))


def opaque_id(seed: int, kind: str, *names: object) -> str:
    """Return an id from which neither category, style nor order can be read: 16 hexadecimal digits.

    `kind` ("query", "document") only separates the id spaces; it is hashed, not shown.
    """
    return keyed_digest(seed, "id", kind, *names, size=8).hex()
