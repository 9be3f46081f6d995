"""Fast grouping code equals slow reference implementations."""

import numpy as np
import pytest
from scipy.sparse import csr_array

from data_governance.grouping import assignments, evidence, feature_space, matching, projection
from data_governance.policy import Policy
from data_governance.stages import merge_split, organise_full

POLICY = Policy()


def sparse(rng: np.random.Generator, rows: int, columns: int) -> csr_array:
    """Values in tenths, so that ties are common, and a third of the cells filled."""
    values = np.round(rng.random((rows, columns)), 1) * (rng.random((rows, columns)) < 1 / 3)
    return csr_array(values)


def slow_mutual_pairs(affinity: np.ndarray, count: int, least: float) -> list[list[int]]:
    chosen = set()
    for i, row in enumerate(affinity):
        strong = [j for j in range(len(row)) if row[j] != 0 and row[j] >= least]
        chosen |= {(i, j) for j in sorted(strong, key=lambda j: (-row[j], j))[:count]}
    return sorted([i, j] for i, j in chosen if i < j and (j, i) in chosen)


@pytest.mark.parametrize("seed", range(8))
def test_mutual_pairs_and_best_groups_equal_a_plain_loop(seed: int) -> None:
    rng = np.random.default_rng(seed)
    half = sparse(rng, 17, 17)
    affinity = csr_array(half + half.T)
    for count, least in ((1, 0.2), (3, 0.0), (4, 0.9), (2, 3.0)):
        found = matching.mutual_pairs(affinity, count=count, least=least)
        assert found.tolist() == slow_mutual_pairs(affinity.toarray(), count, least)
        assert found.shape == (len(found), 2)
    per_group = sparse(rng, 23, 5)
    ranked = [sorted((-v, g) for g, v in enumerate(row) if v) for row in per_group.toarray()]
    best, share, second, following = matching.best_two(per_group)
    for place, groups, values in ((0, best, share), (1, second, following)):
        assert groups.tolist() == [row[place][1] if len(row) > place else -1 for row in ranked]
        assert values.tolist() == [-row[place][0] if len(row) > place else 0.0 for row in ranked]


def test_random_numbers_drawn_in_blocks_equal_those_drawn_one_by_one() -> None:
    fast, slow, which = matching._IgraphRandom(5), np.random.default_rng(5), np.random.default_rng(6)
    for _ in range(3 * matching.WORDS_AT_ONCE):
        if which.random() < 0.3:
            assert fast.random() == slow.random()
        else:
            assert fast.randint(0, 2**32 - 1) == slow.integers(0, 2**32)
    assert {fast.randint(3, 5) for _ in range(100)} == {3, 4, 5}


def random_space(leaves: int) -> tuple[feature_space.Space, assignments.ClickGraph]:
    """60 queries in `leaves` leaves and a few in none, 24 documents, three clicks a query."""
    rng = np.random.default_rng(leaves)
    queries, documents = (feature_space.unit_rows(rng.normal(size=(n, 3)).astype(np.float32)) for n in (60, 24))
    clicks = np.zeros((60, 24))
    clicks[np.repeat(np.arange(60), 3), rng.integers(0, 24, 180)] = 1
    leaf = np.where(np.arange(60) < 4, -1, np.arange(60) % leaves)
    graph = assignments.ClickGraph(csr_array(clicks), leaf, np.arange(24) % leaves, np.ones(24, dtype=bool))
    return feature_space.Space(queries, documents), graph


@pytest.mark.parametrize("leaves", [1, 3])
def test_search_by_leaf_equals_search_among_all_queries_when_none_is_cut_off(leaves: int) -> None:
    space, graph = random_space(leaves)
    everyone = Policy(pool_neighbours=60)
    by_leaf = assignments.pooling(space, graph, policy=everyone, products=0)
    np.testing.assert_allclose(
        by_leaf.toarray(), assignments.pooling(space, graph, policy=everyone).toarray(), atol=1e-6
    )
    few = assignments.pooling(space, graph, policy=Policy(pool_neighbours=5), products=0).toarray()
    other = ~assignments.same_leaf(graph.query_leaf[:, None], graph.query_leaf[None])
    assert not few[other].any()
    np.testing.assert_allclose(few.sum(axis=1), 1)


