"""Train a baseline: the product's encoders and training setup, another loss.

All systems share: image encoder with standardisation per side and PCA initialisation, residual MLPs, batches of 128
queries and 128 documents, the recipe's steps, warm-up, learning rates (times one searched factor), weight decay,
dropout and augmented views. A method sets the loss, the labels and the document representation.

A baseline is trained once, for as many steps as the product's ensemble and student together if validation queries
favour that. A "+distilled" baseline gets the product's ensemble and student: an ablation of those two rather than a
published method.

Legend: B batch, Q queries, N documents, H width of a sentence vector, D embedding width.
"""

import copy
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from benchmarks.immr.baselines.documents import DocumentFusion, TextHead
from benchmarks.immr.baselines.labels import ClassSampler, LabelledRows, PairSampler, SampledBatch, restricted
from benchmarks.immr.baselines.losses import CLASSIFYING, Classifying, Contrastive, Triplet
from benchmarks.immr.baselines.method import Hyperparameters, Method
from benchmarks.immr.features.training_features import TrainingFeatures
from train.context import member_seed
from train.encoders.lora import add_adapters
from train.encoders.pair import ROWS_PER_CHUNK, EncoderPair, rows_of, start_image_head
from train.encoders.parameter_groups import parameter_groups
from train.ensemble.distil import DistilRows, cut_short, distil
from train.ensemble.ensemble import mean_weights
from train.image_stage.schedule import learning_rate_factor
from train.inputs.sampler import dropout_scale
from train.recipes.recipe import Recipe

ROWS_PER_CLASS = {"supcon": 2, "triplet": 2}  # these losses need several positives per class in a batch
ImageHeadCache = dict[
    tuple[str, bytes, bytes], dict[str, Tensor]
]  # initial image heads by stage and rows of both sides


@dataclass(frozen=True)
class BaselineInputs:
    """What a baseline is trained on.

    Attributes:
        model: untrained, of the recipe; copied, never changed.
        features: training features at the stage.
        rows: labelled rows, of the method's labels.
        recipe: learning rates, steps and the rest of the training setup.
        stage: "heads" (pooled features) or "last_block" (hidden maps).
        head_cache: initial image heads by training rows, filled here; their PCA takes longer than training them.
    """

    model: Any
    features: TrainingFeatures
    rows: LabelledRows
    recipe: Recipe
    stage: str
    head_cache: ImageHeadCache = field(default_factory=dict)


class TrainedBaseline(nn.Module):
    """Image encoders and document fusion."""

    def __init__(self, encoders: EncoderPair, fusion: DocumentFusion) -> None:
        super().__init__()
        self.encoders, self.fusion = encoders, fusion

    def embed_batch(
        self, query: tuple[Tensor, Tensor], document: tuple[Tensor, Tensor], text: tuple[Tensor, ...]
    ) -> tuple[Tensor, Tensor]:
        """(B, D) unit rows of both sides.

        Args:
            query, document: encoder inputs and dropout factors.
            text: sentence vectors, has_image and has_text of the documents.
        """
        sentence_BH, has_image_B, has_text_B = text
        query_BD, image_BD = self.encoders(query[0], document[0], query[1], document[1])
        return query_BD, self.fusion(image_BD, sentence_BH, has_image_B, has_text_B)

    @torch.no_grad()
    def queries(self, inputs: np.ndarray) -> Tensor:
        """(Q, ...) inputs -> (Q, D)."""
        return self._images(inputs, side="query")

    @torch.no_grad()
    def documents(self, inputs: np.ndarray, sentences: Tensor, has_image: np.ndarray, has_text: np.ndarray) -> Tensor:
        """(N, ...) inputs, (N, H) sentence vectors -> (N, D); NaN where the fusion can use nothing of a document."""
        image, text = torch.from_numpy(has_image), torch.from_numpy(has_text)
        rows_ND: Tensor = self.fusion(self._images(inputs, side="document"), sentences.float(), image, text)
        rows_ND[~self.fusion.readable(image, text)] = torch.nan
        return rows_ND

    def _images(self, inputs: np.ndarray, *, side: str) -> Tensor:
        self.eval()
        parts = []
        for start in range(0, len(inputs), ROWS_PER_CHUNK):
            chunk = torch.from_numpy(np.array(inputs[start : start + ROWS_PER_CHUNK])).float()
            parts.append(self.encoders.embed(chunk, side=side))
        return torch.cat(parts)


