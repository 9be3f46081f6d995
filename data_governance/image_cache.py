"""Reuse hashes and features of images that earlier runs have decoded.

Decoding and embedding are most of a run and depend only on the bytes of the image, the encoder and the code. Everything
that relates rows to each other is computed again, so a result does not depend on earlier runs.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa

from data_governance.inputs import encoder, images, mapping
from data_governance.inputs.encoder import Encoder
from data_governance.inputs.tables import feature_matrix
from data_governance.policy import Policy
from data_governance.stage import Workspace


@dataclass(frozen=True)
class ImageCache:
    """Images by sha256 of their bytes.

    Attributes:
        hash_of: sha -> 64-bit perceptual hash.
        row_of: sha -> row of `features`.
        features: (R, W) float16; W is the sum of `block_widths`.
        block_widths: of the encoder; empty when the cache is.
    """

    hash_of: dict[str, int] = field(default_factory=dict)
    row_of: dict[str, int] = field(default_factory=dict)
    features: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), dtype=np.float16))
    block_widths: list[int] = field(default_factory=list)


def cache_key(policy: Policy, image_encoder: Encoder) -> str:
    """Digest of everything that turns bytes into a hash and features: source, encoder, size, limit of pixels."""
    source = mapping.source_digest(*mapping.with_imports(images), encoder)
    facts = f"{source} {image_encoder.name} {image_encoder.dtype} {policy.image_size} {policy.max_image_pixels}"
    return hashlib.sha256(facts.encode()).hexdigest()[:16]


def load_cache(folders: Iterable[Path | None], key: str) -> ImageCache:
    """Images of the admit stages below `folders` that were computed under the same key."""
    hash_of: dict[str, int] = {}
    row_of: dict[str, int] = {}
    parts: list[np.ndarray] = []
    widths: list[int] = []
    for folder in folders:
        workspace = Workspace(folder) if folder is not None else None
        if workspace is None or not (workspace.folder("admit") / "stage.json").exists():
            continue
        notes = workspace.record("admit")["notes"]
        if notes.get("recipe") != key:
            continue
        widths = notes["blocks"]
        for name in ("queries", "documents"):
            rows = workspace.table("admit", name)
            features = workspace.table("admit", f"{name}_features").column("features")
            shas = rows.column("sha").to_pylist()
            first: dict[str, int] = {}
            for row, (sha, bits) in enumerate(zip(shas, rows.column("hash").to_pylist(), strict=True)):
                if sha is not None and sha not in row_of and sha not in first:
                    first[sha], hash_of[sha] = row, bits
            start = sum(map(len, parts))
            parts.append(feature_matrix(features.take(pa.array(list(first.values()), pa.int64()))).astype(np.float16))
            row_of.update({sha: start + i for i, sha in enumerate(first)})
    return ImageCache(hash_of, row_of, np.concatenate(parts), widths) if parts else ImageCache()
