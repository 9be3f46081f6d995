"""Figures on held-out categories, worked by hand."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from train.inputs.cache import FeatureCache
from train.inputs.composites import CompositeLayout
from train.inputs.samples import Labels
from train.selection.held_out import (
    METRICS,
    ValidationGallery,
    first_relevant_ranks,
    held_out_metrics,
    with_neighbours_shift,
)


def gallery(
    queries: list[list[float]],
    query_labels: list[int],
    images: Tensor,
    labels: list[int],
    *,
    calibration: Tensor | None = None,
    has_image: list[bool] | None = None,
    has_text: list[bool] | None = None,
) -> ValidationGallery:
    """A gallery whose documents all have images and texts and whose calibration pushes nothing, unless given."""
    count = len(labels)
    return ValidationGallery(
        queries=torch.tensor(queries),
        query_labels=np.array(query_labels),
        images=images,
        labels=np.array(labels),
        has_image=np.array(has_image or [True] * count),
        has_text=np.array(has_text or [True] * count),
        calibration=torch.zeros(1, images.shape[1]) if calibration is None else calibration,
    )


QUERIES = [[0.9, 0.2, 0.1], [0.1, 0.5, 0.9], [0.9, 0.5, 0.1]]


def test_three_documents_by_hand_with_the_mean_over_categories() -> None:
    # Ranks of the right document: 1 and 3 for the queries of category 0, 2 for the query of category 1.
    found = gallery(QUERIES, [0, 0, 1], torch.eye(3), [0, 1, 2])
    figures = held_out_metrics(found, torch.eye(3), torch.zeros(3, 3))
    assert METRICS == ("recall_at_1", "recall_at_10", "mrr_at_10", "ndcg")
    ndcg = [(1 + 1 / np.log2(4)) / 2, 1 / np.log2(3)]
    np.testing.assert_allclose(figures, [[1 / 2, 1.0, (1 + 1 / 3) / 2, ndcg[0]], [0.0, 1.0, 1 / 2, ndcg[1]]])


def test_a_document_near_to_every_training_query_is_pushed_back_by_half_of_that() -> None:
    # Document 0 loses 0.5 * 1: the third query then finds 0.5 at document 1 against 0.4.
    found = gallery([QUERIES[2]], [1], torch.eye(3), [0, 1, 2], calibration=torch.eye(3)[:1])
    assert held_out_metrics(found, torch.eye(3), torch.zeros(3, 3))[0, 0] == 1.0
    free = gallery([QUERIES[2]], [1], torch.eye(3), [0, 1, 2])
    assert held_out_metrics(free, torch.eye(3), torch.zeros(3, 3))[0, 0] == 0.0


def test_the_eleventh_document_is_not_found() -> None:
    scores = [[float(12 - place) for place in range(12)]]
    for right, expected in ((9, (1.0, 0.1)), (10, (0.0, 0.0))):
        found = gallery(scores, [1], torch.eye(12), [int(place == right) for place in range(12)])
        figures = held_out_metrics(found, torch.eye(12), torch.zeros(12, 12))
        assert figures[0, 1:3].tolist() == pytest.approx(expected)
        assert figures[0, 3] == pytest.approx(1 / np.log2(right + 2)), "counted at any rank"


def test_a_model_that_embeds_everything_alike_finds_nothing() -> None:
    found = gallery([[1.0, 0.0]], [1], torch.ones(30, 2), [int(place == 0) for place in range(30)])
    figures = held_out_metrics(found, torch.ones(30, 2), torch.zeros(30, 2))
    assert figures[0, :3].tolist() == [0.0, 0.0, 0.0]
    assert figures[0, 3] == pytest.approx(1 / np.log2(31))


def test_a_query_without_a_relevant_document_ranks_after_all_of_them() -> None:
    assert first_relevant_ranks(torch.zeros(1, 3), torch.tensor([9]), torch.tensor([0, 1, 2])).tolist() == [4]


def test_nothing_held_out_gives_no_category() -> None:
    found = ValidationGallery(
        queries=torch.zeros(0, 3),
        query_labels=np.zeros(0, dtype=int),
        images=torch.eye(3),
        labels=np.arange(3),
        has_image=np.ones(3, dtype=bool),
        has_text=np.ones(3, dtype=bool),
        calibration=torch.eye(3),
    )
    assert not found.has_queries
    assert held_out_metrics(found, torch.eye(3), torch.zeros(3, 3)).shape == (0, 4)


def test_a_document_without_text_is_shifted_as_its_neighbours_are_and_no_other_row_moves() -> None:
    # Documents 0 and 1 have both; 2 has an image alone; 3 has a text alone and is no neighbour.
    images = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8], [0.6, 0.8]])
    shifts = torch.tensor([[0.2, 0.0], [0.6, 0.8], [9.0, 9.0], [9.0, 9.0]])
    embeds = torch.tensor([[0.1, 0.2], [0.3, 0.4], [0.5, 0.6], [0.7, 0.8]])
    found = gallery(
        [[1.0, 0.0]],
        [0],
        images,
        [0, 1, 2, 3],
        has_image=[True, True, True, False],
        has_text=[True, True, False, True],
    )
    filled = with_neighbours_shift(found, embeds, shifts)
    moved = torch.tensor([0.6 + 0.4, 0.8 + 0.4])
    torch.testing.assert_close(filled[2], moved / moved.norm())
    assert torch.equal(filled[[0, 1, 3]], embeds[[0, 1, 3]])


def test_without_a_neighbour_that_has_both_nothing_is_shifted() -> None:
    found = gallery([[1.0, 0.0]], [0], torch.eye(2), [0, 1], has_text=[False, False])
    embeds = torch.rand(2, 2)
    assert torch.equal(with_neighbours_shift(found, embeds, torch.ones(2, 2)), embeds)


def test_the_gallery_asks_with_held_out_queries_and_calibrates_with_the_others() -> None:
    labels = Labels(
        query=np.array([5, 6, 5, 7]),
        document=np.array([5, 6, 7]),
        query_validation=np.array([True, False, True, False]),
        document_validation=np.array([True, False, False]),
    )
    mask = np.array([[True, False], [False, False], [True, True]])
    nowhere = np.zeros((3, 1, 1), np.float16)
    none = np.zeros(0, dtype=int)
    cache = FeatureCache(
        home=Path(),
        query_inputs=nowhere,
        document_inputs=nowhere,
        document_has_image=np.array([True, True, False]),
        document_cells=nowhere,
        grid=(1, 1),
        document_tokens=nowhere,
        document_mask=mask,
        page_cells=nowhere,
        composite_layouts=CompositeLayout(none, none, none),
    )
    found = ValidationGallery.of(labels, queries=torch.eye(4), images=torch.eye(3, 4), cache=cache)
    assert torch.equal(found.queries, torch.eye(4)[[0, 2]])
    assert torch.equal(found.calibration, torch.eye(4)[[1, 3]])
    assert found.query_labels.tolist() == [5, 5]
    assert found.labels.tolist() == [5, 6, 7]
    assert found.has_text.tolist() == [True, False, True]
    assert found.has_image.tolist() == [True, True, False]
