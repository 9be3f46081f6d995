"""The text side: text fitted to image prototypes out of fold, attention that points, strength chosen on held-out data.

Why not in the classification loss: there, text is a shortcut to the label that an image query cannot see. It lifts the
categories that were trained on and harms those that come later. Here the image side is finished and frozen; a ridge map
carries sentence vectors into the space of the prototypes, and whatever is learned on top of it sees, for every training
document, only the map of the folds that never saw its category: the text that it meets in training is as good as the
text of a document that comes tomorrow, and no better.

Letters: N documents, R documents with text, Q queries, G pages, B batch, C concepts, D width, H token width, P cells.
"""

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from train.encoders.pair import EncoderPair, embed_rows
from train.image_stage.schedule import half_cosine
from train.inputs.cache import FeatureCache
from train.inputs.composites import half_weight
from train.recipes.recipe import Recipe
from train.text_stage.gate import fit_gate
from train.text_stage.held_out import FIGURES, Gallery, held_out_figures
from train.text_stage.memory import install_memory
from train.text_stage.weight import figure_means, largest_harmless

RIDGE = 3.0  # ridge strength in units of the mean eigenvalue of the sentence vectors' covariance
LEAST_SPREAD = 1e-9  # mean square distance of unit sentence vectors from their mean, below which it is rounding
ATTENTION_STEPS = 300
PAGES_PER_STEP = 128
ATTENTION_RATE = 5e-3
PARTS_THAT_POINT = ("evidence_query", "evidence_key", "concept_offset", "cell_norm", "cell_projection")


@dataclass(frozen=True)
class TextRows:
    """Documents with text that the fit may see: `rows` (R,), sentence vectors (R, H), targets (R, D), `folds` (R,)."""

    rows: np.ndarray
    sentences: Tensor
    targets: Tensor
    folds: np.ndarray


def sentence_vectors(tokens_NTH: np.ndarray, mask_NT: np.ndarray) -> Tensor:
    """(N, H) unit masked means of the tokens; 0 for a row without tokens."""
    parts = []
    for start in range(0, len(tokens_NTH), 512):
        mask = torch.from_numpy(np.array(mask_NT[start : start + 512])).double()[..., None]
        tokens = torch.from_numpy(np.array(tokens_NTH[start : start + 512])).double()
        parts.append(functional.normalize((tokens * mask).sum(1), dim=1))
    return torch.cat(parts)


def ridge_map(sentences_RH: Tensor, targets_RD: Tensor, mean_H: Tensor, *, strength: float = RIDGE) -> Tensor:
    """B (H, D) that minimises |(t - mean) B - y|^2 / R + lambda |B|^2, lambda = strength * mean|t - mean|^2 / H.

    Texts that are all the same say nothing: their map is 0, not their rounding blown up.
    """
    centred_RH = sentences_RH - mean_H
    spread = float(centred_RH.square().sum(1).mean())
    if spread < LEAST_SPREAD:
        return torch.zeros(sentences_RH.shape[1], targets_RD.shape[1], dtype=sentences_RH.dtype)
    weight = strength * spread / sentences_RH.shape[1]
    gram_HH = centred_RH.T @ centred_RH / len(centred_RH)
    gram_HH.diagonal().add_(weight)
    return torch.linalg.solve(gram_HH, centred_RH.T @ targets_RD / len(centred_RH))


def folds_of(labels_R: np.ndarray, *, folds: int, seed: int) -> np.ndarray:
    """(R,) fold of every row; a category lies in one fold whole."""
    categories, inverse = np.unique(labels_R, return_inverse=True)
    order = np.random.default_rng([seed, 11]).permutation(len(categories))
    return (order % folds)[inverse]


def centred_targets(prototypes_CD: Tensor, labels_R: np.ndarray) -> Tensor:
    """(R, D) unit prototype of each row's category minus the mean prototype of the categories at hand."""
    own_RD, seen_CD = (
        functional.normalize(prototypes_CD[torch.from_numpy(rows)].double(), dim=1)
        for rows in (labels_R, np.unique(labels_R))
    )
    return own_RD - seen_CD.mean(0)


@dataclass(frozen=True)
class SentenceMap:
    """Text to the space of prototypes: `(t - mean_H) @ map_HD`, scaled to length 1 on average where it was fitted."""

    mean_H: Tensor
    map_HD: Tensor

    @classmethod
    def fitted(cls, sentences_RH: Tensor, targets_RD: Tensor) -> "SentenceMap":
        """Ridge map; the scale makes a concept as long as an image embedding."""
        mean_H = sentences_RH.mean(0)
        map_HD = ridge_map(sentences_RH, targets_RD, mean_H)
        length = ((sentences_RH - mean_H) @ map_HD).norm(dim=1).mean()
        return cls(mean_H, map_HD / length if length > 0 else map_HD)

    def concepts(self, sentences_RH: Tensor) -> Tensor:
        """(R, H) -> (R, D)."""
        return (sentences_RH - self.mean_H) @ self.map_HD