def test_assignments_equal_a_plain_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assignments, "CHUNK", 7)
    space, graph = random_space(2)
    source = (np.arange(24) // 2) % 2
    found = assignments.query_assignments(
        assignments.candidates(space, graph, source, policy=POLICY), source, policy=POLICY
    ).toarray()
    pool = assignments.pooling(space, graph, policy=POLICY).toarray()
    cosine = pool @ space.queries_NW @ space.documents_MW.T
    logit = cosine / POLICY.content_temperature + POLICY.click_weight * (pool @ graph.clicks.toarray())
    fits = assignments.same_leaf(graph.query_leaf[:, None], graph.document_leaf[None])
    for which in (0, 1):  # every document is among the `content_candidates` nearest
        weight = np.where(fits & (source == which), np.exp(logit), 0)
        np.testing.assert_allclose(
            found[:, source == which], (weight / weight.sum(axis=1, keepdims=True))[:, source == which], atol=1e-5
        )


def test_two_views_are_averaged_in_assignments_and_only_the_first_links_documents() -> None:
    (first, graph), (second, _) = random_space(2), random_space(3)
    source, edges = np.zeros(24, dtype=np.int64), np.stack(graph.clicks.nonzero(), axis=1)
    views = (evidence.View(*sides_of(first), 0.7), evidence.View(*sides_of(second), 0.3))
    facts = evidence.Evidence(
        [str(i) for i in range(60)], [str(i) for i in range(24)], views, edges, np.ones(len(edges)), graph
    )
    both = organise_full.view_candidates(facts, source, np.ones(len(edges)), policy=POLICY)
    found = organise_full.link_documents(facts, both, source, policy=POLICY)
    alone = [assignments.query_assignments(view.candidates, source, policy=POLICY).toarray() for view in both]
    np.testing.assert_allclose(found.assignments.toarray(), 0.7 * alone[0] + 0.3 * alone[1], atol=1e-6)
    affinity = matching.document_affinity(csr_array(alone[0]), source, graph.document_leaf, policy=POLICY)
    affinity = matching.weakened_without_shared_query(affinity, graph.clicks)
    np.testing.assert_allclose(found.affinity.toarray(), affinity.toarray(), atol=1e-6)
    cosines = [view.space.queries_NW @ view.space.documents_MW.T for view in both]
    joint = found.space.queries_NW @ found.space.documents_MW.T
    np.testing.assert_allclose(joint, 0.7 * cosines[0] + 0.3 * cosines[1], atol=1e-5)


def sides_of(space: feature_space.Space) -> tuple[np.ndarray, np.ndarray]:
    return space.queries_NW, space.documents_MW


@pytest.mark.parametrize(("widths", "shares"), [([5], [1.0]), ([2, 3], [0.6, 0.4])])
def test_features_are_split_by_view_and_the_second_view_has_the_share_of_the_policy(
    widths: list[int], shares: list[float]
) -> None:
    rows = np.arange(10, dtype=np.float32).reshape(2, 5)
    views = evidence.split_views(rows, rows[:1], widths, second_share=0.4)
    assert [view.share for view in views] == shares
    np.testing.assert_array_equal(np.concatenate([view.queries_NF for view in views], axis=1), rows)
    assert [view.documents_MF.shape for view in views] == [(1, width) for width in widths]


@pytest.mark.parametrize("width", [4, 99])
def test_the_stored_projection_gives_the_rows_of_the_learned_space(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    monkeypatch.setattr(evidence, "FEATURE_WIDTH", width)
    rng = np.random.default_rng(width)
    graph = random_space(2)[1]
    has_image = np.arange(24) > 1
    graph = assignments.ClickGraph(graph.clicks, graph.query_leaf, graph.document_leaf, has_image)
    features = [
        np.concatenate([rng.random((n, 5)), rng.normal(size=(n, 3))], axis=1).astype(np.float32) for n in (60, 24)
    ]
    features[1][~has_image] = 0
    edges = np.stack(graph.clicks.nonzero(), axis=1)
    query_ids, doc_ids = ([str(i) for i in range(n)] for n in (60, 24))
    views = (evidence.View(features[0], features[1], shrinkage=0.2),)
    entities = evidence.Evidence(query_ids, doc_ids, views, edges, np.ones(len(edges)), graph)
    (how,), ready = evidence.prepared_evidence(entities, [[5, 3]])
    assert how.query.rooted_F.tolist() == [True] * 5 + [False] * 3
    assert (how.axes_FR is None) == (width == 99)
    source = np.arange(24) % 2
    space = organise_full.view_candidates(ready, source, np.ones(len(edges)), policy=POLICY)[0].space
    kept = projection.fit_projection(how, space, ready.views[0].documents_MF, source, has_image)
    again = projection.read(*kept.tables(0).values())
    np.testing.assert_allclose(again.queries(features[0]), space.queries_NW, atol=1e-5)
    shown = again.documents(again.document.standard(features[1], has_image), source, has_image)
    np.testing.assert_allclose(shown, space.documents_MW, atol=1e-5)
    assert not shown[0].any()


def test_categories_without_touched_documents_are_neither_merged_nor_split() -> None:
    near = feature_space.unit_rows(np.array([[1, 0.1], [1, 0.0]], dtype=np.float32))
    labels = merge_split.Labels(np.repeat([0, 1], 4), np.arange(2))
    crossing = np.array([(q, q % 2) for q in range(8)])
    for touched, joined in ((None, [0, 0]), ([1], [0, 0]), ([], [0, 1])):
        which = None if touched is None else np.array(touched, dtype=np.int64)
        found = merge_split.merges(near, np.arange(2), crossing, labels, policy=POLICY, touched=which)
        assert found.tolist() == joined
    rows = feature_space.unit_rows(
        np.array([[1, 0.01 * i] for i in range(5)] + [[0.01 * i, 1] for i in range(5)], np.float32)
    )
    edges = np.array([(q, q // 5) for q in range(10)])
    labels = merge_split.Labels(np.zeros(10, np.int64), np.zeros(2, np.int64))
    for touched, num_split in (([0], 1), ([3], 0)):
        assert merge_split.splits(rows, labels, edges, policy=POLICY, touched=np.array(touched))[1] == num_split
