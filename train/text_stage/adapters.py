"""Adapts the text encoder by gradient before the text stage is fitted.

The text stage is a closed form on fixed token features, through which no gradient passes. So texts of training
documents are classified among the finished prototypes here, through a linear map that starts as the closed form and is
dropped afterwards (ours):

    z_i  = unit((t_i - mean) M)                     t_i unit masked mean of the tokens, M trained beside the encoder
    loss = mean_i -log softmax_c(scale z_i . prototype_c) at the category of document i

Prototypes are constants, and documents of held-out categories take no part, so the text weight, which is chosen on them
(weight.py), can still fall back to none. The encoder has seen the categories of every fold, however, so the out-of-fold
concepts on which the attention is trained are a little better than those of a new text. Rows and dropout depend on
(seed, step) only.

Letters: N documents, B documents of a step, T tokens, H token width, C training categories, D width.
"""

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from train.encoders.lora import add_text_adapters, text_layers, trained_and_all
from train.image_stage.schedule import learning_rate_factor
from train.recipes.recipe import Recipe
from train.text_stage.sentence_map import SentenceMap, centred_targets, sentence_vectors
from train.text_stage.stage import TextStage

MAP_RATE = 1e-3
WARM_UP = 0.1  # of the steps


@dataclass(frozen=True)
class AdaptedText:
    """Results beside the changed encoder.

    Attributes:
        adapters: weights of the adapters by their names within the text encoder; empty where layers were tuned.
        report: JSON-able: documents, parameters trained and in all, loss of the first and the last steps, seconds.
    """

    adapters: dict[str, Tensor]
    report: dict[str, Any]


def unit_sentences(tokens_BTH: Tensor, mask_BT: Tensor) -> Tensor:
    """(B, H) unit masked means of the tokens, with gradient; `sentence_vectors` is the same on cached features."""
    return functional.normalize((tokens_BTH * mask_BT[..., None]).sum(1), dim=1)


def adapt_text(stage: TextStage, processor: Any, texts: list[str]) -> AdaptedText | None:
    """Train adapters, or the layers that would get them, on the texts of training documents, in place.

    Args:
        stage: with prototypes. texts: of every document.

    Returns:
        None where fewer than two categories have texts to learn from; nothing has changed then.

    Raises:
        ValueError: the text encoder has no query and value projections.
    """
    begun = time.perf_counter()
    model, cache, labels, prototypes = stage.model, stage.cache, stage.labels, stage.prototypes
    recipe, seed = stage.recipe, stage.seed
    assert prototypes is not None
    rows = np.flatnonzero(np.asarray(cache.document_mask).any(1) & ~labels.document_validation)
    categories, places = np.unique(labels.document[rows], return_inverse=True)
    if len(categories) < 2:
        return None
    sentences = sentence_vectors(cache.document_tokens[rows], cache.document_mask[rows])
    start = SentenceMap.fitted(sentences, centred_targets(prototypes, labels.document[rows]))
    map_HD = nn.Parameter(start.map_HD.float().clone())
    tuner = _open(model.text_model, recipe, seed=seed)
    trained, total = trained_and_all(model.text_model)
    prototypes_CD = functional.normalize(prototypes[torch.from_numpy(categories)].float(), dim=1)

    def loss_of(chosen: np.ndarray) -> Tensor:
        batch = processor(text=[texts[row] for row in rows[chosen]])
        tokens_BTH, mask_BT = model.encode_text(batch["input_ids"], batch["attention_mask"])
        concepts_BD = (unit_sentences(tokens_BTH, mask_BT) - start.mean_H.float()) @ map_HD
        score_BC = recipe.head.loss.scale * functional.normalize(concepts_BD, dim=1) @ prototypes_CD.T
        return functional.cross_entropy(score_BC, torch.from_numpy(places[chosen]))

    losses = _train(model.text_model, map_HD, loss_of, count=len(rows), recipe=recipe, seed=seed)
    report = {"documents": len(rows), "parameters_trained": trained, "parameters": total, **_ends(losses)}
    adapters = {
        name: value.detach().clone() for name, value in model.text_model.state_dict().items() if ".lora_" in name
    }
    if tuner is not None:
        tuner.merge_and_unload()
    model.text_model.requires_grad_(True)
    return AdaptedText(adapters, {**report, "seconds": round(time.perf_counter() - begun, 1)})


def _ends(losses: list[float]) -> dict[str, float]:
    """Mean loss of the first and of the last tenth of the steps."""
    share = max(1, len(losses) // 10)
    return {
        "first_loss": round(float(np.mean(losses[:share])), 4),
        "last_loss": round(float(np.mean(losses[-share:])), 4),
    }


def _open(text: nn.Module, recipe: Recipe, *, seed: int) -> Any:
    """Enable gradients for the layers that the recipe trains; returns the adapters' tuner, None without adapters."""
    if recipe.text.lora.rank:
        return add_text_adapters(text, recipe, seed=seed)
    text.requires_grad_(False)
    for name in text_layers(text):
        text.get_submodule(name).requires_grad_(True)
    return None


def _train(
    text: nn.Module, map_HD: nn.Parameter, loss_of: Any, *, count: int, recipe: Recipe, seed: int
) -> list[float]:
    """AdamW on the opened weights and the map; the loss of every step."""
    encoder = [value for value in text.parameters() if value.requires_grad]
    rates = ((encoder, recipe.text.learning_rate), ([map_HD], MAP_RATE))
    optimizer = torch.optim.AdamW(
        [{"params": values, "lr": rate, "initial_lr": rate} for values, rate in rates],
        weight_decay=recipe.text.weight_decay,
    )
    losses = []
    for step in tqdm(range(recipe.text.steps), desc="text encoder", unit="step"):
        factor = learning_rate_factor(step, steps=recipe.text.steps, warmup_steps=int(WARM_UP * recipe.text.steps))
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor
        drawn = np.random.default_rng([seed, 17, step])
        loss = loss_of(drawn.choice(count, min(recipe.text.documents_per_step, count), replace=False))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses
