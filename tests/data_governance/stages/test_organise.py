"""Parts of organise on small cases worked by hand."""

import numpy as np
import pytest
from scipy.sparse import csr_array

from data_governance.grouping import assignments, feature_space, matching
from data_governance.policy import Policy
from data_governance.stages import organise_full

POLICY = Policy()


def test_the_learned_space_removes_a_style_gap() -> None:
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(60, 20))
    nuisance = rng.normal(size=(3, 20)) * 6
    queries = (truth + rng.normal(size=(60, 3)) @ nuisance).astype(np.float32)
    documents = (truth + rng.normal(size=(60, 3)) @ nuisance).astype(np.float32)
    pairs = np.stack([np.arange(60)] * 2, axis=1)
    every = np.ones(60, dtype=bool)
    queries, documents = (feature_space.prepared(x, every, [20], [False]) for x in (queries, documents))

    def right(q: np.ndarray, d: np.ndarray) -> float:
        return float(((q @ d.T).argmax(axis=1) == np.arange(60)).mean())

    space = feature_space.learned_space(queries, documents, pairs[:40], np.ones(40), shrinkage=0.01, width=15)
    before = right(feature_space.unit_rows(queries), feature_space.unit_rows(documents))
    assert before < 0.4
    assert right(space.queries_NW, space.documents_MW) > 0.85


def test_blocks_are_rooted_and_scaled_and_missing_images_stay_zero() -> None:
    features = np.array([[4.0, 10.0, -5.0], [16.0, 0.0, 15.0], [9.0, 9.0, 9.0]])
    rooted = feature_space.non_negative_blocks(features[:2], features[2:], [1, 2])
    assert rooted == [True, False]
    found = feature_space.prepared(features, np.array([True, True, False]), [1, 2], rooted)
    # block one: roots 2 and 4, centred -1 and 1; block two as it is, centred (5, -10) and (-5, 10)
    np.testing.assert_allclose(found[:, 0], [-1, 1, 0], atol=1e-6)
    np.testing.assert_allclose(found[0, 1:], np.array([5, -10]) / np.sqrt(125), atol=1e-6)
    assert not found[2].any()


def test_principal_axes_keep_the_inner_products() -> None:
    rng = np.random.default_rng(5)
    values = (rng.normal(size=(40, 3)) @ rng.normal(size=(3, 10))).astype(np.float32)
    axes = feature_space.principal_axes(values[:25], values[25:], width=3)
    queries, documents = (feature_space.reduced(side, axes) for side in (values[:25], values[25:]))
    assert queries.shape == (25, 3)
    np.testing.assert_allclose(queries @ documents.T, values[:25] @ values[25:].T, atol=1e-3)


def test_sources_are_found_from_pairs_across_them_and_not_from_chance_pairs() -> None:
    rng = np.random.default_rng(1)
    thing = rng.normal(size=(100, 12))
    style = np.repeat([[1.0], [-1.0]], 100, axis=0) * np.eye(12)[3] * 4
    documents = (np.concatenate([thing, thing]) + style).astype(np.float32)
    pairs = np.stack([np.arange(100), np.arange(100) + 100], axis=1)
    source, share = feature_space.document_sources(documents, pairs, seed=0, min_share=0.6)
    assert share > 0.95
    assert len(set(source[:100])) == 1
    assert len(set(source[100:])) == 1
    assert source[0] != source[100]
    chance = rng.normal(size=(200, 12)).astype(np.float32)
    source, share = feature_space.document_sources(chance, pairs, seed=0, min_share=0.75)
    assert not source.any()
    assert share < 0.75


def test_reciprocal_rank_counts_only_documents_of_the_leaf() -> None:
    space = feature_space.Space(np.array([[1.0, 0.0]]), np.array([[0.6, 0.8], [0.8, 0.6], [1.0, 0.0]]))
    pairs = np.array([[0, 0]])
    assert feature_space.reciprocal_rank(space, pairs, np.array([0, 0, 0])) == pytest.approx(1 / 3)
    assert feature_space.reciprocal_rank(space, pairs, np.array([0, 0, 1])) == pytest.approx(1 / 2)


def test_softmax_is_taken_within_each_group() -> None:
    logit = np.log(np.array([1.0, 3.0, 5.0]))
    np.testing.assert_allclose(assignments.grouped_softmax(logit, np.array([7, 7, 9])), [0.25, 0.75, 1.0])


def dense(rows: list[list[float]]) -> csr_array:
    return csr_array(np.array(rows))


def test_affinity_is_common_queries_over_sizes_and_reduced_within_a_source() -> None:
    shares = dense([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]])
    leaf = np.zeros(3, dtype=int)
    a = matching.document_affinity(shares, np.zeros(3, dtype=int), leaf, policy=POLICY).toarray()
    # sizes .5 + (1.5, .5, 0): a_01 = .25 / sqrt(2 * 1)
    assert a[0, 1] == pytest.approx(0.25 / np.sqrt(2))
    assert a[0, 2] == 0
    assert a[0, 0] == 0
    b = matching.document_affinity(shares, np.array([1, 1, 0]), leaf, policy=POLICY).toarray()
    assert b[0, 1] == pytest.approx(0.1 * a[0, 1])
    c = matching.document_affinity(shares, np.zeros(3, dtype=int), np.array([0, 1, 1]), policy=POLICY).toarray()
    assert c[0, 1] == 0


