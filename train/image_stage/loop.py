"""The image side by classification: both encoders' image halves against the classes of the governed data.

Why first and alone: text inside this loss is a shortcut to the label that an image query cannot see, and categories
never seen in training pay for it. The text side is fitted afterwards against the prototypes that are learned here.
"""

import dataclasses
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
from train.class_weights.shard import ClassShard, ShardSettings, class_range
from train.class_weights.storage import ClassStorage
from train.encoders.ema import WeightAverage
from train.encoders.lora import add_adapters, trained_share
from train.encoders.pair import EncoderPair, start_image_head
from train.encoders.parameter_groups import parameter_groups
from train.encoders.recompute import recompute_blocks
from train.ensemble.soup import member_seed
from train.image_stage.evaluator import Evaluator, load_best, stopped_early, summary
from train.image_stage.remap import resume_classes
from train.image_stage.step import ImageSide, optimiser_step
from train.inputs.feature_keys import model_identity
from train.inputs.feature_stream import with_look_ahead
from train.inputs.sample_table import in_own_pages
from train.inputs.sampler import StepSampler, compact, piece
from train.inputs.samples import GovernedSamples, leaf_ids
from train.parallel.collectives import on_main, rank, world_size
from train.parallel.watchdog import Watchdog
from train.publish.hub_head import is_head_published
from train.publish.journal import Journal
from train.recipes.recipe import Recipe, SoftmaxLoss, image_stage_settings, learned_settings

TORCH_DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class ImageResult:
    """What the image side hands on.

    Attributes:
        weights: state of the `EncoderPair` on the main process, empty elsewhere.
        class_weights: (C, D) float32 unit rows, one per trained class, on the main process; empty elsewhere, and where
            there are more than `hub/` takes (hub_head.py).
        steps: steps done in all. seconds: time of the steps of this call.
        evaluation: the best line of evaluation.jsonl and the number of lines; None without evaluations.
    """

    weights: dict[str, Tensor]
    class_weights: Tensor
    steps: int
    seconds: float
    evaluation: dict[str, Any] | None = None


def trained_rows(samples: GovernedSamples) -> dict[str, SideRowsOfClass]:
    """Rows of each side that the image side learns from: split "train", with an image."""
    labels = samples.labels
    usable = {
        "query": ~labels.query_validation,
        "document": ~labels.document_validation & samples.document_has_image,
    }
    place = np.full(samples.num_categories, -1, np.int32)
    place[samples.classes] = np.arange(len(samples.classes))
    found = {}
    for side, category_ids, weights in (
        ("query", labels.query, samples.query_weights),
        ("document", labels.document, samples.document_weights),
    ):
        rows = compact(np.flatnonzero(usable[side]))
        found[side] = SideRowsOfClass(*map(in_own_pages, (rows, place[category_ids[rows]], weights[rows])))
    return found


def run_identity(model: Any, samples: GovernedSamples, recipe: Recipe, *, seed: int) -> dict[str, Any]:
    """What a checkpoint and the run that resumes it must have in common."""
    categories = {
        "fingerprint": samples.fingerprint,
        "trained": len(samples.classes),
        "all": samples.num_categories,
        "samples": len(samples.table),
    }
    return {"recipe": recipe.to_json(), "model": model_identity(model), "categories": categories, "seed": seed}


def train_image_side(
    model: Any,
    cache: Any,
    samples: GovernedSamples,
    *,
    recipe: Recipe,
    accelerator: Accelerator,
    folder: Path,
    seed: int,
    max_steps: int | None,
    resume: bool,
    member: int = 0,
    trained: Path | None = None,
    when_saved: Callable[[], None] = lambda: None,
) -> ImageResult:
    """Train, journal and checkpoint; all ranks call it.

    Args:
        model: the `OclearModel` at its start, equal on every rank. cache: see features.py.
        folder: the run. max_steps: stop after so many steps of the recipe's schedule. member: draws other rows.
        trained: another run, whose finished image side is taken over. when_saved: is called after each checkpoint.

    Raises:
        ValueError: a checkpoint of another run, a loss that is not finite, a layout that does not divide.
    """
    draws, checkpoints = member_seed(seed, member), folder / "checkpoints"
    identity = run_identity(model, samples, recipe, seed=draws)
    side = _prepare(model, cache, samples, recipe, accelerator, folder=folder, seed=seed, draws=draws)
    _print_ranges(side.shard)
    classes = class_table(samples)
    checkpointer = Checkpointer(side, checkpoints, identity=identity, classes=classes)
    start = _resume(side, checkpoints, identity, samples) if resume else 0
    end = min(max_steps or recipe.image.steps, recipe.image.steps)
    if trained is not None:
        start = end = _take_over(side, trained, identity, steps=end)
    evaluator = Evaluator(side, samples, folder=folder, start=start)
    begun = time.perf_counter()
    done = _run_steps(side, checkpointer, evaluator, folder=folder, steps=(start, end), when_saved=when_saved)
    seconds = time.perf_counter() - begun
    if recipe.image.export_best:
        load_best(side, trained or folder, done=done)
    if recipe.runtime.publish_prototypes:
        export_prototypes(folder / "prototypes", side.shard, _class_lines(samples, classes))
    return ImageResult(
        weights=_weights(side),
        class_weights=_class_weights(side.shard, recipe, samples),
        steps=done,
        seconds=seconds,
        evaluation=summary(trained or folder, done=done),
    )


