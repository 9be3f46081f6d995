"""The text side: a map that is what it says, folds that keep their promise, attention that points, strength earned."""

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn import functional
from transformers import ViTConfig, ViTImageProcessorPil, ViTModel

from tests.support.synthetic_governed import write_governed
from train.context import RunContext
from train.encoders.backbones import build_model, with_image_weights
from train.encoders.pair import EncoderPair
from train.image_stage.category_prototypes import category_prototypes
from train.image_stage.loop import train_image_stage
from train.inputs.cache import FeatureCache
from train.inputs.composites import CompositeLayout, half_weight
from train.inputs.feature_stream import StreamedInputs
from train.inputs.features import features_of
from train.inputs.samples import GovernedSamples, Labels, read_samples
from train.recipes.emoji import tiny
from train.selection.held_out import ValidationGallery
from train.text_stage.attention import TRAINED_PARTS, mass_in_named_half, pointing_loss, train_attention
from train.text_stage.fit import choose_weight, fit_fusion, fit_text_stage
from train.text_stage.sentence_map import (
    TextRows,
    centred_targets,
    folds_of,
    install_map,
    out_of_fold_concepts,
    ridge_map,
    sentence_vectors,
)
from train.text_stage.stage import TextStage

CELL_WIDTH, TOKEN_WIDTH, WIDTH = 10, 12, 20  # of the tiny recipe
NO_PAGES = CompositeLayout(*(np.zeros(0, dtype=int) for _ in range(3)))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def made_cache(tokens_NTH: Tensor, **changes: Any) -> FeatureCache:
    """Documents that all have an image and the given tokens; everything else is zero unless given."""
    count = len(tokens_NTH)
    values: dict[str, Any] = {
        "home": Path(),
        "query_inputs": np.zeros((0, 1, 24), np.float16),
        "document_inputs": np.zeros((count, 1, 24), np.float16),
        "document_has_image": np.ones(count, dtype=bool),
        "document_cells": np.zeros((count, 4, CELL_WIDTH), np.float16),
        "grid": (2, 2),
        "document_tokens": tokens_NTH.numpy().astype(np.float16),
        "document_mask": np.ones(tokens_NTH.shape[:2], dtype=bool),
        "page_cells": np.zeros((0, 4, CELL_WIDTH), np.float16),
        "composite_layouts": NO_PAGES,
    }
    return FeatureCache(**{**values, **changes})


def made_rows(categories: int = 12, repeats: int = 3) -> TextRows:
    """Texts that lean towards their category, three documents each."""
    labels = np.tile(np.arange(categories), repeats)
    texts = functional.normalize(
        normal(categories, TOKEN_WIDTH)[labels] + 0.3 * normal(len(labels), TOKEN_WIDTH, seed=1), dim=1
    )
    targets = centred_targets(normal(categories, WIDTH, seed=2), labels)
    return TextRows(np.arange(len(labels)), texts, targets, folds_of(labels, folds=3, seed=0))


def test_a_sentence_vector_is_the_unit_mean_of_the_tokens_that_the_mask_keeps() -> None:
    tokens = np.array([[[3.0, 0.0], [0.0, 4.0], [99.0, 99.0]], [[5.0, 5.0], [5.0, 5.0], [5.0, 5.0]]], np.float16)
    mask = np.array([[True, True, False], [False, False, False]])
    assert sentence_vectors(tokens, mask).tolist() == [pytest.approx([0.6, 0.8]), [0.0, 0.0]]


def test_the_ridge_map_is_the_least_squares_solution_with_the_penalty_as_extra_rows() -> None:
    texts, targets = normal(9, 4), normal(9, 3, seed=1)
    mean = texts.mean(0)
    centred = texts - mean
    weight = 3.0 * float(centred.square().sum(1).mean()) / 4
    left = torch.cat([centred / 3, math.sqrt(weight) * torch.eye(4, dtype=torch.float64)])  # 3 = sqrt(9 rows)
    right = torch.cat([targets / 3, torch.zeros(4, 3, dtype=torch.float64)])
    expected = torch.linalg.lstsq(left, right).solution
    torch.testing.assert_close(ridge_map(texts, targets, mean), expected, rtol=1e-11, atol=1e-12)