@torch.no_grad()
def install_map(fusion: Any, rows: TextRows) -> None:
    """Write the map of all rows into the fusion; at the usual opening of the gate the shift is the concept itself."""
    full = SentenceMap.fitted(rows.sentences, rows.targets)
    fusion.text_mean.copy_(full.mean_H)
    fusion.text_projection.weight.copy_(full.map_HD.T)
    opening = float(torch.sigmoid(fusion.gate.bias[1]))
    fusion.concept_projection.weight.copy_(torch.eye(full.map_HD.shape[1]) / opening)


def out_of_fold_concepts(rows: TextRows, *, total: int) -> Tensor:
    """(total, D): for every row that the fit may see, its text through the map of the folds without its category."""
    concepts_ND = torch.zeros(total, rows.targets.shape[1])
    for fold in np.unique(rows.folds):
        mine, seen = (torch.from_numpy(kept) for kept in (rows.folds == fold, rows.folds != fold))
        fold_map = SentenceMap.fitted(rows.sentences[seen], rows.targets[seen])
        concepts_ND[torch.from_numpy(rows.rows)[mine]] = fold_map.concepts(rows.sentences[mine]).float()
    return concepts_ND


def pointing_loss(attention_BCP: Tensor, half_BP: Tensor) -> Tensor:
    """-log of the attention mass inside the named half, averaged over pages and concepts (ours)."""
    inside_BC = torch.einsum("bcp,bp->bc", attention_BCP, half_BP)
    return -inside_BC.clamp(min=1e-6).log().mean()


def train_attention(fusion: Any, cache: FeatureCache, concepts_ND: Tensor, page_rows: np.ndarray, *, seed: int) -> None:
    """Fit where the text looks: on made pages, the attention of a text belongs in the half that it names.

    Map, memory, concepts and gates stay: fitting gates and evidence by classification on top lost recall on held-out
    categories in every trial (docs/log.md); the text's gate is fitted in closed form (text_gate.py).

    Args:
        concepts_ND: (N, D) out-of-fold concept of each document. page_rows: pages whose text may be seen.
    """
    trained = [value for name, value in fusion.named_parameters() if name.split(".")[0] in PARTS_THAT_POINT]
    optimizer = torch.optim.AdamW(trained, lr=ATTENTION_RATE, weight_decay=0.01)
    generator = np.random.default_rng([seed, 13])
    half_GP = torch.from_numpy(half_weight(cache.composite_layouts.place, cache.grid)).float()
    for step in tqdm(range(ATTENTION_STEPS), desc="text-to-image attention", unit="step"):
        for group in optimizer.param_groups:
            group["lr"] = ATTENTION_RATE * half_cosine(step, steps=ATTENTION_STEPS)
        pages = generator.choice(page_rows, min(PAGES_PER_STEP, len(page_rows)), replace=False)
        concepts_BCD = concepts_ND[cache.composite_layouts.named[pages]][:, None].expand(
            -1, fusion.config.num_concepts, -1
        )
        _, attention_BCP = fusion.read_evidence(
            concepts_BCD, torch.from_numpy(np.array(cache.page_cells[pages])).float()
        )
        loss = pointing_loss(attention_BCP, half_GP[pages])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@torch.no_grad()
def mass_in_named_half(fusion: Any, cache: FeatureCache, page_rows: np.ndarray) -> float:
    """Mean attention mass inside the named half over made pages (chance .5), the text through the published map."""
    half_GP = torch.from_numpy(half_weight(cache.composite_layouts.place, cache.grid)).float()
    inside = []
    for start in range(0, len(page_rows), 256):
        pages = page_rows[start : start + 256]
        named = cache.composite_layouts.named[pages]
        mask = torch.from_numpy(np.array(cache.document_mask[named]))
        tokens = fusion.project_tokens(torch.from_numpy(np.array(cache.document_tokens[named])).float(), mask)
        cells = torch.from_numpy(np.array(cache.page_cells[pages])).float()
        _, attention_BCP = fusion.read_evidence(fusion.read_concepts(tokens, mask), cells)
        inside.append(torch.einsum("bcp,bp->b", attention_BCP, half_GP[pages]) / attention_BCP.shape[1])
    return round(float(torch.cat(inside).mean()), 4)


@torch.no_grad()
def embed_documents(fusion: Any, cache: FeatureCache, images_ND: Tensor) -> tuple[Tensor, Tensor]:
    """(embeddings, text shifts) of every document through the published path, at the fusion's current strength."""
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