def train_baseline(
    inputs: BaselineInputs,
    *,
    method: Method,
    hyperparameters: Hyperparameters,
    seed: int,
    max_steps: int | None = None,
) -> TrainedBaseline:
    """Train a baseline; a distilled method trains as many members as the recipe has, and a student of them.

    Raises:
        ValueError: the loss is not finite, or no class has both a query and a usable document.
    """
    has_image, has_text = inputs.features.document_has_image, inputs.features.document_has_text
    usable = {"image": has_image, "text": has_text}.get(method.documents, has_image | has_text)
    inputs = replace(inputs, rows=restricted(inputs.rows, usable))
    members = [
        _train_member(
            inputs, method=method, hyperparameters=hyperparameters, seed=seed, member=member, max_steps=max_steps
        )
        for member in range(inputs.recipe.ensemble.num_members if method.distilled else 1)
    ]
    if len(members) == 1:
        return members[0]
    return _distilled(members, inputs, recipe=cut_short(inputs.recipe, max_steps), seed=seed)


def initial_baseline(inputs: BaselineInputs, method: Method) -> TrainedBaseline:
    """Encoders and document fusion before training."""
    features, rows, recipe = inputs.features, inputs.rows, inputs.recipe
    frozen = None if inputs.stage == "heads" else recipe.model.frozen_stages
    encoders = EncoderPair.for_training(copy.deepcopy(inputs.model), frozen_stages=frozen)
    used = {"query": np.unique(rows.query.rows), "document": np.unique(rows.document.rows)}
    key = inputs.stage, used["query"].tobytes(), used["document"].tobytes()
    if key not in inputs.head_cache:
        arrays = {"query": features.query_inputs, "document": features.document_inputs}
        start_image_head(encoders, inputs=arrays, rows=used, projection=recipe.image.projection)
        inputs.head_cache[key] = copy.deepcopy(encoders.image_head.state_dict())
    encoders.image_head.load_state_dict(inputs.head_cache[key])
    head = None
    if method.documents != "image":
        with_text = rows.document.rows[features.document_has_text[rows.document.rows]]
        sentences = torch.from_numpy(features.sentences[np.unique(with_text)])
        head = TextHead(sentences, width=recipe.model.hidden_size, dropout=recipe.image.embed_dropout)
    return TrainedBaseline(encoders, DocumentFusion(method.documents, head, width=recipe.model.hidden_size)).eval()


def class_means(embeds: Tensor, labels: np.ndarray, num_classes: int) -> Tensor:
    """(num_classes, D) unit mean embedding of each class."""
    total = torch.zeros(num_classes, embeds.shape[1])
    total.index_add_(0, torch.from_numpy(labels), embeds)
    return nn.functional.normalize(total, dim=1)


def _train_member(
    inputs: BaselineInputs,
    *,
    method: Method,
    hyperparameters: Hyperparameters,
    seed: int,
    member: int,
    max_steps: int | None,
) -> TrainedBaseline:
    """One training run; members start equal and draw other batches. Adapters are merged into the weights at the end."""
    features, rows, recipe = inputs.features, inputs.rows, inputs.recipe
    draws = member_seed(seed, member)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        baseline = initial_baseline(inputs, method)
        loss = _loss(method, hyperparameters, baseline, features, rows)
        vision = baseline.encoders.vision
        adapters = add_adapters(vision, recipe, seed=seed) if vision is not None and recipe.image.lora.rank else None
        optimizer = torch.optim.AdamW(_parameter_groups(baseline, loss, recipe=recipe, rate=hyperparameters.rate))
        sampler = _sampler(rows, method, hyperparameters, recipe, seed=draws)
        steps = recipe.image.steps if max_steps is None else min(max_steps, recipe.image.steps)
        for step in tqdm(range(steps), desc=method.name, unit="step", leave=False):
            factor = learning_rate_factor(step, steps=recipe.image.steps, warmup_steps=recipe.image.warmup_steps)
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * factor
            drawn = sampler.draw(step, count=recipe.image.queries_per_step)
            # Only the fusion has a training mode; the encoders stay in evaluation mode, as in the product's training.
            baseline.fusion.train()
            value = loss(*_embed(baseline, features, drawn, recipe=recipe, seed=draws, step=step), drawn.labels)
            if not bool(torch.isfinite(value)):
                raise ValueError(f"{method.name}: the loss is {value.item()} at step {step}; lower the learning rate")
            optimizer.zero_grad()
            value.backward()
            if recipe.image.max_grad_norm is not None:
                nn.utils.clip_grad_norm_(baseline.encoders.parameters(), recipe.image.max_grad_norm)
            optimizer.step()
        if adapters is not None:
            adapters.merge_and_unload()
    return baseline.eval()


