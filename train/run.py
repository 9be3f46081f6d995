"""Entry point of training: `accelerate launch train/run.py --data governed --out runs/x`."""

import os
import sys

from runtime.logs import configure
from train.command import Options, read_options
from train.context import RunContext
from train.inputs.samples import data_counts, read_samples
from train.parallel.topology import exit_process, start_topology, use_huge_pages
from train.pipeline import train
from train.recipes import auto
from train.recipes.recipe import Recipe
from train.recipes.registry import recipe_by_name


def main() -> int:
    """Run the command line; 2 and one line on stderr for a caller's mistake."""
    use_huge_pages()
    configure(stream=sys.stdout)
    try:
        options = read_options(sys.argv[1:])
        if options is not None:
            train(context_of(options))
    except ValueError as error:
        rank = os.environ.get("RANK", "0")
        print("error:" if rank == "0" else f"error (rank {rank}):", error, file=sys.stderr, flush=True)
        return 2
    return 0


def recipe_for(options: Options) -> Recipe:
    """The recipe of a name or file; `auto` follows from the counts of the governed folder.

    Raises:
        ValueError: no such recipe, or, for `auto`, a folder that cannot be read.
    """
    if options.recipe == auto.NAME:
        begun = options.out / "recipe.json"
        if options.resume and begun.is_file():
            return recipe_by_name(str(begun))  # the data may have changed since
        return auto.auto_recipe(data_counts(read_samples(options.data)))
    return recipe_by_name(options.recipe)


def context_of(options: Options) -> RunContext:
    """Read the recipe and join the processes.

    Raises:
        ValueError: no such recipe, or a topology that is not the one asked for.
    """
    recipe = recipe_for(options)
    accelerator = start_topology(tracker=options.tracker, folder=options.out, seed=options.seed)
    return RunContext(
        recipe=recipe,
        accelerator=accelerator,
        data=options.data,
        folder=options.out,
        features=options.features,
        seed=options.seed,
        max_steps=options.max_steps,
        resume=options.resume,
        reused_run=options.image_side,
    )


if __name__ == "__main__":
    exit_process(main())
