"""Part documents from a category that its own queries hardly point to.

A wrong click joins its document to the query's category when nobody else has clicked that document: no query of its own
pulls it back. Where queries are few, most documents of a category can be of this kind. They are recognised by evidence:
right documents collect many times the assignments of the category's queries that a stray one collects (ours).

Letters: N queries, M documents.
"""

import numpy as np
from scipy.sparse import csr_array


def member_evidence(assignments: csr_array, group: np.ndarray, best: np.ndarray) -> np.ndarray:
    """(M,): how much of the queries of a document's own category is assigned to it.

    Args:
        assignments: (N, M) soft assignment. group: (M,). best: (N,) group of each query, -1 for none.
    """
    pairs = assignments.tocoo()
    inside = best[pairs.row] == group[pairs.col]
    return np.bincount(pairs.col[inside], pairs.data[inside], minlength=len(group))


def part_weak_members(
    assignments: csr_array, group: np.ndarray, best: np.ndarray, *, least_share: float, open_M: np.ndarray | None = None
) -> np.ndarray:
    """(M,) groups from 0 in which every weak member is a group of its own.

    Weak is a document with less than `least_share` of the evidence of its category's strongest document. A category
    without queries has no evidence and stays.

    Args:
        open_M: (M,) bool, documents that may change; None: all.
    """
    evidence = member_evidence(assignments, group, best)
    strongest = np.zeros(int(group.max(initial=-1)) + 1)
    np.maximum.at(strongest, group, evidence)
    weak = evidence < least_share * strongest[group]
    if open_M is not None:
        weak &= open_M
    parted = group.copy()
    parted[weak] = len(strongest) + np.arange(int(weak.sum()))
    return np.unique(parted, return_inverse=True)[1].astype(np.int64)