def test_the_gradient_of_the_ridge_objective_is_zero_at_the_map() -> None:
    texts, targets = normal(5, 7), normal(5, 2, seed=1)  # fewer rows than columns
    mean = texts.mean(0)
    centred = texts - mean
    found = ridge_map(texts, targets, mean, strength=0.5)
    weight = 0.5 * centred.square().sum(1).mean() / 7

    def largest_slope(of_map: Tensor) -> float:
        of_map = of_map.clone().requires_grad_()
        objective = (centred @ of_map - targets).square().sum() / 5 + weight * of_map.square().sum()
        return float(torch.autograd.grad(objective, of_map)[0].abs().max())

    # Rounding leaves a few last bits of the terms that cancel; a map that is off by 1e-9 leaves more.
    assert largest_slope(found) < 1e-13 * largest_slope(torch.zeros_like(found))
    assert largest_slope(found * (1 + 1e-9)) > 1e-11 * largest_slope(torch.zeros_like(found))


def test_folds_keep_a_category_whole_and_are_of_equal_size() -> None:
    labels = np.random.default_rng(0).integers(100, 120, 400)
    folds = folds_of(labels, folds=5, seed=1)
    of_category = [set(folds[labels == category]) for category in np.unique(labels)]
    assert all(len(found) == 1 for found in of_category)
    assert np.bincount([found.pop() for found in of_category]).tolist() == [4] * 5
    assert (folds_of(labels, folds=5, seed=2) != folds).any()


def test_targets_are_unit_prototypes_less_the_mean_over_the_categories_at_hand() -> None:
    prototypes = torch.tensor([[3.0, 0.0], [0.0, 0.5], [7.0, 7.0]])
    targets = centred_targets(prototypes, np.array([1, 0, 0]))
    assert targets.tolist() == [[-0.5, 0.5], [0.5, -0.5], [0.5, -0.5]]


def test_no_text_of_a_category_reaches_its_own_out_of_fold_concepts() -> None:
    rows = made_rows()
    before = out_of_fold_concepts(rows, total=36)
    changed = rows.sentences.clone()
    changed[5] = -changed[5] + 1  # the first of the three documents of category 5
    after = out_of_fold_concepts(dataclasses.replace(rows, sentences=changed), total=36)
    fold = rows.folds[5]
    same_fold = torch.from_numpy(np.flatnonzero((rows.folds == fold) & (np.arange(36) != 5)))
    assert {17, 29} <= set(same_fold.tolist())
    assert torch.equal(before[same_fold], after[same_fold])
    other_folds = torch.from_numpy(np.flatnonzero(rows.folds != fold))
    assert bool((before[other_folds] != after[other_folds]).any(1).all())


def test_out_of_fold_concepts_stand_at_their_documents_and_are_zero_elsewhere() -> None:
    rows = made_rows()
    places = 2 * np.arange(36)[::-1].copy()
    spread = out_of_fold_concepts(dataclasses.replace(rows, rows=places), total=80)
    assert torch.equal(spread[torch.from_numpy(places)], out_of_fold_concepts(rows, total=36))
    elsewhere = np.setdiff1d(np.arange(80), places)
    assert not spread[torch.from_numpy(elsewhere)].any()


