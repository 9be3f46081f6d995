"""Organise all documents: learn the content space from the clicks, in rounds.

Each round learns the space, assigns every query softly to documents, and groups documents that the same queries are
assigned to. The first round does not know the sources of documents; its most certain pairs reveal them, and from then
on documents are matched across sources.
"""

from dataclasses import dataclass, replace

import numpy as np
from scipy.sparse import csr_array

from data_governance.grouping import matching
from data_governance.grouping.assignments import Candidates, ClickGraph, candidates, query_assignments
from data_governance.grouping.content_pairs import with_content_pairs
from data_governance.grouping.evidence import (
    Evidence,
    View,
    click_matrix,
    load_evidence,
    prepared_evidence,
    view_blocks,
)
from data_governance.grouping.feature_space import (
    Space,
    concatenated,
    document_sources,
    learned_space,
    recentred,
    reciprocal_rank,
)
from data_governance.grouping.projection import Projection, fit_projection
from data_governance.grouping.weak_members import part_weak_members
from data_governance.policy import Policy
from data_governance.stage import Workspace

# Weight in the next round of a click outside its query's group: it may still be right.
OUTSIDE_WEIGHT = 0.3
# Share of the edges held out to choose the shrinkage and the resolution.
HELD_OUT_SHARE = 0.1
MAX_TESTED = 2_000
# A finer resolution is preferred over a fit this much better: when similar documents are merged, the fit of held-out
# clicks hardly falls while many wrong pairs appear. With two sources the one-to-one match prevents that. Only other
# clicks on its document can predict a held-out click: with n of them on average the slack is FIT_SLACK / n.
FIT_SLACK = 0.75
LEAST_FIT_SLACK, MOST_FIT_SLACK = 0.03, 0.25
# Factor on the policy's click weight tried with one source: 2 suits logs with one or two clicks a query, 5 with ten.
HIGHER_CLICK_WEIGHT = 2.5
SHRINKAGES = (0.03, 0.1, 0.2, 0.4, 0.7)


@dataclass(frozen=True)
class Grouping:
    """Groups of documents, and the best two groups of every query.

    Attributes:
        assignments: (N, M) soft assignment of queries to documents.
        group, source: (M,).
        best, share, second, next_share: (N,) group number (-1: none) and its share, twice.
        views: the spaces that are concatenated in `space`.
    """

    space: Space
    assignments: csr_array
    group: np.ndarray
    source: np.ndarray
    best: np.ndarray
    share: np.ndarray
    second: np.ndarray
    next_share: np.ndarray
    views: tuple[Space, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """Result of organising, in full or incrementally.

    Attributes:
        projections: per view, from features to vectors; a later incremental run reuses them.
        touched: (M,) bool, documents whose category may change, here and in later stages; None: all.
    """

    evidence: Evidence
    found: Grouping
    notes: dict[str, object]
    projections: tuple[Projection, ...]
    touched: np.ndarray | None = None


def organise_full(workspace: Workspace, *, policy: Policy) -> Outcome:
    """Learn the space and group all documents."""
    entities = load_evidence(workspace, second_share=policy.trained_share)
    preparations, evidence = prepared_evidence(entities, view_blocks(workspace))
    found, notes = learn_in_rounds(evidence, policy=policy)
    found = with_strong_members(found, least_share=policy.min_member_share)
    found, by_content = pair_unclicked(found, evidence.graph)
    has_image = evidence.graph.has_image
    projections = tuple(
        fit_projection(preparation, space, view.documents_MF, found.source, has_image)
        for preparation, view, space in zip(preparations, evidence.views, found.views, strict=True)
    )
    return Outcome(evidence, found, notes | by_content, projections)


def with_strong_members(found: Grouping, *, least_share: float, open_M: np.ndarray | None = None) -> Grouping:
    """The grouping without members that the category's own queries hardly point to (weak_members.py)."""
    group = part_weak_members(found.assignments, found.group, found.best, least_share=least_share, open_M=open_M)
    best = matching.best_two(matching.group_assignments(found.assignments, group))
    return Grouping(found.space, found.assignments, group, found.source, *best, views=found.views)


def pair_unclicked(
    found: Grouping, graph: ClickGraph, *, new: np.ndarray | None = None
) -> tuple[Grouping, dict[str, object]]:
    """(the grouping with unclicked documents paired by content (content_pairs.py), notes)."""
    group, notes = with_content_pairs(found.space, graph, found.group, found.source, new=new)
    if not notes.get("content_pairs"):
        return found, notes
    best = matching.best_two(matching.group_assignments(found.assignments, group))
    return Grouping(found.space, found.assignments, group, found.source, *best, views=found.views), notes


def learn_in_rounds(evidence: Evidence, *, policy: Policy) -> tuple[Grouping, dict[str, object]]:
    """(grouping of the last round, notes on the choices of every round)."""
    chosen = [choose_shrinkage(view, evidence, policy=policy) for view in evidence.views]
    views = [replace(view, shrinkage=one) for view, (one, _) in zip(evidence.views, chosen, strict=True)]
    evidence = replace(evidence, views=tuple(views))
    edge_weight = evidence.weights_P
    source = np.zeros(len(evidence.doc_ids), dtype=np.int64)
    links = learn_and_link(evidence, source, edge_weight, policy=policy, sources_known=False)
    found = group_documents(links, source, resolution=_default_resolution(source), policy=policy)
    notes: dict[str, object] = {
        "scatter_shrinkage": [one for one, _ in chosen],
        "held_out_reciprocal_rank": [ranks for _, ranks in chosen],
    }
    for number in range(policy.rounds):
        source, share = document_sources(
            evidence.views[0].documents_MF, links.pairs_E2, seed=policy.seed, min_share=policy.min_source_share
        )
        inside = found.group[evidence.edges_P2[:, 1]] == found.best[evidence.edges_P2[:, 0]]
        edge_weight = evidence.weights_P * np.where(inside, 1.0, OUTSIDE_WEIGHT) if number else edge_weight
        resolution, fits = _default_resolution(source), dict[str, float]()
        if number == policy.rounds - 1:
            policy, resolution, fits = choose_click_weight(evidence, source, edge_weight, policy=policy)
        if number or source.any() or number == policy.rounds - 1:  # otherwise nothing has changed
            links = learn_and_link(evidence, source, edge_weight, policy=policy)
            found = group_documents(links, source, resolution=resolution, policy=policy)
        notes[f"round_{number + 1}"] = {
            "held_out_pairs_across_sources": round(share, 4),
            "sources": int(source.max()) + 1,
            "document_pairs": len(links.pairs_E2),
            "clicks_inside_before": round(float(inside.mean()), 4),
            "click_weight": policy.click_weight,
            "resolution": resolution,
            "held_out_click_fit": fits,
        }
    return found, notes


@dataclass(frozen=True)
class ViewCandidates:
    """One view: its learned space, and the candidate documents of each query in it."""

    space: Space
    candidates: Candidates
    share: float = 1.0


@dataclass(frozen=True)
class Links:
    """Links between documents in one round.

    Attributes:
        assignments: (N, M) soft assignment of queries to documents.
        affinity: (M, M).
        pairs_E2: the most certain pairs.
        graph_E2: all pairs that are grouped.
        views: the spaces that are concatenated in `space`.
    """

    space: Space
    assignments: csr_array
    affinity: csr_array
    pairs_E2: np.ndarray
    graph_E2: np.ndarray
    views: tuple[Space, ...] = ()


def learn_and_link(
    evidence: Evidence, source: np.ndarray, edge_weight: np.ndarray, *, policy: Policy, sources_known: bool = True
) -> Links:
    """Learn the space, assign the queries, link the documents."""
    views = view_candidates(evidence, source, edge_weight, policy=policy)
    return link_documents(evidence, views, source, policy=policy, sources_known=sources_known)


def view_candidates(
    evidence: Evidence, source: np.ndarray, edge_weight: np.ndarray, *, policy: Policy
) -> list[ViewCandidates]:
    """Per view the learned space and the candidates of each query."""
    graph, views = evidence.graph, []
    has_image = graph.has_image[evidence.edges_P2[:, 1]]
    for view in evidence.views:
        space = learned_space(
            view.queries_NF,
            recentred(view.documents_MF, source, graph.has_image),
            evidence.edges_P2[has_image],
            edge_weight[has_image],
            shrinkage=view.shrinkage,
            width=policy.content_width,
        )
        views.append(ViewCandidates(space, candidates(space, graph, source, policy=policy), view.share))
    return views


def link_documents(
    evidence: Evidence, views: list[ViewCandidates], source: np.ndarray, *, policy: Policy, sources_known: bool = True
) -> Links:
    """Assign queries to documents in each view and average; link documents by the first view alone.

    Args:
        sources_known: False in the first round, whose links reveal the sources.
    """
    by_view = [query_assignments(view.candidates, source, policy=policy) for view in views]
    assignments = csr_array(sum(view.share * own for view, own in zip(views, by_view, strict=True)))
    space = concatenated([view.space for view in views], [view.share for view in views])
    # The second view is an encoder trained on these clicks: to it, documents clicked together by mistake look alike.
    affinity = matching.document_affinity(by_view[0], source, evidence.graph.document_leaf, policy=policy)
    if source.any():
        pairs = matching.matched_pairs(affinity, source, least=policy.min_affinity)
        wide = matching.mutual_pairs(affinity, count=matching.NEIGHBOURS, least=policy.wide_affinity)
    else:
        if sources_known:
            affinity = matching.weakened_without_shared_query(affinity, evidence.graph.clicks)
        pairs = matching.mutual_pairs(affinity, count=1, least=policy.min_affinity)
        least = min(matching.LEAST_AFFINITY_OF_ONE_SOURCE, policy.min_affinity)
        wide = matching.mutual_pairs(affinity, count=matching.NEIGHBOURS_OF_ONE_SOURCE, least=least)
    graph = np.unique(np.concatenate([pairs, wide]), axis=0)
    return Links(space, assignments, affinity, pairs, graph, tuple(view.space for view in views))


def group_documents(links: Links, source: np.ndarray, *, resolution: float, policy: Policy) -> Grouping:
    """Group documents by Leiden, then find the best two groups of every query."""
    group = matching.leiden_groups(links.affinity, links.graph_E2, resolution=resolution, seed=policy.seed)
    best = matching.best_two(matching.group_assignments(links.assignments, group))
    return Grouping(links.space, links.assignments, group, source, *best, views=links.views)


def _default_resolution(source: np.ndarray) -> float:
    """Resolution used before one is chosen."""
    choices = matching.resolutions(source)
    return choices[len(choices) // 2]


def choose_click_weight(
    evidence: Evidence, source: np.ndarray, edge_weight: np.ndarray, *, policy: Policy
) -> tuple[Policy, float, dict[str, float]]:
    """(policy with the click weight that fits held-out clicks better, resolution, fit of each resolution).

    A tenth of the edges is held out, and everything but the sources is computed without them. The higher click weight
    is tried with one source only: clicks are better evidence than content in a log with many clicks a query.
    """
    hidden = np.random.default_rng(policy.seed).random(len(evidence.edges_P2)) < HELD_OUT_SHARE
    if hidden.all() or not hidden.any():
        return policy, _default_resolution(source), {}
    kept, weights = evidence.edges_P2[~hidden], evidence.weights_P[~hidden]
    clicks = click_matrix(kept, evidence.graph.clicks.shape, weights)
    part = replace(evidence, edges_P2=kept, weights_P=weights, graph=replace(evidence.graph, clicks=clicks))
    views, tested = view_candidates(part, source, edge_weight[~hidden], policy=policy), evidence.edges_P2[hidden]
    links = link_documents(part, views, source, policy=policy)
    resolution, fits = choose_resolution(links, part, tested, source, policy=policy)
    if not source.any():
        higher = replace(policy, click_weight=HIGHER_CLICK_WEIGHT * policy.click_weight)
        links = link_documents(part, views, source, policy=higher)
        resolution_of_higher, fits_of_higher = choose_resolution(links, part, tested, source, policy=higher)
        if max(fits_of_higher.values()) > max(fits.values()):
            return higher, resolution_of_higher, fits_of_higher
    return policy, resolution, fits


def choose_resolution(
    links: Links, part: Evidence, hidden_H2: np.ndarray, source: np.ndarray, *, policy: Policy
) -> tuple[float, dict[str, float]]:
    """(resolution whose groups best predict the held-out clicks (H, 2), fit of each resolution).

    With one source, `finest_resolution` takes a finer one that fits nearly as well; with several, only ties go there.
    """
    fits = {}
    for resolution in matching.resolutions(source):
        found = group_documents(links, source, resolution=resolution, policy=policy)
        fit = matching.click_fit(hidden_H2, found.best, found.group, part.graph.document_leaf)
        fits[str(resolution)] = round(fit, 4)
    slack = 0.0 if source.any() else fit_slack(part.edges_P2)
    return finest_resolution(fits, slack), fits


def finest_resolution(fits: dict[str, float], slack: float) -> float:
    """The finest resolution whose fit is at most `slack` times the best fit below the best.

    Finer categories yet have more right labels in sparse logs, and train worse models (docs/log.md).
    """
    best = max(fits.values())
    least = best - slack * abs(best)
    return max(float(name) for name, fit in fits.items() if fit >= least)


def fit_slack(edges_P2: np.ndarray) -> float:
    """Relative loss of fit that a finer resolution may cost: `FIT_SLACK` over the mean clicks of a clicked document."""
    per_document = len(edges_P2) / max(len(np.unique(edges_P2[:, 1])), 1)
    return float(np.clip(FIT_SLACK / max(per_document, 1), LEAST_FIT_SLACK, MOST_FIT_SLACK))


def choose_shrinkage(view: View, evidence: Evidence, *, policy: Policy) -> tuple[float, dict[str, float]]:
    """(shrinkage with the best mean reciprocal rank of held-out clicks by content alone, rank of each).

    With few clicks and little shrinkage the space overfits: every query is close to its own click, wrong ones too. A
    shrinkage in the policy is used as it is. Ties go to the larger one.
    """
    has_image = evidence.graph.has_image[evidence.edges_P2[:, 1]]
    edges, weights = evidence.edges_P2[has_image], evidence.weights_P[has_image]
    hidden = np.random.default_rng(policy.seed + 1).random(len(edges)) < HELD_OUT_SHARE
    if policy.scatter_shrinkage >= 0 or hidden.all() or not hidden.any():
        return (policy.scatter_shrinkage if policy.scatter_shrinkage >= 0 else 0.5), {}
    tested = edges[hidden][:MAX_TESTED]
    ranks = {}
    for shrinkage in SHRINKAGES:
        space = learned_space(
            view.queries_NF,
            view.documents_MF,
            edges[~hidden],
            weights[~hidden],
            shrinkage=shrinkage,
            width=policy.content_width,
        )
        ranks[str(shrinkage)] = round(reciprocal_rank(space, tested, evidence.graph.document_leaf), 4)
    best = max(ranks, key=lambda name: (ranks[name], float(name)))
    return float(best), ranks
