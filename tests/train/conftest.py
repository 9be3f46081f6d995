"""What tests of several layouts share: how far a mere reordering of sums moves the tiny recipe."""

import json
from pathlib import Path

import pytest

from tests.support.curves import reordered_recipe
from tests.support.ranks import finished
from tests.support.synthetic_governed import write_governed
from train.recipes.registry import recipe_by_name


@pytest.fixture(scope="session")
def reordered_tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny recipe on the governed data of `write_governed`, each step summed in two pieces."""
    base = tmp_path_factory.mktemp("reordered")
    write_governed(base / "governed")
    (base / "recipe.json").write_text(json.dumps(reordered_recipe(recipe_by_name("tiny")).to_json()))
    finished(*("--data", base / "governed", "--out", base / "run", "--recipe", base / "recipe.json"), log=base / "log")
    return base / "run"
