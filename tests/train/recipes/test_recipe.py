"""Recipes are complete, checked, and readable from a run."""

import json
from pathlib import Path

import pytest

from train.recipes.recipe import difference
from train.recipes.registry import RECIPES, recipe_by_name


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_bears_the_name_it_is_called_by(name: str) -> None:
    assert recipe_by_name(name).name == name


def test_image_only_differs_from_emoji_in_its_text_alone() -> None:
    ours, theirs = recipe_by_name("emoji").to_json(), recipe_by_name("emoji_image_only").to_json()
    assert {key for key in ours if ours[key] != theirs[key]} == {"name", "publish", "text"}


def test_a_written_recipe_reads_back_equal(tmp_path: Path) -> None:
    recipe = recipe_by_name("tiny").with_changes({"image.steps": 3, "text.weights": (0.0, 0.5)})
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps(recipe.to_json()))
    assert recipe_by_name(str(path)) == recipe


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"head.loss.margin": "sphere"}, "choose one of cosface, arcface"),
        ({"image.steps": -1}, "at least 0"),
        ({"head.sample_rate": 0.0}, "above 0"),
        ({"head.sample_rate": 1.5}, "at most 1"),
        ({"head.sample_rate": float("nan")}, "above 0"),
        ({"image.embed_dropout": 1.0}, "at most 0.99"),
        ({"image.gradient_accumulation": 0}, "at least 1"),
        ({"model.frozen_stages": -1}, "at least 0, or null"),
        ({"model.dtype": "float16"}, "choose one of float32, float64"),
        ({"text.weights": ()}, "at least one number"),
    ],
)
def test_a_recipe_out_of_range_names_value_and_limit(change: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        recipe_by_name("tiny").with_changes(change)


def test_an_unknown_recipe_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match="emoji_zero_shot"):
        recipe_by_name("emojo")


@pytest.mark.parametrize(
    ("content", "said"),
    [("{", "not JSON"), ('{"name": "x", "vision": "tiny", "text": null, "speed": 1}', "speed"), ("{}", "lacks")],
)
def test_a_bad_recipe_file_is_refused_with_its_fault(tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "recipe.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=said):
        recipe_by_name(str(path))


def test_difference_names_both_values() -> None:
    assert difference({"steps": 1, "a": 2}, {"steps": 3, "a": 2}) == "steps: 1 here, 3 there"
