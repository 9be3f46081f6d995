"""Encoder maps of pictures, kept by the sha256 of their bytes, so that no stage embeds a picture twice.

Governance embeds every picture once and keeps what the frozen stages of the encoder gave; training reads it. A store is
a folder named by all that the maps depend on (`store_key`). It holds shards, each a folder that appears under its name
when it is complete: `shas.npy`, and one array a name.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from runtime.files import atomic_folder

FOLDER = "features"  # in a governed folder
SHAS = "shas"
# What of an image processor changes pixels: its options and its code.
PIXEL_OPTIONS = (
    "size",
    "image_mean",
    "image_std",
    "exif_orientation",
    "crop_to_subject",
    "crop_tolerance",
    "pad_to_square",
    "resample",
    "pixel_code",
)


def store_key(network: Any, processor: Any, *, stages: int | None, patch_stage: int | None, dtype: str) -> str:
    """Digest of everything that the maps of a picture depend on, beside its bytes.

    Args:
        network: image encoder. processor: its image processor. stages, patch_stage: stages before the kept map, and the
            one of the patches. dtype: arithmetic.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(tensor.detach().float().cpu().numpy()).tobytes())
    options = [getattr(processor, name) for name in PIXEL_OPTIONS]
    digest.update(json.dumps([options, stages, patch_stage, dtype]).encode())
    return digest.hexdigest()[:16]


class MapStore:
    """Arrays of pictures by sha256; shards are appended, never changed.

    Args:
        folder: of one key; it need not exist.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._shards: list[Path] = []
        self._place: dict[bytes, tuple[int, int]] = {}
        self._mapped: dict[tuple[int, str], np.ndarray] = {}
        for path in sorted(folder.glob("[0-9]*")) if folder.is_dir() else []:
            self._open(path)

    def _open(self, path: Path) -> None:
        number = len(self._shards)
        self._shards.append(path)
        for row, sha in enumerate(np.load(path / f"{SHAS}.npy").tolist()):
            self._place.setdefault(sha, (number, row))

    def __len__(self) -> int:
        return len(self._place)

    def __contains__(self, sha: str) -> bool:
        return sha.encode() in self._place

    def add(self, shas: Sequence[str], arrays: Mapping[str, np.ndarray]) -> None:
        """Append one shard of pictures that are not in the store, each row of the arrays belonging to one."""
        path = self.folder / f"{len(self._shards):06d}"
        self.folder.mkdir(parents=True, exist_ok=True)
        with atomic_folder(path) as partial:
            np.save(partial / f"{SHAS}.npy", np.array([sha.encode() for sha in shas]))
            for name, values in arrays.items():
                np.save(partial / f"{name}.npy", values)
        self._open(path)

    def read(self, name: str, shas: Sequence[str]) -> np.ndarray:
        """(len(shas), ...) rows of one array; every picture must be in the store."""
        places = [self._place[sha.encode()] for sha in shas]
        return np.stack([self._array(shard, name)[row] for shard, row in places])

    def _array(self, shard: int, name: str) -> np.ndarray:
        if (shard, name) not in self._mapped:
            self._mapped[shard, name] = np.load(self._shards[shard] / f"{name}.npy", mmap_mode="r")
        return self._mapped[shard, name]
