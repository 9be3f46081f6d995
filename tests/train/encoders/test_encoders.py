"""The encoder pair: standardisation, initial projection, frozen stages and dropout."""

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional
from transformers import ViTConfig, ViTModel

from tests.support.synthetic_run import small_cache, small_model, small_recipe, small_samples
from train.encoders.pair import EncoderPair, rows_of, sharded_units, start_image_head
from train.encoders.parameter_groups import parameter_groups
from train.image_stage.loop import trained_rows


def started(projection: str = "pca", changes: dict[str, Any] | None = None) -> EncoderPair:
    recipe = small_recipe({"image.projection": projection, **(changes or {})})
    cache, rows = small_cache(), trained_rows(small_samples())
    encoders = EncoderPair.for_training(small_model(recipe), frozen_stages=recipe.model.frozen_stages).double()
    start_image_head(
        encoders,
        inputs={"query": cache.query_inputs, "document": cache.document_inputs},
        rows={side: part.rows for side, part in rows.items()},
        projection=projection,
    )
    return encoders


def pooled(encoders: EncoderPair, side: str) -> torch.Tensor:
    rows = trained_rows(small_samples())[side].rows
    inputs = getattr(small_cache(), f"{side}_inputs")
    like = encoders.image_head.projection.weight
    return encoders.pooled(rows_of(inputs, rows, np.zeros_like(rows), like=like)).detach()


def test_each_side_is_standardised_by_its_own_training_rows() -> None:
    encoders = started()
    for side in ("query", "document"):
        features = pooled(encoders, side)
        torch.testing.assert_close(getattr(encoders.image_head, f"{side}_mean"), features.mean(0))
        deviation = features.std(0, correction=0)
        torch.testing.assert_close(
            getattr(encoders.image_head, f"{side}_std"), deviation.clamp_min(0.05 * float(deviation.mean()))
        )


def test_pca_keeps_the_maximal_variance_of_the_standardised_features() -> None:
    encoders = started()
    head = encoders.image_head
    features = torch.cat(
        [
            (pooled(encoders, side) - getattr(head, f"{side}_mean")) / getattr(head, f"{side}_std")
            for side in ("query", "document")
        ]
    )
    kept = (features @ head.projection.weight.T).square().sum()
    best = torch.linalg.svdvals(features)[:6].square().sum()
    torch.testing.assert_close(kept.detach(), best)


def test_identity_projection_keeps_the_standardised_features() -> None:
    encoders = started("identity", {"model.hidden_size": 7})
    side = "query"
    features = pooled(encoders, side)
    head = encoders.image_head
    expected = functional.normalize((features - head.query_mean) / head.query_std, dim=1)
    torch.testing.assert_close(head(features, side=side).detach(), expected)


def test_projection_of_wrong_width_is_rejected() -> None:
    with pytest.raises(ValueError, match="needs hidden_size equal to the features' width 7, not 6"):
        started("identity")
    with pytest.raises(ValueError, match="cannot widen 7 features to hidden_size 8"):
        started("pca", {"model.hidden_size": 8})


def test_only_parameters_behind_frozen_stages_are_trained_each_once() -> None:
    recipe = small_recipe()
    encoders = EncoderPair.for_training(small_model(recipe), frozen_stages=1)
    groups = parameter_groups(encoders, recipe)
    grouped = [value for group in groups for value in group["params"]]
    trained = [value for value in encoders.parameters() if value.requires_grad]
    assert len(grouped) == len(trained) == len({id(value) for value in grouped})
    names = {name for name, value in encoders.named_parameters() if value.requires_grad}
    assert not [name for name in names if name.startswith(("vision.stem", "vision.stages.0"))]
    assert {group["lr"] for group in groups} == {
        recipe.image.encoder_learning_rate,
        recipe.image.projection_learning_rate,
    }
    for group in groups:
        assert (group["weight_decay"] == 0) == (group["params"][0].ndim == 1)


def test_frozen_backbone_leaves_only_the_head_to_train() -> None:
    encoders = EncoderPair.for_training(small_model(small_recipe()), frozen_stages=None)
    assert all(name.startswith("image_head.") for name, _ in encoders.named_parameters())


def test_too_many_frozen_stages_are_rejected() -> None:
    with pytest.raises(ValueError, match="frozen_stages is 3, but the backbone has 2"):
        EncoderPair(small_model(small_recipe()), frozen_stages=3)


def test_dropout_factors_act_only_on_the_projected_embedding_of_their_side() -> None:
    encoders = started()
    query, document = torch.randn(2, 5, 3, 3).double(), torch.randn(3, 5, 3, 3).double()
    ones = torch.ones(3, 6).double()
    scale = torch.tensor([0.0, 2.0, 1.0, 1.0, 1.0, 1.0]).double().expand(2, 6)
    dropped, untouched = encoders(query, document, scale, ones)
    torch.testing.assert_close(untouched, encoders.embed(document, side="document"))
    head = encoders.image_head
    rows = (encoders.pooled(query) - head.query_mean) / head.query_std
    expected = functional.normalize(head.query_transform(head.projection(rows) * scale), dim=1)
    torch.testing.assert_close(dropped, expected)
    assert not torch.allclose(dropped, encoders.embed(query, side="query"))


def test_fsdp_units_are_the_listed_blocks_that_the_backbone_contains() -> None:
    assert started()._no_split_modules == ["EfficientNetLiteBlock"]
    vit = ViTModel(ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8))
    assert sharded_units(vit) == sorted(set(vit._no_split_modules or ()))
    vit._no_split_modules = ["ViTLayer", "LayerOfAnotherModel"]
    assert sharded_units(vit) == ["ViTLayer"]
    assert sharded_units(torch.nn.Linear(2, 2)) == sharded_units(None) == []
