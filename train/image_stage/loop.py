"""The image stage: image encoder, projection and class weights learn to classify queries and documents.

It runs first and without text: inside this loss, text is a shortcut to the label that an image query cannot see, and
unseen categories pay for it. The text stage is fitted afterwards to the prototypes that are learned here.
"""

import dataclasses
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from train.checkpoints.checkpoint import check_identity, load_checkpoint, same_categories
from train.checkpoints.folder import checkpoint_to_resume, newest_checkpoint, read_state
from train.checkpoints.writer import Checkpointer
from train.class_weights.class_table import ClassTable
from train.class_weights.hard_classes import HardClasses, LeafClasses, NearestClasses
from train.class_weights.initialization import SideRowsOfClass, at_start, first_rows, start_from_means
from train.class_weights.prototypes import export_prototypes, gathered_prototypes
from train.class_weights.published_size import is_head_published
from train.class_weights.shard import ClassShard, ShardSettings, class_range
from train.class_weights.storage import ClassStorage
from train.context import RunContext
from train.encoders.ema import WeightAverage
from train.encoders.lora import add_adapters, trained_share
from train.encoders.pair import EncoderPair, start_image_head
from train.encoders.parameter_groups import parameter_groups
from train.encoders.recompute import recompute_blocks
from train.image_stage.evaluator import Evaluator, load_best, stopped_early, summary
from train.image_stage.recovery import Recovery
from train.image_stage.remap import resume_classes
from train.image_stage.step import Diverged, ImageStage, optimiser_step
from train.inputs.feature_keys import model_identity
from train.inputs.feature_stream import with_look_ahead
from train.inputs.sample_table import in_own_pages
from train.inputs.sampler import StepSampler, compact, piece
from train.inputs.samples import GovernedSamples, leaf_ids
from train.journal import Journal
from train.parallel.collectives import on_main, rank, world_size
from train.parallel.watchdog import Watchdog
from train.recipes.recipe import Recipe, SoftmaxLoss, image_stage_settings, learned_settings

logger = logging.getLogger(__name__)

TORCH_DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class ImageResult:
    """The trained image stage.

    Attributes:
        weights: state of the `EncoderPair` on the main process, empty elsewhere.
        class_weights: (C, D) float32 unit rows, one per trained class, on the main process; empty elsewhere, and where
            the published folder does not hold them (class_weights/published_size.py).
        steps: steps done in all. seconds: time of the steps of this call.
        evaluation: the best line of evaluation.jsonl and the number of lines; None without evaluations.
    """

    weights: dict[str, Tensor]
    class_weights: Tensor
    steps: int
    seconds: float
    evaluation: dict[str, Any] | None = None


def trained_rows(samples: GovernedSamples) -> dict[str, SideRowsOfClass]:
    """Rows of each side that are trained on: those of `classes` in split "train", with an image."""
    labels = samples.labels
    place = np.full(samples.num_categories, -1, np.int32)
    place[samples.classes] = np.arange(len(samples.classes))
    usable = samples.is_trained()
    found = {}
    for side, category_ids, weights in (
        ("query", labels.query, samples.query_weights),
        ("document", labels.document, samples.document_weights),
    ):
        rows = compact(np.flatnonzero(usable[side]))
        found[side] = SideRowsOfClass(*map(in_own_pages, (rows, place[category_ids[rows]], weights[rows])))
    return found


def run_identity(model: Any, samples: GovernedSamples, recipe: Recipe, *, seed: int) -> dict[str, Any]:
    """Facts that a checkpoint and the run that resumes it must share."""
    categories = {
        "fingerprint": samples.fingerprint,
        "trained": len(samples.classes),
        "all": samples.num_categories,
        "samples": len(samples.table),
    }
    return {"recipe": recipe.to_json(), "model": model_identity(model), "categories": categories, "seed": seed}