def test_documents_without_a_common_query_are_linked_weakly() -> None:
    affinity = dense([[0, 0.5, 0.4], [0.5, 0, 0.2], [0.4, 0.2, 0]])
    clicks = dense([[0.2, 1.0, 0.0], [0.0, 0.0, 3.0]])
    found = matching.weakened_without_shared_query(affinity, clicks).toarray()
    np.testing.assert_allclose(found, [[0, 0.5, 0.12], [0.5, 0, 0.06], [0.12, 0.06, 0]])
    single = dense([[1, 0, 0], [0, 2, 0], [0, 0, 1]])  # no query could have clicked two
    np.testing.assert_allclose(matching.weakened_without_shared_query(affinity, single).toarray(), affinity.toarray())
    mixed = matching.weakened_without_shared_query(affinity, dense([[1, 0, 0], [0, 2, 0], [0, 1, 1]])).toarray()
    np.testing.assert_allclose(mixed, [[0, 0.15, 0.12], [0.15, 0, 0.2], [0.12, 0.2, 0]])
    two = matching.weakened_without_shared_query(affinity, dense([[1, 1, 0], [2, 1, 1]])).toarray()
    np.testing.assert_allclose(two, affinity.toarray())


@pytest.mark.parametrize(("clicks_of_each", "slack"), [(1, 0.25), (2, 0.25), (6, 0.125), (100, 0.03)])
def test_the_fewer_clicks_a_document_has_the_more_fit_a_finer_resolution_may_cost(
    clicks_of_each: int, slack: float
) -> None:
    query, document = np.divmod(np.arange(clicks_of_each * 3), 3)
    assert organise_full.fit_slack(np.stack([query, document], axis=1)) == pytest.approx(slack)
    assert organise_full.fit_slack(np.zeros((0, 2), dtype=np.int64)) == 0.25


def test_the_finest_resolution_is_taken_that_fits_nearly_as_well() -> None:
    fits = {"0.001": 0.8, "0.01": 0.61, "0.1": 0.59}
    assert organise_full.finest_resolution(fits, 0.25) == 0.01
    assert organise_full.finest_resolution(fits, 0.0) == 0.001


def test_matching_maximises_the_sum_where_a_greedy_match_would_not() -> None:
    # greedy would take 0-2 (.9) and leave 1-3 (0); the best sum is 0-3 (.8) and 1-2 (.8)
    affinity = dense([[0, 0, 0.9, 0.8], [0, 0, 0.8, 0.0], [0.9, 0.8, 0, 0], [0.8, 0.0, 0, 0]])
    source = np.array([0, 0, 1, 1])
    assert matching.matched_pairs(affinity, source, least=0.1).tolist() == [[0, 3], [1, 2]]
    assert matching.matched_pairs(affinity, source, least=0.85).tolist() == []


def test_mutual_pairs_need_both_to_choose_each_other() -> None:
    affinity = dense([[0, 0.9, 0.5], [0.9, 0, 0.8], [0.5, 0.8, 0]])
    assert matching.mutual_pairs(affinity, count=1, least=0.1).tolist() == [[0, 1]]
    assert matching.mutual_pairs(affinity, count=2, least=0.6).tolist() == [[0, 1], [1, 2]]


def test_leiden_separates_two_cliques_with_a_weak_edge_and_is_deterministic() -> None:
    size = 5
    pairs = [(i + o, j + o) for o in (0, size) for i in range(size) for j in range(i + 1, size)] + [(0, size)]
    affinity = np.zeros((10, 10))
    for i, j in pairs:
        affinity[i, j] = affinity[j, i] = 1.0
    affinity[0, size] = affinity[size, 0] = 0.1
    runs = [
        matching.leiden_groups(csr_array(affinity), np.array(sorted(pairs)), resolution=0.3, seed=3) for _ in range(2)
    ]
    assert len(set(runs[0][:size])) == 1
    assert len(set(runs[0])) == 2
    assert runs[0].tolist() == runs[1].tolist()


def test_best_two_ranks_with_ties_to_the_smaller_group_and_empty_rows() -> None:
    best, share, second, following = matching.best_two(dense([[0.5, 0.5, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 1.0]]))
    assert best.tolist() == [0, -1, 2]
    assert second.tolist() == [1, -1, -1]
    assert share.tolist() == [0.5, 0.0, 1.0]
    assert following.tolist() == [0.5, 0.0, 0.0]


def test_click_fit_subtracts_the_chance_within_the_leaf() -> None:
    edges = np.array([[0, 0], [1, 1], [2, 1], [3, 2]])
    best, group, leaf = np.array([0, 1, 0, 2]), np.array([0, 1, 2]), np.array([0, 0, 1])
    # inside: 3 of 4. chance: leaf 0 has 3 clicks, one on group 0, two on group 1; leaf 1 is all group 2
    assert matching.click_fit(edges, best, group, leaf) == pytest.approx(3 / 4 - (1 / 3 + 2 / 3 + 1 / 3 + 1) / 4)
