"""Adapters: adapted layers, number of parameters, trained results and both published forms."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import ViTConfig, ViTModel

from modeling_oclear import EfficientNetLiteConfig, EfficientNetLiteModel, OclearModel
from tests.support.synthetic_run import small_model, small_recipe, train_small
from tests.support.weights import assert_equal_weights
from train.encoders.backbones import build_model, with_image_weights
from train.encoders.lora import (
    adapter_layers,
    add_adapters,
    export_adapter,
    load_and_merge,
    trained_and_all,
    trained_share,
)
from train.encoders.pair import EncoderPair
from train.recipes.flat import recipe_from_flat
from train.recipes.registry import recipe_by_name

LAYERS = ["stages.1.0.expand.conv", "stages.1.0.project.conv", "head.conv"]


def small_lora(changes: Mapping[str, Any] | None = None) -> Any:
    return small_recipe({"image.lora.rank": 2, "image.lora.alpha": 3.0, **(changes or {})})


def vit() -> Any:
    return ViTModel(
        ViTConfig(
            hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=12, image_size=16, patch_size=8
        ),
        add_pooling_layer=False,
    )


def test_adapters_are_on_pointwise_convolutions_behind_frozen_stages_or_on_query_and_value() -> None:
    assert adapter_layers(small_model(small_recipe()).vision_model, small_lora()) == LAYERS
    found = adapter_layers(vit(), small_lora({"model.frozen_stages": 0}))
    assert len(found) == 4
    assert {name.rpartition(".")[2] for name in found} <= {"q_proj", "v_proj", "query", "value"}


def test_layers_can_be_named_and_unknown_names_are_rejected() -> None:
    vision = small_model(small_recipe()).vision_model
    assert adapter_layers(vision, small_lora({"image.lora.targets": ("project.conv", "head.conv")})) == LAYERS[1:]
    with pytest.raises(ValueError, match="'q_proj', which is the end of no trained layer's name in EfficientNetLite"):
        adapter_layers(vision, small_lora({"image.lora.targets": ("q_proj",)}))
    with pytest.raises(ValueError, match=r"stages.1.0.depthwise.conv, a convolution over more than one patch"):
        adapter_layers(vision, small_lora({"image.lora.targets": ("depthwise.conv",)}))
    with pytest.raises(ValueError, match="neither query and value projections nor 1x1 convolutions"):
        adapter_layers(torch.nn.Sequential(torch.nn.Linear(2, 2)), small_lora())


def test_less_than_a_twentieth_of_efficientnet_lite0_is_trained() -> None:
    recipe = recipe_by_name("emoji_lora")
    model = OclearModel.from_encoders(
        EfficientNetLiteModel(EfficientNetLiteConfig()), hidden_size=recipe.model.hidden_size
    )
    encoders = EncoderPair.for_training(model, frozen_stages=recipe.model.frozen_stages)
    tuned, _ = trained_and_all(model.vision_model)
    add_adapters(model.vision_model, recipe, seed=0)
    trained, total = trained_and_all(model.vision_model)
    rank = recipe.image.lora.rank
    assert trained == rank * (192 + 1152 + 1152 + 320)
    assert trained < 0.05 * total
    assert trained < 0.2 * tuned
    said = f"adapters: {trained:,} of {total:,} parameters of the image encoder are trained ({trained / total:.1%})"
    assert said in trained_share(encoders)


def test_new_adapters_do_not_change_the_output_and_are_equal_on_every_rank() -> None:
    inputs = torch.randn(2, 5, 3, 3)
    plain, first, second, other = (small_model(small_recipe()).vision_model for _ in range(4))
    before = torch.get_rng_state()
    for vision, seed in ((first, 0), (second, 0), (other, 1)):
        add_adapters(vision, small_lora(), seed=seed)
    assert torch.equal(torch.get_rng_state(), before)
    with torch.no_grad():
        torch.testing.assert_close(
            first.forward_tail(inputs, 1).pooler_output, plain.forward_tail(inputs, 1).pooler_output
        )
    name = "stages.1.0.expand.conv.lora_A.default.weight"
    assert torch.equal(first.state_dict()[name], second.state_dict()[name])
    assert not torch.equal(first.state_dict()[name], other.state_dict()[name])


def test_run_trains_only_adapters_and_head_and_merging_adds_their_product(tmp_path: Path) -> None:
    recipe = small_lora({"image.steps": 4})
    start = small_model(recipe).vision_model.state_dict()
    found = train_small(recipe, tmp_path).weights
    merged = small_model(recipe).vision_model
    mine = {name.removeprefix("vision."): value for name, value in found.items() if name.startswith("vision.")}
    load_and_merge(merged, mine, recipe, seed=0)
    result = merged.state_dict()
    assert result.keys() == start.keys()
    for name, value in start.items():
        layer = name.removesuffix(".weight")
        if layer not in LAYERS:
            assert torch.equal(result[name], value), name
            continue
        low, high = (mine[f"{layer}.lora_{part}.default.weight"].flatten(1) for part in "AB")
        expected = value + (3.0 / 2 * high @ low)[:, :, None, None].float()
        torch.testing.assert_close(result[name], expected)
        assert not torch.equal(result[name], value)


def test_resumed_run_with_adapters_is_bit_equal(tmp_path: Path) -> None:
    recipe = small_lora({"image.ema_decay": 0.9, "image.layer_decay": 0.7, "runtime.activation_checkpointing": True})
    whole = train_small(recipe, tmp_path / "whole")
    train_small(recipe, tmp_path / "cut", max_steps=7)
    resumed = train_small(recipe, tmp_path / "cut", resume=True)
    assert all(torch.equal(resumed.weights[name], value) for name, value in whole.weights.items())


# peft 0.21 reads this attribute of transformers 5.23 under its old name.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("text", ["tiny", None])
def test_published_adapter_equals_the_merged_model(
    tmp_path: Path, text: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from peft import AutoPeftModelForFeatureExtraction, PeftModel

    recipe = recipe_by_name("tiny").with_changes({"image.lora.rank": 2, "text.encoder": text})
    base, processor = build_model(recipe, seed=0)
    encoders = EncoderPair(build_model(recipe, seed=0)[0], frozen_stages=recipe.model.frozen_stages)
    add_adapters(encoders.get_submodule("vision"), recipe, seed=0)
    weights = {
        name: value + 0.1 * torch.randn_like(value) if ".lora_" in name or name.startswith("image_head") else value
        for name, value in encoders.double().state_dict().items()
    }
    weights = {name: value.abs() if name.endswith("_std") else value for name, value in weights.items()}
    model, _ = with_image_weights(recipe, weights, seed=0)
    if text is not None:
        torch.nn.init.normal_(model.fusion.gate.weight, std=0.5)
    export_adapter(tmp_path / "made", base=base, model=model, processor=processor, weights=weights, recipe=recipe)
    run = (tmp_path / "made").rename(tmp_path / "moved")
    names = {path.name for path in (run / "adapter").iterdir()}
    assert names == {"adapter_config.json", "adapter_model.safetensors"}
    assert str(tmp_path) not in (run / "adapter" / "adapter_config.json").read_text()
    by_hand = PeftModel.from_pretrained(OclearModel.from_pretrained(run / "base"), run / "adapter").eval()
    monkeypatch.chdir(run / "adapter")
    loaded = AutoPeftModelForFeatureExtraction.from_pretrained(".", trust_remote_code=True).eval()
    pixels = torch.randn(3, 3, 37, 37)
    given = {"pixel_values": pixels}
    if text is not None:
        batch = processor(text=["thing a", "other b", "c"])
        given |= {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    start, _ = build_model(recipe, seed=0)
    assert_equal_weights(by_hand, loaded)
    with torch.no_grad():
        for ask in (lambda m: m.get_query_embeds(pixels), lambda m: m.get_document_embeds(**given).embeds):
            torch.testing.assert_close(ask(loaded), ask(model), rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(ask(by_hand), ask(loaded))
            assert not torch.allclose(ask(start), ask(model), atol=1e-2)
        plain = loaded.merge_and_unload()
        torch.testing.assert_close(plain.get_query_embeds(pixels), model.get_query_embeds(pixels), rtol=1e-5, atol=1e-5)


def test_changes_outside_the_adapter_are_not_published(tmp_path: Path) -> None:
    recipe = recipe_by_name("tiny").with_changes({"image.lora.rank": 2})
    base, processor = build_model(recipe, seed=0)
    model, _ = build_model(recipe, seed=0)
    model.text_model.embeddings.word_embeddings.weight.data.add_(1)
    with pytest.raises(ValueError, match="text_model.embeddings.word_embeddings.weight was trained"):
        export_adapter(tmp_path, base=base, model=model, processor=processor, weights={}, recipe=recipe)


def test_unkeyed_dropout_and_unused_adapter_settings_are_rejected() -> None:
    with pytest.raises(ValueError, match="lora_dropout is gone"):
        recipe_from_flat({"name": "x", "vision": "tiny", "text": None, "lora_dropout": 0.1})
    with pytest.raises(ValueError, match="lora.alpha is 0; it must be above 0, or null"):
        small_recipe({"image.lora.alpha": 0})
