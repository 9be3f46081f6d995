"""Finds a recipe by its name or in a `recipe.json`."""

import json
from collections.abc import Callable
from pathlib import Path

from train.recipes.catalogue import CATALOGUE_RECIPES
from train.recipes.emoji import EMOJI_RECIPES
from train.recipes.flat import is_flat, recipe_from_flat
from train.recipes.recipe import Recipe, recipe_from_json

RECIPES: dict[str, Callable[[], Recipe]] = {**EMOJI_RECIPES, **CATALOGUE_RECIPES}


def recipe_by_name(name: str) -> Recipe:
    """The recipe called `name`, or the one of a `recipe.json` when `name` ends in .json.

    `runs/x/recipe.json` of an earlier run, edited, is a recipe; the flat files of earlier versions are read too.

    Raises:
        ValueError: no such recipe, or a file that is none.
    """
    if name.endswith(".json"):
        return _from_file(Path(name))
    if name not in RECIPES:
        raise ValueError(f"no recipe is called {name!r}; choose auto, {', '.join(RECIPES)}, or give a recipe.json")
    return RECIPES[name]()


def _from_file(path: Path) -> Recipe:
    if not path.is_file():
        raise ValueError(f"{path} is not a file; give the recipe.json of an earlier run, or the name of a recipe")
    try:
        values = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON ({error}); give the recipe.json of an earlier run") from error
    try:
        return recipe_from_flat(values) if isinstance(values, dict) and is_flat(values) else recipe_from_json(values)
    except ValueError as error:
        raise ValueError(f"{path} is no recipe: {error}") from error
