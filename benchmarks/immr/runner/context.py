"""A world made ready to train and score on: tasks, features at both stages, rows of both labels, each made when asked.

The tracks of a world: unseen queries (full gallery, and unseen documents alone), held-out queries of seen categories,
styles never trained on, and every kind of worse document. The validation task stands apart: a search sees it alone.
"""

import dataclasses
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from benchmarks.immr.baselines.baselines import Starts
from benchmarks.immr.baselines.labels import Labelled, governed_rows, raw_rows
from benchmarks.immr.protocol.degrade import VARIANTS, degraded
from benchmarks.immr.protocol.emoji import emoji_task
from benchmarks.immr.protocol.scores import NO_PART, Scores
from benchmarks.immr.protocol.slices import query_slices
from benchmarks.immr.protocol.splits import World
from benchmarks.immr.protocol.task import Task, evaluate
from benchmarks.immr.runner.features_of_task import MISSING, TaskFeatures, features_of_tasks, pooled_features
from benchmarks.immr.runner.systems import System
from benchmarks.immr.runner.training_features import TrainingFeatures, behind_the_backbone, training_features
from train.encoders.backbones import build_model
from train.recipes.recipe import Recipe, SoftmaxLoss

SHORT_TRACKS = ("unseen", "unseen.small", "seen")
LONG_TRACKS = (
    *SHORT_TRACKS,
    "styles",
    "styles.small",
    *(name for variant in VARIANTS for name in (variant, f"{variant}.small")),
)
SMALL = ".small"  # the gallery of unseen documents alone
# The last block's layers themselves want these rates, by the validation categories of the three splits (docs/log.md).
LAYERS_RATES: dict[str, Any] = {
    "image.encoder_learning_rate": 2e-3,
    "image.projection_learning_rate": 8e-3,
    "head.learning_rate": 24e-3,
}
# Heads alone, the product's and most rivals', want these.
HEADS_RATES: dict[str, Any] = {"image.projection_learning_rate": 2e-3, "head.learning_rate": 6e-3}


class Stand:
    """A world under one recipe.

    Args:
        recipe: that of the product's last block; features are cached in front of it.
    """

    def __init__(self, world: World, recipe: Recipe) -> None:
        self.world, self.recipe = world, recipe
        self.starts: Starts = {}

    def recipe_of(self, stage: str, *, adapters: bool = True) -> Recipe:
        """The recipe at a stage: "heads", which are trained once and by the softmax (better there), or "last_block".

        Args:
            adapters: False trains the layers of the last block themselves where the recipe puts adapters on them.
        """
        plain: dict[str, Any] = {}
        if self.recipe.image.lora.rank:
            plain = {"image.lora.rank": 0, "image.lora.targets": None, "image.max_grad_norm": None}
        if stage == "heads":
            plain |= {"head.loss": SoftmaxLoss(), "model.frozen_stages": None, "ensemble.num_members": 1}
            return self.recipe.with_changes({**plain, **HEADS_RATES})
        return self.recipe if adapters or not plain else self.recipe.with_changes({**plain, **LAYERS_RATES})

    @cached_property
    def untrained(self) -> Any:
        """Model without text, as every rival starts."""
        return build_model(self.recipe.with_changes({"text.encoder": None}), seed=0)[0]

    @cached_property
    def tasks(self) -> dict[str, Task]:
        """By name of the track, galleries aside, and "validation"."""
        data = self.world.data
        found = {name: emoji_task(data, which) for name, which in (("unseen", "test"), ("seen", "seen"))}
        found["styles"] = emoji_task(self.world.styles, "extra")
        found["validation"] = emoji_task(data, "validation")
        if set(found["styles"].doc_ids) != set(found["unseen"].doc_ids):
            raise ValueError(f"{self.world.styles} was made with other documents than {data}; make it again")
        return found | {variant: degraded(found["unseen"], variant) for variant in VARIANTS}

    @cached_property
    def _hidden(self) -> tuple[TaskFeatures, TrainingFeatures]:
        model, processor = build_model(self.recipe, seed=0)
        folder = self.world.features
        folder.mkdir(parents=True, exist_ok=True)
        given = {"model": model, "processor": processor, "recipe": self.recipe}
        return features_of_tasks(tasks=list(self.tasks.values()), folder=folder, **given), training_features(
            self.world, **given
        )

    @cached_property
    def _pooled(self) -> tuple[TaskFeatures, TrainingFeatures]:
        asked, learned = self._hidden
        given: dict[str, Any] = {"model": self.untrained, "recipe": self.recipe, "home": self.world.features}
        name = f"{asked.cache.home.name}-task"
        inputs = pooled_features(inputs=np.asarray(asked.cache.document_inputs), name=name, **given)
        cache = dataclasses.replace(asked.cache, document_inputs=inputs)
        return dataclasses.replace(asked, cache=cache), behind_the_backbone(learned, **given)

    def task_features(self, stage: str) -> TaskFeatures:
        """Features of all tasks at a stage ("heads" or "last_block")."""
        return (self._pooled if stage == "heads" else self._hidden)[0]

    def training(self, stage: str) -> TrainingFeatures:
        """Training features at a stage."""
        return (self._pooled if stage == "heads" else self._hidden)[1]

    @cached_property
    def rows(self) -> dict[str, Labelled]:
        """What a rival learns from, by labels."""
        learned = self._hidden[1]
        return {
            "governed": governed_rows(learned.samples),
            "raw": raw_rows(learned.behaviour, learned.query_ids, learned.document_ids),
        }

    def scored(self, system: System, tracks: Sequence[str], *, stage: str) -> dict[str, Scores]:
        """Scores of a system by track."""
        features = self.task_features(stage)
        kept: dict[bytes, np.ndarray] = {}
        found = {}
        for track in tracks:
            task = self.tasks[track.removesuffix(SMALL)]
            image_N, text_N = features.images(task.documents), features.texts(task.documents)
            same = image_N.tobytes() + text_N.tobytes()
            if same not in kept:
                kept[same] = system.document_vectors(features.documents(task.documents))
            queries = features.images(task.queries)
            assert (queries != MISSING).all(), "a query is a picture"
            vectors = system.query_vectors(np.asarray(features.cache.document_inputs[queries]))
            gallery = task.unseen_documents if track.endswith(SMALL) else None
            scores = evaluate(task, vectors, kept[same], gallery=gallery, split=self.world.split)
            found[track] = with_query_slices(task, scores)
        return found


def with_query_slices(task: Task, scores: Scores) -> Scores:
    """The scores with the slices of queries beside those of documents, so that nobody needs the task to cut them."""
    ranks = dict(scores.slice_ranks)
    for name, members in query_slices(task).items():
        inside = np.isin(scores.query_ids, sorted(members))
        if inside.any():
            ranks[name] = np.where(inside, scores.rank, NO_PART)
    return dataclasses.replace(scores, slice_ranks=ranks)


def keep_scores(scores: dict[str, Scores], folder: Path) -> None:
    """One Parquet file a track, a row a query."""
    folder.mkdir(parents=True, exist_ok=True)
    for track, found in scores.items():
        pq.write_table(found.table(), folder / f"{track}.parquet")


def kept_scores(folder: Path, track: str) -> Scores:
    """Scores of a track that `keep_scores` wrote."""
    return Scores.from_table(pq.read_table(folder / f"{track}.parquet"))
