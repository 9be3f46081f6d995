"""Activation checkpointing changes only memory: values, gradients and runs are bit-equal."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import ViTConfig, ViTModel

from modeling_oclear import OclearModel
from tests.support.synthetic_run import small_model, small_recipe, train_small
from train.encoders.pair import EncoderPair
from train.encoders.recompute import recompute_blocks
from train.image_stage.loop import check_layout


def vit_model() -> Any:
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=12, image_size=16, patch_size=8
    )
    return OclearModel.from_encoders(ViTModel(config), hidden_size=6, num_attention_heads=1).eval()


def gradients(model: Any, inputs: torch.Tensor, *, frozen: int, again: bool) -> tuple[dict[str, torch.Tensor], int]:
    """Gradients of a loss by name, and how often the last block's own layers ran."""
    encoders = EncoderPair.for_training(model, frozen_stages=frozen).double().eval()
    if again:
        assert recompute_blocks(model.vision_model) == 2 - frozen
    runs = 0

    def count(*_: Any) -> None:
        nonlocal runs
        runs += 1

    name = "stages.1.0.project.conv" if hasattr(model.vision_model, "stages") else "layers.1.mlp.fc1"
    model.vision_model.get_submodule(name).register_forward_hook(count)
    ones = torch.ones(len(inputs), 6).double()
    query, document = encoders(inputs, inputs.flip(0), ones, ones)
    (query[:, 0].sum() - document[:, 1].sum()).backward()
    found = {name: value.grad for name, value in encoders.named_parameters() if value.grad is not None}
    return found, runs


@pytest.mark.parametrize("kind", ["efficientnet", "vit"])
def test_gradients_are_equal_and_the_blocks_run_twice(kind: str) -> None:
    def made() -> Any:
        return vit_model() if kind == "vit" else small_model(small_recipe())

    generator = torch.Generator().manual_seed(0)
    shape = (3, 3, 16, 16) if kind == "vit" else (3, 5, 3, 3)
    inputs = torch.randn(shape, generator=generator).double()
    frozen = 0 if kind == "vit" else 1
    plain, once = gradients(made(), inputs, frozen=frozen, again=False)
    found, twice = gradients(made(), inputs, frozen=frozen, again=True)
    assert (once, twice) == (1, 2)
    assert plain.keys() == found.keys()
    assert all(torch.equal(found[name], value) for name, value in plain.items())


def test_run_and_checkpoints_are_equal_with_and_without(tmp_path: Path) -> None:
    plain = train_small(small_recipe({"image.steps": 3}), tmp_path / "plain")
    recipe = small_recipe({"image.steps": 3, "runtime.activation_checkpointing": True})
    found = train_small(recipe, tmp_path / "again", max_steps=2)
    assert found.weights.keys() == plain.weights.keys()
    # Where memory is scarce is the machine's affair: a run goes on with or without.
    resumed = train_small(small_recipe({"image.steps": 3}), tmp_path / "again", resume=True)
    assert all(torch.equal(resumed.weights[name], value) for name, value in plain.weights.items())


def test_backbone_without_trained_blocks_is_rejected() -> None:
    model = small_model(small_recipe())
    EncoderPair.for_training(model, frozen_stages=2)
    with pytest.raises(ValueError, match="has 2 blocks that can be recomputed and trains none"):
        recompute_blocks(model.vision_model)


@pytest.mark.parametrize("field", ["runtime.activation_checkpointing", "image.layer_decay", "image.lora.rank"])
def test_settings_of_trained_stages_are_rejected_if_none_is_trained(field: str) -> None:
    recipe = small_recipe({"model.frozen_stages": None, **{field: True if field.startswith("runtime") else 1}})
    with pytest.raises(ValueError, match=f"recipe.{field} is .*frozen_stages null"):
        check_layout(recipe, processes=1)
