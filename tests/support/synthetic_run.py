"""Image stage on synthetic features, for tests in one process."""

import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from accelerate import Accelerator

from modeling_oclear import EfficientNetLiteConfig, EfficientNetLiteModel, OclearModel
from train.context import RunContext
from train.image_stage.loop import ImageResult, train_image_stage
from train.inputs.samples import GovernedSamples, Labels
from train.recipes.recipe import Recipe
from train.recipes.registry import recipe_by_name

CATEGORIES, WIDTH, CELLS = 7, 5, 3
TRAINED = (0, 1, 2, 4, 6)


def small_recipe(changes: Mapping[str, Any] | None = None) -> Recipe:
    """The tiny recipe with fewer steps and a smaller width."""
    base = recipe_by_name("tiny").with_changes(
        {
            "text.encoder": None,
            "model.hidden_size": 6,
            "model.frozen_stages": 1,
            "image.steps": 12,
            "image.checkpoint_every": 5,
        }
    )
    return base.with_changes(changes or {})


def small_model(recipe: Recipe) -> Any:
    """One frozen stage, one trained stage, features of width 7."""
    config = EfficientNetLiteConfig(
        stem_channels=4,
        out_channels=(WIDTH, 6),
        num_block_repeats=(1, 1),
        kernel_sizes=(3, 3),
        strides=(1, 1),
        expand_ratios=(1, 2),
        hidden_size=7,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return OclearModel.from_encoders(
            EfficientNetLiteModel(config), hidden_size=recipe.model.hidden_size, num_attention_heads=1
        ).eval()


def small_cache() -> Any:
    """Hidden maps (N, 2 views, 5, 3, 3) around a mean per category; document 2 has no image."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(CATEGORIES, WIDTH, CELLS, CELLS))

    def side(repeats: int) -> np.ndarray:
        labels = np.tile(np.arange(CATEGORIES), repeats)
        noise = rng.normal(size=(len(labels), 2, WIDTH, CELLS, CELLS))
        return (centres[labels][:, None] + 0.3 * noise).astype(np.float16)

    return types.SimpleNamespace(query_inputs=side(4), document_inputs=side(3))


class SyntheticTable:
    """The part of `SampleTable` that the image stage uses."""

    def __init__(self, *, queries: int, documents: int) -> None:
        self.counts = {"query": queries, "document": documents}

    def __len__(self) -> int:
        return sum(self.counts.values())

    def ids(self, side: str) -> pa.Array:
        """Sample ids of the rows of a side."""
        return pa.array([f"{side[0]}{row}" for row in range(self.counts[side])])


def small_samples() -> GovernedSamples:
    """Seven categories, two of them held out."""
    query, document = np.tile(np.arange(CATEGORIES), 4), np.tile(np.arange(CATEGORIES), 3)
    has_image = np.arange(len(document)) != 2
    rng = np.random.default_rng(1)
    return GovernedSamples(
        table=SyntheticTable(queries=len(query), documents=len(document)),  # type: ignore[arg-type]
        labels=Labels(query, document, ~np.isin(query, TRAINED), ~np.isin(document, TRAINED)),
        query_weights=rng.uniform(0.5, 2, len(query)),
        document_weights=rng.uniform(0.5, 2, len(document)),
        document_has_image=has_image,
        classes=np.array(TRAINED),
        num_categories=CATEGORIES,
        fingerprint="made",
        keys=tuple(f"key{number}" for number in range(CATEGORIES)),
        leaves=tuple(f"leaf{number % 2}" for number in range(CATEGORIES)),
    )


def train_small(recipe: Recipe, folder: Path, *, cache: Any = None, **options: Any) -> ImageResult:
    """Train the image stage on the synthetic features; `options` are fields of `RunContext`."""
    folder.mkdir(exist_ok=True)
    context = RunContext(
        recipe=recipe, accelerator=Accelerator(cpu=True), data=folder, folder=folder, features=folder, **options
    )
    return train_image_stage(context, small_model(recipe), cache or small_cache(), small_samples())
