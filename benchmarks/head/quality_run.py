"""One training of the quality table: train a head and measure its recall.

Recall on unseen categories measures the embedding, which is what retrieval uses. Prototypes of trained classes would
favour methods that see every class in every step. The encoder is a linear map.

Letters: B batch, D width, Q queries, U unseen categories.
"""

import dataclasses
import math
import time
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from benchmarks.head.step import HeadSize, LinearMap, keyed, make_shard, sampled_loss
from benchmarks.head.synthetic_set import FEATURES, SyntheticSet, SyntheticSize, synthetic_set
from modeling_oclear.partial_softmax_oclear import CosFace, SoftmaxForm, sample_classes
from train.class_weights.hard_classes import NearestClasses
from train.class_weights.shard import ClassShard
from train.image_stage.schedule import warmed_half_cosine

FORMS = ("full", "uniform", "uniform_logq", "hard_logq")
WARMUP_STEPS = 30


@dataclass(frozen=True)
class QualityRun:
    """One training: share of wrong labels, sample rate, form of `FORMS`, conflict filter, seed."""

    noise: float
    rate: float
    form: str
    filtered: bool
    seed: int

    @property
    def name(self) -> str:
        """Name of the result file, without its suffix."""
        filtered = "_filtered" if self.filtered else ""
        return f"noise{self.noise:g}_rate{self.rate:g}_{self.form}{filtered}_seed{self.seed}"


@dataclass(frozen=True)
class QualitySettings:
    """Settings of all runs.

    Attributes:
        made: size of the synthetic data set.
        row_rate: learning rate of the prototypes (plain SGD, so that a row moves in proportion to its gradient at
            every sample rate). encoder_rate: of the linear map (AdamW). Both follow a cosine schedule to 0.
        conflict_delta: of the filtered runs. hard_per_positive: nearest classes of each positive.
    """

    made: SyntheticSize = field(default_factory=SyntheticSize)
    steps: int = 600
    batch_size: int = 256
    hidden_size: int = 16
    margin: float = 0.1
    scale: float = 32.0
    row_rate: float = 10.0
    encoder_rate: float = 1e-2
    conflict_delta: float = 0.1
    hard_per_positive: int = 10
    hard_refresh_every: int = 100

    def form(self, run: QualityRun) -> SoftmaxForm:
        """Margin, scale and conflict filter of a run."""
        delta = self.conflict_delta if run.filtered else None
        return SoftmaxForm(margin=CosFace(self.margin), scale=self.scale, conflict_delta=delta)


def train_and_score(run: QualityRun, settings: QualitySettings) -> dict[str, Any]:
    """Train and measure recall; the result contains the run and the settings.

    Raises:
        ValueError: for an unknown form or impossible sizes.
    """
    if run.form not in FORMS:
        raise ValueError(f"no form is called {run.form!r}; choose some of {', '.join(FORMS)}")
    start = time.perf_counter()
    data = synthetic_set(settings.made, run.noise)
    learner = Learner(data, run, settings)
    at_start = recall_at_1(learner.encoder, data)
    losses, rows = [], 0
    for step in range(settings.steps):
        loss, scored = learner.step(step)
        losses.append(loss)
        rows += scored
    return {
        **dataclasses.asdict(run),
        "recall_at_1": round(recall_at_1(learner.encoder, data), 5),
        "recall_at_1_before": round(at_start, 5),
        "queries": len(data.query_QF),
        "rows_a_step": round(rows / max(1, settings.steps), 1),
        "loss_end": round(sum(losses[-50:]) / max(1, len(losses[-50:])), 4),
        "wrong_labels": round(float((data.label_N != data.true_N).double().mean()), 4),
        "fingerprint": data.fingerprint,
        "seconds": round(time.perf_counter() - start, 1),
        "settings": dataclasses.asdict(settings),
    }