def test_the_fusion_reads_a_text_as_the_map_does_on_the_published_path() -> None:
    model, processor = build_model(tiny(), seed=0)
    model.double()
    texts = ["a red cat", "dog", "blue bird on a long branch", "seven 7", "x y", "the cat"]
    batch = processor(text=texts)
    with torch.no_grad():
        tokens, mask = model.encode_text(batch["input_ids"], batch["attention_mask"])
    assert mask.sum(1).unique().numel() > 3
    sentences = sentence_vectors(tokens.numpy(), mask.numpy())
    rows = TextRows(np.arange(6), sentences, normal(6, WIDTH), np.array([0, 1, 2] * 2))
    install_map(model.fusion, rows)
    mean = sentences.mean(0)
    mapped = (sentences - mean) @ ridge_map(sentences, rows.targets, mean)
    expected = mapped / mapped.norm(dim=1).mean()
    with torch.no_grad():
        concepts = model.fusion.read_concepts(model.fusion.project_tokens(tokens, mask), mask)
        said = model.fusion.concept_projection(concepts) * torch.sigmoid(model.fusion.gate.bias[1])
    for concept in range(concepts.shape[1]):
        torch.testing.assert_close(concepts[:, concept], expected, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(said[:, concept], expected, rtol=1e-6, atol=1e-6)


def test_texts_that_are_all_the_same_move_nothing() -> None:
    model, _ = build_model(tiny(), seed=0)
    same = functional.normalize(normal(1, TOKEN_WIDTH), dim=1).expand(6, TOKEN_WIDTH)
    same = same + 1e-7 * normal(6, TOKEN_WIDTH)  # as rounding leaves them
    install_map(model.fusion, TextRows(np.arange(6), same, normal(6, WIDTH), np.array([0, 1, 2] * 2)))
    assert not model.fusion.text_projection.weight.any()


def test_the_pointing_loss_by_hand() -> None:
    attention = torch.tensor([[[0.7, 0.2, 0.1], [0.0, 0.5, 0.5]], [[1.0, 0.0, 0.0], [0.2, 0.4, 0.4]]])
    half = torch.tensor([[1.0, 0.5, 0.0], [0.0, 1.0, 1.0]])
    inside = (0.8, 0.25, 1e-6, 0.8)  # nothing inside counts as a millionth
    assert float(pointing_loss(attention, half)) == pytest.approx(-sum(math.log(mass) for mass in inside) / 4)


def test_attention_learns_to_point_at_the_half_that_the_text_names() -> None:
    model, _ = build_model(tiny(), seed=0)
    rng = np.random.default_rng(0)
    said, shown = rng.normal(size=(8, WIDTH)), 3 * rng.normal(size=(8, CELL_WIDTH))
    named, places = np.arange(96) % 8, rng.integers(0, 4, 96)
    other = (named + rng.integers(1, 8, 96)) % 8
    half = half_weight(places, (4, 4))
    cells = np.where(half[..., None] == 1, shown[named][:, None], shown[other][:, None])
    cells += 0.1 * rng.normal(size=cells.shape)
    cache = made_cache(
        torch.zeros(8, 1, TOKEN_WIDTH),
        grid=(4, 4),
        page_cells=cells.astype(np.float16),
        composite_layouts=CompositeLayout(named, other, places),
    )
    concepts = torch.from_numpy(said).float()
    still = {name: value.clone() for name, value in model.fusion.state_dict().items()}
    seen = np.arange(80)  # the other 16 pages are looked at afterwards
    train_attention(model.fusion, cache, concepts, seen, steps=300, seed=0)
    with torch.no_grad():
        _, attention = model.fusion.read_evidence(
            concepts[named[80:]][:, None].expand(-1, 4, -1), torch.from_numpy(cells[80:]).float()
        )
    mass = torch.einsum("bcp,bp->bc", attention, torch.from_numpy(half[80:]).float()).mean()
    assert float(mass) >= 0.8
    moved = {name for name, value in model.fusion.state_dict().items() if not torch.equal(value, still[name])}
    assert {name.split(".")[0] for name in moved} == set(TRAINED_PARTS)


def test_the_mass_in_the_named_half_is_the_mean_over_pages_and_concepts(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = build_model(tiny(), seed=0)
    cache = made_cache(
        torch.ones(2, 1, TOKEN_WIDTH),
        grid=(2, 2),
        page_cells=np.zeros((2, 4, CELL_WIDTH), np.float16),
        composite_layouts=CompositeLayout(np.array([0, 1]), np.array([1, 0]), np.array([0, 3])),  # left; bottom
    )
    attention = torch.zeros(2, 4, 4)
    attention[0, :, 0] = 1.0  # upper left cell: inside the left half
    attention[1, :, 1] = attention[1, :, 2] = 0.5  # upper right and lower left: half inside the bottom
    monkeypatch.setattr(model.fusion, "read_evidence", lambda concepts, cells: (concepts, attention[: len(cells)]))
    assert mass_in_named_half(model.fusion, cache, np.arange(2)) == 0.75


def made_gallery(count: int, queries: Tensor, images: Tensor) -> ValidationGallery:
    """Document n is of category n; query n asks for it."""
    return ValidationGallery(
        queries=queries.float(),
        query_labels=np.arange(len(queries)),
        images=images.float(),
        labels=np.arange(count),
        has_image=np.ones(count, dtype=bool),
        has_text=np.ones(count, dtype=bool),
        calibration=torch.zeros(1, WIDTH),
    )


@pytest.mark.parametrize(("strengths", "chosen"), [((0.4, 0.0, 0.2), 0.0), ((0.6, 0.2, 0.4), 0.2)])
def test_without_held_out_queries_the_smallest_strength_is_kept(strengths: tuple[float, ...], chosen: float) -> None:
    model, _ = build_model(tiny(), seed=0)
    gallery = made_gallery(3, torch.zeros(0, WIDTH), torch.eye(3, WIDTH))
    recipe = tiny().with_changes({"text.weights": strengths})
    report = choose_weight(model, made_cache(normal(3, 2, TOKEN_WIDTH)), gallery, recipe=recipe)
    assert report["strength"] == chosen == model.config.text_strength


def test_text_that_tells_apart_what_images_do_not_is_let_in() -> None:
    model, _ = build_model(tiny(), seed=0)
    tokens = torch.eye(12)[:, None]  # document n says word n
    names = torch.eye(12, WIDTH)
    sentences = sentence_vectors(tokens.numpy(), np.ones((12, 1), dtype=bool))
    install_map(model.fusion, TextRows(np.arange(12), sentences, names.double(), np.arange(12) % 3))
    gallery = made_gallery(12, names, torch.eye(1, WIDTH).roll(15, 1).expand(12, WIDTH))
    report = choose_weight(model, made_cache(tokens), gallery, recipe=tiny())
    assert report["strength"] > 0
    best = next(row for row in report["table"] if row["strength"] == report["strength"])
    assert best["recall_at_1"] == 1.0


def test_too_few_categories_with_text_switch_text_off_and_say_so() -> None:
    model, _ = build_model(tiny(), seed=0)
    labels = Labels(np.zeros(0, int), np.array([0, 1, 2, 2]), np.zeros(0, bool), np.array([False, False, True, True]))
    recipe = tiny().with_changes({"model.frozen_stages": None})
    cache = made_cache(normal(4, 2, TOKEN_WIDTH))
    report = fit_fusion(TextStage(model, cache, labels, torch.eye(3, WIDTH), recipe=recipe, seed=0))
    assert report == {"text": True, "strength": 0.0, "reason": "fewer than 3 categories have text"}
    assert model.config.text_strength == 0.0


def test_a_model_without_text_is_left_as_it_is() -> None:
    recipe = tiny().with_changes({"text.encoder": None})
    model, _ = build_model(recipe, seed=0)
    labels = Labels(*(np.zeros(0, int) for _ in range(4)))
    cache = made_cache(normal(1, 1, 1))
    report = fit_fusion(TextStage(model, cache, labels, torch.eye(1), recipe=recipe, seed=0))
    assert report == {"text": False}


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GovernedSamples]:
    before = datasets.config.HF_DATASETS_CACHE
    datasets.config.HF_DATASETS_CACHE = tmp_path_factory.mktemp("datasets")
    yield read_samples(write_governed(tmp_path_factory.mktemp("governed")))
    datasets.config.HF_DATASETS_CACHE = before


def trained(
    samples: GovernedSamples, folder: Path, changes: dict[str, Any]
) -> tuple[Any, FeatureCache, dict[str, Any]]:
    """Three steps of the image side, then the text side, as a run does it: (model, first cache, report)."""
    recipe = tiny().with_changes(changes)
    model, processor = build_model(recipe, seed=0)
    cache = features_of(model, processor, samples, recipe=recipe, folder=folder / "features", seed=0)
    (folder / "run").mkdir()
    context = RunContext(
        recipe=recipe,
        accelerator=Accelerator(cpu=True),
        data=folder,
        folder=folder / "run",
        features=folder,
        max_steps=3,
    )
    image = train_image_stage(context, model, cache, samples)
    model, _ = with_image_weights(recipe, image.weights, seed=0)
    encoders = EncoderPair(model, frozen_stages=recipe.model.frozen_stages)
    prototypes = category_prototypes(encoders, cache, samples, image.class_weights)
    stage = TextStage(model, cache, samples.labels, prototypes, recipe=recipe, seed=0)
    return model, cache, fit_text_stage(stage, samples).report


def test_the_text_side_is_fitted_on_the_features_that_the_image_side_read(
    samples: GovernedSamples, tmp_path: Path
) -> None:
    model, cache, report = trained(samples, tmp_path, {})
    # 36 documents, 12 of them without text, 4 of held-out categories with text.
    assert report["rows"] == 20
    assert report["strength"] == model.config.text_strength
    assert report["mass_in_named_half"]["trained"] > 0.5
    assert list((tmp_path / "features").glob("images-*")) == [cache.home]


def test_a_run_that_streams_its_inputs_fits_the_same_text_side(samples: GovernedSamples, tmp_path: Path) -> None:
    for name in ("cached", "streamed"):
        (tmp_path / name).mkdir()
    theirs, _, report = trained(samples, tmp_path / "cached", {})
    ours, cache, said = trained(samples, tmp_path / "streamed", {"runtime.feature_storage": "stream"})
    assert isinstance(cache.query_inputs, StreamedInputs)
    assert {name: said[name] for name in ("rows", "strength")} == {name: report[name] for name in ("rows", "strength")}
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value, atol=1e-6, rtol=1e-6, msg=name)
    (home,) = (tmp_path / "streamed" / "features").glob("images-*")
    assert np.load(home / "document_inputs.npy").shape[:2] == (36, 1)  # clean views alone


