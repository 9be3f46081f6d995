"""One optimiser step of the image stage, with equal results for any number of ranks and micro-steps.

    rows of the whole step, from (seed, step)  ->  sampled classes  ->  rows of this rank's classes
    each micro-step: embed local rows -> gather over ranks -> three scalars per row against local classes (with
    ProxyAnchor four sums over them), combined over ranks -> its share of the loss of the GLOBAL batch -> backward
    then: two gradient norms, clipped apart; AdamW on the encoders, the row optimiser on the class weights.

Every rank knows the labels of the whole step before its first micro-step, because inputs/sampler.py composes them from
(seed, step). So the class set and the mean are those of the whole step.
"""

import contextlib
import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from modeling_oclear.partial_softmax_oclear import (
    ClassRange,
    Leaves,
    SoftmaxForm,
    best_positive,
    class_scalars,
    loss_from_scalars,
    margin_by_name,
    positive_cosines,
    reduce_scalars,
    sample_classes,
)
from modeling_oclear.proxy_anchor_oclear import AnchorSums, anchor_loss, anchor_sums
from train.class_weights.hard_classes import HardClasses
from train.class_weights.shard import ClassShard, GatheredRows
from train.encoders.ema import WeightAverage
from train.encoders.pair import rows_of
from train.image_stage.schedule import learning_rate_factor
from train.inputs.sampler import StepRows, StepSampler, dropout_scale, piece
from train.parallel.collectives import gather_rows, max_over_ranks, rank, sum_over_ranks, world_size
from train.recipes.recipe import ProxyAnchorLoss, Recipe, SoftmaxLoss


class Diverged(ValueError):
    """Training cannot go on from here: loss, embedding or gradient is not finite."""


@dataclass
class Rate:
    """Factor of all learning rates of the image stage; lowered when training diverges (recovery.py)."""

    factor: float = 1.0


@dataclass(frozen=True)
class ImageStage:
    """The state that a training step reads and changes.

    Attributes:
        encoders, optimizer: the `EncoderPair` and its AdamW, prepared by `accelerator`.
        shard: this rank's class weights. sampler: composes the rows of a step.
        query_inputs, document_inputs: (N, V, ...) cached inputs.
        hard: finds hard classes that take part beside the drawn ones; None for none.
        leaf_N: from `leaf_ids`, for label smoothing within a coarse category; None smooths over all sampled classes.
        average: average of the encoders' weights over the steps; None keeps none.
        rate: factor of all learning rates.
    """

    accelerator: Accelerator
    encoders: Any
    optimizer: Any
    shard: ClassShard
    sampler: StepSampler
    query_inputs: Any
    document_inputs: Any
    recipe: Recipe
    seed: int
    hard: HardClasses | None = None
    leaf_N: Tensor | None = None
    average: WeightAverage | None = None
    rate: Rate = field(default_factory=Rate)


@dataclass(frozen=True)
class StepMetrics:
    """Loss of the global batch, both gradient norms before clipping, learning rate of the projection."""

    loss: float
    grad_norm: float
    head_grad_norm: float
    learning_rate: float


def optimiser_step(side: ImageStage, step: int) -> StepMetrics:
    """Run step `step` (0-based) and update encoders and class weights.

    Raises:
        Diverged: the loss or the gradient is not finite; nothing has been updated then.
    """
    recipe = side.recipe
    factor = learning_rate_factor(step, steps=recipe.image.steps, warmup_steps=recipe.image.warmup_steps)
    factor *= side.rate.factor
    rows = side.sampler.compose(
        step, seed=side.seed, queries=recipe.image.queries_per_step, documents=recipe.image.documents_per_step
    )
    positives = torch.from_numpy(np.unique(np.concatenate([rows.query.labels, rows.document.labels])))
    hard = None if side.hard is None else side.hard.find(positives, step=step)
    sampled = sample_classes(
        side.shard.num_classes,
        positives=positives,
        rate=recipe.head.sample_rate,
        log_q=recipe.head.sample_log_q,
        hard=None if hard is None else hard.class_ids,
        hard_draws=None if hard is None else hard.draws,
        seed=side.seed,
        step=step,
        class_range=(side.shard.start, side.shard.end),
    )
    gathered = side.shard.gather(sampled.class_ids, sampled.log_correction)
    loss = 0.0
    for micro in range(recipe.image.gradient_accumulation):
        loss += _micro_step(side, rows, gathered, step=step, micro=micro)
    if not math.isfinite(loss):
        raise _diverged(f"the loss is {loss}", step)
    norm = _update_encoders(side, factor, step=step)
    if side.average is not None:
        side.average.update(step)
    head_norm = side.shard.update(
        gathered, learning_rate=recipe.head.learning_rate * factor, max_grad_norm=recipe.head.max_grad_norm
    )
    return StepMetrics(
        loss=loss,
        grad_norm=norm,
        head_grad_norm=head_norm,
        learning_rate=recipe.image.projection_learning_rate * factor,
    )


def _diverged(what: str, step: int) -> Diverged:
    return Diverged(
        f"{what} at step {step}; lower image.encoder_learning_rate, image.projection_learning_rate or "
        "head.learning_rate in the recipe, set image.max_grad_norm and head.max_grad_norm, or look for values in the "
        "cached features that are not finite"
    )


