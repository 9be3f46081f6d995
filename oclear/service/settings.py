"""Settings of the service."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

SEARCH_KEYS, WRITE_KEYS = "OCLEAR_API_KEYS", "OCLEAR_WRITE_KEYS"


@dataclass(frozen=True)
class Settings:
    """What the service serves, and its limits.

    Attributes:
        model: published folder or Hub id. index: folder of an index that this model built.
        backend: "torch", "onnx", or "auto": ONNX where `oclear export` has written it.
        device: of torch.
        batch: pictures of one forward pass, at most. waiting: searches that may wait; more are refused (429).
        max_k: answers of one search, at most. max_documents: of one change, at most.
        body_bytes, body_seconds: a request's body may have so many bytes and take so long.
        search_seconds: a search that has no answer by then is given up (503).
        rate: requests a second of one key, or of one address without keys; 0 = no limit.
        compact_share: the index is compacted in the background when its changes are this share of its rows; 0 = never.
        poll_seconds: how often the index folder is looked at for a new version.
        search_keys, write_keys: who may search and who may change documents. Without search keys everybody may search;
            without write keys nobody may change anything.
    """

    model: str
    index: Path
    backend: str = "auto"
    device: str = "auto"
    batch: int = 32
    waiting: int = 256
    max_k: int = 100
    max_documents: int = 1_000
    body_bytes: int = 25_000_000
    body_seconds: float = 15.0
    search_seconds: float = 30.0
    rate: float = 0.0
    compact_share: float = 0.1
    poll_seconds: float = 1.0
    search_keys: tuple[str, ...] = field(default=(), repr=False)
    write_keys: tuple[str, ...] = field(default=(), repr=False)


def keys_of(environment: Mapping[str, str] | None = None) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(search keys, write keys) from OCLEAR_API_KEYS and OCLEAR_WRITE_KEYS, separated by commas.

    Raises:
        ValueError: a key of fewer than 8 characters, which could be guessed.
    """
    found = []
    for name in (SEARCH_KEYS, WRITE_KEYS):
        value = (os.environ if environment is None else environment).get(name, "")
        keys = tuple(key.strip() for key in value.split(",") if key.strip())
        if any(len(key) < 8 for key in keys):
            raise ValueError(f"{name} has a key of fewer than 8 characters, which could be guessed: use longer ones")
        found.append(keys)
    return found[0], found[1]
