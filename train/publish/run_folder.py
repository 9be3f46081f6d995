"""The run folder: claims it at the start, writes training.json at the end.

A folder that holds another run is never written over; a reader of a finished run finds recipe, environment, timings and
counts in files of fixed names.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from runtime.files import only_user, write_json
from train.checkpoints.checkpoint import check_identity
from train.checkpoints.folder import newest_checkpoint
from train.context import RunContext
from train.image_stage.loop import ImageResult, trained_rows
from train.inputs.samples import GovernedSamples
from train.journal import STEPS_FILE, Stopwatch, environment
from train.parallel.collectives import on_main
from train.recipes.recipe import Recipe, learned_settings

# A killed run holds its lock until its last worker process has ended.
LOCK_SECONDS = 10.0


@contextmanager
def only_run(folder: Path) -> Iterator[None]:
    """Keep a second run out of the folder; all ranks call it.

    Raises:
        ValueError: another run uses it, on every rank.
    """

    def lock() -> None:
        if not folder.exists() or folder.is_dir():  # else `open_run` tells what is wrong
            held.enter_context(only_user(folder, seconds=LOCK_SECONDS))

    with ExitStack() as held:
        on_main(lock)
        yield


def open_run(context: RunContext) -> None:
    """Claim the folder and write recipe.json and environment.json; all ranks call it.

    Raises:
        ValueError: the folder holds a run already and `resume` is off, or it is on and the run is one of another recipe
            or seed; nothing has been written then.
    """
    folder, accelerator = context.folder, context.accelerator
    on_main(lambda: _claim(folder, context.recipe, resume=context.resume, seed=context.seed))
    if accelerator.is_main_process:
        write_json(folder / "recipe.json", context.recipe.to_json())
        write_json(folder / "environment.json", environment(accelerator))
    if accelerator.log_with:
        accelerator.init_trackers("tracker")


def _claim(folder: Path, recipe: Recipe, *, resume: bool, seed: int) -> None:
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--out {folder} is a file; name a folder")
    taken = [name for name in (STEPS_FILE, "checkpoints") if (folder / name).exists()]
    if taken and not resume:
        raise ValueError(
            f"--out {folder} holds a run already ({', '.join(taken)}); add --resume to go on with it, or name another "
            "folder"
        )
    found = newest_checkpoint(folder / "checkpoints")
    if found is not None:
        check_identity(found, {"recipe": recipe.to_json(), "seed": seed}, compared=learned_settings)
    folder.mkdir(parents=True, exist_ok=True)


def close_run(
    context: RunContext,
    *,
    samples: GovernedSamples,
    image: ImageResult | None,
    text: dict[str, Any],
    selection: dict[str, Any] | None = None,
    stopwatch: Stopwatch,
) -> None:
    """Write training.json: counts, timings of all calls, reports of selection and text stage. Main process only."""
    rows = trained_rows(samples)
    counts = {
        "categories": samples.num_categories,
        "trained_categories": len(samples.classes),
        "queries": len(samples.labels.query),
        "trained_queries": len(rows["query"].rows),
        "documents": len(samples.labels.document),
        "trained_documents": len(rows["document"].rows),
        "steps": 0 if image is None else image.steps,
        "recipe_steps": context.recipe.image.steps,
    }
    seconds = {"seconds": stopwatch.totals, "calls": stopwatch.calls}
    training = {"recipe": context.recipe.name, "seed": context.seed, "counts": counts, **seconds, "text": text}
    if selection is not None:
        training["selection"] = selection
    if image is not None and image.evaluation is not None:
        training["evaluation"] = image.evaluation
    write_json(context.folder / "training.json", training)
