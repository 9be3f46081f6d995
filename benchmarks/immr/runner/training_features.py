"""What every system of a world learns from: cached features of ALL training queries and documents, kept or set aside.

The product reads the governed rows alone; a rival on raw clicks needs the others too. Their views come from the same
keyed generator, so a query looks the same to all.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from benchmarks.immr.protocol.splits import World
from benchmarks.immr.runner.features_of_task import Row, embedded, pooled_features
from train.inputs.cache import FeatureCache
from train.inputs.features import features_of
from train.inputs.samples import GovernedSamples, read_samples
from train.recipes.recipe import Recipe
from train.text_stage.sentence_map import sentence_vectors

Lacking = tuple[str, bytes | None, str]  # id, picture, text


@dataclass(frozen=True)
class TrainingFeatures:
    """Rows of each side: first those of the governed samples in their order, then those that governance set aside.

    Attributes:
        samples, cache: the governed samples and their features, as train/ reads them.
        query_inputs, document_inputs: (N, V, ...) of all rows, at the stage of `cache`.
        document_has_image, document_has_text: (N,) bool. sentences: (N, H) float32 unit rows, 0 without text.
        behaviour: the click log.
    """

    samples: GovernedSamples
    cache: FeatureCache
    query_ids: list[str]
    document_ids: list[str]
    query_inputs: np.ndarray
    document_inputs: np.ndarray
    document_has_image: np.ndarray
    document_has_text: np.ndarray
    sentences: np.ndarray
    behaviour: pa.Table


def training_features(world: World, *, model: Any, processor: Any, recipe: Recipe) -> TrainingFeatures:
    """Compute, or find again, the features of a world's training tables, with hidden maps as inputs.

    Args:
        model, processor: of `build_model(recipe, seed=0)`: features do not depend on the seed of training.
    """
    samples = read_samples(world.governed)
    cache = features_of(model, processor, samples, recipe=recipe, folder=world.features, seed=0)
    ids = {side: governed_ids(world.governed, side) for side in ("query", "document")}
    lacking = {
        "query": _lacking(world.data / "queries.parquet", "query_id", set(ids["query"])),
        "document": _lacking(world.data / "train_catalogue.parquet", "doc_id", set(ids["document"])),
    }
    parts = [cache]
    if any(lacking.values()):
        parts.append(_aside(world, lacking, model=model, processor=processor, recipe=recipe))
    mask = [np.asarray(part.document_mask) for part in parts]
    words = [
        sentence_vectors(part.document_tokens, part.document_mask).float().numpy()
        for part in parts
        if len(part.document_mask)
    ]
    return TrainingFeatures(
        samples=samples,
        cache=cache,
        query_ids=ids["query"] + [name for name, _, _ in lacking["query"]],
        document_ids=ids["document"] + [name for name, _, _ in lacking["document"]],
        query_inputs=_stacked([part.query_inputs for part in parts]),
        document_inputs=_stacked([part.document_inputs for part in parts]),
        document_has_image=np.concatenate([part.document_has_image for part in parts]),
        document_has_text=np.concatenate([known.any(1) for known in mask]),
        sentences=np.concatenate(words),
        behaviour=pq.read_table(world.data / "behaviour.parquet", columns=["query_id", "doc_id", "clicks"]),
    )


def governed_ids(governed: Path, side: str) -> list[str]:
    """Sample ids of a side in the order in which training reads them: shards by name, rows as they stand."""
    found: list[str] = []
    for path in sorted((governed / "samples").glob("*.parquet")):
        table = pq.read_table(path, columns=["sample_id", "side"])
        found += table.filter(pc.equal(table["side"], side))["sample_id"].to_pylist()
    return found


def behind_the_backbone(features: TrainingFeatures, *, model: Any, recipe: Recipe, home: Path) -> TrainingFeatures:
    """The same with pooled features of the pretrained backbone as inputs, for systems that train heads alone."""
    name = features.cache.home.name
    pooled = {
        side: pooled_features(model, inputs, recipe=recipe, home=home, name=f"{name}-{side}-{len(inputs)}")
        for side, inputs in (("query", features.query_inputs), ("document", features.document_inputs))
    }
    cache = dataclasses.replace(
        features.cache,
        query_inputs=pooled["query"][: len(features.cache.query_inputs)],
        document_inputs=pooled["document"][: len(features.cache.document_inputs)],
    )
    return dataclasses.replace(features, cache=cache, query_inputs=pooled["query"], document_inputs=pooled["document"])


def _aside(
    world: World, lacking: dict[str, list[Lacking]], *, model: Any, processor: Any, recipe: Recipe
) -> FeatureCache:
    """Features of the training rows that the governed samples lack."""
    # The cache wants a row of each side: a picture under another name stands in, and is cut off again.
    picture = next(data for part in lacking.values() for _, data, _ in part if data is not None)
    rows: list[Row] = [
        (name, side, data, text)
        for side, part in lacking.items()
        for name, data, text in part or [(f"no {side}", picture, "")]
    ]
    found = embedded(rows, model=model, processor=processor, recipe=recipe, folder=world.features)
    queries, documents = len(lacking["query"]), len(lacking["document"])
    return dataclasses.replace(
        found,
        query_inputs=found.query_inputs[:queries],
        document_inputs=found.document_inputs[:documents],
        document_has_image=found.document_has_image[:documents],
        document_tokens=found.document_tokens[:documents],
        document_mask=found.document_mask[:documents],
    )


def _lacking(path: Path, key: str, known: set[str]) -> list[Lacking]:
    table = pq.read_table(path)
    texts = table.column("text").to_pylist() if "text" in table.schema.names else [""] * len(table)
    rows = zip(table.column(key).to_pylist(), table.column("image").to_pylist(), texts, strict=True)
    return [
        (name, None if cell is None else cell["bytes"], text or "") for name, cell, text in rows if name not in known
    ]


def _stacked(arrays: list[np.ndarray]) -> np.ndarray:
    """One array in memory: batches gather rows from it at random."""
    return np.concatenate([np.asarray(part) for part in arrays])
