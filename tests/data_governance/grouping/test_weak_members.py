"""Documents that a category's own queries hardly point to are parted from it."""

import numpy as np
from scipy.sparse import csr_array

from data_governance.grouping.evidence import click_weights
from data_governance.grouping.weak_members import member_evidence, part_weak_members

# Two queries of category 0 point to documents 0 and 1, hardly to 2; nobody points to category 1 (documents 3 and 4).
ASSIGNMENTS = csr_array(np.array([[0.6, 0.38, 0.02, 0.0, 0.0], [0.5, 0.45, 0.05, 0.0, 0.0]]))
GROUP, BEST = np.array([0, 0, 0, 1, 1]), np.array([0, 0])


def test_a_document_with_little_evidence_becomes_a_group_of_its_own() -> None:
    parted = part_weak_members(ASSIGNMENTS, GROUP, BEST, least_share=0.1)
    assert parted[0] == parted[1] != parted[2]
    assert parted[3] == parted[4], "a category without queries has no evidence and stays"
    assert len(np.unique(parted)) == 3


def test_a_share_of_zero_and_closed_documents_change_nothing() -> None:
    np.testing.assert_array_equal(part_weak_members(ASSIGNMENTS, GROUP, BEST, least_share=0.0), GROUP)
    closed = np.zeros(5, dtype=bool)
    np.testing.assert_array_equal(part_weak_members(ASSIGNMENTS, GROUP, BEST, least_share=0.9, open_M=closed), GROUP)


def test_evidence_counts_the_queries_of_the_own_category_alone() -> None:
    other = np.array([0, 1])  # the second query belongs to category 1
    np.testing.assert_allclose(member_evidence(ASSIGNMENTS, GROUP, other), [0.6, 0.38, 0.02, 0.0, 0.0])


def test_clicks_weigh_by_those_of_the_most_clicked_document_of_their_query() -> None:
    edges = np.array([[0, 0], [0, 1], [0, 2], [1, 3]])
    weights = click_weights(edges, np.array([4, 2, 1, 1]))
    np.testing.assert_allclose(weights, [1.0, 0.25, 0.0625, 1.0])
    assert len(click_weights(np.empty((0, 2), np.int64), np.empty(0))) == 0