def choose_strength(model: Any, cache: FeatureCache, gallery: Gallery, *, recipe: Recipe) -> dict[str, Any]:
    """Try every strength on queries of held-out categories; keep the largest that they do not speak against.

    Returns:
        {"strength": chosen, "table": one row a strength: figures, and how surely the worst of them gains or loses, in
        standard errors}. The model's config is set.
    """
    found = {}
    for strength in recipe.text.weights:
        model.config.text_strength = strength
        model.fusion.config.text_strength = strength
        embeds, shifts = embed_documents(model.fusion, cache, gallery.images)
        found[strength] = held_out_figures(gallery, embeds, shifts)
    chosen, surest = largest_harmless(found)
    model.config.text_strength = model.fusion.config.text_strength = chosen
    table = [
        {"strength": strength, **dict(zip(FIGURES, figure_means(values_CF), strict=True)), "least_z": surest[strength]}
        for strength, values_CF in found.items()
    ]
    return {"strength": chosen, "table": table}


def image_embeddings(model: Any, cache: FeatureCache, recipe: Recipe) -> tuple[Tensor, Tensor]:
    """(Q, D) and (N, D) embeddings of the clean views of queries and documents."""
    encoders = EncoderPair(model, frozen_stages=recipe.model.frozen_stages)
    found = []
    for inputs, side in ((cache.query_inputs, "query"), (cache.document_inputs, "document")):
        parts = [embeds.float() for _, embeds in embed_rows(encoders, inputs, np.arange(len(inputs)), side=side)]
        found.append(torch.cat(parts))
    return found[0], found[1]


def _text_rows(cache: FeatureCache, labels: Any, prototypes: Tensor, *, recipe: Recipe, seed: int) -> TextRows | None:
    rows = np.flatnonzero(np.asarray(cache.document_mask).any(1) & ~labels.document_validation)
    if len(np.unique(labels.document[rows])) < recipe.text.folds:
        return None
    sentences = sentence_vectors(cache.document_tokens[rows], cache.document_mask[rows])
    folds = folds_of(labels.document[rows], folds=recipe.text.folds, seed=seed)
    return TextRows(rows, sentences, centred_targets(prototypes, labels.document[rows]), folds)


def _fit_fusion(
    fusion: Any, cache: FeatureCache, rows: TextRows, images_ND: Tensor, labels_N: np.ndarray, *, seed: int
) -> dict[str, Any]:
    """Map, memory, gate and attention, in place; what the report says of them."""
    install_map(fusion, rows)
    slots = install_memory(fusion, rows.sentences, rows.targets)
    concepts = out_of_fold_concepts(rows, total=len(images_ND))
    seen = rows.rows[cache.document_has_image[rows.rows]]
    gate = fit_gate(fusion, images_ND[seen], concepts[seen], labels_N[seen], seed=seed)
    may_see = np.zeros(len(images_ND), dtype=bool)
    may_see[rows.rows] = True
    on_page = may_see[cache.composite_layouts.named]
    pages = {"trained": np.flatnonzero(on_page), "held_out": np.flatnonzero(~on_page)}
    if len(pages["trained"]):
        train_attention(fusion, cache, concepts, pages["trained"], seed=seed)
    mass = {name: mass_in_named_half(fusion, cache, found) for name, found in pages.items() if len(found)}
    return {"memory_slots": slots, "gate": gate, "mass_in_named_half": mass}


def fit_text_side(
    model: Any,
    cache: FeatureCache,
    *,
    labels: Any,
    prototypes: Tensor,
    recipe: Recipe,
    seed: int,
) -> dict[str, Any]:
    """Fill the fusion of a model whose image side is trained.

    Args:
        model: an `OclearModel` in float32, eval mode; only `model.fusion` and its strength change.
        labels: train.inputs.samples.Labels.
        prototypes: (categories, D).

    Returns:
        A JSON-able report: rows fitted, figures of the attention, table of strengths, seconds.
    """
    if model.fusion is None:
        return {"text": False}
    begun = time.perf_counter()
    rows = _text_rows(cache, labels, prototypes, recipe=recipe, seed=seed)
    if rows is None:
        model.config.text_strength = model.fusion.config.text_strength = 0.0
        return {"text": True, "strength": 0.0, "reason": f"fewer than {recipe.text.folds} categories have text"}
    queries, documents = image_embeddings(model, cache, recipe)
    fitted = _fit_fusion(model.fusion, cache, rows, documents, labels.document, seed=seed)
    gallery = Gallery.of(labels, queries=queries, images=documents, cache=cache)
    report = choose_strength(model, cache, gallery, recipe=recipe)
    seconds = round(time.perf_counter() - begun, 1)
    return {"text": True, "rows": len(rows.rows), **fitted, **report, "seconds": seconds}
