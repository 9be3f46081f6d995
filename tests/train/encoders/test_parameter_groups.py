"""Learning rates of the encoders: one for the backbone, or one per layer."""

from typing import Any

import pytest
import torch
from torch import nn
from transformers import ViTConfig, ViTModel

from modeling_oclear import OclearModel
from tests.support.synthetic_run import small_model, small_recipe
from train.encoders.pair import EncoderPair
from train.encoders.parameter_groups import layer_order, parameter_groups


def rates(encoders: EncoderPair, changes: dict[str, Any] | None = None) -> dict[str, float]:
    """Learning rate by parameter name."""
    groups = parameter_groups(encoders, small_recipe(changes))
    by_id = {id(value): group["initial_lr"] for group in groups for value in group["params"]}
    assert len(by_id) == sum(len(group["params"]) for group in groups)
    return {name: by_id[id(value)] for name, value in encoders.named_parameters() if value.requires_grad}


def test_rate_of_each_layer_is_a_fraction_of_that_above() -> None:
    encoders = EncoderPair.for_training(small_model(small_recipe()), frozen_stages=0)
    found = rates(encoders, {"image.layer_decay": 0.5, "image.encoder_learning_rate": 0.8})
    expected = {
        "vision.head": 0.8,
        "vision.stages.1": 0.4,
        "vision.stages.0": 0.2,
        "vision.stem": 0.1,
        "image_head": 2e-3,
    }
    for start, rate in expected.items():
        mine = {name: value for name, value in found.items() if name.startswith(start)}
        assert mine
        assert set(mine.values()) == {rate}, start


def test_transformer_is_split_into_embeddings_layers_and_the_rest() -> None:
    config = ViTConfig(
        hidden_size=8, num_hidden_layers=3, num_attention_heads=2, intermediate_size=12, image_size=16, patch_size=8
    )
    model = OclearModel.from_encoders(ViTModel(config), hidden_size=6, num_attention_heads=1)
    order = layer_order(model.vision_model)
    names = list(order)
    assert [order[name] for name in names] == sorted(order.values())
    assert {order[name] for name in names if name.startswith("embeddings")} == {0}
    assert order["layernorm.weight"] == 4
    assert {order[name] for name in names if ".1." in name} == {2}
    encoders = EncoderPair.for_training(model, frozen_stages=0)
    found = rates(encoders, {"image.layer_decay": 0.1, "image.encoder_learning_rate": 1.0})
    assert found["vision.layernorm.weight"] == 1.0
    assert found["vision.embeddings.cls_token"] == pytest.approx(1e-4)


def test_vectors_have_no_weight_decay_and_each_part_two_groups_without_layer_decay() -> None:
    encoders = EncoderPair.for_training(small_model(small_recipe()), frozen_stages=1)
    for recipe in (small_recipe({"image.layer_decay": 0.5}), small_recipe()):
        for group in parameter_groups(encoders, recipe):
            assert all((value.ndim > 1) == (group["weight_decay"] > 0) for value in group["params"])
            assert group["lr"] == group["initial_lr"]
    assert len(parameter_groups(encoders, small_recipe())) == 4
    plain, whole = rates(encoders), rates(encoders, {"image.layer_decay": 1.0})
    assert plain == whole


def test_backbone_without_layers_is_rejected() -> None:
    with pytest.raises(ValueError, match="needs a backbone with a list of layers, which Linear does not have"):
        layer_order(nn.Linear(2, 2))


@pytest.mark.parametrize("value", [0.0, 1.01, float("nan")])
def test_decay_out_of_range_is_rejected(value: float) -> None:
    with pytest.raises(ValueError, match="layer_decay is .*above 0 and at most 1"):
        small_recipe({"image.layer_decay": value})


def test_schedule_scales_the_rates_of_the_optimiser() -> None:
    encoders = EncoderPair.for_training(small_model(small_recipe()), frozen_stages=1)
    optimizer = torch.optim.AdamW(parameter_groups(encoders, small_recipe({"image.layer_decay": 0.5})))
    assert sorted({group["initial_lr"] for group in optimizer.param_groups}) == [2.5e-4, 5e-4, 2e-3]