def _run_steps(
    side: ImageSide,
    checkpointer: Checkpointer,
    evaluator: Evaluator,
    *,
    folder: Path,
    steps: tuple[int, int],
    when_saved: Callable[[], None],
) -> int:
    """Train from the first of `steps` to before the last, or until nothing gets better; the number of steps done."""
    (start, end), recipe = steps, side.recipe
    done, rows = start, recipe.image.queries_per_step + recipe.image.documents_per_step
    journal = Journal(side.accelerator, folder, steps=end, start=start, rows_per_step=rows)
    with journal, Watchdog(folder) as watchdog:
        for step in range(start, end):
            if evaluator.should_stop:
                break
            watchdog.step = step
            journal.write(step, dataclasses.asdict(optimiser_step(side, step)))
            done = step + 1
            figure = evaluator.after(done)
            last = done if evaluator.should_stop else end
            if checkpointer.due(done, end=last) or (recipe.image.export_best and evaluator.is_best(done)):
                checkpointer.save(done, metric=figure)
                when_saved()
        checkpointer.wait()
    return done


def class_table(samples: GovernedSamples) -> ClassTable:
    """Key and training samples of each class."""
    counts = np.zeros(len(samples.classes), np.int64)
    for part in trained_rows(samples).values():
        counts += np.bincount(part.labels, minlength=len(counts))
    return ClassTable(tuple(samples.keys[category] for category in samples.classes), counts)


def _class_lines(samples: GovernedSamples, classes: ClassTable) -> Iterator[dict[str, Any]]:
    """What an export says about each class."""
    for category, key, count in zip(samples.classes.tolist(), classes.keys, classes.samples.tolist(), strict=True):
        yield {"category_id": category, "category_key": key, "leaf": samples.leaves[category], "samples": count}


def class_shard(recipe: Recipe, *, num_classes: int, device: torch.device, folder: Path, seed: int) -> ClassShard:
    """The rows of this rank, at zero, where and how the recipe says."""
    place = (
        folder / "class_rows"
        if recipe.runtime.head_storage_folder is None
        else Path(recipe.runtime.head_storage_folder)
    )
    return ClassShard(
        num_classes,
        recipe.model.hidden_size,
        ShardSettings(
            dtype=TORCH_DTYPES[recipe.head.dtype or recipe.model.dtype],
            weight_decay=recipe.image.weight_decay,
            optimizer=recipe.head.optimizer,
            momentum=recipe.head.momentum,
            sub_centres=recipe.head.sub_centres,
            seed=seed,
        ),
        device=device,
        storage=ClassStorage(recipe.runtime.head_storage, device=device, folder=place, part=rank()),
    )


