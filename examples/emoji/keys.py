"""Keyed hashes and random generators: functions of (seed, names) only.

Every random choice of the demo data has a generator of its own, keyed by its purpose. Choices are then independent of
other steps, the number of workers and the size of the set.
"""

import hashlib

import numpy as np


def keyed_digest(seed: int, *names: object, size: int = 16) -> bytes:
    """Hash names with BLAKE2b keyed by the seed, to `size` bytes."""
    text = "\x1f".join(str(name) for name in names).encode()
    return hashlib.blake2b(text, digest_size=size, key=f"oclear-emoji-{seed}".encode()).digest()


def keyed_generator(seed: int, *names: object) -> np.random.Generator:
    """Return the random generator of one purpose, for example `keyed_generator(0, "clicks")`."""
    return np.random.default_rng(int.from_bytes(keyed_digest(seed, *names), "big"))


def opaque_id(seed: int, kind: str, *names: object) -> str:
    """Return an id of 16 hexadecimal digits that does not reveal category, style or order.

    `kind` ("query", "document") separates the id spaces.
    """
    return keyed_digest(seed, "id", kind, *names, size=8).hex()
