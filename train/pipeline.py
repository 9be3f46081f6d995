"""The stages of training in order: features, image stage, selection, text stage, published folder."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from train.class_weights.published_size import check_head, is_head_published
from train.context import RunContext
from train.encoders.backbones import build_model
from train.encoders.lora import export_adapter, is_adapter_alone
from train.ensemble.ensemble import train_ensemble
from train.image_stage.category_prototypes import category_prototypes
from train.image_stage.loop import ImageResult, check_layout
from train.inputs.cache import FeatureCache
from train.inputs.features import features_of
from train.inputs.samples import GovernedSamples, can_train, check_classes, read_samples
from train.journal import Stopwatch
from train.publish.hub import calibration_queries, export_hub, with_head
from train.publish.run_folder import close_run, only_run, open_run
from train.selection.candidates import Candidate
from train.selection.select import published_as_trained, select_image_weights
from train.text_stage.fit import fit_text_stage
from train.text_stage.stage import TextStage


@dataclass(frozen=True)
class Parts:
    """The replaceable parts of training.

    Attributes:
        build_model: (recipe, seed=) -> untrained model and processor.
        features_of: (model, processor, samples, recipe=, folder=, seed=) -> `FeatureCache`.
    """

    build_model: Callable[..., tuple[Any, Any]] = build_model
    features_of: Callable[..., FeatureCache] = features_of


def train(context: RunContext, *, parts: Parts | None = None) -> None:
    """Train on a governed folder and publish `hub/` in the run folder; all ranks call it.

    Args:
        parts: other model builder or features, as benchmarks use them.

    Raises:
        ValueError: a mistake of the caller, with value and remedy; see the stages.
    """
    parts = parts or Parts()
    recipe, accelerator = context.recipe, context.accelerator
    check_layout(recipe, processes=accelerator.num_processes)
    samples = read_samples(context.data)
    check_head(recipe, categories=samples.num_categories)
    if recipe.publish == "trained":
        check_classes(samples)
    with only_run(context.folder):
        open_run(context)
        stopwatch = Stopwatch(context.folder if accelerator.is_main_process else None, resume=context.resume)
        model, processor = parts.build_model(recipe, seed=context.seed)
        samples.limit_images(processor)
        with stopwatch.stage("features"):
            cache = parts.features_of(
                model, processor, samples, recipe=recipe, folder=context.features, seed=context.seed
            )
        image = None
        if can_train(samples):
            with stopwatch.stage("image_side") as note:
                image = train_ensemble(context, model, cache, samples, when_saved=note)
        if accelerator.is_main_process:
            publish_run(context, samples, cache, image, stopwatch, parts=parts)
        accelerator.end_training()


def publish_run(
    context: RunContext,
    samples: GovernedSamples,
    cache: FeatureCache,
    image: ImageResult | None,
    stopwatch: Stopwatch,
    *,
    parts: Parts | None = None,
) -> None:
    """Choose the image weights, fit the text stage to them and write the published folder. Main process only.

    Args:
        image: the trained image stage; None when the data have nothing to train on.
    """
    build = (parts or Parts()).build_model
    seed = context.seed
    with stopwatch.stage("selection"):
        chosen, frozen_CF, selection = _chosen(context, image, cache, samples)
    recipe = chosen.recipe
    model, processor, encoders = chosen.encoders(seed=seed)
    samples.limit_images(processor)
    prototypes = None
    if is_head_published(recipe, categories=samples.num_categories):
        prototypes = category_prototypes(encoders, cache, samples, chosen.class_weights)
    with stopwatch.stage("text_side"):
        stage = TextStage(model, cache, samples.labels, prototypes, recipe=recipe, seed=seed)
        text = fit_text_stage(stage, samples, frozen_CF=frozen_CF)
    hub = context.folder / "hub"
    with stopwatch.stage("export"):
        export_hub(
            hub,
            model=model if prototypes is None else with_head(model, prototypes, recipe),
            processor=processor,
            calibration=calibration_queries(
                encoders, cache.query_inputs, samples, most=recipe.runtime.calibration_queries
            ),
            categories=context.data / "categories.parquet",
        )
        if is_adapter_alone(recipe):
            base, _ = build(context.recipe, seed=seed)
            weights = {**chosen.weights, **text.adapters}
            export_adapter(context.folder, base=base, model=model, processor=processor, weights=weights, recipe=recipe)
    close_run(context, samples=samples, image=image, text=text.report, selection=selection, stopwatch=stopwatch)
    shards = "" if prototypes is not None else f"; prototypes: {context.folder / 'prototypes'}"
    print(f"published folder: {hub}{shards}", flush=True)


def _chosen(
    context: RunContext, image: ImageResult | None, cache: FeatureCache, samples: GovernedSamples
) -> tuple[Candidate, np.ndarray | None, dict[str, Any] | None]:
    """(what is published, held-out metrics of the frozen encoder, report); None twice without a judgement."""
    if context.recipe.publish == "trained":
        assert image is not None, "check_classes has passed"
        return published_as_trained(context, image), None, None
    found = select_image_weights(context, image, cache, samples)
    return found.candidate, found.frozen_CF, found.report
