"""The product with one part taken out: what is trained without it, and what is switched off in the published folder.

    trained without     governance, classification (InfoNCE, SupCon), out-of-fold text, separate transforms, augmented
                        views
    switched off after  concept memory, text-to-image attention, gate, imputation, calibration

Everything else stays as it is: encoders, steps, batch, seeds, out-of-fold text with its strength chosen on held-out
categories, export, index. A system that is trained otherwise goes through training's own stages and is scored through
the folder that they publish. The exception is text inside the loss, which has no such stage: a rival of the grid.


Letters: C classes, D width.
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

from benchmarks.immr.baselines.baselines import Method, Rival, train_rival
from benchmarks.immr.runner.cell import Cell, Desk, trained_rival
from benchmarks.immr.runner.context import Stand
from benchmarks.immr.runner.features_of_task import SAMPLES
from benchmarks.immr.runner.systems import System, published_system, train_product
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
# By part: the method whose search on validation categories its settings come from, and that is trained.
LOSSES = {"classification_infonce": "infonce.governed.image", "classification_supcon": "supcon.governed.image"}
JOINT_TEXT = {"out_of_fold": "cosface.governed.concat"}
SEARCHES = ("infonce.governed.image", "supcon.governed.image", "cosface.governed.mean")
TRAINED = ("governance", *LOSSES, *JOINT_TEXT, "transforms", "augmentation")
SWITCHED = ("memory", "attention", "gate", "imputation", "calibration")
WIDE_OPEN = 100.0  # bias of a gate whose sigmoid is 1 in float32


class Uncalibrated(System):
    """The same system when a query ignores the calibration of the index."""

    def query_vectors(self, inputs: np.ndarray) -> np.ndarray:
        """(Q, D + 1), the last column 0."""
        embeds_QD = self.queries(inputs).numpy()
        return calibrated_queries(embeds_QD, index_width=embeds_QD.shape[1] + 1, calibrate=False)


@torch.no_grad()
def without_memory(model: Any) -> None:
    """Documents without image are what the linear map makes of their text."""
    model.fusion.memory_value.zero_()


@torch.no_grad()
def without_attention(model: Any) -> None:
    """Evidence from the image neither moves a document nor opens a gate."""
    width = model.fusion.evidence_projection.weight.shape[1]
    model.fusion.evidence_projection.weight.zero_()
    model.fusion.gate.weight[:, width : 2 * width].zero_()


@torch.no_grad()
def without_gate(model: Any) -> None:
    """Both gates stand open for every document; the text keeps the length it has at the gates' usual opening.

    A gate that listens to agreement has none: the whole concept is added, as it is where text and image agree.
    """
    gate, agreement = model.fusion.gate, model.fusion.agreement
    if not agreement[1]:
        model.fusion.concept_projection.weight.mul_(torch.sigmoid(gate.bias[1]))
    agreement.zero_()
    gate.weight.zero_()
    gate.bias.fill_(WIDE_OPEN)


EDITS: dict[str, Callable[[Any], None]] = {
    "memory": without_memory,
    "attention": without_attention,
    "gate": without_gate,
}


def switched_systems(hub: Path) -> Iterator[tuple[str, System]]:
    """(part, system without it) for everything that can be switched off in a published folder."""
    given: dict[str, Any] = {"frozen_stages": None, "with_text": True}
    for part, edit in EDITS.items():
        yield part, published_system(hub, edit=edit, **given)
    yield "imputation", published_system(hub, imputes=False, **given)
    whole = published_system(hub, **given)
    yield "calibration", Uncalibrated(whole.queries, whole.documents, whole.calibration)


def trained_systems(part: str, stand: Stand, desk: Desk, home: Path, *, seed: int) -> Iterator[tuple[str, System]]:
    """(name, system) of everything that the training without `part` gives; FULL brings the switched-off ones.

    Args:
        home: an empty place for the run; the systems read it while they are scored.

    Raises:
        ValueError: a method of the grid has no chosen settings yet.
    """
    if part in JOINT_TEXT:
        cell = Cell(STAGE, stand.world.name, JOINT_TEXT[part], seed)
        yield part, trained_rival(cell, stand, desk, desk.settings(Method.named(cell.system), STAGE))
        return
    home.mkdir(parents=True, exist_ok=True)
    hub = _contrasted(part, stand, desk, home, seed=seed) if part in LOSSES else _trained(part, stand, desk, home, seed)
    if part == FULL:
        yield from switched_systems(hub)
    yield part, published_system(hub, frozen_stages=None, with_text=True)


def _trained(part: str, stand: Stand, desk: Desk, home: Path, seed: int) -> Path:
    """The published folder of the product, trained by its own command without one part."""
    recipe, cache = stand.recipe_of(STAGE), stand.training(STAGE).cache
    governed = stand.world.governed
    if part == "augmentation":
        recipe = recipe.with_changes({"image.query_views": 0, "image.document_views": 0})
        cache = dataclasses.replace(
            cache, query_inputs=cache.query_inputs[:, :1], document_inputs=cache.document_inputs[:, :1]
        )
    if part == "governance":
        governed = home / "raw"
        cache = write_raw(governed, stand)
    words = home / "given.json"
    write_json(words, recipe.to_json())
    return train_product(
        home / "run",
        governed=governed,
        recipe=str(words),
        cache=cache,
        seed=seed,
        max_steps=desk.max_steps,
        build=with_one_transform if part == "transforms" else build_model,
    )


def with_one_transform(recipe: Recipe, *, seed: int) -> tuple[Any, Any]:
    """A model that trains one residual for queries and documents; the published model holds it twice."""
    model, processor = build_model(recipe, seed=seed)
    model.image_head.document_transform = model.image_head.query_transform
    return model, processor


def _contrasted(part: str, stand: Stand, desk: Desk, home: Path, *, seed: int) -> Path:
    """The published folder of an image side trained by a contrastive loss, all stages behind it the product's own."""
    method, recipe, learned = Method.named(LOSSES[part]), stand.recipe_of(STAGE), stand.training(STAGE)
    rival = train_rival(
        stand.untrained,
        learned,
        stand.rows[method.labels],
        method=method,
        settings=desk.settings(method, STAGE),
        recipe=recipe,
        stage=STAGE,
        seed=seed,
        max_steps=desk.max_steps,
        starts=stand.starts,
    )
    run = home / "run"
    run.mkdir(exist_ok=True)
    image = ImageResult(rival.encoders.state_dict(), _class_means(rival, stand), recipe.image.steps, 0.0)
    context = RunContext(
        recipe=recipe, accelerator=Accelerator(cpu=True), folder=run, features=run / "features", seed=seed,
        max_steps=desk.max_steps,
    )  # fmt: skip
    publish_run(context, stand.world.governed, learned.samples, learned.cache, image, Stopwatch(run, resume=False))
    return run / "hub"