def test_a_network_of_stages_that_is_trained_whole_attends_to_the_cells_of_any_stage_as_they_are_after_training(
    samples: GovernedSamples, tmp_path: Path
) -> None:
    model, cache, report = trained(samples, tmp_path, {"model.frozen_stages": 0, "model.vision_feature_stage": 5})
    start, _ = build_model(tiny(), seed=0)
    moved = {
        name for name, value in start.vision_model.state_dict().items() if not value.equal(weights_of(model)[name])
    }
    assert "stem.conv.weight" in moved
    assert any(name.startswith("stages.0.") for name in moved)
    pixels = torch.from_numpy(np.array(cache.document_inputs[5, :1])).float()
    assert pixels.shape == (1, 3, 37, 37)
    (home,) = (path for path in (tmp_path / "features").glob("images-*") if path != cache.home)
    with torch.no_grad():
        cells = model.encode_image(pixels)[0]
    np.testing.assert_allclose(np.load(home / "document_cells.npy")[5], cells[0].numpy(), atol=5e-3)
    assert report["mass_in_named_half"]["trained"] > 0.5


def weights_of(model: Any) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = model.vision_model.state_dict()
    return state


def test_cells_of_a_backbone_that_was_trained_whole_are_computed_after_training(
    samples: GovernedSamples, tmp_path: Path
) -> None:
    shape: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        ViTModel(ViTConfig(**shape, intermediate_size=20, image_size=37, patch_size=9)).save_pretrained(
            tmp_path / "vision"
        )
    ViTImageProcessorPil().save_pretrained(tmp_path / "vision")
    changes: dict[str, Any] = {
        "model.vision": str(tmp_path / "vision"),
        "model.vision_feature_stage": None,
        "model.hidden_size": 12,
    }
    changes["model.frozen_stages"] = 0
    model, cache, report = trained(samples, tmp_path, changes)
    start, processor = build_model(tiny().with_changes(changes), seed=0)
    pixels = processor(images=[None])["pixel_values"] + torch.from_numpy(np.array(cache.document_inputs[5, :1])).float()
    with torch.no_grad():
        cells, untrained = model.encode_image(pixels)[0], start.encode_image(pixels)[0]
    assert not torch.allclose(cells, untrained, atol=1e-3), "the backbone was trained"
    (home,) = (path for path in (tmp_path / "features").glob("images-*") if path != cache.home)
    assert cache.document_cells.shape[1] == 0
    found = np.load(home / "document_cells.npy")
    np.testing.assert_allclose(found[5], cells[0].numpy(), atol=5e-3)
    assert np.load(home / "document_inputs.npy").shape == (36, 1, 16)
    (pages,) = (tmp_path / "features").glob("texts-*/page_cells.npy")
    assert np.load(pages).shape == (23, 16, 16)
    assert report["rows"] == 20
    assert report["mass_in_named_half"]["trained"] > 0.5
