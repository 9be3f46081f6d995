"""Stage 4, organise: documents become categories, queries join them; ambiguous queries are set aside.

Each round learns the content space from the clicks, divides every query over the documents, and groups the documents
that the same queries divide themselves over. The first round knows no sources of documents; its surest pairs reveal
them, and from then on a document is matched with one of the other source. Catalogue ids and leaf never name a category.
"""

from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
from scipy.sparse import csr_array

from data_governance.grouping import matching
from data_governance.grouping.assignments import Nodes, Votes, query_shares, votes
from data_governance.grouping.content_pairs import with_content_pairs
from data_governance.grouping.evidence import Evidence, View, click_matrix, gather, prepared_evidence, view_blocks
from data_governance.grouping.feature_space import (
    Space,
    document_sources,
    joined,
    learned_space,
    recentred,
    reciprocal_rank,
)
from data_governance.grouping.projection import lens
from data_governance.inputs.tables import feature_column
from data_governance.policy import Policy
from data_governance.stage import StageResult, Workspace

# A click outside its query's group teaches the space at this weight in the next round: it may still be right.
DISBELIEVED = 0.3
# Of the edges, hidden to choose the shrinkage and the resolution.
HIDDEN_SHARE = 0.1
MOST_TESTED = 2_000
# Joining look-alikes forgives queries that were put beside their group: the fit of hidden clicks hardly falls while
# many wrong pairs of documents appear. With two sources the one-to-one match prevents that.
FIT_SLACK_OF_ONE_SOURCE = 0.03
# Times the policy's click weight, tried when there is one source: 2 suits logs with a click or two a query, 5 with ten.
BOLDER = 2.5
SHRINKAGES = (0.03, 0.1, 0.2, 0.4, 0.7)


@dataclass(frozen=True)
class Organised:
    """Groups of documents, and the best two groups of every query; `views`: the spaces that make up `space`."""

    space: Space
    shares: csr_array
    group: np.ndarray
    source: np.ndarray
    best: np.ndarray
    share: np.ndarray
    second: np.ndarray
    next_share: np.ndarray
    views: tuple[Space, ...] = ()


def organise(workspace: Workspace, *, policy: Policy) -> StageResult:
    """Run the rounds; set aside ambiguous queries and those without evidence."""
    entities = gather(workspace, second_share=policy.trained_share)
    preparations, evidence = prepared_evidence(entities, view_blocks(workspace))
    found, notes = rounds(evidence, policy=policy)
    found, by_content = with_unclicked(found, evidence.nodes)
    notes |= by_content
    result = stage_result(workspace, evidence, found, notes, policy=policy)
    seen = evidence.nodes.has_image
    for number, (how, view, space) in enumerate(zip(preparations, evidence.views, found.views, strict=True)):
        kept = lens(how.query, how.document, how.axes_FR, space, view.documents_MF, found.source, seen)
        result.tables |= kept.tables(number)
    return result


def with_unclicked(
    found: Organised, nodes: Nodes, *, new: np.ndarray | None = None
) -> tuple[Organised, dict[str, object]]:
    """The same with documents that nobody clicked in categories by content (content_pairs.py), and what was done."""
    group, notes = with_content_pairs(found.space, nodes, found.group, found.source, new=new)
    if not notes.get("content_pairs"):
        return found, notes
    best = matching.best_two(matching.group_shares(found.shares, group))
    return Organised(found.space, found.shares, group, found.source, *best, views=found.views), notes


def rounds(evidence: Evidence, *, policy: Policy) -> tuple[Organised, dict[str, object]]:
    """The last round's groups, and what was chosen on the way."""
    chosen = [chosen_shrinkage(view, evidence, policy=policy) for view in evidence.views]
    views = [replace(view, shrinkage=one) for view, (one, _) in zip(evidence.views, chosen, strict=True)]
    evidence = replace(evidence, views=tuple(views))
    believed = np.ones(len(evidence.edges_P2))
    source = np.zeros(len(evidence.doc_ids), dtype=np.int64)
    links = linked(evidence, source, believed, policy=policy)
    found = grouped(links, source, resolution=_middle(source), policy=policy)
    notes: dict[str, object] = {
        "scatter_shrinkage": [one for one, _ in chosen],
        "held_out_reciprocal_rank": [ranks for _, ranks in chosen],
    }
    for number in range(policy.rounds):
        source, share = document_sources(
            evidence.views[0].documents_MF, links.pairs_E2, seed=policy.seed, min_share=policy.min_source_share
        )
        inside = found.group[evidence.edges_P2[:, 1]] == found.best[evidence.edges_P2[:, 0]]
        believed = np.where(inside, 1.0, DISBELIEVED) if number else believed
        resolution, fits = _middle(source), dict[str, float]()
        if number == policy.rounds - 1:
            policy, resolution, fits = chosen_trust(evidence, source, believed, policy=policy)
        if number or source.any() or number == policy.rounds - 1:  # else nothing has changed since before the rounds
            links = linked(evidence, source, believed, policy=policy)
            found = grouped(links, source, resolution=resolution, policy=policy)
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
class Poll:
    """What the clicks teach in one view: the space, and what each query may share itself over in it."""

    space: Space
    votes: Votes
    share: float = 1.0


