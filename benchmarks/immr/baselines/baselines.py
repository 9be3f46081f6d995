"""A rival from its method and settings to unit vectors: the product's encoders, batch and steps, another loss.

What is equal for all: shared image encoder with standardisation per side and PCA start, residual MLPs, 128 queries and
128 documents a step, the recipe's steps, warm-up, learning rates (times one searched factor), weight decay, dropout,
augmented views. What differs is the method: loss, labels, documents. A rival is trained once, as long as the product's
members and its student together where validation queries ask for that; "+distilled" behind its name gives it members
and a student as the product has them, which is no method of its own but tells what those are worth.


Letters: B batch, Q queries, N documents, H width of a sentence vector, D width.
"""

import copy
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from benchmarks.immr.baselines.documents import DOCUMENTS, DocumentForm, TextHead
from benchmarks.immr.baselines.labels import LABELS, ClassSampler, Drawn, Labelled, PairSampler, restricted
from benchmarks.immr.baselines.losses import CLASSIFYING, LOSSES, Classifying, Contrastive, Triplet
from benchmarks.immr.runner.training_features import TrainingFeatures
from train.encoders.lora import add_adapters
from train.encoders.pair import ROWS_PER_CHUNK, EncoderPair, rows_of, start_image_head
from train.encoders.parameter_groups import parameter_groups
from train.ensemble.distil import DistilRows, cut_short, distil
from train.ensemble.soup import mean_weights, member_seed
from train.image_stage.schedule import learning_rate_factor
from train.inputs.sampler import dropout_scale
from train.recipes.recipe import Recipe

PER_CLASS = {"supcon": 2, "triplet": 2}  # several positives in a batch are what these losses are for
# What is searched beside the learning rate, the usual value first: temperatures, margins, miners.
VALUES: dict[str, tuple[float | str, ...]] = {
    "infonce": (0.07, 0.03, 0.15),
    "supcon": (0.07, 0.03, 0.15),
    "siglip": (0.1, 0.05, 0.2),
    "triplet": ("semihard 0.2", "semihard 0.1", "hard 0.2"),
    "proxyanchor": (0.1, 0.0, 0.2),
    "cosface": (0.2, 0.1, 0.3),
}
DISTILLED = "+distilled"
Starts = dict[tuple[str, bytes, bytes], dict[str, Tensor]]  # by stage and rows of both sides


@dataclass(frozen=True)
class Method:
    """Loss, labels and documents of a rival; "infonce.raw.concat" in short, with "+distilled" when it has members."""

    loss: str
    labels: str
    documents: str
    distilled: bool = False

    def __post_init__(self) -> None:
        for value, choices in ((self.loss, LOSSES), (self.labels, LABELS), (self.documents, DOCUMENTS)):
            if value not in choices:
                raise ValueError(f"{value!r} is no part of a method here; choose one of {', '.join(choices)}")
        if self.distilled and self.documents != "image":
            raise ValueError(f"{self.name}: a student learns embeddings of images alone; its documents must be 'image'")

    @property
    def name(self) -> str:
        return f"{self.loss}.{self.labels}.{self.documents}{DISTILLED if self.distilled else ''}"

    @property
    def plain(self) -> "Method":
        """The method trained once: the one whose settings are searched."""
        return replace(self, distilled=False)

    @classmethod
    def named(cls, name: str) -> "Method":
        """The method of a short name."""
        loss, labels, documents = name.removesuffix(DISTILLED).split(".")
        return cls(loss, labels, documents, distilled=name.endswith(DISTILLED))


METHODS = tuple(Method(loss, labels, documents) for loss in LOSSES for labels in LABELS for documents in DOCUMENTS)


@dataclass(frozen=True)
class Settings:
    """What the search chooses: factor on all learning rates, value of the loss, balance of the classes in batches,
    whether the last block is trained by the product's adapters or itself, and factor on the recipe's steps."""

    rate: float = 1.0
    value: float | str = 0.0
    balance: float = 1.0
    adapters: bool = False
    length: float = 1.0

    @classmethod
    def usual(cls, method: Method) -> "Settings":
        """Where the search of a method starts."""
        return cls(value=VALUES[method.loss][0])


