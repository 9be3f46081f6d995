"""Variants of the product with one part removed.

    trained without      governance, classification (InfoNCE, SupCon), out-of-fold text, separate transforms,
                         augmented views
    removed afterwards   concept memory, text-to-image attention, gate, imputation, calibration

Everything else stays equal: encoders, steps, batch, seeds, out-of-fold text with its weight chosen on held-out
categories, export, index. A variant trained in another way passes the later training stages and is scored through its
published folder. The exception is text inside the loss, which has no such stage: it is a baseline of the grid.

Legend: Q queries, C classes, D embedding width.
"""

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from accelerate import Accelerator

from benchmarks.immr.baselines.method import Method
from benchmarks.immr.baselines.training import TrainedBaseline, class_means, train_baseline
from benchmarks.immr.features.task_features import SAMPLES
from benchmarks.immr.runner.cell import trained_baseline_system
from benchmarks.immr.runner.context import ExperimentContext
from benchmarks.immr.runner.result_store import GridCell, ResultStore
from benchmarks.immr.runner.systems import System, parts_of, published_system, train_product
from retrieval.index.calibration import calibrated_queries
from runtime.files import write_json
from train.context import RunContext
from train.encoders.backbones import build_model
from train.image_stage.loop import ImageResult
from train.inputs.cache import FeatureCache
from train.inputs.samples import read_samples
from train.journal import Stopwatch
from train.pipeline import publish_run
from train.recipes.recipe import Recipe

STAGE = "heads"
FULL = "oclear"
# By part: the method that is trained instead, with the hyperparameters of its search on validation categories.
LOSSES = {"classification_infonce": "infonce.governed.image", "classification_supcon": "supcon.governed.image"}
JOINT_TEXT = {"out_of_fold": "cosface.governed.concat"}
SEARCHES = ("infonce.governed.image", "supcon.governed.image", "cosface.governed.mean")
TRAINED = ("governance", *LOSSES, *JOINT_TEXT, "transforms", "augmentation")
SWITCHED = ("memory", "attention", "gate", "imputation", "calibration")
OPEN_BIAS = 100.0  # bias of a gate whose sigmoid is 1 in float32


class Uncalibrated(System):
    """The same system with queries that ignore the calibration of the index."""

    def query_vectors(self, inputs: np.ndarray) -> np.ndarray:
        """(Q, D + 1), the last column 0."""
        embeds_QD = self.queries(inputs).numpy()
        return calibrated_queries(embeds_QD, index_width=embeds_QD.shape[1] + 1, calibrate=False)


@torch.no_grad()
def without_memory(model: Any) -> None:
    """Documents without image use only the linear map of their text."""
    model.fusion.memory_value.zero_()


@torch.no_grad()
def without_attention(model: Any) -> None:
    """The attended image evidence changes neither the document embedding nor the gates."""
    width = model.fusion.evidence_projection.weight.shape[1]
    model.fusion.evidence_projection.weight.zero_()
    model.fusion.gate.weight[:, width : 2 * width].zero_()


@torch.no_grad()
def without_gate(model: Any) -> None:
    """Both gates are open for every document; the text keeps the length that it has at the initial gate value.

    A gate on the agreement of text and image has no such value: the whole concept is added, as at full agreement.
    """
    gate, agreement = model.fusion.gate, model.fusion.agreement
    if not agreement[1]:
        model.fusion.concept_projection.weight.mul_(torch.sigmoid(gate.bias[1]))
    agreement.zero_()
    gate.weight.zero_()
    gate.bias.fill_(OPEN_BIAS)


EDITS: dict[str, Callable[[Any], None]] = {
    "memory": without_memory,
    "attention": without_attention,
    "gate": without_gate,
}


def switched_systems(hub: Path) -> Iterator[tuple[str, System]]:
    """(part, system without it) for every part that can be removed from a published folder."""
    usual: dict[str, Any] = {"frozen_stages": None, "with_text": True}
    for part, edit in EDITS.items():
        yield part, published_system(hub, edit=edit, **usual)
    yield "imputation", published_system(hub, imputes=False, **usual)
    full = published_system(hub, **usual)
    yield "calibration", Uncalibrated(full.queries, full.documents, full.calibration)


def trained_systems(
    part: str, context: ExperimentContext, store: ResultStore, home: Path, *, seed: int
) -> Iterator[tuple[str, System]]:
    """(name, system) of the training without `part`; FULL also yields the parts removed afterwards.

    Args:
        home: empty folder of the run; the systems read it while they are scored.

    Raises:
        ValueError: no hyperparameters were chosen yet for a method of the grid.
    """
    if part in JOINT_TEXT:
        cell = GridCell(STAGE, context.dataset.name, JOINT_TEXT[part], seed)
        hyperparameters = store.hyperparameters(Method.named(cell.system), STAGE)
        yield part, trained_baseline_system(cell, context, hyperparameters, max_steps=store.max_steps)
        return
    home.mkdir(parents=True, exist_ok=True)
    hub = (
        _contrasted(part, context, store, home, seed=seed)
        if part in LOSSES
        else _trained(part, context, store, home, seed)
    )
    if part == FULL:
        yield from switched_systems(hub)
    yield part, published_system(hub, frozen_stages=None, with_text=True)


