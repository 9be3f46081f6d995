"""Composite images of two documents: layouts, pixels, and patches of the named half."""

import numpy as np
import pytest
import torch

from train.inputs.composites import (
    BOTTOM,
    LEFT,
    RIGHT,
    TOP,
    composite_image,
    composite_layouts,
    half_weight,
    white_pixel,
)


def test_composite_never_pairs_a_category_with_itself() -> None:
    labels = np.array([0] * 30 + [1, 2])
    everything = np.ones(32, dtype=bool)
    for seed in range(5):
        layout = composite_layouts(labels, usable=everything, has_text=everything, seed=seed)
        assert layout.named.tolist() == list(range(32))
        assert (labels[layout.named] != labels[layout.other]).all()


def test_composites_use_documents_with_image_and_name_those_with_text() -> None:
    labels = np.arange(6)
    usable = np.array([True, True, False, True, True, True])
    has_text = np.array([True, False, True, True, False, True])
    layout = composite_layouts(labels, usable=usable, has_text=has_text, seed=0)
    assert layout.named.tolist() == [0, 3, 5]
    assert usable[layout.other].all()


def test_named_document_appears_at_every_place_keyed_by_seed() -> None:
    labels, everything = np.arange(200), np.ones(200, dtype=bool)
    first, same, other = (composite_layouts(labels, usable=everything, has_text=everything, seed=s) for s in (1, 1, 2))
    assert set(first.place) == {LEFT, RIGHT, TOP, BOTTOM}
    assert (first.other == same.other).all()
    assert (first.place == same.place).all()
    assert (first.other != other.other).any()


@pytest.mark.parametrize("usable", [[True, True, False], [False, False, False]])
def test_no_composite_without_two_categories_with_images(usable: list[bool]) -> None:
    layout = composite_layouts(np.array([4, 4, 5]), usable=np.array(usable), has_text=np.ones(3, dtype=bool), seed=0)
    assert len(layout.named) == len(layout.other) == len(layout.place) == 0


W, N, O = 9.0, 1.0, 2.0  # noqa: E741


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        (LEFT, [[W, W, W, W], [N, N, O, O], [N, N, O, O], [W, W, W, W]]),
        (RIGHT, [[W, W, W, W], [O, O, N, N], [O, O, N, N], [W, W, W, W]]),
        (TOP, [[W, N, N, W], [W, N, N, W], [W, O, O, W], [W, O, O, W]]),
        (BOTTOM, [[W, O, O, W], [W, O, O, W], [W, N, N, W], [W, N, N, W]]),
    ],
)
def test_named_document_is_at_its_place(place: int, expected: list[list[float]]) -> None:
    named, other = torch.full((3, 4, 4), N), torch.full((3, 4, 4), O)
    page = composite_image(named, other, place, white_C=torch.full((3,), W))
    assert page.shape == (3, 4, 4)
    for channel in page:
        assert channel.tolist() == expected


def test_composite_of_odd_size_keeps_size_and_halves() -> None:
    named, other = torch.full((1, 5, 5), N), torch.full((1, 5, 5), O)
    page = composite_image(named, other, LEFT, white_C=torch.tensor([W]))[0]
    assert page[2].tolist() == [N, N, (N + O) / 2, O, O]


def test_document_is_upright_at_half_its_size() -> None:
    named = torch.arange(16.0).reshape(1, 4, 4)
    page = composite_image(named, torch.zeros(1, 4, 4), LEFT, white_C=torch.tensor([W]))[0]
    assert page[1:3, :2].tolist() == [[2.5, 4.5], [10.5, 12.5]]  # means of 2 x 2 pixels


def test_white_pixel_equals_that_of_the_processor() -> None:
    assert white_pixel([0.5, 0.2, 0.0], [0.5, 0.4, 2.0]).tolist() == pytest.approx([1.0, 2.0, 0.5])


def test_half_weight_of_two_rows_of_three_patches() -> None:
    weight = half_weight(np.array([LEFT, RIGHT, TOP, BOTTOM]), (2, 3))
    assert weight.tolist() == [
        [1, 0.5, 0, 1, 0.5, 0],
        [0, 0.5, 1, 0, 0.5, 1],
        [1, 1, 1, 0, 0, 0],
        [0, 0, 0, 1, 1, 1],
    ]


def test_half_weight_of_three_rows_of_three_patches() -> None:
    weight = half_weight(np.array([BOTTOM, LEFT]), (3, 3))
    assert weight.tolist() == [[0, 0, 0, 0.5, 0.5, 0.5, 1, 1, 1], [1, 0.5, 0, 1, 0.5, 0, 1, 0.5, 0]]
