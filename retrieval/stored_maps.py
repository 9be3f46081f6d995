"""Maps of catalogue pictures that governance kept, so that the index does not compute them again.

Training leaves the first stages of the encoder as they were. Governance has run them on every picture of the catalogue
and keeps what they gave (runtime/map_store.py); only the trained stages after them are left to run.

Letters: B batch, K its pictures with kept maps.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from retrieval.fused_vision import KnownMaps
from runtime.map_store import FOLDER, MapStore, matching_store


@dataclass(frozen=True)
class StoredMaps:
    """The kept maps that fit a model.

    Attributes:
        store: by the sha256 of a picture's bytes. stages: how many of the encoder's stages have run.
    """

    store: MapStore
    stages: int

    def of(self, contents: Sequence[bytes | None]) -> KnownMaps | None:
        """The maps of a batch of pictures, given by their bytes; None where none is kept."""
        shas = ["" if data is None else hashlib.sha256(data).hexdigest() for data in contents]
        is_known = np.array([sha in self.store for sha in shas], dtype=bool)
        if not is_known.any():
            return None
        kept = [sha for sha, known in zip(shas, is_known, strict=True) if known]
        inputs, cells = (torch.from_numpy(self.store.read(name, kept)).float() for name in ("inputs", "cells"))
        return KnownMaps(torch.from_numpy(is_known), inputs, cells, self.stages)


def open_maps(governed: Path, model: Any, processor: Any) -> StoredMaps | None:
    """The maps of a governed folder that this model's encoder would give; None where there are none.

    Raises:
        ValueError: there is no such folder.
    """
    if not governed.is_dir():
        raise ValueError(f"--governed {governed}: there is no such folder; give the folder that governance wrote")
    network = getattr(model.vision_model, "vision", None)  # of FusedVision, which alone can take maps
    image_processor = getattr(processor, "image_processor", processor)
    found = None if network is None else matching_store(governed / FOLDER, network, image_processor)
    if found is None or model.config.vision_feature_stage != found[1]["patch_stage"]:
        return None
    return StoredMaps(found[0], found[1]["stages"])