def train_image_stage(
    context: RunContext,
    model: Any,
    cache: Any,
    samples: GovernedSamples,
    *,
    when_saved: Callable[[], None] = lambda: None,
) -> ImageResult:
    """Train the image stage of one run or ensemble member, with journal and checkpoints; all ranks call it.

    Args:
        model: the untrained `OclearModel`, equal on every rank. cache: see inputs/features.py.
        when_saved: is called after each checkpoint.

    Raises:
        ValueError: a checkpoint of another run, a loss that is not finite, a layout that does not divide.
    """
    recipe, folder = context.recipe, context.folder
    checkpoints = folder / "checkpoints"
    identity = run_identity(model, samples, recipe, seed=context.draw_seed)
    stage = _prepare(context, model, cache, samples)
    _log_ranges(stage.shard)
    classes = class_table(samples)
    checkpointer = Checkpointer(stage, checkpoints, identity=identity, classes=classes)
    start = _resume(stage, checkpoints, identity, samples) if context.resume else 0
    end = min(context.max_steps or recipe.image.steps, recipe.image.steps)
    if context.reused_run is not None:
        start = end = _reuse(stage, context.reused_run, identity, steps=end)
    evaluator = Evaluator(stage, samples, folder=folder, start=start)
    begun = time.perf_counter()
    done = _run_steps(stage, checkpointer, evaluator, folder=folder, steps=(start, end), when_saved=when_saved)
    seconds = time.perf_counter() - begun
    evaluated = context.reused_run or folder
    if recipe.image.export_best:
        load_best(stage, evaluated, done=done)
    if recipe.runtime.publish_prototypes:
        export_prototypes(folder / "prototypes", stage.shard, _class_lines(samples, classes))
    return ImageResult(
        weights=_weights(stage),
        class_weights=_class_weights(stage.shard, recipe, samples),
        steps=done,
        seconds=seconds,
        evaluation=summary(evaluated, done=done),
    )


def _run_steps(
    stage: ImageStage,
    checkpointer: Checkpointer,
    evaluator: Evaluator,
    *,
    folder: Path,
    steps: tuple[int, int],
    when_saved: Callable[[], None],
) -> int:
    """Train from the first of `steps` to before the last, or until early stopping; returns the number of steps done.

    A run that may recover from divergence is evaluated and saved before its first step too.
    """
    start, end = steps
    recovery = Recovery(stage, evaluator, folder=folder, start=start)
    if recovery.most and start == 0 < end:
        checkpointer.save(0, metric=evaluator.after(0))
    while True:
        done, trouble = _run_until_trouble(checkpointer, recovery, steps=(start, end), when_saved=when_saved)
        if trouble is None:
            return done
        checkpointer.forget()
        start = recovery.go_back(trouble, done=done)


def _run_until_trouble(
    checkpointer: Checkpointer, recovery: Recovery, *, steps: tuple[int, int], when_saved: Callable[[], None]
) -> tuple[int, str | None]:
    """(steps done, why the run must go back; None at its end)."""
    stage, evaluator = recovery.stage, recovery.evaluator
    (start, end), recipe = steps, stage.recipe
    done, rows = start, recipe.image.queries_per_step + recipe.image.documents_per_step
    journal = Journal(stage.accelerator, recovery.folder, steps=end, start=start, rows_per_step=rows)
    with journal, Watchdog(recovery.folder) as watchdog:
        for step in range(start, end):
            if evaluator.should_stop:
                break
            watchdog.step = step
            try:
                metrics = optimiser_step(stage, step)
            except Diverged as error:
                if not recovery.is_possible:
                    raise
                return done, str(error).partition(";")[0]
            journal.write(step, dataclasses.asdict(metrics))
            done = step + 1
            metric = evaluator.after(done)
            trouble = recovery.reason() if metric is not None else None
            if trouble is not None:
                return done, trouble
            last = done if evaluator.should_stop else end
            if checkpointer.due(done, end=last) or (recipe.image.export_best and evaluator.is_best(done)):
                checkpointer.save(done, metric=metric)
                when_saved()
        checkpointer.wait()
    return done, None


def class_table(samples: GovernedSamples) -> ClassTable:
    """Key and training samples of each class."""
    counts = np.zeros(len(samples.classes), np.int64)
    for part in trained_rows(samples).values():
        counts += np.bincount(part.labels, minlength=len(counts))
    return ClassTable(tuple(samples.keys[category] for category in samples.classes), counts)


def _class_lines(samples: GovernedSamples, classes: ClassTable) -> Iterator[dict[str, Any]]:
    """One line of `prototypes/` per class."""
    for category, key, count in zip(samples.classes.tolist(), classes.keys, classes.samples.tolist(), strict=True):
        yield {"category_id": category, "category_key": key, "leaf": samples.leaves[category], "samples": count}