class Rival(nn.Module):
    """Encoders and document form."""

    def __init__(self, encoders: EncoderPair, form: DocumentForm) -> None:
        super().__init__()
        self.encoders, self.form = encoders, form

    def both(self, query: tuple[Tensor, Tensor], document: tuple[Tensor, Tensor], text: tuple[Tensor, ...]) -> Any:
        """(B, D) rows of both sides; `query` and `document` are inputs and dropout factors, `text` sentence vectors,
        has_image and has_text."""
        sentence_BH, has_image_B, has_text_B = text
        query_BD, image_BD = self.encoders(query[0], document[0], query[1], document[1])
        return query_BD, self.form(image_BD, sentence_BH, has_image_B, has_text_B)

    @torch.no_grad()
    def queries(self, inputs: np.ndarray) -> Tensor:
        """(Q, ...) inputs -> (Q, D)."""
        return self._images(inputs, side="query")

    @torch.no_grad()
    def documents(self, inputs: np.ndarray, sentences: Tensor, has_image: np.ndarray, has_text: np.ndarray) -> Tensor:
        """(N, ...) inputs, (N, H) sentence vectors -> (N, D); NaN where the form reads nothing of a document."""
        image, text = torch.from_numpy(has_image), torch.from_numpy(has_text)
        rows_ND: Tensor = self.form(self._images(inputs, side="document"), sentences.float(), image, text)
        rows_ND[~self.form.readable(image, text)] = torch.nan
        return rows_ND

    def _images(self, inputs: np.ndarray, *, side: str) -> Tensor:
        self.eval()
        parts = []
        for start in range(0, len(inputs), ROWS_PER_CHUNK):
            chunk = torch.from_numpy(np.array(inputs[start : start + ROWS_PER_CHUNK])).float()
            parts.append(self.encoders.embed(chunk, side=side))
        return torch.cat(parts)


def start_rival(
    model: Any,
    features: TrainingFeatures,
    rows: Labelled,
    *,
    method: Method,
    recipe: Recipe,
    stage: str,
    starts: Starts | None = None,
) -> Rival:
    """Encoders and text head where training starts.

    Args:
        starts: image heads of earlier starts on the same rows; filled here. Their PCA takes longer than training them.
    """
    frozen = None if stage == "heads" else recipe.model.frozen_stages
    encoders = EncoderPair.for_training(copy.deepcopy(model), frozen_stages=frozen)
    used = {"query": np.unique(rows.query.rows), "document": np.unique(rows.document.rows)}
    starts = {} if starts is None else starts
    key = stage, used["query"].tobytes(), used["document"].tobytes()
    if key not in starts:
        inputs = {"query": features.query_inputs, "document": features.document_inputs}
        start_image_head(encoders, inputs=inputs, rows=used, projection=recipe.image.projection)
        starts[key] = copy.deepcopy(encoders.image_head.state_dict())
    encoders.image_head.load_state_dict(starts[key])
    head = None
    if method.documents != "image":
        written = rows.document.rows[features.document_has_text[rows.document.rows]]
        sentences = torch.from_numpy(features.sentences[np.unique(written)])
        head = TextHead(sentences, width=recipe.model.hidden_size, dropout=recipe.image.embed_dropout)
    return Rival(encoders, DocumentForm(method.documents, head, width=recipe.model.hidden_size)).eval()


def usable_rows(rows: Labelled, features: TrainingFeatures, *, documents: str) -> Labelled:
    """The rows whose documents this form can read."""
    image, text = features.document_has_image, features.document_has_text
    return restricted(rows, {"image": image, "text": text}.get(documents, image | text))


def train_rival(
    model: Any,
    features: TrainingFeatures,
    rows: Labelled,
    *,
    method: Method,
    settings: Settings,
    recipe: Recipe,
    stage: str,
    seed: int,
    max_steps: int | None = None,
    starts: Starts | None = None,
) -> Rival:
    """Train a rival on a world; with as many members as the recipe has when the method is distilled.

    Args:
        starts: see `start_rival`.
        model: untrained, of the recipe; copied. rows: of the method's labels, from labels.py.
        features: at the stage. stage: "heads" (pooled features) or "last_block" (hidden maps).

    Raises:
        ValueError: the loss is not finite.
    """
    rows = usable_rows(rows, features, documents=method.documents)
    given: dict[str, Any] = {"method": method, "settings": settings, "recipe": recipe, "stage": stage}
    given |= {"max_steps": max_steps, "starts": starts}
    count = recipe.ensemble.num_members if method.distilled else 1
    members = [_train_member(model, features, rows, seed=seed, member=member, **given) for member in range(count)]
    if count == 1:
        return members[0]
    return _student(members, features, rows, recipe=cut_short(recipe, max_steps), seed=seed)


def _train_member(
    model: Any,
    features: TrainingFeatures,
    rows: Labelled,
    *,
    method: Method,
    settings: Settings,
    recipe: Recipe,
    stage: str,
    seed: int,
    member: int,
    max_steps: int | None,
    starts: Starts | None,
) -> Rival:
    """One training; the members of a rival start equal and draw other rows. Adapters are folded in at the end."""
    draws = member_seed(seed, member)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        rival = start_rival(model, features, rows, method=method, recipe=recipe, stage=stage, starts=starts)
        loss = _loss(method, settings, rival, features, rows)
        vision = rival.encoders.vision
        adapters = add_adapters(vision, recipe, seed=seed) if vision is not None and recipe.image.lora.rank else None
        optimizer = torch.optim.AdamW(_groups(rival, loss, recipe=recipe, rate=settings.rate))
        sampler = _sampler(rows, method, settings, recipe, seed=draws)
        steps = recipe.image.steps if max_steps is None else min(max_steps, recipe.image.steps)
        for step in tqdm(range(steps), desc=method.name, unit="step", leave=False):
            factor = learning_rate_factor(step, steps=recipe.image.steps, warmup_steps=recipe.image.warmup_steps)
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * factor
            drawn = sampler.draw(step, count=recipe.image.queries_per_step)
            # Only the text head has a mode; the image side is trained as the product's is, in evaluation mode.
            rival.form.train()
            found = loss(*_embed(rival, features, drawn, recipe=recipe, seed=draws, step=step), drawn.batch)
            if not bool(torch.isfinite(found)):
                raise ValueError(f"{method.name}: the loss is {found.item()} at step {step}; lower the learning rate")
            optimizer.zero_grad()
            found.backward()
            if recipe.image.max_grad_norm is not None:
                nn.utils.clip_grad_norm_(rival.encoders.parameters(), recipe.image.max_grad_norm)
            optimizer.step()
        if adapters is not None:
            adapters.merge_and_unload()
    return rival.eval()


