"""The door of training: `accelerate launch train/run.py --data governed --out runs/x`.

This file is a table of contents: each line is a stage, and each stage a file of its own.
"""

import os
import sys

from runtime.logs import configure
from train.command import Options, read_options
from train.encoders.backbones import build_model, with_image_weights
from train.encoders.lora import export_adapter, is_adapter_alone
from train.encoders.pair import EncoderPair
from train.ensemble.ensemble import recipe_of_weights, train_members
from train.image_stage.loop import ImageResult, check_layout
from train.inputs.cache import FeatureCache
from train.inputs.samples import GovernedSamples, read_samples
from train.parallel.topology import exit_process, start_topology, use_huge_pages
from train.publish.hub import calibration_queries, export_hub
from train.publish.hub_head import check_head, is_head_published
from train.publish.journal import Stopwatch
from train.publish.run_folder import close_run, open_run
from train.recipes.recipe import Recipe
from train.recipes.registry import recipe_by_name
from train.text_stage.stage import category_prototypes, features_of, fit_text


def main() -> int:
    """Run the command line; 2 and one line on stderr for a caller's mistake."""
    use_huge_pages()
    configure(stream=sys.stdout)
    try:
        options = read_options(sys.argv[1:])
        if options is not None:
            train(options)
    except ValueError as error:
        rank = os.environ.get("RANK", "0")
        print("error:" if rank == "0" else f"error (rank {rank}):", error, file=sys.stderr, flush=True)
        return 2
    return 0


def train(options: Options) -> None:
    """The stages, in order."""
    recipe = recipe_by_name(options.recipe)
    accelerator = start_topology(tracker=options.tracker, folder=options.out, seed=options.seed)
    check_layout(recipe, processes=accelerator.num_processes)
    samples = read_samples(options.data)
    check_head(recipe, categories=samples.num_categories)
    open_run(options.out, recipe, accelerator, resume=options.resume, seed=options.seed)
    stopwatch = Stopwatch(options.out if accelerator.is_main_process else None, resume=options.resume)
    model, processor = build_model(recipe, seed=options.seed)
    with stopwatch.stage("features"):
        cache = features_of(model, processor, samples, recipe=recipe, folder=options.features, seed=options.seed)
    with stopwatch.stage("image_side") as note:
        image = train_members(
            model,
            cache,
            samples,
            recipe=recipe,
            accelerator=accelerator,
            folder=options.out,
            seed=options.seed,
            max_steps=options.max_steps,
            resume=options.resume,
            trained=options.image_side,
            when_saved=note,
        )
    if accelerator.is_main_process:
        finish(options, recipe, samples, cache, image, stopwatch)
    accelerator.end_training()


def finish(
    options: Options,
    recipe: Recipe,
    samples: GovernedSamples,
    cache: FeatureCache,
    image: ImageResult,
    stopwatch: Stopwatch,
) -> None:
    """What one process does with the trained image side: text side, published folder, record of the run."""
    loads = recipe_of_weights(recipe)
    model, processor = with_image_weights(loads, image.weights, seed=options.seed)
    encoders = EncoderPair(model, frozen_stages=recipe.model.frozen_stages)
    prototypes = None
    if is_head_published(recipe, categories=samples.num_categories):
        prototypes = category_prototypes(encoders, cache, samples, image.class_weights)
    with stopwatch.stage("text_side"):
        text = fit_text(model, cache, samples, prototypes, recipe=recipe, seed=options.seed)
    with stopwatch.stage("export"):
        export_hub(
            options.out / "hub",
            model=model,
            processor=processor,
            prototypes=prototypes,
            calibration=calibration_queries(
                encoders, cache.query_inputs, samples, most=recipe.runtime.calibration_queries
            ),
            categories=options.data / "categories.parquet",
            recipe=recipe,
        )
        if is_adapter_alone(loads):
            base, _ = build_model(recipe, seed=options.seed)
            weights = {**image.weights, **text.adapters}
            export_adapter(options.out, base=base, model=model, processor=processor, weights=weights, recipe=loads)
    close_run(
        options.out,
        recipe=recipe,
        samples=samples,
        image=image,
        text=text.report,
        stopwatch=stopwatch,
        seed=options.seed,
    )
    where = "" if prototypes is not None else f"; prototypes: {options.out / 'prototypes'}"
    print(f"published folder: {options.out / 'hub'}{where}", flush=True)


if __name__ == "__main__":
    exit_process(main())
