"""The text stage: text is fitted to the prototypes of the finished image stage.

Sentence map and memory in closed form (sentence_map.py, memory.py), the gate of the text by agreement (gate.py),
attention on composite images (attention.py), and the text weight on held-out categories (weight.py).

Letters: N documents, R documents with text, Q queries, D width.
"""

import dataclasses
import time
from typing import Any

import numpy as np
import torch
from torch import Tensor

from train.encoders.backbones import build_model
from train.encoders.pair import EncoderPair, embed_rows
from train.inputs.cache import FeatureCache, cache_features, cache_texts
from train.inputs.feature_keys import FeatureExtraction
from train.inputs.frozen_part import cells_are_trained
from train.inputs.sample_table import SampleTable
from train.inputs.samples import GovernedSamples
from train.inputs.views import Side
from train.recipes.recipe import Recipe
from train.selection.held_out import METRICS, ValidationGallery, held_out_metrics, metric_means
from train.selection.verdict import verdict
from train.text_stage.adapters import AdaptedText, adapt_text
from train.text_stage.attention import mass_in_named_half, train_attention
from train.text_stage.gate import fit_gate
from train.text_stage.memory import install_memory
from train.text_stage.sentence_map import (
    TextRows,
    centred_targets,
    folds_of,
    install_map,
    out_of_fold_concepts,
    sentence_vectors,
)
from train.text_stage.stage import TextStage
from train.text_stage.weight import largest_harmless


@dataclasses.dataclass(frozen=True)
class TextResult:
    """The report of the text stage, and the adapters of the text encoder by their names behind "text."."""

    report: dict[str, Any]
    adapters: dict[str, Tensor]


def fit_text_stage(stage: TextStage, samples: GovernedSamples, *, frozen_CF: np.ndarray | None = None) -> TextResult:
    """Adapt the text encoder where the recipe says so, then fit the fusion, in place. Main process only.

    Args:
        stage: with the features that the image stage was trained on.
        samples: whose labels the stage has.
        frozen_CF: held-out metrics of the frozen encoder, which no text weight may fall behind; None = no such check.
    """
    recipe = stage.recipe
    if recipe.text.encoder is None:
        return TextResult({"text": False, "strength": 0.0}, {})
    assert stage.prototypes is not None
    if recipe.runtime.feature_storage == "stream" or cells_are_trained(stage.model, recipe):
        stage = _with_clean_views(stage, samples)
    adapted = AdaptedText({}, {})
    if recipe.text.lora.rank or recipe.text.tune_layers:
        stage, adapted = _with_adapted_text(stage, samples.table)
    report = fit_fusion(stage, frozen_CF=frozen_CF)
    encoder = {"encoder": adapted.report} if adapted.report else {}
    return TextResult({**report, **encoder}, {f"text.{name}": value for name, value in adapted.adapters.items()})


def _with_clean_views(stage: TextStage, samples: GovernedSamples) -> TextStage:
    """The stage with cached clean views, where its images were streamed or its patches trained.

    The text looks at the patches of clean views alone.
    """
    frozen = None if cells_are_trained(stage.model, stage.recipe) else stage.recipe.model.frozen_stages
    changes = {"model.frozen_stages": frozen, "image.query_views": 0, "image.document_views": 0}
    recipe = stage.recipe.with_changes(changes)
    _, processor = build_model(recipe, seed=stage.seed)
    samples.limit_images(processor)
    extraction = FeatureExtraction(stage.model, processor, samples.table, recipe=recipe, seed=stage.seed)
    cache = cache_features(extraction, stage.cache.home.parent)
    return dataclasses.replace(stage, recipe=recipe, cache=cache)


def _with_adapted_text(stage: TextStage, table: SampleTable) -> tuple[TextStage, AdaptedText]:
    """The stage with the tokens of the adapted text encoder, and the adaptation.

    The stage is unchanged where fewer than two categories have texts to learn from.
    """
    _, processor = build_model(stage.recipe, seed=stage.seed)
    adapted = adapt_text(stage, processor, Side(table, "document").texts())
    if adapted is None:
        return stage, AdaptedText({}, {"documents": 0, "reason": "fewer than two categories have text"})
    extraction = FeatureExtraction(stage.model, processor, table, recipe=stage.recipe, seed=stage.seed)
    tokens, mask = cache_texts(extraction, stage.cache.home.parent)
    cache = dataclasses.replace(stage.cache, document_tokens=tokens, document_mask=mask)
    return dataclasses.replace(stage, cache=cache), adapted


def fit_fusion(stage: TextStage, *, frozen_CF: np.ndarray | None = None) -> dict[str, Any]:
    """Fit the fusion of a model whose image stage is trained.

    Only `model.fusion` and the text weight change.

    Args:
        frozen_CF: see `fit_text_stage`.

    Returns:
        A JSON-able report: rows fitted, attention mass, table of text weights, seconds.
    """
    model, cache, recipe = stage.model, stage.cache, stage.recipe
    if model.fusion is None:
        return {"text": False}
    begun = time.perf_counter()
    rows = _text_rows(stage)
    if rows is None:
        set_text_weight(model, 0.0)
        return {"text": True, "strength": 0.0, "reason": f"fewer than {recipe.text.folds} categories have text"}
    queries, documents = image_embeddings(model, cache, recipe)
    fitted = _fit_parts(stage, rows, documents)
    gallery = ValidationGallery.of(stage.labels, queries=queries, images=documents, cache=cache)
    report = choose_weight(model, cache, gallery, recipe=recipe, frozen_CF=frozen_CF)
    seconds = round(time.perf_counter() - begun, 1)
    return {"text": True, "rows": len(rows.rows), **fitted, **report, "seconds": seconds}


