"""The command line of `train/run.py`.

The recipe says what to learn and the accelerate YAML where to run; the flags say where the data are and where the run
is written. A test freezes the list of flags.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

from train.recipes.auto import NAME, auto_recipe
from train.recipes.registry import RECIPES

EXAMPLE = """example:
  accelerate launch train/run.py --data governed --out runs/demo
  accelerate launch --config_file train/launch/cpu_two_processes.yaml train/run.py --data governed --out runs/two
  accelerate launch train/run.py --data governed --out runs/demo --resume
  accelerate launch train/run.py --data governed --out runs/no_text --recipe emoji_image_only --image-side runs/demo
"""
NO_DATA = (
    "no --data: make the demo data with `make demo`, or with `python -m examples.emoji --out data/emoji` and "
    "`python -m data_governance run --behaviour data/emoji/behaviour.parquet --queries data/emoji/queries.parquet "
    "--catalogue data/emoji/train_catalogue.parquet --out governed`, then train with `--data governed --out runs/demo`"
)
TRACKERS = ("none", "tensorboard")


@dataclass(frozen=True)
class Options:
    """Parsed options."""

    data: Path
    out: Path
    recipe: str
    seed: int
    max_steps: int | None
    resume: bool
    features: Path
    image_side: Path | None
    tracker: str


def argument_parser() -> argparse.ArgumentParser:
    """The flags."""
    parser = argparse.ArgumentParser(
        prog="accelerate launch train/run.py",
        description="Train an image -> (image + text) retriever on a governed folder and export it as runs/x/hub.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--data", type=Path, help="governed folder, as `python -m data_governance run` writes it")
    parser.add_argument("--out", type=Path, help="folder of the run")
    parser.add_argument(
        "--recipe", default=NAME, help="name (see --list-recipes) or a recipe.json; default %(default)s: from the data"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of every draw; default %(default)s")
    parser.add_argument(
        "--max-steps", type=int, help="stop after so many steps of the recipe's schedule, of the student too"
    )
    parser.add_argument("--resume", action="store_true", help="continue from the newest complete checkpoint in --out")
    parser.add_argument("--features", type=Path, help="folder of cached features, to share; default OUT/features")
    parser.add_argument(
        "--image-side", type=Path, metavar="RUN", help="reuse the image stage of this run; fit the text stage only"
    )
    parser.add_argument("--tracker", choices=TRACKERS, default="none", help="also log there; default %(default)s")
    parser.add_argument("--list-recipes", action="store_true", help="print the recipes and stop")
    return parser


def read_options(words: list[str]) -> Options | None:
    """The options, or None after `--list-recipes` has printed its list.

    Raises:
        ValueError: `--data` or `--out` is missing, or a number is out of range.
    """
    parsed = argument_parser().parse_args(words)
    if parsed.list_recipes:
        print(f"{NAME:18} {(auto_recipe.__doc__ or '').splitlines()[0]}")
        for name, recipe in RECIPES.items():
            print(f"{name:18} {(recipe.__doc__ or '').splitlines()[0]}")
        return None
    if parsed.data is None:
        raise ValueError(NO_DATA)
    if parsed.out is None:
        raise ValueError("no --out: name the folder of the run, such as --out runs/demo")
    if parsed.max_steps is not None and parsed.max_steps < 1:
        raise ValueError(f"--max-steps is {parsed.max_steps}; it must be at least 1")
    if not 0 <= parsed.seed < 2**32:
        raise ValueError(f"--seed is {parsed.seed}; it must be from 0 to {2**32 - 1}")
    if parsed.image_side is not None and parsed.resume:
        raise ValueError("--image-side reuses a trained image stage as it is: leave --resume out")
    return Options(
        data=parsed.data,
        out=parsed.out,
        recipe=parsed.recipe,
        seed=parsed.seed,
        max_steps=parsed.max_steps,
        resume=parsed.resume,
        features=parsed.features or parsed.out / "features",
        image_side=parsed.image_side,
        tracker=parsed.tracker,
    )
