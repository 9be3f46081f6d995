"""Clean views that governance has embedded already, read from its store of encoder maps.

Governance decodes a picture into the same square as training and runs the same network; what its frozen stages gave is
kept by the sha256 of the picture's bytes (runtime/map_store.py). The two differ by rounding at most.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from runtime.map_store import FOLDER, MapStore, store_key
from train.inputs.frozen_part import cells_are_trained, feature_dtype
from train.inputs.views import Side
from train.recipes.recipe import Recipe


@dataclass(frozen=True)
class StoredViews:
    """Clean views of the rows of one side.

    Attributes:
        shas: (N,) sha256 of each row's picture, "" where the store does not hold it. has_row: (N,) bool, it does.
    """

    store: MapStore
    shas: list[str]
    has_row: np.ndarray

    def fill(self, values: dict[str, np.ndarray], rows: np.ndarray) -> None:
        """Write the stored `inputs` and `cells` of `rows` as the clean views of a batch, in place."""
        inside = np.flatnonzero(self.has_row[rows])
        if len(inside):
            shas = [self.shas[row] for row in rows[inside].tolist()]
            values["inputs"][inside, 0] = self.store.read("inputs", shas)
            values["cells"][inside] = self.store.read("cells", shas)


def open_store(governed: Path, model: Any, processor: Any, recipe: Recipe) -> MapStore | None:
    """The governed folder's maps of this model's frozen stages; None where it has none."""
    if recipe.model.frozen_stages is None or cells_are_trained(model, recipe) or not (governed / FOLDER).is_dir():
        return None
    key = store_key(
        model.vision_model,
        processor.image_processor,
        stages=recipe.model.frozen_stages,
        patch_stage=model.config.vision_feature_stage,
        dtype=feature_dtype(recipe),
    )
    store = MapStore(governed / FOLDER / key)
    return store if len(store) else None


def stored_views(side: Side, store: MapStore) -> StoredViews:
    """The rows of a side whose picture the store holds."""
    shas = []
    for row in range(len(side)):
        data = side.image(row)[1]
        sha = "" if data is None else hashlib.sha256(data).hexdigest()
        shas.append(sha if sha in store else "")
    return StoredViews(store, shas, np.array([bool(sha) for sha in shas], dtype=bool))
