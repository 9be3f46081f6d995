"""From a trained model to the folder that is published: `runs/x/hub`.

Why: what is evaluated is what is published, so the folder holds everything that retrieval needs: model and query side,
processor, class prototypes, the queries that calibrate scores, and what each category is.

In: model, processor, prototypes, cached queries. Out: `hub/` (safetensors and JSON only). Next: retrieval, hub_cards.
"""

import copy
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from safetensors.torch import save_file
from torch import Tensor

from modeling_oclear import OclearForCategoryClassification, publish
from train.encoders import EncoderPair, embed_rows
from train.recipe import Recipe
from train.samples import GovernedSamples

CALIBRATION_FILE = "calibration.safetensors"
CATEGORIES_FILE = "categories.jsonl"


def export_hub(
    folder: Path,
    *,
    model: Any,
    processor: Any,
    prototypes: Tensor,
    calibration: Tensor,
    categories: Path,
    recipe: Recipe,
) -> None:
    """Write the folder under a temporary name, then put it in place of an older one.

    Args:
        folder: runs/x/hub. prototypes: (N, D) unit rows, one per category.
        calibration: (Q, D) unit rows of training queries. categories: categories.parquet of the governed folder.
    """
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    publish(_with_head(model, prototypes, recipe), processor, partial)
    save_file({"query_embeds": calibration.to(torch.float16).contiguous()}, partial / CALIBRATION_FILE)
    _write_categories(categories, partial / CATEGORIES_FILE)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(partial, folder)


def calibration_queries(encoders: EncoderPair, query_inputs: Any, samples: GovernedSamples, *, most: int) -> Tensor:
    """(Q, D) unit rows of at most `most` evenly spaced training queries, clean view."""
    rows = np.flatnonzero(~samples.labels.query_validation)
    count = min(len(rows), most)
    chosen = rows[np.arange(count) * len(rows) // max(count, 1)]
    parts = [embeds.float().cpu() for _, embeds in embed_rows(encoders, query_inputs, chosen, side="query")]
    width = encoders.image_head.projection.weight.shape[0]
    return torch.cat(parts) if parts else torch.empty(0, width)


def _with_head(model: Any, prototypes: Tensor, recipe: Recipe) -> Any:
    """The classification model around `model`, its class weights the prototypes."""
    config = copy.deepcopy(model.config)
    config.num_classes = len(prototypes)
    config.head_scale, config.head_sample_rate = recipe.scale, recipe.sample_rate
    config.head_margin, config.head_margin_type = recipe.margin_value, recipe.margin
    config.head_label_smoothing = recipe.label_smoothing
    config.head_conflict_delta, config.head_conflict_tau = recipe.conflict_delta, recipe.conflict_tau
    head = OclearForCategoryClassification(config)
    head.oclear.load_state_dict(model.state_dict())
    with torch.no_grad():
        head.head.weight.copy_(prototypes)
    return head.eval()


def _write_categories(source: Path, target: Path) -> None:
    """One JSON line per category, in the order of the prototypes."""
    rows = sorted(pq.read_table(source).to_pylist(), key=lambda row: int(row["category_id"]))
    target.write_text("".join(json.dumps(row, ensure_ascii=True, default=str) + "\n" for row in rows))
