"""Keeps the encoder's maps of the pictures that governance embeds, so that no later step embeds them again."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data_governance.inputs.encoder import Encoder
from data_governance.inputs.images import image_processor
from data_governance.policy import Policy
from runtime.files import write_json
from runtime.map_store import FOLDER, SETTINGS, MapStore

MAPS_PER_SHARD = 1_024


class MapKeeper:
    """Keeps the encoder's maps of new pictures for training, in shards; nothing beyond the policy's limit.

    Args:
        store: where they are kept. most: pictures in all.
    """

    def __init__(self, store: MapStore, *, most: int) -> None:
        self.store, self.most = store, most
        self._shas: list[str] = []
        self._parts: list[dict[str, np.ndarray]] = []

    def features(self, encoder: Encoder, squares: np.ndarray, shas: Sequence[str]) -> np.ndarray:
        """Features of some pictures, whose maps are kept."""
        maps: list[dict[str, np.ndarray]] = []
        values = encoder.features(squares, maps=maps)
        whole = {name: np.concatenate([part[name] for part in maps]) for name in maps[0]}
        seen = set(self._shas)
        first = {sha: i for i, sha in reversed(list(enumerate(shas)))}
        new = [i for sha, i in first.items() if sha not in self.store and sha not in seen]
        new = sorted(new)[: max(0, self.most - len(self.store) - len(self._shas))]
        self._shas += [shas[i] for i in new]
        self._parts.append({name: value[new] for name, value in whole.items()})
        if len(self._shas) >= MAPS_PER_SHARD:
            self.flush()
        return values

    def flush(self) -> None:
        """Write what has come together as a shard."""
        if self._shas:
            names = self._parts[0]
            self.store.add(self._shas, {name: np.concatenate([part[name] for part in self._parts]) for name in names})
        self._shas, self._parts = [], []


def map_keeper(out: Path, encoder: Encoder, *, policy: Policy) -> MapKeeper | None:
    """The keeper of this run; None where the packaged network does not run, or nothing is to be kept."""
    key = encoder.maps_key(image_processor(policy.image_size, policy.max_image_pixels, policy.max_image_bytes))
    if key is None or not policy.kept_maps:
        return None
    folder = out / FOLDER / key
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / SETTINGS, encoder.maps_settings)
    return MapKeeper(MapStore(folder), most=policy.kept_maps)
