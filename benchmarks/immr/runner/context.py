"""Tasks, features and labelled rows of one dataset split, computed on first use.

Evaluation settings: unseen queries (full gallery, and unseen documents alone), held-out queries of seen categories,
styles outside the training data, and every kind of degraded document. The validation task is separate: hyperparameter
searches read it alone.
"""

import dataclasses
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np

from benchmarks.immr.baselines.labels import LabelledRows, governed_rows, raw_rows
from benchmarks.immr.baselines.training import BaselineInputs, ImageHeadCache
from benchmarks.immr.features.task_features import MISSING, TaskFeatures, compute_task_features, pooled_features
from benchmarks.immr.features.training_features import TrainingFeatures, training_features, with_pooled_inputs
from benchmarks.immr.protocol.degrade import VARIANTS, degraded
from benchmarks.immr.protocol.emoji import emoji_task
from benchmarks.immr.protocol.evaluation import evaluate
from benchmarks.immr.protocol.scores import NOT_IN_SLICE, Scores
from benchmarks.immr.protocol.splits import DatasetSplit
from benchmarks.immr.protocol.task import Task
from benchmarks.immr.runner.systems import System
from train.encoders.backbones import build_model
from train.recipes.recipe import Recipe, SoftmaxLoss

BASIC_EVAL_SETTINGS = ("unseen", "unseen.small", "seen")
ALL_EVAL_SETTINGS = (
    *BASIC_EVAL_SETTINGS,
    "styles",
    "styles.small",
    *(name for variant in VARIANTS for name in (variant, f"{variant}.small")),
)
SMALL = ".small"  # suffix: the gallery of unseen documents alone
VALIDATION = "validation"
# Best rates for training the layers of the last block themselves, on the validation categories of the three splits
# (docs/log.md).
LAST_BLOCK_RATES: dict[str, Any] = {
    "image.encoder_learning_rate": 2e-3,
    "image.projection_learning_rate": 8e-3,
    "head.learning_rate": 24e-3,
}
# Best rates for training heads only, for the product and most baselines.
HEADS_RATES: dict[str, Any] = {"image.projection_learning_rate": 2e-3, "head.learning_rate": 6e-3}