def class_shard(recipe: Recipe, *, num_classes: int, device: torch.device, folder: Path, seed: int) -> ClassShard:
    """The class rows of this rank, at zero, stored as the recipe says."""
    head, runtime = recipe.head, recipe.runtime
    place = folder / "class_rows" if runtime.head_storage_folder is None else Path(runtime.head_storage_folder)
    return ClassShard(
        num_classes,
        recipe.model.hidden_size,
        ShardSettings(
            dtype=TORCH_DTYPES[head.dtype or recipe.model.dtype],
            weight_decay=head.weight_decay,
            optimizer=head.optimizer,
            momentum=head.momentum,
            sub_centres=head.sub_centres,
            seed=seed,
        ),
        device=device,
        storage=ClassStorage(runtime.head_storage, device=device, folder=place, part=rank()),
    )


def _prepare(context: RunContext, model: Any, cache: Any, samples: GovernedSamples) -> ImageStage:
    """Standardisation, projection and prototypes start from `context.seed`; rows, dropout and classes are drawn by
    `context.draw_seed`.
    """
    recipe, accelerator, seed = context.recipe, context.accelerator, context.seed
    _check_precision(recipe, accelerator)
    rows = trained_rows(samples)
    inputs = {"query": cache.query_inputs, "document": cache.document_inputs}
    encoders = _encoders(model, recipe, accelerator, seed=seed)
    start_image_head(
        encoders,
        inputs=inputs,
        rows={name: part.rows for name, part in rows.items()},
        projection=recipe.image.projection,
    )
    shard = class_shard(
        recipe, num_classes=len(samples.classes), device=accelerator.device, folder=context.folder, seed=seed
    )
    shard.check_rows()
    first = {name: first_rows(part, most=recipe.head.start_rows) for name, part in rows.items()}
    start_from_means(shard, at_start(encoders, inputs), first)
    optimizer = torch.optim.AdamW(parameter_groups(encoders, recipe))
    if recipe.runtime.activation_checkpointing:
        recompute_blocks(model.vision_model)
    if recipe.runtime.compile:
        encoders.compile()  # in place: no wrapper, so names in checkpoints stay what they are
    prepared, optimizer = accelerator.prepare(encoders, optimizer)
    prepared.eval()
    smooths = isinstance(recipe.head.loss, SoftmaxLoss) and recipe.head.loss.label_smoothing > 0
    return ImageStage(
        accelerator=accelerator,
        encoders=prepared,
        optimizer=optimizer,
        shard=shard,
        sampler=with_look_ahead(_sampler(rows, recipe), cache, recipe),
        query_inputs=cache.query_inputs,
        document_inputs=cache.document_inputs,
        recipe=recipe,
        seed=context.draw_seed,
        hard=_hard_classes(recipe, shard, samples, seed=context.draw_seed),
        leaf_N=leaf_ids(samples.class_leaves) if smooths else None,
        average=None if recipe.image.ema_decay is None else WeightAverage(prepared, decay=recipe.image.ema_decay),
    )


def _sampler(rows: dict[str, SideRowsOfClass], recipe: Recipe) -> StepSampler:
    return StepSampler(
        rows["query"].as_tuple(),
        rows["document"].as_tuple(),
        query_views=recipe.image.query_views,
        document_views=recipe.image.document_views,
        balance=recipe.image.class_balance,
    )


def _encoders(model: Any, recipe: Recipe, accelerator: Accelerator, *, seed: int) -> EncoderPair:
    """The pair on its device, with adapters where the recipe asks for them."""
    encoders = EncoderPair.for_training(
        model, frozen_stages=recipe.model.frozen_stages, mixed_precision=recipe.model.mixed_precision
    )
    if recipe.image.lora.rank:
        add_adapters(model.vision_model, recipe, seed=seed)
        if rank() == 0:
            logger.info("%s", trained_share(encoders))
    # eval: norms use running statistics, and dropout comes in as masks, so train mode would change nothing but them.
    return encoders.to(device=accelerator.device, dtype=TORCH_DTYPES[recipe.model.dtype]).eval()


def _check_precision(recipe: Recipe, accelerator: Accelerator) -> None:
    """The launch may leave the precision to the recipe, or say the same."""
    launched = accelerator.mixed_precision
    if launched not in ("no", recipe.model.mixed_precision):
        raise ValueError(
            f"the launch asks for mixed precision {launched}, the recipe for {recipe.model.mixed_precision}; set "
            "mixed_precision in the recipe ('no' or 'bf16'), and 'no' in the accelerate file"
        )