@dataclass(frozen=True)
class Links:
    """A round's space, shares of queries (N, M), affinities (M, M), surest pairs, all pairs of the graph, views."""

    space: Space
    shares: csr_array
    affinity: csr_array
    pairs_E2: np.ndarray
    graph_E2: np.ndarray
    views: tuple[Space, ...] = ()


def linked(evidence: Evidence, source: np.ndarray, believed: np.ndarray, *, policy: Policy) -> Links:
    """Learn the space, divide the queries, and pair the documents."""
    return paired(evidence, polled(evidence, source, believed, policy=policy), source, policy=policy)


def polled(evidence: Evidence, source: np.ndarray, believed: np.ndarray, *, policy: Policy) -> list[Poll]:
    """The space that the clicks teach in each view, and what each query may share itself over there."""
    nodes, polls = evidence.nodes, []
    seen = nodes.has_image[evidence.edges_P2[:, 1]]
    for view in evidence.views:
        space = learned_space(
            view.queries_NF,
            recentred(view.documents_MF, source, nodes.has_image),
            evidence.edges_P2[seen],
            believed[seen],
            shrinkage=view.shrinkage,
            width=policy.content_width,
        )
        polls.append(Poll(space, votes(space, nodes, source, policy=policy), view.share))
    return polls


def paired(evidence: Evidence, polls: list[Poll], source: np.ndarray, *, policy: Policy) -> Links:
    """Divide the queries in each view and add up; in the first, pair documents that the same queries are shared over.

    In a space that has learned the clicks, documents that were clicked together by mistake are alike.
    """
    by_view = [query_shares(poll.votes, source, policy=policy) for poll in polls]
    shares = csr_array(sum(poll.share * own for poll, own in zip(polls, by_view, strict=True)))
    space = joined([poll.space for poll in polls], [poll.share for poll in polls])
    affinity = matching.document_affinity(by_view[0], source, evidence.nodes.document_leaf, policy=policy)
    if source.any():
        pairs = matching.matched_pairs(affinity, source, least=policy.min_affinity)
        wide = matching.mutual_pairs(affinity, count=matching.NEIGHBOURS, least=policy.wide_affinity)
    else:
        pairs = matching.mutual_pairs(affinity, count=1, least=policy.min_affinity)
        least = min(matching.LEAST_AFFINITY_OF_ONE_SOURCE, policy.min_affinity)
        wide = matching.mutual_pairs(affinity, count=matching.NEIGHBOURS_OF_ONE_SOURCE, least=least)
    graph = np.unique(np.concatenate([pairs, wide]), axis=0)
    return Links(space, shares, affinity, pairs, graph, tuple(poll.space for poll in polls))


def grouped(links: Links, source: np.ndarray, *, resolution: float, policy: Policy) -> Organised:
    """Leiden on the pairs, then the best two groups of every query."""
    group = matching.leiden_groups(links.affinity, links.graph_E2, resolution=resolution, seed=policy.seed)
    best = matching.best_two(matching.group_shares(links.shares, group))
    return Organised(links.space, links.shares, group, source, *best, views=links.views)


