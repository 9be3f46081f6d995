"""What a run takes over from an earlier one: the hash and the features of every image that it has seen before.

Decoding and embedding are the larger part of a run, and depend on nothing but the bytes of the image, the encoder and
the code: an image with the same bytes is not decoded again, whatever table, row or id it comes in now. What joins rows
to each other is done anew, so no result depends on the history of runs; local_moves.py is the way to keep that too.
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
class Memory:
    """Images by sha256 of their bytes.

    Attributes:
        hash_of: sha -> 64-bit perceptual hash.
        row_of: sha -> row of `features`.
        features: (R, W) float16; W is the sum of `blocks`.
        blocks: widths of the encoder's blocks; empty when nothing is remembered.
    """

    hash_of: dict[str, int] = field(default_factory=dict)
    row_of: dict[str, int] = field(default_factory=dict)
    features: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), dtype=np.float16))
    blocks: list[int] = field(default_factory=list)


def recipe(policy: Policy, eyes: Encoder) -> str:
    """Digest of all that turns bytes into a hash and features: source, encoder, size, limit of pixels."""
    source = mapping.source_digest(images, encoder)
    facts = f"{source} {eyes.name} {policy.image_size} {policy.max_image_pixels}"
    return hashlib.sha256(facts.encode()).hexdigest()[:16]


def remembered(folders: Iterable[Path | None], recipe_now: str) -> Memory:
    """The images of the admit stages below `folders` that were made by the same recipe; others are forgotten."""
    hash_of: dict[str, int] = {}
    row_of: dict[str, int] = {}
    parts: list[np.ndarray] = []
    blocks: list[int] = []
    for folder in folders:
        workspace = Workspace(folder) if folder is not None else None
        if workspace is None or not (workspace.folder("admit") / "stage.json").exists():
            continue
        notes = workspace.record("admit")["notes"]
        if notes.get("recipe") != recipe_now:
            continue
        blocks = notes["blocks"]
        for name in ("queries", "documents"):
            seen = workspace.table("admit", name)
            features = workspace.table("admit", f"{name}_features").column("features")
            shas = seen.column("sha").to_pylist()
            first: dict[str, int] = {}
            for row, (sha, bits) in enumerate(zip(shas, seen.column("hash").to_pylist(), strict=True)):
                if sha is not None and sha not in row_of and sha not in first:
                    first[sha], hash_of[sha] = row, bits
            start = sum(map(len, parts))
            parts.append(feature_matrix(features.take(pa.array(list(first.values()), pa.int64()))).astype(np.float16))
            row_of.update({sha: start + i for i, sha in enumerate(first)})
    return Memory(hash_of, row_of, np.concatenate(parts), blocks) if parts else Memory()