class Learner:
    """Linear map and prototypes of one run; initialisation, order of samples and draws are keyed by its seed."""

    def __init__(self, data: SyntheticSet, run: QualityRun, settings: QualitySettings) -> None:
        self.data, self.run, self.settings = data, run, settings
        self.encoder = LinearMap(FEATURES, settings.hidden_size, seed=run.seed)
        self.adam = torch.optim.AdamW(self.encoder.parameters(), weight_decay=0.0)
        self.shard = initial_shard(data, self.encoder, settings, seed=run.seed)
        self.order = torch.randperm(len(data.label_N), generator=keyed(run.seed))
        self.nearest = NearestClasses(
            self.shard,
            per_positive=settings.hard_per_positive,
            refresh_every=settings.hard_refresh_every,
            also_every=settings.hard_refresh_every,
            seed=run.seed,
        )

    def step(self, step: int) -> tuple[float, int]:
        """Run one optimiser step; return its loss and number of scored classes."""
        settings, run = self.settings, self.run
        batch = self.order[torch.arange(step * settings.batch_size, (step + 1) * settings.batch_size) % len(self.order)]
        labels_B = self.data.label_N[batch]
        sampled = sample_classes(
            settings.made.classes,
            positives=labels_B,
            rate=run.rate,
            seed=run.seed,
            step=step,
            log_q=run.form != "uniform",
            hard=self.hard(labels_B, step),
        )
        gathered = self.shard.gather(sampled.class_ids, sampled.log_correction)
        loss = sampled_loss(self.encoder(self.data.feature_NF[batch]), labels_B, gathered, settings.form(run))
        factor = warmed_half_cosine(step, steps=settings.steps, warmup_steps=WARMUP_STEPS)
        self.adam.param_groups[0]["lr"] = settings.encoder_rate * factor
        self.adam.zero_grad()
        loss.backward()
        self.adam.step()
        self.shard.update(gathered, learning_rate=settings.row_rate * factor, max_grad_norm=None)
        return float(loss.detach()), len(sampled.class_ids)

    def hard(self, labels_B: Tensor, step: int) -> Tensor | None:
        """Nearest classes of the positives where the form uses them, from an index that is rebuilt at intervals."""
        if self.run.form != "hard_logq":
            return None
        return self.nearest.find(labels_B.unique(), step=step).class_ids


@torch.no_grad()
def initial_shard(data: SyntheticSet, encoder: LinearMap, settings: QualitySettings, *, seed: int) -> ClassShard:
    """Prototypes at the mean embedding of their samples, as in training; random for classes without samples."""
    size = HeadSize(
        classes=settings.made.classes,
        hidden_size=settings.hidden_size,
        rate=1.0,
        batch_size=settings.batch_size,
        optimizer="sgd",
        seed=seed,
        weight_decay=0.0,
    )
    shard = make_shard(size)
    shard.start_random()
    total_CD = torch.zeros(size.classes, size.hidden_size).index_add_(0, data.label_N, encoder(data.feature_NF))
    has_sample_C = torch.bincount(data.label_N, minlength=size.classes) > 0
    mean_CD = torch.nn.functional.normalize(total_CD[has_sample_C], dim=1)
    shard.put_rows(torch.nonzero(has_sample_C)[:, 0], mean_CD)
    return shard


@torch.no_grad()
def recall_at_1(encoder: LinearMap, data: SyntheticSet, *, at_once: int = 2048) -> float:
    """Share of queries whose nearest document is of their category, among one document of each unseen category."""
    query_QD, document_UD = encoder(data.query_QF), encoder(data.document_UF)
    right = 0
    for part_BD, class_B in zip(query_QD.split(at_once), data.query_class_Q.split(at_once), strict=True):
        right += int(((part_BD @ document_UD.T).argmax(dim=1) == class_B).sum())
    return right / len(query_QD)


def loss_bias(settings: QualitySettings, *, rates: list[float], draws: int = 50, steps: int = 100) -> dict[str, Any]:
    """Bias of the sampled loss against the full one, with and without logQ, for a model trained for `steps` steps.

    Only the draw varies: the bias is the mean over draws minus the full loss, with its standard error. logQ makes the
    expected denominator exact; the expected logarithm stays a little low (Jensen's inequality).
    """
    run = QualityRun(noise=0.0, rate=min(0.01, max(rates)), form="uniform_logq", filtered=False, seed=0)
    data = synthetic_set(settings.made, run.noise)
    learner = Learner(data, run, settings)
    for step in range(steps):
        learner.step(step)
    batch = learner.order[-settings.batch_size :]
    labels_B, form = data.label_N[batch], settings.form(run)
    with torch.no_grad():
        embeds_BD = learner.encoder(data.feature_NF[batch])

        def loss_at(rate: float, log_q: bool, draw: int) -> float:
            sampled = sample_classes(
                settings.made.classes, positives=labels_B, rate=rate, seed=run.seed + 1, step=draw, log_q=log_q
            )
            gathered = learner.shard.gather(sampled.class_ids, sampled.log_correction)
            return float(sampled_loss(embeds_BD, labels_B, gathered, form))

        full = loss_at(1.0, True, 0)
        rows = []
        for rate in rates:
            for log_q in (False, True):
                found = torch.tensor([loss_at(rate, log_q, draw) - full for draw in range(draws)], dtype=torch.float64)
                error = float(found.std() / math.sqrt(draws)) if draws > 1 else math.nan
                row = {"rate": rate, "log_q": log_q, "bias": round(float(found.mean()), 5)}
                rows.append(row | {"standard_error": round(error, 5)})
    return {"full_loss": round(full, 5), "draws": draws, "rows": rows}