def _distilled(members: list[TrainedBaseline], inputs: BaselineInputs, *, recipe: Recipe, seed: int) -> TrainedBaseline:
    """Weight average of the members, distilled from them as in train/ensemble/."""
    student = copy.deepcopy(members[0])
    student.encoders.load_state_dict(mean_weights([one.encoders.state_dict() for one in members], recipe))
    if recipe.ensemble.distil_steps:
        arrays = {"query": inputs.features.query_inputs, "document": inputs.features.document_inputs}
        used = {"query": np.unique(inputs.rows.query.rows), "document": np.unique(inputs.rows.document.rows)}
        teachers = [one.encoders.requires_grad_(False) for one in members]
        distil(student.encoders, teachers, DistilRows(arrays, used), recipe=recipe, seed=seed)
    return student.eval()


def _embed(
    baseline: TrainedBaseline, features: TrainingFeatures, drawn: SampledBatch, *, recipe: Recipe, seed: int, step: int
) -> tuple[Tensor, Tensor]:
    like = next(baseline.encoders.image_head.parameters())
    count = slice(0, len(drawn.query_rows))
    scale = {
        side: dropout_scale(
            recipe.image.embed_dropout, rows=count, width=recipe.model.hidden_size, seed=seed, step=step, side=side
        ).to(like)
        for side in ("query", "document")
    }
    query = rows_of(features.query_inputs, drawn.query_rows, drawn.query_views, like=like)
    document = rows_of(features.document_inputs, drawn.document_rows, drawn.document_views, like=like)
    arrays = (features.sentences, features.document_has_image, features.document_has_text)
    text = tuple(torch.from_numpy(array[drawn.document_rows]) for array in arrays)
    return baseline.embed_batch((query, scale["query"]), (document, scale["document"]), text)


def _loss(
    method: Method,
    hyperparameters: Hyperparameters,
    baseline: TrainedBaseline,
    features: TrainingFeatures,
    rows: LabelledRows,
) -> nn.Module:
    if method.loss == "triplet":
        mining, margin = str(hyperparameters.value).split()
        return Triplet(margin=float(margin), mining=mining)
    if method.loss in CLASSIFYING:
        documents = rows.document.rows
        embeds = baseline.documents(
            features.document_inputs[documents, 0],
            torch.from_numpy(features.sentences[documents]),
            features.document_has_image[documents],
            features.document_has_text[documents],
        )
        start_ND = class_means(embeds, rows.document.labels, rows.num_classes)
        return Classifying(method.loss, start_ND, margin=float(hyperparameters.value))
    return Contrastive(method.loss, temperature=float(hyperparameters.value))


def _parameter_groups(
    baseline: TrainedBaseline, loss: nn.Module, *, recipe: Recipe, rate: float
) -> list[dict[str, Any]]:
    """The product's groups; the fusion learns at the rate of the image head, class rows at that of the prototypes.

    All learning rates are multiplied by `rate`.
    """
    groups = parameter_groups(baseline.encoders, recipe)
    others = [(value, recipe.image.projection_learning_rate) for value in baseline.fusion.parameters()]
    others += [
        (value, recipe.head.learning_rate if value.ndim > 1 else recipe.image.projection_learning_rate)
        for value in loss.parameters()
    ]
    for value, lr in others:
        decay = recipe.image.weight_decay if value.ndim > 1 else 0.0
        groups.append({"params": [value], "initial_lr": lr, "weight_decay": decay})
    for group in groups:
        group["lr"] = group["initial_lr"] = group["initial_lr"] * rate
    return groups


def _sampler(
    rows: LabelledRows, method: Method, hyperparameters: Hyperparameters, recipe: Recipe, *, seed: int
) -> PairSampler | ClassSampler:
    views = (recipe.image.query_views, recipe.image.document_views)
    if method.loss in CLASSIFYING:
        return ClassSampler(rows, views=views, balance=hyperparameters.balance, seed=seed)
    per_class = ROWS_PER_CLASS.get(method.loss, 1)
    return PairSampler(rows, per_class=per_class, views=views, balance=hyperparameters.balance, seed=seed)
