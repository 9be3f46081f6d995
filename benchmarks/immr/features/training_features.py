"""Cached features of all training queries and documents of one dataset split.

The product reads the governed rows only; a baseline on raw clicks also needs the rows that governance rejected. The
augmented views of both come from the same keyed generator, so a query has the same views in every system.

Legend: N rows, V views, H width.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from benchmarks.immr.features.task_features import SampleRow, embed_samples, pooled_features
from benchmarks.immr.protocol.splits import DatasetSplit
from train.inputs.cache import FeatureCache
from train.inputs.features import features_of
from train.inputs.samples import GovernedSamples, read_samples
from train.recipes.recipe import Recipe
from train.text_stage.sentence_map import sentence_vectors

RejectedRow = tuple[str, bytes | None, str]  # id, image, text


@dataclass(frozen=True)
class TrainingFeatures:
    """Rows of each side: the governed samples in their order, then the rejected rows.

    Attributes:
        samples, cache: the governed samples and their features, as train/ reads them.
        query_inputs, document_inputs: (N, V, ...) encoder inputs of all rows, at the stage of `cache`.
        document_has_image, document_has_text: (N,) bool.
        sentences: (N, H) float32 sentence vectors, unit rows, 0 without text.
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


def training_features(split: DatasetSplit, *, model: Any, processor: Any, recipe: Recipe) -> TrainingFeatures:
    """Features of the training tables of a dataset split, with hidden maps as inputs.

    Args:
        model, processor: from `build_model(recipe, seed=0)`: features do not depend on the training seed.
    """
    samples = read_samples(split.governed)
    cache = features_of(model, processor, samples, recipe=recipe, folder=split.features, seed=0)
    ids = {side: governed_ids(split.governed, side) for side in ("query", "document")}
    rejected = {
        "query": _rejected(split.data / "queries.parquet", "query_id", set(ids["query"])),
        "document": _rejected(split.data / "train_catalogue.parquet", "doc_id", set(ids["document"])),
    }
    parts = [cache]
    if any(rejected.values()):
        parts.append(_rejected_features(split, rejected, model=model, processor=processor, recipe=recipe))
    sentences = [
        sentence_vectors(part.document_tokens, part.document_mask).float().numpy()
        for part in parts
        if len(part.document_mask)
    ]
    return TrainingFeatures(
        samples=samples,
        cache=cache,
        query_ids=ids["query"] + [name for name, _, _ in rejected["query"]],
        document_ids=ids["document"] + [name for name, _, _ in rejected["document"]],
        # In memory rather than mapped from disk: batches gather rows at random.
        query_inputs=np.concatenate([np.asarray(part.query_inputs) for part in parts]),
        document_inputs=np.concatenate([np.asarray(part.document_inputs) for part in parts]),
        document_has_image=np.concatenate([part.document_has_image for part in parts]),
        document_has_text=np.concatenate([np.asarray(part.document_mask).any(1) for part in parts]),
        sentences=np.concatenate(sentences),
        behaviour=pq.read_table(split.data / "behaviour.parquet", columns=["query_id", "doc_id", "clicks"]),
    )


def governed_ids(governed: Path, side: str) -> list[str]:
    """Sample ids of a side in the order in which training reads them: shards by name, then row order."""
    found: list[str] = []
    for path in sorted((governed / "samples").glob("*.parquet")):
        table = pq.read_table(path, columns=["sample_id", "side"])
        found += table.filter(pc.equal(table["side"], side))["sample_id"].to_pylist()
    return found


def with_pooled_inputs(features: TrainingFeatures, *, model: Any, recipe: Recipe, home: Path) -> TrainingFeatures:
    """The same with pooled features of the pretrained backbone as inputs, for training heads only."""
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


def _rejected_features(
    split: DatasetSplit, rejected: dict[str, list[RejectedRow]], *, model: Any, processor: Any, recipe: Recipe
) -> FeatureCache:
    """Features of the training rows that are not among the governed samples."""
    # The cache needs a row of each side: a placeholder row is added where there is none, and removed below.
    image = next(data for part in rejected.values() for _, data, _ in part if data is not None)
    rows: list[SampleRow] = [
        (name, side, data, text)
        for side, part in rejected.items()
        for name, data, text in part or [(f"no {side}", image, "")]
    ]
    features = embed_samples(rows, model=model, processor=processor, recipe=recipe, folder=split.features)
    queries, documents = len(rejected["query"]), len(rejected["document"])
    return dataclasses.replace(
        features,
        query_inputs=features.query_inputs[:queries],
        document_inputs=features.document_inputs[:documents],
        document_has_image=features.document_has_image[:documents],
        document_tokens=features.document_tokens[:documents],
        document_mask=features.document_mask[:documents],
    )


def _rejected(path: Path, key: str, governed: set[str]) -> list[RejectedRow]:
    table = pq.read_table(path)
    texts = table.column("text").to_pylist() if "text" in table.schema.names else [""] * len(table)
    rows = zip(table.column(key).to_pylist(), table.column("image").to_pylist(), texts, strict=True)
    return [
        (name, None if image is None else image["bytes"], text or "")
        for name, image, text in rows
        if name not in governed
    ]
