"""A trained OCLEAR model as the encoder of governance."""

from pathlib import Path

import numpy as np
import pytest
import torch

from data_governance.inputs.encoder import Encoder
from modeling_oclear import OclearModel
from tests.support.small_oclear import small_config


@pytest.mark.parametrize(("vision", "stages"), [("efficientnet_lite", True), ("vit", False)])
def test_feature_blocks_are_pooled_output_embedding_stages_and_colour(
    tmp_path: Path, vision: str, stages: bool
) -> None:
    torch.manual_seed(0)
    model = OclearModel(small_config(vision)).eval()
    model.save_pretrained(tmp_path / "hub")
    encoder = Encoder(tmp_path / "hub", threads=1)
    squares = np.random.default_rng(0).integers(0, 256, (3, 37, 37, 3), dtype=np.uint8)
    features, widths = encoder.features(squares), encoder.block_widths(37)
    packaged = Encoder(None, threads=1)
    np.testing.assert_array_equal(features[:, : sum(widths[:5])], packaged.features(squares))
    assert packaged.blocks_per_view(5) == [5]
    assert encoder.blocks_per_view(len(widths)) == [5, len(widths) - 5]
    assert encoder.name.endswith(" beside packaged efficientnet-lite0")
    found = np.split(features, np.cumsum(widths)[:-1], axis=1)[5:]
    pixels = (torch.from_numpy(squares).permute(0, 3, 1, 2).float() / 255 - 0.498) / 0.502
    with torch.no_grad():
        output = model.vision_model(pixels)
        expected = [model.encode_image(pixels)[1], model.get_query_embeds(pixels)]
    if stages:
        expected += [state.mean(dim=(2, 3)) for state in output.hidden_states[-3:]]
    assert len(found) == len(expected) + 1
    for block, values in zip(found, expected, strict=False):
        np.testing.assert_allclose(block, values.numpy(), atol=2e-3)
    assert encoder.features(squares[:1]).shape == (1, sum(widths))
