"""Documents without clicks are paired by content where this is reliable."""

import numpy as np
import pytest
from scipy.sparse import csr_array

from data_governance.grouping import content_pairs, matching
from data_governance.grouping.assignments import ClickGraph
from data_governance.grouping.feature_space import Space, unit_rows
from data_governance.stages import organise_full

WIDTH = 16


def random_documents(
    categories: int, *, blur: float, unclicked: int, sources: bool
) -> tuple[Space, ClickGraph, np.ndarray, np.ndarray]:
    """Two documents per category, rows 2c and 2c + 1; the last `unclicked` categories have no click or group."""
    rng = np.random.default_rng(0)
    centre = np.repeat(rng.standard_normal((categories, WIDTH)), 2, axis=0)
    vectors = unit_rows((centre + blur * rng.standard_normal(centre.shape)).astype(np.float32))
    count, known = 2 * categories, 2 * (categories - unclicked)
    clicks = csr_array((np.ones(known), (np.zeros(known, int), np.arange(known))), shape=(1, count))
    graph = ClickGraph(clicks, np.array([-1]), np.arange(count) // 2 % 3, np.ones(count, dtype=bool))
    group = np.concatenate([np.arange(known) // 2, known // 2 + np.arange(count - known)])
    source = np.arange(count) % 2 if sources else np.zeros(count, dtype=np.int64)
    return Space(np.zeros((1, WIDTH), np.float32), vectors), graph, group, source


@pytest.mark.parametrize("sources", [True, False])
def test_similar_unclicked_documents_become_one_category(sources: bool) -> None:
    space, graph, group, source = random_documents(60, blur=0.1, unclicked=10, sources=sources)
    found, notes = content_pairs.with_content_pairs(space, graph, group, source)
    assert (notes["unclicked_alone"], notes["content_pairs"]) == (20, 10)
    assert found.tolist() == (np.arange(120) // 2).tolist()


def test_nothing_is_paired_when_content_is_wrong_on_clicked_documents() -> None:
    space, graph, group, source = random_documents(60, blur=9.0, unclicked=10, sources=True)
    found, notes = content_pairs.with_content_pairs(space, graph, group, source)
    assert notes["content_pair_cosine"] is None
    assert notes["content_pairs_of_clicked_right"] < content_pairs.LEAST_PRECISION
    assert found.tolist() == group.tolist()


def test_documents_with_clicks_without_images_or_of_other_leaves_are_not_paired() -> None:
    space, graph, group, source = random_documents(60, blur=0.1, unclicked=2, sources=True)
    graph.has_image[[117, 119]] = False
    space.documents_MW[117] = space.documents_MW[119] = 0
    found, notes = content_pairs.with_content_pairs(space, graph, group, source)
    assert notes["unclicked_alone"] == 2  # of leaves 1 and 2
    assert notes["content_pairs"] == 0
    assert found.tolist() == group.tolist()


def test_an_incremental_run_pairs_new_documents_with_any_and_no_two_old_ones() -> None:
    space, graph, group, source = random_documents(60, blur=0.1, unclicked=10, sources=True)
    new = np.zeros(120, dtype=bool)
    new[[100, 119]] = True
    found, notes = content_pairs.with_content_pairs(space, graph, group, source, new=new)
    assert notes["content_pairs"] == 2
    assert (found[100] == found[101], found[118] == found[119], len(set(found.tolist()))) == (True, True, 68)
    none = np.zeros(120, dtype=bool)
    found, notes = content_pairs.with_content_pairs(space, graph, group, source, new=none)
    assert (found.tolist(), notes) == (group.tolist(), {"unclicked_alone": 20})


def test_best_categories_of_queries_use_the_numbers_after_pairing() -> None:
    space, graph, group, source = random_documents(60, blur=0.1, unclicked=10, sources=True)
    shares = csr_array((np.array([0.6, 0.4]), (np.array([0, 0]), np.array([3, 119]))), shape=graph.clicks.shape)
    best = matching.best_two(matching.group_assignments(shares, group))
    found, notes = organise_full.pair_unclicked(organise_full.Grouping(space, shares, group, source, *best), graph)
    assert notes["content_pairs"] == 10
    assert (int(found.best[0]), int(found.second[0])) == (found.group[3], found.group[119])
    assert found.group[118] == found.group[119] == 59
    assert (float(found.share[0]), float(found.next_share[0])) == pytest.approx((0.6, 0.4))


def test_the_least_cosine_keeps_the_required_precision() -> None:
    cosine = np.linspace(1, 0, 100)
    right = np.arange(100) < 50
    least = content_pairs.least_cosine(cosine, right)
    assert least == pytest.approx(cosine[61])  # 50 of the first 62 are right: .806; of 63: .794
    assert content_pairs.least_cosine(cosine[:10], right[:10]) is None
    assert content_pairs.least_cosine(cosine, ~right) is None
