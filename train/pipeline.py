"""The stages of training in order: features, image stage, text stage, published folder."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from train.class_weights.published_size import check_head, is_head_published
from train.context import RunContext
from train.encoders.backbones import build_model, with_image_weights
from train.encoders.lora import export_adapter, is_adapter_alone
from train.encoders.pair import EncoderPair
from train.ensemble.ensemble import recipe_of_result, train_ensemble
from train.image_stage.category_prototypes import category_prototypes
from train.image_stage.loop import ImageResult, check_layout
from train.inputs.cache import FeatureCache
from train.inputs.features import features_of
from train.inputs.samples import GovernedSamples, read_samples
from train.journal import Stopwatch
from train.publish.hub import calibration_queries, export_hub, with_head
from train.publish.run_folder import close_run, only_run, open_run
from train.text_stage.fit import fit_text_stage


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
    with only_run(context.folder):
        open_run(context)
        stopwatch = Stopwatch(context.folder if accelerator.is_main_process else None, resume=context.resume)
        model, processor = parts.build_model(recipe, seed=context.seed)
        with stopwatch.stage("features"):
            cache = parts.features_of(
                model, processor, samples, recipe=recipe, folder=context.features, seed=context.seed
            )
        with stopwatch.stage("image_side") as note:
            image = train_ensemble(context, model, cache, samples, when_saved=note)
        if accelerator.is_main_process:
            publish_run(context, samples, cache, image, stopwatch, parts=parts)
        accelerator.end_training()


def publish_run(
    context: RunContext,
    samples: GovernedSamples,
    cache: FeatureCache,
    image: ImageResult,
    stopwatch: Stopwatch,
    *,
    parts: Parts | None = None,
) -> None:
    """Fit the text stage to a trained image stage and write the published folder. Main process only."""
    build = (parts or Parts()).build_model
    recipe, seed = context.recipe, context.seed
    loaded_under = recipe_of_result(recipe)
    model, processor = with_image_weights(loaded_under, image.weights, seed=seed)
    encoders = EncoderPair(model, frozen_stages=recipe.model.frozen_stages)
    prototypes = None
    if is_head_published(recipe, categories=samples.num_categories):
        prototypes = category_prototypes(encoders, cache, samples, image.class_weights)
    with stopwatch.stage("text_side"):
        text = fit_text_stage(model, cache, samples, prototypes, recipe=recipe, seed=seed)
    hub = context.folder / "hub"
    with stopwatch.stage("export"):
        most = recipe.runtime.calibration_queries
        export_hub(
            hub,
            model=model if prototypes is None else with_head(model, prototypes, recipe),
            processor=processor,
            calibration=calibration_queries(encoders, cache.query_inputs, samples, most=most),
            categories=context.data / "categories.parquet",
        )
        if is_adapter_alone(loaded_under):
            base, _ = build(recipe, seed=seed)
            weights = {**image.weights, **text.adapters}
            export_adapter(
                context.folder, base=base, model=model, processor=processor, weights=weights, recipe=loaded_under
            )
    close_run(context, samples=samples, image=image, text=text.report, stopwatch=stopwatch)
    shards = "" if prototypes is not None else f"; prototypes: {context.folder / 'prototypes'}"
    print(f"published folder: {hub}{shards}", flush=True)