def _trained(part: str, context: ExperimentContext, store: ResultStore, home: Path, seed: int) -> Path:
    """Published folder of the product trained by its own command without one part."""
    recipe, cache = context.recipe_of(STAGE), context.training(STAGE).cache
    governed = context.dataset.governed
    if part == "augmentation":
        recipe = recipe.with_changes({"image.query_views": 0, "image.document_views": 0})
        cache = dataclasses.replace(
            cache, query_inputs=cache.query_inputs[:, :1], document_inputs=cache.document_inputs[:, :1]
        )
    if part == "governance":
        governed = home / "raw"
        cache = write_raw(governed, context)
    recipe_file = home / "given.json"
    write_json(recipe_file, recipe.to_json())
    return train_product(
        home / "run",
        governed=governed,
        recipe=str(recipe_file),
        seed=seed,
        max_steps=store.max_steps,
        parts=parts_of(cache, build=with_one_transform if part == "transforms" else build_model),
    )


def with_one_transform(recipe: Recipe, *, seed: int) -> tuple[Any, Any]:
    """Build a model that shares one residual between queries and documents; the published model holds it twice."""
    model, processor = build_model(recipe, seed=seed)
    model.image_head.document_transform = model.image_head.query_transform
    return model, processor


def _contrasted(part: str, context: ExperimentContext, store: ResultStore, home: Path, *, seed: int) -> Path:
    """Published folder of an image stage trained by a contrastive loss, with the product's later stages."""
    method, recipe = Method.named(LOSSES[part]), context.recipe_of(STAGE)
    inputs = context.baseline_inputs(STAGE, method.labels, recipe)
    training = inputs.features
    hyperparameters = store.hyperparameters(method, STAGE)
    baseline = train_baseline(
        inputs, method=method, hyperparameters=hyperparameters, seed=seed, max_steps=store.max_steps
    )
    run = home / "run"
    run.mkdir(exist_ok=True)
    image = ImageResult(baseline.encoders.state_dict(), _class_weights(baseline, context), recipe.image.steps, 0.0)
    started = RunContext(
        recipe=recipe,
        accelerator=Accelerator(cpu=True),
        data=context.dataset.governed,
        folder=run,
        features=run / "features",
        seed=seed,
        max_steps=store.max_steps,
    )
    stopwatch = Stopwatch(run, resume=False)
    publish_run(started, training.samples, training.cache, image, stopwatch)
    return run / "hub"


def _class_weights(baseline: TrainedBaseline, context: ExperimentContext) -> torch.Tensor:
    """(C, D) mean of each training class's documents, in place of the weights of a classifier."""
    training = context.training(STAGE)
    rows = context.rows["governed"].document
    inputs = torch.from_numpy(np.array(training.document_inputs[rows.rows, 0])).float()
    embeds = baseline.encoders.embed(inputs, side="document").detach()
    return class_means(embeds, rows.labels, len(training.samples.classes))


def write_raw(folder: Path, context: ExperimentContext) -> FeatureCache:
    """Write the clicks as a governed folder with one category per document; returns the features of its rows.

    A query gets the category of its most clicked document. The documents that governance held out to choose the text
    weight are held out here too, with the queries of their categories.
    """
    training, rows = context.training(STAGE), context.rows["raw"]
    held_out = training.samples.labels.document_validation
    assert len(held_out) == len(training.document_ids), "governance rejects queries, no documents"
    queries = _by_id(context.dataset.data / "queries.parquet", "query_id")
    documents = _by_id(context.dataset.data / "train_catalogue.parquet", "doc_id")
    document_of_query = rows.document.rows[rows.query.labels]
    samples = [
        _sample(
            queries[training.query_ids[row]], training.query_ids[row], "query", int(document), bool(held_out[document])
        )
        for row, document in zip(rows.query.rows, document_of_query, strict=True)
    ]
    samples += [
        _sample(documents[name], name, "document", row, bool(held_out[row]))
        for row, name in enumerate(training.document_ids)
    ]
    (folder / "samples").mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(samples, schema=SAMPLES), folder / "samples" / "part-0.parquet")
    names = {"category_id": list(range(len(training.document_ids))), "category_key": training.document_ids}
    pq.write_table(pa.table(names), folder / "categories.parquet")
    read_samples(folder)
    return dataclasses.replace(training.cache, query_inputs=training.query_inputs[rows.query.rows])


def _by_id(path: Path, key: str) -> dict[str, dict[str, Any]]:
    return {row[key]: row for row in pq.read_table(path).to_pylist()}


def _sample(row: dict[str, Any], name: str, side: str, category: int, held_out: bool) -> dict[str, Any]:
    return {
        "sample_id": name,
        "side": side,
        "image": row["image"],
        "text": row.get("text") or "",
        "category_id": category,
        "weight": 1.0,
        "split": "validation" if held_out else "train",
    }


def chosen_text_weight(home: Path) -> float | None:
    """Text weight that a finished run chose; None without a run."""
    path = home / "run" / "training.json"
    return float(json.loads(path.read_text())["text"]["strength"]) if path.is_file() else None
