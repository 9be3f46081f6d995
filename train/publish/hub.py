"""Writes the published folder `runs/x/hub` of a trained model.

It holds everything that retrieval needs: model and query side, processor, class prototypes as far as they fit
(class_weights/published_size.py), the queries that calibrate scores, and a line per category.
"""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from modeling_oclear import OclearForCategoryClassification, publish
from modeling_oclear.classification_oclear import name_classes
from runtime.files import atomic_folder
from train.encoders.pair import EncoderPair, embed_rows
from train.inputs.samples import GovernedSamples
from train.recipes.recipe import Recipe, SoftmaxLoss

CALIBRATION_FILE = "calibration.safetensors"
CATEGORIES_FILE = "categories.jsonl"
ROWS_PER_BATCH = 2**14


def export_hub(
    folder: Path,
    *,
    model: Any,
    processor: Any,
    calibration: Tensor,
    categories: Path,
) -> None:
    """Write the folder under a temporary name, then put it in place of an older one.

    Args:
        folder: runs/x/hub. model: the retriever, or `with_head` of it.
        calibration: (Q, D) unit rows of training queries; without a row there is no such file.
        categories: categories.parquet of the governed folder.
    """
    if isinstance(model, OclearForCategoryClassification):
        keys = pq.read_table(categories, columns=["category_id", "category_key"]).sort_by("category_id")
        if len(keys) == model.config.num_classes:
            name_classes(model.config, keys.column("category_key").to_pylist())
    with atomic_folder(folder) as partial:
        publish(model, processor, partial)
        if len(calibration):
            save_file({"query_embeds": calibration.to(torch.float16).contiguous()}, partial / CALIBRATION_FILE)
        _write_categories(categories, partial / CATEGORIES_FILE)


def with_head(model: Any, prototypes: Tensor, recipe: Recipe) -> Any:
    """The classification model around `model`; its class weights are the tensor `prototypes` itself, not a copy."""
    config = copy.deepcopy(model.config)
    config.num_classes = 1  # the head of as many rows as there are categories would be made only to be thrown away
    loss = recipe.head.loss
    config.head_scale, config.head_sample_rate = loss.scale, recipe.head.sample_rate
    if isinstance(loss, SoftmaxLoss):
        config.head_margin, config.head_margin_type = loss.margin_value, loss.margin
        config.head_label_smoothing = loss.label_smoothing
        config.head_conflict_delta, config.head_conflict_tau = loss.conflict_delta, loss.conflict_tau
    else:
        config.head_loss, config.head_margin = "proxy_anchor", loss.margin
    head = OclearForCategoryClassification(config)
    head.oclear.load_state_dict(model.state_dict())
    head.config.num_classes = head.head.out_features = len(prototypes)
    head.head.weight = nn.Parameter(prototypes)
    return head.eval()


def calibration_queries(encoders: EncoderPair, query_inputs: Any, samples: GovernedSamples, *, most: int) -> Tensor:
    """(Q, D) unit rows of at most `most` evenly spaced training queries, clean view."""
    rows = np.flatnonzero(~samples.labels.query_validation)
    count = min(len(rows), most)
    chosen = rows[np.arange(count) * len(rows) // max(count, 1)]
    parts = [embeds.float().cpu() for _, embeds in embed_rows(encoders, query_inputs, chosen, side="query")]
    width = encoders.image_head.projection.weight.shape[0]
    return torch.cat(parts) if parts else torch.empty(0, width)


def _write_categories(source: Path, target: Path) -> None:
    """One JSON line per category, in the order of the prototypes; a batch of rows at a time where they lie in it."""
    with pq.ParquetFile(source) as file, target.open("w") as lines:
        ids = file.read(columns=["category_id"]).column(0).to_numpy()
        in_order = bool((ids[1:] > ids[:-1]).all())
        batches = file.iter_batches(ROWS_PER_BATCH) if in_order else file.read().sort_by("category_id").to_batches()
        for batch in batches:
            lines.writelines(json.dumps(row, ensure_ascii=True, default=str) + "\n" for row in batch.to_pylist())