def _hard_classes(recipe: Recipe, shard: ClassShard, samples: GovernedSamples, *, seed: int) -> HardClasses | None:
    head = recipe.head
    if head.hard_classes == "none":
        return None
    if head.hard_classes == "leaf":
        return LeafClasses(samples.class_leaves, per_positive=head.hard_per_positive)
    return NearestClasses(
        shard,
        per_positive=head.hard_per_positive,
        refresh_every=head.hard_refresh_every,
        also_every=recipe.image.checkpoint_every,
        seed=seed,
    )


def _log_ranges(shard: ClassShard) -> None:
    """The main process logs which classes every rank holds."""
    bounds = [class_range(shard.num_classes, part=part, parts=world_size()) for part in range(world_size())]
    if rank() == 0:
        for part, (start, end) in enumerate(bounds):
            logger.info(
                "rank %d holds classes %d to %d (%d of %d rows)", part, start, end, end - start, shard.num_classes
            )


def _resume(stage: ImageStage, checkpoints: Path, identity: dict[str, Any], samples: GovernedSamples) -> int:
    """Load the newest complete checkpoint; returns its number of steps, 0 without one."""
    path = on_main(lambda: checkpoint_to_resume(checkpoints))
    if path is None:
        return 0
    done = on_main(
        lambda: check_identity(path, identity, compared=learned_settings, other_categories=bool(samples.events))
    )
    if on_main(lambda: same_categories(path, identity)):
        load_checkpoint(stage, path)
    else:
        resume_classes(stage, path, class_table(samples), events=samples.events, rows=trained_rows(samples))
    if rank() == 0:
        logger.info("resumed from %s: %d steps done", path.name, done)
    return done


def _reuse(stage: ImageStage, run: Path, identity: dict[str, Any], *, steps: int) -> int:
    """Load the finished image stage of another run with the same images, categories, seed and image settings."""

    def finished() -> Path:
        path = newest_checkpoint(run / "checkpoints")
        if path is None:
            raise ValueError(f"--image-side {run} holds no complete checkpoint; name the folder of a finished run")
        done = check_identity(path, identity, compared=image_stage_settings)
        if done != steps and not stopped_early(run, patience=stage.recipe.image.early_stopping, done=done):
            raise ValueError(f"--image-side {run} did {done} of {steps} steps; finish it first with --resume")
        return path

    path = on_main(finished)
    load_checkpoint(stage, path)
    done = int(on_main(lambda: read_state(path)["step"]))
    if rank() == 0:
        logger.info("image stage reused from %s: %d steps done there", run, done)
    return done


def _weights(stage: ImageStage) -> dict[str, Tensor]:
    """Full state of the encoders, averaged where the recipe says so, under the names of `EncoderPair`.

    On the main process; empty elsewhere.
    """
    state = stage.accelerator.get_state_dict(stage.encoders)
    average = {} if stage.average is None else stage.average.gathered()
    if rank() != 0:
        return {}
    return {name: average.get(name, value).detach().cpu() for name, value in state.items()}


def _class_weights(shard: ClassShard, recipe: Recipe, samples: GovernedSamples) -> Tensor:
    """All prototypes on the main process where the published folder is to hold them."""
    if is_head_published(recipe, categories=samples.num_categories):
        return gathered_prototypes(shard)
    return torch.empty(0, shard.hidden_size)


def check_layout(recipe: Recipe, *, processes: int) -> None:
    """Stop before features are computed when a step cannot be cut into ranks x micro-steps, or nothing is trained.

    Raises:
        ValueError: fewer rows than pieces; a setting of the trained backbone, where none is trained.
    """
    if recipe.model.frozen_stages is None:
        for name, value, off in (
            ("runtime.activation_checkpointing", recipe.runtime.activation_checkpointing, False),
            ("image.layer_decay", recipe.image.layer_decay, None),
            ("image.lora.rank", recipe.image.lora.rank, 0),
        ):
            if value != off:
                raise ValueError(
                    f"recipe.{name} is {value} with model.frozen_stages null, where nothing of the backbone is "
                    f"trained; give frozen_stages a number, or leave {name} at {off}"
                )
    parts = recipe.image.gradient_accumulation * processes
    piece(recipe.image.queries_per_step, 0, parts)
    piece(recipe.image.documents_per_step, 0, parts)
