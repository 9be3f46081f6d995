"""Recipe files of the flat form are read into today's groups."""

import json
from pathlib import Path

import pytest

from train.recipes.flat import RENAMED, recipe_from_flat
from train.recipes.recipe import ProxyAnchorLoss, Recipe, SoftmaxLoss, flattened
from train.recipes.registry import RECIPES, recipe_by_name

EMOJI = {
    "name": "emoji",
    "vision": "efficientnet_lite0",
    "text": "minilm",
    "loss": "proxy_anchor",
    "margin": "cosface",
    "margin_value": 0.2,
    "scale": 32.0,
    "weight_decay": 0.02,
    "vision_lora_rank": 58,
    "lora_targets": ["expand.conv", "project.conv"],
    "lora_dropout": 0.0,
    "encoder_learning_rate": 0.02,
    "encoder_max_grad_norm": 2.0,
    "num_members": 3,
    "text_strengths": [0.0, 0.1, 0.2],
}


def test_a_flat_file_becomes_the_recipe_of_today(tmp_path: Path) -> None:
    (tmp_path / "recipe.json").write_text(json.dumps(EMOJI))
    assert recipe_by_name(str(tmp_path / "recipe.json")) == recipe_by_name("emoji")


def test_every_target_of_the_mapping_is_a_setting_of_today() -> None:
    known = set(flattened(recipe_by_name("tiny").to_json()))
    assert {dotted for places in RENAMED.values() for dotted in places} <= known


def test_weight_decay_and_loss_reach_every_group_that_they_governed() -> None:
    flat = {"name": "x", "vision": "tiny", "text": None, "weight_decay": 0.5, "margin": "arcface", "scale": 9.0}
    recipe = recipe_from_flat(flat)
    assert (recipe.image.weight_decay, recipe.head.weight_decay, recipe.text.weight_decay) == (0.5, 0.5, 0.5)
    assert recipe.head.loss == SoftmaxLoss(margin="arcface", scale=9.0)
    anchor = recipe_from_flat({**flat, "loss": "proxy_anchor", "margin": "cosface", "margin_value": 0.3})
    assert anchor.head.loss == ProxyAnchorLoss(margin=0.3, alpha=9.0)


@pytest.mark.parametrize("name", RECIPES)
def test_a_change_by_a_dotted_name_touches_nothing_else(name: str) -> None:
    recipe = recipe_by_name(name)
    changed = recipe.with_changes({"image.lora.rank": 7, "name": "other"})
    assert changed.with_changes({"image.lora.rank": recipe.image.lora.rank, "name": name}) == recipe


def test_an_unknown_setting_is_named_with_those_that_exist() -> None:
    recipe: Recipe = recipe_by_name("tiny")
    with pytest.raises(ValueError, match=r"recipe.image has no setting 'stepz'; known: query_views"):
        recipe.with_changes({"image.stepz": 3})
    with pytest.raises(ValueError, match="recipe has no setting 'steps'"):
        recipe.with_changes({"steps": 3})
    with pytest.raises(ValueError, match=r"has no setting 'steps.more'"):
        recipe.with_changes({"image.steps.more": 3})
