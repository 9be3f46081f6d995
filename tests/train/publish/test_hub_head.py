"""Prototypes beyond the limit of hub/: refused before anything is computed, or left to prototypes/ where asked for."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModel

from modeling_oclear import OclearForCategoryClassification
from tests.support.commands import reset_accelerator
from tests.support.synthetic_governed import CATEGORIES, write_governed
from tests.support.weights import assert_equal_weights
from train.class_weights.prototypes import PrototypeFolder
from train.class_weights.published_size import check_head, is_head_published, prototypes_gib
from train.command import read_options
from train.encoders.backbones import build_model
from train.pipeline import train
from train.publish.hub import CATEGORIES_FILE, export_hub, with_head
from train.recipes.recipe import ProxyAnchorLoss, Recipe
from train.recipes.registry import recipe_by_name
from train.run import context_of

TINY_GIB = 12 * 20 * 4 / 2**30  # 12 categories, width 20, four bytes
BEYOND: dict[str, Any] = {
    "runtime.hub_prototypes_gib": 0.9 * TINY_GIB,
    "runtime.publish_prototypes": True,
    "text.encoder": None,
}


def small(changes: Mapping[str, Any] | None = None) -> Recipe:
    return recipe_by_name("tiny").with_changes({"image.steps": 4, "text.encoder": None, **(changes or {})})


def run(folder: Path, recipe: Recipe) -> Path:
    """The command on the governed folder beside, once."""
    if not (folder.parent / "governed").exists():
        write_governed(folder.parent / "governed")
    given = folder.with_suffix(".json")
    given.write_text(json.dumps(recipe.to_json()))
    words = ["--data", folder.parent / "governed", "--out", folder, "--recipe", given]
    options = read_options([str(word) for word in words])
    assert options is not None
    try:
        train(context_of(options))
    finally:
        reset_accelerator()
    return folder


def test_the_size_is_that_of_all_categories_in_single_precision() -> None:
    recipe = small({"runtime.hub_prototypes_gib": TINY_GIB})
    assert prototypes_gib(recipe, categories=12) == TINY_GIB
    assert is_head_published(recipe, categories=12)
    assert not is_head_published(recipe, categories=13)
    assert prototypes_gib(small({"model.hidden_size": 512}), categories=10**8) == pytest.approx(190.7, abs=0.1)


def test_beyond_the_limit_value_limit_and_remedies_are_named() -> None:
    many = {"model.hidden_size": 512, "runtime.hub_prototypes_gib": 4.0}
    said = "width 512 are 191 GiB, but hub/ takes 4 .recipe.runtime.hub_prototypes_gib.. Raise it to 191"
    for changes in (
        {"runtime.publish_prototypes": False},
        {"runtime.publish_prototypes": True, "text.encoder": "tiny"},
    ):
        with pytest.raises(ValueError, match=said):
            check_head(small({**many, **(changes or {})}), categories=10**8)
    check_head(small({**many, "runtime.publish_prototypes": True}), categories=10**8)
    check_head(small({**many, "runtime.hub_prototypes_gib": 191.0}), categories=10**8)
    with pytest.raises(ValueError, match="hub_prototypes_gib is -1; it must be at least 0"):
        small({"runtime.hub_prototypes_gib": -1})


def test_a_run_that_would_leave_no_prototypes_stops_before_it_writes(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="set runtime.publish_prototypes to true"):
        run(tmp_path / "refused", small({**BEYOND, "runtime.publish_prototypes": False}))
    assert not (tmp_path / "refused").exists()


def test_beyond_the_limit_nothing_is_gathered_and_the_shards_hold_what_hub_would(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = run(tmp_path / "whole", small())
    monkeypatch.delattr("train.image_stage.loop.gathered_prototypes")
    monkeypatch.delattr("train.pipeline.category_prototypes")
    beside = run(tmp_path / "beside", small(BEYOND))
    assert f"published folder: {beside / 'hub'}; prototypes: {beside / 'prototypes'}" in capsys.readouterr().out
    pixels = torch.randn(3, 3, 37, 37)
    ours, theirs = (AutoModel.from_pretrained(out / "hub").eval() for out in (beside, whole))
    assert type(ours).__name__ == type(theirs).__name__ == "OclearModel"
    assert_equal_weights(ours, theirs)
    with torch.no_grad():
        torch.testing.assert_close(ours.get_query_embeds(pixels), theirs.get_query_embeds(pixels))
    head = OclearForCategoryClassification.from_pretrained(whole / "hub").head.weight.detach()
    opened = PrototypeFolder.open(beside / "prototypes")
    trained = [line["category_id"] for line in opened.categories(set(range(opened.num_classes))).values()]
    assert len(trained) == 10
    torch.testing.assert_close(torch.cat([rows for _, rows in opened.blocks()]), head[trained])
    with pytest.raises(ValueError, match="num_classes is 0"):
        OclearForCategoryClassification.from_pretrained(beside / "hub")


def test_config_names_the_loss_that_the_prototypes_were_trained_with() -> None:
    prototypes = torch.nn.functional.normalize(torch.randn(CATEGORIES, 20), dim=1)
    recipe = small({"head.loss": ProxyAnchorLoss(margin=0.1, alpha=24.0)})
    config = with_head(build_model(recipe, seed=0)[0], prototypes, recipe).config
    assert (config.head_loss, config.head_margin, config.head_scale) == ("proxy_anchor", 0.1, 24.0)
    softmax = with_head(build_model(small(), seed=0)[0], prototypes, small()).config
    assert (softmax.head_loss, softmax.head_margin_type) == ("softmax", "cosface")


def test_the_head_is_the_tensor_itself() -> None:
    recipe = small({"head.loss.scale": 9.0})
    prototypes = torch.nn.functional.normalize(torch.randn(CATEGORIES, 20), dim=1)
    head = with_head(build_model(recipe, seed=0)[0], prototypes, recipe)
    assert head.head.weight.data_ptr() == prototypes.data_ptr()
    assert head.config.num_classes == CATEGORIES
    assert head.config.head_scale == 9.0
    pixels = torch.randn(2, 3, 37, 37)
    with torch.no_grad():
        torch.testing.assert_close(head(pixels).logits, 9 * head.oclear.get_query_embeds(pixels) @ prototypes.T)


@pytest.mark.parametrize("shuffled", [False, True])
def test_categories_are_listed_in_the_order_of_the_prototypes(
    tmp_path: Path, shuffled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("train.publish.hub.ROWS_PER_BATCH", 5)
    table = pq.read_table(write_governed(tmp_path / "governed") / "categories.parquet")
    order = [*range(6, CATEGORIES), *range(6)] if shuffled else list(range(CATEGORIES))
    pq.write_table(table.take(order), tmp_path / "categories.parquet")
    model, processor = build_model(small(), seed=0)
    export_hub(
        tmp_path / "hub",
        model=model,
        processor=processor,
        calibration=torch.empty(0, 20),
        categories=tmp_path / "categories.parquet",
    )
    lines = [json.loads(line) for line in (tmp_path / "hub" / CATEGORIES_FILE).read_text().splitlines()]
    assert [line["category_id"] for line in lines] == list(range(CATEGORIES))
    assert lines == table.to_pylist()