def _class_means(rival: Rival, stand: Stand) -> torch.Tensor:
    """(C, D) mean of each trained class's documents: what stands where a classifier has its weights."""
    learned = stand.training(STAGE)
    rows = stand.rows["governed"].document
    embeds = rival.encoders.embed(
        torch.from_numpy(np.array(learned.document_inputs[rows.rows, 0])).float(), side="document"
    )
    total = torch.zeros(len(learned.samples.classes), embeds.shape[1])
    total.index_add_(0, torch.from_numpy(rows.labels), embeds.detach())
    return torch.nn.functional.normalize(total, dim=1)


def write_raw(folder: Path, stand: Stand) -> FeatureCache:
    """Write the clicks as a governed folder, every document its own category; returns the features of its rows.

    A query belongs to the document that it clicked most. The documents that governance held out for choosing the
    strength of text are held out here too, with the queries that clicked them most.
    """
    learned, rows = stand.training(STAGE), stand.rows["raw"]
    held_out = learned.samples.labels.document_validation
    assert len(held_out) == len(learned.document_ids), "governance sets queries aside, no documents"
    asked = _by_id(stand.world.data / "queries.parquet", "query_id")
    found = _by_id(stand.world.data / "train_catalogue.parquet", "doc_id")
    document_of_query = rows.document.rows[rows.query.labels]
    samples = [
        _sample(asked[learned.query_ids[row]], learned.query_ids[row], "query", int(document), bool(held_out[document]))
        for row, document in zip(rows.query.rows, document_of_query, strict=True)
    ]
    samples += [
        _sample(found[name], name, "document", row, bool(held_out[row]))
        for row, name in enumerate(learned.document_ids)
    ]
    (folder / "samples").mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(samples, schema=SAMPLES), folder / "samples" / "part-0.parquet")
    names = {"category_id": list(range(len(learned.document_ids))), "category_key": learned.document_ids}
    pq.write_table(pa.table(names), folder / "categories.parquet")
    read_samples(folder)
    return dataclasses.replace(learned.cache, query_inputs=learned.query_inputs[rows.query.rows])


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


def strength(home: Path) -> float | None:
    """The strength of text that a finished run chose; None where there is no run."""
    path = home / "run" / "training.json"
    return float(json.loads(path.read_text())["text"]["strength"]) if path.is_file() else None
