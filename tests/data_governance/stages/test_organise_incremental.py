"""Incremental organise moves only touched documents, each with a gain."""

import numpy as np
import pytest
from scipy.sparse import csr_array

from data_governance.grouping import assignments
from data_governance.grouping.evidence import Evidence, View
from data_governance.grouping.feature_space import Space
from data_governance.grouping.projection import Projection, Scale
from data_governance.stages.organise_full import Links
from data_governance.stages.organise_incremental import (
    PreviousRun,
    first_groups,
    move_locally,
    regroup,
    touched_documents,
    weights,
)


def graph(size: int, *edges: tuple[int, int, float]) -> csr_array:
    matrix = np.zeros((size, size))
    for i, j, w in edges:
        matrix[i, j] = matrix[j, i] = w
    return csr_array(matrix)


def objective(group: np.ndarray, weight: csr_array, resolution: float) -> float:
    """Constant Potts model, from its definition: sum over pairs of one group of (weight - resolution)."""
    dense = weight.toarray()
    pairs = [(i, j) for i in range(len(group)) for j in range(i) if group[i] == group[j]]
    return float(sum(dense[i, j] - resolution for i, j in pairs))


def test_a_new_document_joins_the_group_with_the_largest_gain_or_stays_alone() -> None:
    weight = graph(6, (0, 1, 0.5), (2, 3, 0.5), (4, 2, 0.4), (4, 3, 0.3), (4, 0, 0.5))
    before = np.array([7, 7, 2, 2, 8, 9])
    assert move_locally(before, weight, np.array([4, 5]), resolution=0.1).tolist() == [1, 1, 0, 0, 0, 2]
    # To 2 and 3: .7 - .2 = .5; to 0 and 1: .5 - .2 = .3.


def test_a_touched_document_leaves_a_group_that_it_has_no_links_to() -> None:
    weight = graph(4, (0, 1, 0.5), (2, 3, 0.5))
    before = np.array([0, 0, 0, 3])
    assert move_locally(before, weight, np.array([2]), resolution=0.1).tolist() == [0, 0, 1, 1]
    alone = graph(3, (0, 1, 0.5))
    assert move_locally(np.array([0, 0, 0]), alone, np.array([2]), resolution=0.1).tolist() == [0, 0, 1]


def test_untouched_documents_do_not_move_even_if_that_would_gain() -> None:
    weight = graph(3, (0, 1, 0.9), (1, 2, 0.1))
    assert move_locally(np.array([0, 1, 1]), weight, np.array([2]), resolution=0.2).tolist() == [0, 1, 2]


def test_a_document_whose_partner_is_matched_anew_is_touched_through_its_old_group() -> None:
    """a and x were one group by a's ties; the new n takes a, and nothing ties x to either. b was clicked anew."""
    nodes = assignments.ClickGraph(csr_array((2, 5)), np.zeros(2), np.zeros(5), np.ones(5, dtype=bool))
    views = (View(np.zeros((2, 1)), np.zeros((5, 1))),)
    evidence = Evidence(["p", "q"], ["a", "b", "n", "x", "z"], views, np.array([[0, 1]]), np.ones(1), nodes)
    scale = Scale(np.zeros(1, dtype=bool), np.zeros(1), np.ones(1))
    lens = Projection(scale, scale, np.ones((1, 1)), np.zeros((1, 1)))
    known = PreviousRun((lens,), 0.1, 2.0, {"a": 0, "x": 0, "b": 1, "z": 2}, {}, set())
    links = Links(
        Space(np.zeros((2, 1)), np.zeros((5, 1))), csr_array((2, 5)), graph(5), np.zeros((0, 2)), np.array([[0, 2]])
    )
    first = first_groups(evidence, known)
    assert first[[0, 3]].tolist() == [0, 0]
    assert touched_documents(evidence, known, links, first).tolist() == [0, 1, 2, 3]


def links_of(weight: csr_array) -> Links:
    i, j = np.nonzero(np.triu(weight.toarray()))
    size = weight.shape[0]
    space = Space(np.zeros((1, 1)), np.zeros((size, 1)))
    return Links(space, csr_array((1, size)), weight, np.zeros((0, 2)), np.stack([i, j], axis=1))


def test_regrouping_reaches_groups_that_local_moves_do_not() -> None:
    """a-b was a pair; now a fits n better, and b fits y, whose old partner z is left. By moves alone b drags on a."""
    weight = graph(5, (0, 2, 0.9), (0, 1, 0.3), (1, 3, 0.5), (3, 4, 0.35), (2, 1, 0.05))
    before, touched = np.array([0, 0, 5, 1, 1]), np.arange(5)
    again = regroup(before, links_of(weight), touched, resolution=0.3, seed=0)
    assert (again[0] == again[2], again[1] == again[3], again[4] in again[:4]) == (True, True, False)
    moved = move_locally(before, weight, touched, resolution=0.3)
    assert objective(again, weight, 0.3) >= objective(moved, weight, 0.3)


def test_touched_documents_without_links_become_single_groups() -> None:
    lone = links_of(graph(3))
    assert len(set(regroup(np.array([0, 0, 0]), lone, np.array([0, 2]), resolution=0.1, seed=0).tolist())) == 3
    assert weights(lone).nnz == 0


@pytest.mark.parametrize("seed", range(10))
def test_regrouping_does_not_move_untouched_documents(seed: int) -> None:
    rng = np.random.default_rng(seed)
    weight = graph(12, *[(i, j, float(rng.random())) for i in range(12) for j in range(i) if rng.random() < 0.3])
    before, touched = rng.integers(0, 5, 12), np.flatnonzero(rng.random(12) < 0.6)
    after = regroup(before, links_of(weight), touched, resolution=0.2, seed=0)
    still = np.setdiff1d(np.arange(12), touched)
    assert after[still].tolist() == before[still].tolist()
    assert not set(after[touched].tolist()) & set(before.tolist())


@pytest.mark.parametrize("seed", range(20))
def test_after_local_moves_no_single_move_would_gain(seed: int) -> None:
    rng = np.random.default_rng(seed)
    size, resolution = 14, 0.15
    edges = [(i, j, float(rng.random())) for i in range(size) for j in range(i) if rng.random() < 0.25]
    weight = graph(size, *edges)
    before = rng.integers(0, 6, size)
    touched = np.flatnonzero(rng.random(size) < 0.5)
    after = move_locally(before, weight, touched, resolution=resolution)
    still = np.setdiff1d(np.arange(size), touched)
    assert all((before[i] == before[j]) == (after[i] == after[j]) for i in still for j in still)
    reached = objective(after, weight, resolution)
    assert reached >= objective(before, weight, resolution) - 1e-9
    for i in touched:
        for other in [*set(after.tolist()), size + 1]:
            moved = after.copy()
            moved[i] = other
            assert objective(moved, weight, resolution) <= reached + 1e-9