def _fit_parts(stage: TextStage, rows: TextRows, images_ND: Tensor) -> dict[str, Any]:
    """Fit map, memory, gate and attention, in place; returns their part of the report."""
    fusion, cache, labels_N, seed = stage.model.fusion, stage.cache, stage.labels.document, stage.seed
    install_map(fusion, rows)
    slots = install_memory(fusion, rows.sentences, rows.targets)
    concepts = out_of_fold_concepts(rows, total=len(images_ND))
    seen = rows.rows[cache.document_has_image[rows.rows]]
    gate = fit_gate(fusion, images_ND[seen], concepts[seen], labels_N[seen], seed=seed)
    is_trained = np.zeros(len(images_ND), dtype=bool)
    is_trained[rows.rows] = True
    is_trained_composite = is_trained[cache.composite_layouts.named]
    composites = {"trained": np.flatnonzero(is_trained_composite), "held_out": np.flatnonzero(~is_trained_composite)}
    if len(composites["trained"]):
        steps = stage.recipe.text.attention_steps
        train_attention(fusion, cache, concepts, composites["trained"], steps=steps, seed=seed)
    mass = {name: mass_in_named_half(fusion, cache, found) for name, found in composites.items() if len(found)}
    return {"memory_slots": slots, "gate": gate, "mass_in_named_half": mass}


def choose_weight(
    model: Any, cache: FeatureCache, gallery: ValidationGallery, *, recipe: Recipe, frozen_CF: np.ndarray | None = None
) -> dict[str, Any]:
    """Try every text weight on queries of held-out categories; keep the largest that is not significantly worse.

    Worse than the smallest weight, that is. A weight above 0 must also be surely not worse than the frozen encoder.

    Returns:
        {"strength": chosen, "table": one row a weight: metrics, and z of the worst of them; with `frozen_CF` also the
        difference to the frozen encoder}. The model's config is set.
    """
    found = {}
    for weight in recipe.text.weights:
        set_text_weight(model, weight)
        embeds, shifts = embed_documents(model.fusion, cache, gallery.images)
        found[weight] = held_out_metrics(gallery, embeds, shifts)
    _, worst_z = largest_harmless(found)
    against = {} if frozen_CF is None else {weight: verdict(str(weight), found[weight], frozen_CF) for weight in found}
    allowed = [weight for weight in found if not against or against[weight].is_safe or weight == min(found)]
    chosen, _ = largest_harmless({weight: found[weight] for weight in allowed})
    set_text_weight(model, chosen)
    table = [
        {
            "strength": weight,
            **dict(zip(METRICS, metric_means(values_CF), strict=True)),
            "least_z": worst_z[weight],
            **({"low": round(against[weight].low, 4), "safe": against[weight].is_safe} if against else {}),
        }
        for weight, values_CF in found.items()
    ]
    return {"strength": chosen, "table": table}


def set_text_weight(model: Any, weight: float) -> None:
    """Set the text weight in the model's config and in the copy that its fusion reads."""
    model.config.text_strength = model.fusion.config.text_strength = weight


@torch.no_grad()
def embed_documents(fusion: Any, cache: FeatureCache, images_ND: Tensor) -> tuple[Tensor, Tensor]:
    """(embeddings, text shifts) of every document through the published path, at the fusion's current text weight."""
    embeds, shifts = [], []
    for start in range(0, len(images_ND), 256):
        part = slice(start, start + 256)
        mask = torch.from_numpy(np.array(cache.document_mask[part]))
        output = fusion(
            images_ND[part],
            torch.from_numpy(np.array(cache.document_cells[part])).float(),
            torch.from_numpy(np.array(cache.document_tokens[part])).float(),
            mask,
            has_image_B=torch.from_numpy(cache.document_has_image[part]),
            has_text_B=mask.any(1),
        )
        embeds.append(output.embeds.float())
        shifts.append(output.text_shift.float())
    return torch.cat(embeds), torch.cat(shifts)


def image_embeddings(model: Any, cache: FeatureCache, recipe: Recipe) -> tuple[Tensor, Tensor]:
    """(Q, D) and (N, D) embeddings of the clean views of queries and documents."""
    encoders = EncoderPair(model, frozen_stages=recipe.model.frozen_stages)
    found = []
    for inputs, side in ((cache.query_inputs, "query"), (cache.document_inputs, "document")):
        parts = [embeds.float() for _, embeds in embed_rows(encoders, inputs, np.arange(len(inputs)), side=side)]
        found.append(torch.cat(parts))
    return found[0], found[1]


def _text_rows(stage: TextStage) -> TextRows | None:
    cache, labels, recipe = stage.cache, stage.labels, stage.recipe
    assert stage.prototypes is not None
    rows = np.flatnonzero(np.asarray(cache.document_mask).any(1) & ~labels.document_validation)
    if len(np.unique(labels.document[rows])) < recipe.text.folds:
        return None
    sentences = sentence_vectors(cache.document_tokens[rows], cache.document_mask[rows])
    folds = folds_of(labels.document[rows], folds=recipe.text.folds, seed=stage.seed)
    return TextRows(rows, sentences, centred_targets(stage.prototypes, labels.document[rows]), folds)