def _micro_step(side: ImageStage, rows: StepRows, gathered: GatheredRows, *, step: int, micro: int) -> float:
    """Forward and backward of one micro-step; returns its share of the loss of the step."""
    recipe = side.recipe
    ranks, parts = world_size(), recipe.image.gradient_accumulation * world_size()
    queries = [piece(recipe.image.queries_per_step, micro * ranks + r, parts) for r in range(ranks)]
    documents = [piece(recipe.image.documents_per_step, micro * ranks + r, parts) for r in range(ranks)]
    last = micro == recipe.image.gradient_accumulation - 1
    with contextlib.nullcontext() if last else side.accelerator.no_sync(side.encoders):
        local_BD = _embed(side, rows, queries[rank()], documents[rank()], step=step)
        counts = [q.stop - q.start + d.stop - d.start for q, d in zip(queries, documents, strict=True)]
        embeds_BD = gather_rows(local_BD, counts)
        if not bool(torch.isfinite(embeds_BD).all()):
            raise _diverged("an embedding is not finite", step)
        pieces = [
            part
            for q, d in zip(queries, documents, strict=True)
            for part in (rows.query.labels[q], rows.document.labels[d])
        ]
        labels_B = torch.from_numpy(np.concatenate(pieces)).to(embeds_BD.device)
        share = len(labels_B) / (recipe.image.queries_per_step + recipe.image.documents_per_step)
        loss = _global_loss(embeds_BD, labels_B, gathered, recipe, leaf_N=side.leaf_N) * share
        side.accelerator.backward(loss)
    return float(loss.detach())


def _embed(side: ImageStage, rows: StepRows, query: slice, document: slice, *, step: int) -> Tensor:
    """(B, D) unit rows of this rank's pieces, queries first."""
    recipe = side.recipe
    like = side.shard.like
    masks = {
        name: dropout_scale(
            recipe.image.embed_dropout, rows=part, width=recipe.model.hidden_size, seed=side.seed, step=step, side=name
        ).to(like)
        for name, part in (("query", query), ("document", document))
    }
    query_BD, document_BD = side.encoders(
        rows_of(side.query_inputs, rows.query.rows[query], rows.query.views[query], like=like),
        rows_of(side.document_inputs, rows.document.rows[document], rows.document.views[document], like=like),
        masks["query"],
        masks["document"],
    )
    return torch.cat([query_BD, document_BD]).to(like.dtype)


def softmax_form(recipe: Recipe) -> SoftmaxForm:
    """The form of the softmax loss; that of ProxyAnchor is not read.

    Raises:
        ValueError: a margin, scale or filter out of range.
    """
    loss = recipe.head.loss if isinstance(recipe.head.loss, SoftmaxLoss) else SoftmaxLoss()
    return SoftmaxForm(
        margin=margin_by_name(loss.margin, loss.margin_value),
        scale=loss.scale,
        label_smoothing=loss.label_smoothing,
        sub_centres=recipe.head.sub_centres,
        conflict_delta=loss.conflict_delta,
        conflict_tau=loss.conflict_tau,
    )


def _global_loss(
    embeds_BD: Tensor, labels_B: Tensor, gathered: GatheredRows, recipe: Recipe, *, leaf_N: Tensor | None = None
) -> Tensor:
    """Loss of the rows of all ranks, from the scalars that every rank computes for its classes."""
    loss, rows, class_ids = recipe.head.loss, gathered.weight_SD, gathered.class_ids_S
    classes = ClassRange(rows, class_ids, gathered.log_correction_S)
    if isinstance(loss, ProxyAnchorLoss):
        sums = anchor_sums(embeds_BD, labels_B, classes, scale=loss.alpha, margin=loss.margin)
        return anchor_loss(AnchorSums(*sum_over_ranks(torch.stack(sums)).unbind()))
    form = softmax_form(recipe)
    best_B = None
    if form.conflict_delta is not None:
        # The filter of negatives looks at the positive, which one rank alone holds.
        local = positive_cosines(embeds_BD, labels_B, rows, class_ids, form=form)
        best_B = best_positive(sum_over_ranks(local), labels_B)
    leaves = None
    if form.label_smoothing and leaf_N is not None:
        leaves = Leaves(leaf_N[class_ids.to(leaf_N.device)], leaf_N[labels_B.to(leaf_N.device)])
    scalars = class_scalars(embeds_BD, labels_B, classes, form=form, best_positive_B=best_B, leaves=leaves)
    scalars = reduce_scalars(scalars, max_of=max_over_ranks, sum_of=sum_over_ranks)
    return loss_from_scalars(scalars, labels_B, form=form)


def _update_encoders(side: ImageStage, factor: float, *, step: int) -> float:
    """Clip, step and clear the encoders' gradients; returns the norm before clipping."""
    most = side.recipe.image.max_grad_norm
    parameters = [value for value in side.encoders.parameters() if value.requires_grad]
    norm = side.accelerator.clip_grad_norm_(parameters, math.inf if most is None else most)
    full: Tensor = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
    # With fp16 the gradient scaler skips such a step and lowers its scale.
    if not math.isfinite(float(full)) and side.accelerator.scaler is None:
        raise _diverged(f"the gradient norm of the encoders is {float(full)}", step)
    for group in side.optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor
    side.optimizer.step()
    side.optimizer.zero_grad()
    return float(full)
