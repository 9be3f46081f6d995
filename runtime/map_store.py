"""Encoder maps of pictures, kept by the sha256 of their bytes, so that no stage embeds a picture twice.

Governance embeds every picture once and keeps what the frozen stages of the encoder gave; training and the index read
it. A store is a folder named by all that the maps depend on (`store_key`). It holds `store.json`, what of that is not
in the network, and shards, each a folder that appears under its name when it is complete: `shas.npy`, and one array a
name.
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
SETTINGS = "store.json"  # stages, patch_stage and dtype, as `store_key` takes them


def store_key(network: Any, processor: Any, *, stages: int | None, patch_stage: int | None, dtype: str) -> str:
    """Digest of everything that the maps of a picture depend on, beside its bytes.

    Args:
        network: image encoder. processor: its image processor. stages, patch_stage: stages before the kept map, and the
            one of the patches. dtype: arithmetic.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(_frozen_tensors(network, stages).items()):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(tensor.detach().float().cpu().numpy()).tobytes())
    digest.update(json.dumps([processor.pixel_settings, stages, patch_stage, dtype]).encode())
    return digest.hexdigest()[:16]


def _frozen_tensors(network: Any, stages: int | None) -> dict[str, Any]:
    """Tensors that the kept maps depend on: those of the stem and the first `stages` stages; all where it has none."""
    tensors: dict[str, Any] = network.state_dict()
    if stages is None or not hasattr(network, "forward_trunk"):
        return tensors
    trunk = ("stem.", *(f"stages.{stage}." for stage in range(stages)))
    found = {name: value for name, value in tensors.items() if name.startswith(trunk)}
    return {name: value for name, value in found.items() if not name.endswith("num_batches_tracked")}


def matching_store(folder: Path, network: Any, processor: Any) -> "tuple[MapStore, dict[str, Any]] | None":
    """(the store below `folder` whose maps this network would give, its settings); None where there is none."""
    for path in sorted(folder.glob(f"*/{SETTINGS}")):
        settings = json.loads(path.read_text(encoding="utf-8"))
        if store_key(network, processor, **settings) == path.parent.name:
            return MapStore(path.parent), settings
    return None


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