def _middle(source: np.ndarray) -> float:
    known = matching.resolutions(source)
    return known[len(known) // 2]


def chosen_trust(
    evidence: Evidence, source: np.ndarray, believed: np.ndarray, *, policy: Policy
) -> tuple[Policy, float, dict[str, float]]:
    """The policy, its resolution and the fits; with one source, `BOLDER` trust in clicks if hidden ones ask for it.

    A tenth of the edges is hidden; everything but the sources is done again without them. A log with many clicks a
    query carries more than content does, one with a single click less: the log itself tells.
    """
    hidden = np.random.default_rng(policy.seed).random(len(evidence.edges_P2)) < HIDDEN_SHARE
    if hidden.all() or not hidden.any():
        return policy, _middle(source), {}
    clicks = click_matrix(evidence.edges_P2[~hidden], evidence.nodes.clicks.shape)
    part = replace(evidence, edges_P2=evidence.edges_P2[~hidden], nodes=replace(evidence.nodes, clicks=clicks))
    poll, asked = polled(part, source, believed[~hidden], policy=policy), evidence.edges_P2[hidden]
    resolution, fits = chosen_resolution(paired(part, poll, source, policy=policy), part, asked, source, policy=policy)
    if not source.any():
        bolder = replace(policy, click_weight=BOLDER * policy.click_weight)
        links = paired(part, poll, source, policy=bolder)
        finest, bolder_fits = chosen_resolution(links, part, asked, source, policy=bolder)
        if max(bolder_fits.values()) > max(fits.values()):
            return bolder, finest, bolder_fits
    return policy, resolution, fits


def chosen_resolution(
    links: Links, part: Evidence, hidden_H2: np.ndarray, source: np.ndarray, *, policy: Policy
) -> tuple[float, dict[str, float]]:
    """The resolution whose groups best foresee clicks (H, 2) that were hidden from `links`, and the fit of each.

    Ties go to the finer one, and with one source so does a fit that is hardly worse (`FIT_SLACK_OF_ONE_SOURCE`).
    """
    fits = {}
    for resolution in matching.resolutions(source):
        found = grouped(links, source, resolution=resolution, policy=policy)
        fit = matching.click_fit(hidden_H2, found.best, found.group, part.nodes.document_leaf)
        fits[str(resolution)] = round(fit, 4)
    slack = 0.0 if source.any() else FIT_SLACK_OF_ONE_SOURCE
    least = (1 - slack) * max(fits.values())
    return max(float(name) for name, fit in fits.items() if fit >= least), fits


def chosen_shrinkage(view: View, evidence: Evidence, *, policy: Policy) -> tuple[float, dict[str, float]]:
    """The shrinkage under which hidden clicks rank best by content alone in a view, and the rank of each.

    With few clicks and little shrinkage the space learns them by heart: every query beside its own click, the wrong
    ones too. A policy that names a shrinkage is obeyed. Ties go to the larger one.
    """
    seen = evidence.edges_P2[evidence.nodes.has_image[evidence.edges_P2[:, 1]]]
    hidden = np.random.default_rng(policy.seed + 1).random(len(seen)) < HIDDEN_SHARE
    if policy.scatter_shrinkage >= 0 or hidden.all() or not hidden.any():
        return (policy.scatter_shrinkage if policy.scatter_shrinkage >= 0 else 0.5), {}
    tested = seen[hidden][:MOST_TESTED]
    ranks = {}
    for shrinkage in SHRINKAGES:
        space = learned_space(
            view.queries_NF,
            view.documents_MF,
            seen[~hidden],
            np.ones(int((~hidden).sum())),
            shrinkage=shrinkage,
            width=policy.content_width,
        )
        ranks[str(shrinkage)] = round(reciprocal_rank(space, tested, evidence.nodes.document_leaf), 4)
    best = max(ranks, key=lambda name: (ranks[name], float(name)))
    return float(best), ranks


def stage_result(
    workspace: Workspace,
    evidence: Evidence,
    found: Organised,
    notes: dict[str, object],
    *,
    policy: Policy,
    touched: np.ndarray | None = None,
) -> StageResult:
    """Categories of documents, votes of queries and the reasons of those set aside, as the tables of the stage.

    `touched` (M,) bool marks the documents whose category is open to change, here and in later stages; None: all.
    """
    result = StageResult(notes=notes)
    lead = found.share - found.next_share
    category = np.where(found.best < 0, -1, found.best)
    reason = np.where(category < 0, "no_evidence", np.where(lead < policy.min_query_margin, "ambiguous", ""))
    _set_aside(result, workspace, evidence, found, reason, lead)
    kept = np.flatnonzero(reason == "")
    result.tables["queries"] = pa.table(
        {
            "query": [evidence.query_ids[i] for i in kept],
            "category": category[kept],
            "share": found.share[kept],
            "lead": lead[kept],
            "second": found.second[kept],
            "vector": feature_column(found.space.queries_NW[kept]),
        }
    )
    result.tables["documents"] = pa.table(
        {
            "doc": evidence.doc_ids,
            "category": found.group,
            "source": found.source,
            "has_image": evidence.nodes.has_image,
            "touched": np.ones(len(evidence.doc_ids), dtype=bool) if touched is None else touched,
            "vector": feature_column(found.space.documents_MW),
        }
    )
    result.notes["categories"] = int(found.group.max()) + 1
    result.notes |= matching.clicks_outside(evidence.edges_P2, found.best, found.group)
    return result


def _set_aside(
    result: StageResult,
    workspace: Workspace,
    evidence: Evidence,
    found: Organised,
    reason: np.ndarray,
    lead: np.ndarray,
) -> None:
    """Decide the queries that have a reason, each with the two categories that it may belong to."""
    of_query = {row_id: i for i, row_id in enumerate(evidence.query_ids)}
    rows = workspace.table("dedupe", "queries")
    ids, entities = rows.column("query_id").to_pylist(), rows.column("entity").to_pylist()
    at = np.array([of_query[entity] for entity in entities])
    gone = np.flatnonzero(reason[at] != "")
    first = _representatives(evidence.doc_ids, found.group)
    named = [[first.get(int(found.best[at[i]]), ""), first.get(int(found.second[at[i]]), "")] for i in gone]
    result.decide(
        "queries",
        [ids[i] for i in gone],
        "dropped",
        [str(reason[at[i]]) for i in gone],
        lead=lead[at[gone]],
        share=found.share[at[gone]],
        candidate=[n[0] for n in named],
        other_candidate=[n[1] for n in named],
    )
    result.counts["queries"] = (len(ids), len(ids) - len(gone))


def _representatives(doc_ids: list[str], group: np.ndarray) -> dict[int, str]:
    first: dict[int, str] = {}
    for doc_id, number in zip(doc_ids, group.tolist(), strict=True):
        first.setdefault(number, doc_id)
    return first
