"""Rows of a step depend only on (seed, step), and pieces of a step have the same numbers."""

import collections

import numpy as np
import pytest
import torch

from train.inputs.sampler import SideSampler, dropout_scale, piece


def sampler(balance: float = 1.0, views: int = 2) -> SideSampler:
    """Three categories (7, 2, 9) of 1, 2 and 3 rows; the last row of category 9 weighs three times the others."""
    rows = np.array([10, 11, 12, 13, 14, 15])
    labels = np.array([9, 7, 2, 9, 2, 9])
    weights = np.array([1.0, 1.0, 1.0, 1.0, 1.0, 3.0])
    return SideSampler(rows, labels, weights, views=views, balance=balance, stream=1)


def test_step_is_independent_of_earlier_draws() -> None:
    fresh, used = sampler(), sampler()
    for step in range(5):
        used.draw(4, seed=3, step=step)
    for name in ("rows", "views", "labels"):
        assert (getattr(fresh.draw(4, seed=3, step=5), name) == getattr(used.draw(4, seed=3, step=5), name)).all()


def test_another_seed_and_another_step_draw_other_rows() -> None:
    draws = {tuple(sampler().draw(30, seed=seed, step=step).rows) for seed in (0, 1) for step in (0, 1)}
    assert len(draws) == 4


def test_every_category_is_drawn_before_any_is_drawn_again() -> None:
    labels = np.concatenate([sampler().draw(4, seed=0, step=step).labels for step in range(3)])
    for start in range(0, 12, 3):
        assert sorted(labels[start : start + 3]) == [2, 7, 9]


def test_row_has_the_label_of_its_category() -> None:
    drawn = sampler().draw(50, seed=1, step=0)
    of = {10: 9, 11: 7, 12: 2, 13: 9, 14: 2, 15: 9}
    assert [of[row] for row in drawn.rows.tolist()] == drawn.labels.tolist()


def test_rows_of_a_category_are_drawn_by_weight() -> None:
    drawn = sampler().draw(15000, seed=0, step=0)
    counts = collections.Counter(drawn.rows.tolist())
    assert counts[15] / 5000 == pytest.approx(3 / 5, abs=0.03)
    assert counts[10] / 5000 == pytest.approx(1 / 5, abs=0.03)
    assert sorted(set(drawn.views.tolist())) == [0, 1, 2]


def test_categories_are_drawn_by_weight_without_balance() -> None:
    drawn = sampler(balance=0.0).draw(16000, seed=0, step=0)
    shares = {label: float((drawn.labels == label).mean()) for label in (2, 7, 9)}
    assert shares == pytest.approx({2: 2 / 8, 7: 1 / 8, 9: 5 / 8}, abs=0.02)


@pytest.mark.parametrize(("count", "parts"), [(16, 8), (17, 4), (5, 5)])
def test_pieces_cover_the_rows_once_and_differ_by_one_at_most(count: int, parts: int) -> None:
    pieces = [piece(count, part, parts) for part in range(parts)]
    assert [row for part in pieces for row in range(count)[part]] == list(range(count))
    sizes = {part.stop - part.start for part in pieces}
    assert max(sizes) - min(sizes) <= 1


def test_more_pieces_than_rows_are_rejected() -> None:
    with pytest.raises(ValueError, match="raise queries_per_step"):
        piece(3, 0, 4)


def test_dropout_of_a_piece_is_a_piece_of_the_dropout() -> None:
    whole = dropout_scale(0.3, rows=slice(0, 9), width=7, seed=5, step=11, side="query")
    for start, end in ((0, 4), (4, 9), (8, 9)):
        part = dropout_scale(0.3, rows=slice(start, end), width=7, seed=5, step=11, side="query")
        assert torch.equal(part, whole[start:end])


def test_dropout_keeps_the_mean_and_differs_by_side_step_and_seed() -> None:
    masks = [
        dropout_scale(0.25, rows=slice(0, 200), width=100, seed=seed, step=step, side=side)
        for seed, step, side in ((0, 0, "query"), (1, 0, "query"), (0, 1, "query"), (0, 0, "document"))
    ]
    assert masks[0].mean() == pytest.approx(1.0, abs=0.02)
    assert masks[0].unique().tolist() == [0.0, 1 / 0.75]
    for other in masks[1:]:
        # Independent masks agree with probability .75^2 + .25^2.
        assert (masks[0] == other).double().mean() == pytest.approx(0.625, abs=0.02)


def test_rate_zero_drops_nothing() -> None:
    kept = dropout_scale(0.0, rows=slice(2, 4), width=3, seed=0, step=0, side="query")
    assert torch.equal(kept, torch.ones(2, 3).double())