def _prepare(
    model: Any,
    cache: Any,
    samples: GovernedSamples,
    recipe: Recipe,
    accelerator: Accelerator,
    *,
    folder: Path,
    seed: int,
    draws: int,
) -> ImageSide:
    """Standardisation, projection, prototypes at the start of `seed`; rows, dropout, classes are keyed by `draws`."""
    _check_precision(recipe, accelerator)
    rows = trained_rows(samples)
    inputs = {"query": cache.query_inputs, "document": cache.document_inputs}
    encoders = _encoders(model, recipe, accelerator, seed=seed)
    smooths = isinstance(recipe.head.loss, SoftmaxLoss) and recipe.head.loss.label_smoothing > 0
    start_image_head(
        encoders,
        inputs=inputs,
        rows={name: part.rows for name, part in rows.items()},
        projection=recipe.image.projection,
    )
    shard = class_shard(recipe, num_classes=len(samples.classes), device=accelerator.device, folder=folder, seed=seed)
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
    return ImageSide(
        accelerator=accelerator,
        encoders=prepared,
        optimizer=optimizer,
        shard=shard,
        sampler=with_look_ahead(_sampler(rows, recipe), cache, recipe),
        query_inputs=cache.query_inputs,
        document_inputs=cache.document_inputs,
        recipe=recipe,
        seed=draws,
        hard=_hard_classes(recipe, shard, samples, seed=draws),
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
            print(trained_share(encoders), flush=True)
    # Nothing here has a mode: norms use running statistics and dropout comes in as masks.
    return encoders.to(device=accelerator.device, dtype=TORCH_DTYPES[recipe.model.dtype]).eval()


def _check_precision(recipe: Recipe, accelerator: Accelerator) -> None:
    """The launch may leave the precision to the recipe, or say the same; nothing else."""
    asked = accelerator.mixed_precision
    if asked not in ("no", recipe.model.mixed_precision):
        raise ValueError(
            f"the launch asks for mixed precision {asked}, the recipe for {recipe.model.mixed_precision}; set "
            "mixed_precision in the recipe ('no' or 'bf16'), and 'no' in the accelerate file"
        )


def _hard_classes(recipe: Recipe, shard: ClassShard, samples: GovernedSamples, *, seed: int) -> HardClasses | None:
    if recipe.head.hard_classes == "none":
        return None
    if recipe.head.hard_classes == "leaf":
        return LeafClasses(samples.class_leaves, per_positive=recipe.head.hard_per_positive)
    return NearestClasses(
        shard,
        per_positive=recipe.head.hard_per_positive,
        refresh_every=recipe.head.hard_refresh_every,
        also_every=recipe.image.checkpoint_every,
        seed=seed,
    )


def _print_ranges(shard: ClassShard) -> None:
    """The main process prints which classes every rank holds."""
    bounds = [class_range(shard.num_classes, part=part, parts=world_size()) for part in range(world_size())]
    if rank() == 0:
        for part, (start, end) in enumerate(bounds):
            print(f"rank {part} holds classes {start} to {end} ({end - start} of {shard.num_classes} rows)", flush=True)


def _resume(side: ImageSide, checkpoints: Path, identity: dict[str, Any], samples: GovernedSamples) -> int:
    """Steps done in the newest whole checkpoint, loaded; 0 when there is none."""
    path = on_main(lambda: checkpoint_to_resume(checkpoints))
    if path is None:
        return 0
    done = on_main(
        lambda: check_identity(path, identity, compared=learned_settings, other_categories=bool(samples.events))
    )
    if on_main(lambda: same_categories(path, identity)):
        load_checkpoint(side, path)
    else:
        resume_classes(side, path, class_table(samples), events=samples.events, rows=trained_rows(samples))
    if rank() == 0:
        print(f"resumed from {path.name}: {done} steps done", flush=True)
    return done


def _take_over(side: ImageSide, trained: Path, identity: dict[str, Any], *, steps: int) -> int:
    """Load the image side that another run has finished with the same images, categories, seed and image recipe."""

    def finished() -> Path:
        path = newest_checkpoint(trained / "checkpoints")
        if path is None:
            raise ValueError(f"--image-side {trained} holds no complete checkpoint; name the folder of a finished run")
        done = check_identity(path, identity, compared=image_stage_settings)
        if done != steps and not stopped_early(trained, patience=side.recipe.image.early_stopping, done=done):
            raise ValueError(f"--image-side {trained} did {done} of {steps} steps; finish it first with --resume")
        return path

    path = on_main(finished)
    load_checkpoint(side, path)
    done = int(on_main(lambda: read_state(path)["step"]))
    if rank() == 0:
        print(f"image side taken from {trained}: {done} steps done there", flush=True)
    return done


def _weights(side: ImageSide) -> dict[str, Tensor]:
    """Whole state of the encoders, averaged where the recipe says so, under the names of `EncoderPair`.

    On the main process; empty elsewhere.
    """
    state = side.accelerator.get_state_dict(side.encoders)
    average = {} if side.average is None else side.average.gathered()
    if rank() != 0:
        return {}
    return {name: average.get(name, value).detach().cpu() for name, value in state.items()}


def _class_weights(shard: ClassShard, recipe: Recipe, samples: GovernedSamples) -> Tensor:
    """All prototypes on the main process where `hub/` is to hold them."""
    if is_head_published(recipe, categories=samples.num_categories):
        return gathered_prototypes(shard)
    return torch.empty(0, shard.hidden_size)


def check_layout(recipe: Recipe, *, processes: int) -> None:
    """Stop before features are computed when a step cannot be cut into ranks x micro-steps, or nothing be trained.

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