class ExperimentContext:
    """One dataset split under one recipe.

    Args:
        recipe: the product's, with the last block trained; features are cached before that block.
    """

    def __init__(self, dataset: DatasetSplit, recipe: Recipe) -> None:
        self.dataset, self.recipe = dataset, recipe
        self._head_cache: ImageHeadCache = {}

    def recipe_of(self, stage: str, *, adapters: bool = True) -> Recipe:
        """The recipe at a stage: "heads" or "last_block".

        Heads are trained once, with the softmax loss, which is better there.

        Args:
            adapters: False trains the layers of the last block themselves if the recipe trains adapters on them.
        """
        plain: dict[str, Any] = {}
        if self.recipe.image.lora.rank:
            plain = {"image.lora.rank": 0, "image.lora.targets": None, "image.max_grad_norm": None}
        if stage == "heads":
            loss = self.recipe.head.loss if isinstance(self.recipe.head.loss, SoftmaxLoss) else SoftmaxLoss()
            plain |= {"head.loss": loss, "model.frozen_stages": None, "ensemble.num_members": 1}
            return self.recipe.with_changes({**plain, **HEADS_RATES})
        return self.recipe if adapters or not plain else self.recipe.with_changes({**plain, **LAST_BLOCK_RATES})

    @cached_property
    def untrained(self) -> Any:
        """Untrained model without text, from which every baseline starts."""
        return build_model(self.recipe.with_changes({"text.encoder": None}), seed=0)[0]

    @cached_property
    def tasks(self) -> dict[str, Task]:
        """Tasks by evaluation setting (without the gallery suffix), and "validation"."""
        data = self.dataset.data
        found = {name: emoji_task(data, which) for name, which in (("unseen", "test"), ("seen", "seen"))}
        found["styles"] = emoji_task(self.dataset.styles, "extra")
        found["validation"] = emoji_task(data, "validation")
        if set(found["styles"].doc_ids) != set(found["unseen"].doc_ids):
            raise ValueError(f"{self.dataset.styles} was built with other documents than {data}; build it again")
        return found | {variant: degraded(found["unseen"], variant) for variant in VARIANTS}

    @cached_property
    def _hidden(self) -> tuple[TaskFeatures, TrainingFeatures]:
        model, processor = build_model(self.recipe, seed=0)
        folder = self.dataset.features
        folder.mkdir(parents=True, exist_ok=True)
        encoder = {"model": model, "processor": processor, "recipe": self.recipe}
        return compute_task_features(tasks=list(self.tasks.values()), folder=folder, **encoder), training_features(
            self.dataset, **encoder
        )

    @cached_property
    def _pooled(self) -> tuple[TaskFeatures, TrainingFeatures]:
        task, training = self._hidden
        backbone: dict[str, Any] = {"model": self.untrained, "recipe": self.recipe, "home": self.dataset.features}
        name = f"{task.cache.home.name}-task"
        inputs = pooled_features(inputs=np.asarray(task.cache.document_inputs), name=name, **backbone)
        cache = dataclasses.replace(task.cache, document_inputs=inputs)
        return dataclasses.replace(task, cache=cache), with_pooled_inputs(training, **backbone)

    def task_features(self, stage: str) -> TaskFeatures:
        """Features of all tasks at a stage ("heads" or "last_block")."""
        return (self._pooled if stage == "heads" else self._hidden)[0]

    def training(self, stage: str) -> TrainingFeatures:
        """Training features at a stage."""
        return (self._pooled if stage == "heads" else self._hidden)[1]

    @cached_property
    def rows(self) -> dict[str, LabelledRows]:
        """Labelled rows by kind of labels, "governed" or "raw"."""
        training = self._hidden[1]
        return {
            "governed": governed_rows(training.samples),
            "raw": raw_rows(training.behaviour, training.query_ids, training.document_ids),
        }

    def baseline_inputs(self, stage: str, labels: str, recipe: Recipe) -> BaselineInputs:
        """What a baseline is trained on at a stage, with one kind of labels."""
        return BaselineInputs(
            self.untrained, self.training(stage), self.rows[labels], recipe, stage, head_cache=self._head_cache
        )

    def scored(self, system: System, eval_settings: Sequence[str], *, stage: str) -> dict[str, Scores]:
        """Scores of a system by evaluation setting."""
        features = self.task_features(stage)
        embedded: dict[bytes, np.ndarray] = {}  # document embeddings by images and texts of the documents
        found = {}
        for eval_setting in eval_settings:
            task = self.tasks[eval_setting.removesuffix(SMALL)]
            image_N, text_N = features.images(task.documents), features.texts(task.documents)
            key = image_N.tobytes() + text_N.tobytes()
            if key not in embedded:
                embedded[key] = system.document_vectors(features.documents(task.documents))
            queries = features.images(task.queries)
            assert (queries != MISSING).all(), "every query has an image"
            vectors = system.query_vectors(np.asarray(features.cache.document_inputs[queries]))
            gallery = task.unseen_documents if eval_setting.endswith(SMALL) else None
            scores = evaluate(task, vectors, embedded[key], gallery=gallery, split=self.dataset.split)
            found[eval_setting] = with_query_slices(task, scores)
        return found


def with_query_slices(task: Task, scores: Scores) -> Scores:
    """Add the slices of queries to those of documents, so that stored scores can be sliced without the task."""
    ranks = dict(scores.slice_ranks)
    for name, members in task.query_slices().items():
        inside = np.isin(scores.query_ids, sorted(members))
        if inside.any():
            ranks[name] = np.where(inside, scores.rank, NOT_IN_SLICE)
    return dataclasses.replace(scores, slice_ranks=ranks)