def _student(members: list[Rival], features: TrainingFeatures, rows: Labelled, *, recipe: Recipe, seed: int) -> Rival:
    """One rival of several, as `train/ensemble/ensemble.py` makes one model of the product's."""
    student = copy.deepcopy(members[0])
    student.encoders.load_state_dict(mean_weights([one.encoders.state_dict() for one in members], recipe))
    if recipe.ensemble.distil_steps:
        inputs = {"query": features.query_inputs, "document": features.document_inputs}
        used = {"query": np.unique(rows.query.rows), "document": np.unique(rows.document.rows)}
        teachers = [one.encoders.requires_grad_(False) for one in members]
        distil(student.encoders, teachers, DistilRows(inputs, used), recipe=recipe, seed=seed)
    return student.eval()


def _embed(
    rival: Rival, features: TrainingFeatures, drawn: Drawn, *, recipe: Recipe, seed: int, step: int
) -> tuple[Tensor, Tensor]:
    like = next(rival.encoders.image_head.parameters())
    count = slice(0, len(drawn.query_rows))
    scale = {
        side: dropout_scale(
            recipe.image.embed_dropout, rows=count, width=recipe.model.hidden_size, seed=seed, step=step, side=side
        ).to(like)
        for side in ("query", "document")
    }
    query = rows_of(features.query_inputs, drawn.query_rows, drawn.query_views, like=like)
    document = rows_of(features.document_inputs, drawn.document_rows, drawn.document_views, like=like)
    text = (features.sentences, features.document_has_image, features.document_has_text)
    words = tuple(torch.from_numpy(part[drawn.document_rows]) for part in text)
    query_BD, document_BD = rival.both((query, scale["query"]), (document, scale["document"]), words)
    return query_BD, document_BD


def _loss(method: Method, settings: Settings, rival: Rival, features: TrainingFeatures, rows: Labelled) -> nn.Module:
    if method.loss == "triplet":
        mining, margin = str(settings.value).split()
        return Triplet(margin=float(margin), mining=mining)
    if method.loss in CLASSIFYING:
        return Classifying(method.loss, _class_means(rival, features, rows), margin=float(settings.value))
    return Contrastive(method.loss, temperature=float(settings.value))


def _class_means(rival: Rival, features: TrainingFeatures, rows: Labelled) -> Tensor:
    """(N classes, D) mean of each class's documents at the start."""
    places = rows.document.rows
    embeds = rival.documents(
        features.document_inputs[places, 0],
        torch.from_numpy(features.sentences[places]),
        features.document_has_image[places],
        features.document_has_text[places],
    )
    total = torch.zeros(rows.num_classes, embeds.shape[1])
    total.index_add_(0, torch.from_numpy(rows.document.labels), embeds)
    return nn.functional.normalize(total, dim=1)


def _groups(rival: Rival, loss: nn.Module, *, recipe: Recipe, rate: float) -> list[dict[str, Any]]:
    """The product's groups, the text head like the image head, class rows like the product's; all times `rate`."""
    groups = parameter_groups(rival.encoders, recipe)
    mine = [(value, recipe.image.projection_learning_rate) for value in rival.form.parameters()]
    mine += [
        (value, recipe.head.learning_rate if value.ndim > 1 else recipe.image.projection_learning_rate)
        for value in loss.parameters()
    ]
    for value, lr in mine:
        decay = recipe.image.weight_decay if value.ndim > 1 else 0.0
        groups.append({"params": [value], "initial_lr": lr, "weight_decay": decay})
    for group in groups:
        group["lr"] = group["initial_lr"] = group["initial_lr"] * rate
    return groups


def _sampler(
    rows: Labelled, method: Method, settings: Settings, recipe: Recipe, *, seed: int
) -> PairSampler | ClassSampler:
    views = {"image.query_views": recipe.image.query_views, "image.document_views": recipe.image.document_views}
    if method.loss in CLASSIFYING:
        return ClassSampler(rows, balance=settings.balance, seed=seed, **views)
    per_class = PER_CLASS.get(method.loss, 1)
    return PairSampler(rows, per_class=per_class, balance=settings.balance, seed=seed, **views)
