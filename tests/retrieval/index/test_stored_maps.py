"""The index takes the maps that governance kept, and comes to the same vectors."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import modeling_oclear
from data_governance.__main__ import main as governance
from retrieval.encoder import RetrievalEncoder, load_encoder
from retrieval.index.store import Index, build_index
from retrieval.stored_maps import open_maps
from retrieval.tables import CATALOGUE, read_table
from tests.support.synthetic_shop import SyntheticShop, png, write_images, write_shop
from train.encoders.backbones import build_model
from train.recipes.registry import recipe_by_name


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> SyntheticShop:
    found = write_shop(tmp_path_factory.mktemp("maps"), categories=12, queries=3)
    assert governance(["run", *found.arguments, "--out", str(found.folder / "governed")]) == 0
    return found


@pytest.fixture(scope="module")
def encoder(shop: SyntheticShop) -> RetrievalEncoder:
    """A published model whose stages after the kept maps have moved, as after training."""
    recipe = recipe_by_name("emoji_single").with_changes({"text.encoder": None, "model.hidden_size": 32})
    model, processor = build_model(recipe, seed=0)
    with torch.no_grad():
        for value in model.vision_model.head.parameters():
            value.mul_(1.1)
    modeling_oclear.publish(model.eval(), processor, shop.folder / "hub")
    return load_encoder(str(shop.folder / "hub"), device="cpu")


def vectors(index: Index) -> dict[str, Any]:
    return dict(zip(index.doc_ids, index.searcher.vectors(), strict=True))


def test_the_index_is_the_same_with_kept_maps(
    shop: SyntheticShop, encoder: RetrievalEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All pictures but one are known; the network's first stages run for that one alone."""
    rows = pq.read_table(shop.folder / "catalogue.parquet").to_pylist()
    images = [row["image"]["bytes"] for row in rows] + [png(77, style="filled")]
    more = shop.folder / "more.parquet"
    write_images(more, "doc_id", [row["doc_id"] for row in rows] + ["new"], images, text=["x"] * len(images))
    table = read_table(more, CATALOGUE)
    expected = vectors(build_index(encoder, table))
    ran = list[int]()
    trunk = encoder.model.vision_model.vision.forward_trunk

    def counted(pixel_values: torch.Tensor, stages: int) -> Any:
        ran.append(len(pixel_values))
        return trunk(pixel_values, stages)

    monkeypatch.setattr(encoder.model.vision_model.vision, "forward_trunk", counted)
    found = vectors(build_index(encoder, table, governed=shop.folder / "governed"))
    assert ran == [1]
    assert found.keys() == expected.keys()
    for name, vector in found.items():
        np.testing.assert_allclose(vector, expected[name], atol=5e-3)  # maps are kept in half precision


def test_maps_of_other_first_stages_or_other_pixels_are_not_taken(
    shop: SyntheticShop, encoder: RetrievalEncoder, tmp_path: Path
) -> None:
    governed = shop.folder / "governed"
    assert open_maps(governed, encoder.model, encoder.processor) is not None
    weight = encoder.model.vision_model.vision.stem.conv.weight
    with torch.no_grad():
        weight.mul_(2)
        assert open_maps(governed, encoder.model, encoder.processor) is None
        weight.div_(2)
    assert open_maps(governed, encoder.model, encoder.processor) is not None
    image_processor = encoder.processor.image_processor
    side, image_processor.size = image_processor.size, {"height": 64, "width": 64}
    assert open_maps(governed, encoder.model, encoder.processor) is None
    image_processor.size = side
    (tmp_path / "empty").mkdir()
    assert open_maps(tmp_path / "empty", encoder.model, encoder.processor) is None
    with pytest.raises(ValueError, match="there is no such folder; give the folder that governance wrote"):
        open_maps(tmp_path / "missing", encoder.model, encoder.processor)


def test_a_model_without_fused_kernels_computes_everything(shop: SyntheticShop, encoder: RetrievalEncoder) -> None:
    plain = dataclasses.replace(encoder, model=load_encoder(str(encoder.folder), bf16=True, device="cpu").model)
    assert open_maps(shop.folder / "governed", plain.model, plain.processor) is None
