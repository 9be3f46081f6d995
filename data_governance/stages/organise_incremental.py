"""Organise after few new rows: keep earlier choices, regroup touched documents.

Used by `--incremental` with `--previous`. The projection into the learned space, the resolution, the click weight and
the sources of documents are those of the previous run; a full run learns them in rounds and tests them on held-out
clicks. These choices become outdated: run in full when much has changed.

Touched documents are new, have gained or lost a click, are linked to such a document, or share a group with one of
these. They are grouped among themselves as in a full run, then moved one by one to the group with the largest gain. All
others stay in the category that the previous run ended with, which merge_split.py does not change either.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
from scipy.sparse import csr_array

from data_governance.grouping import assignments, matching, projection
from data_governance.grouping.evidence import Evidence, load_evidence, view_blocks
from data_governance.grouping.feature_space import Space, unit_rows
from data_governance.grouping.projection import Projection
from data_governance.policy import Policy
from data_governance.stage import Workspace
from data_governance.stages.organise_full import (
    Grouping,
    Links,
    Outcome,
    ViewCandidates,
    link_documents,
    pair_unclicked,
    with_strong_members,
)

MAX_PASSES = 20
SOURCE_NEIGHBOURS = 5


@dataclass(frozen=True)
class PreviousRun:
    """Choices and results of the previous run.

    Attributes:
        group_of, source_of: document id -> category after merge_split, source.
        edges: (query entity, document entity) of its click edges.
    """

    projections: tuple[Projection, ...]
    resolution: float
    click_weight: float
    group_of: dict[str, int]
    source_of: dict[str, int]
    edges: set[tuple[str, str]]


def check_previous(previous: Workspace, *, key: str) -> None:
    """Check that an incremental run can continue this one.

    Raises:
        ValueError: when it lacks a stage or the learned space, or its features have another cache key.
    """
    for name in ("admit", "click_rates", "organise", "merge_split"):
        if not (previous.folder(name) / "stage.json").exists():
            raise ValueError(f"--incremental: {previous.out} lacks the stage {name}. Run without --incremental.")
    if previous.record("admit")["notes"].get("recipe") != key:
        raise ValueError(
            f"--incremental: {previous.out} was computed with another encoder, image size or version. Run without it."
        )
    if not (previous.folder("organise") / "lens_0.parquet").exists():
        raise ValueError(
            f"--incremental: {previous.out} was written by a version that kept no learned space. Run once without it."
        )


def previous_run(previous: Workspace) -> PreviousRun:
    """Read the choices and results of the previous run."""
    notes = previous.record("organise")["notes"]
    last = max((name for name in notes if name.startswith("round_")), key=lambda name: int(name.split("_")[1]))
    documents = previous.table("merge_split", "documents")
    return PreviousRun(
        projections=tuple(
            projection.read(*(previous.table("organise", f"{name}_{number}") for name in ("lens", "lens_sources")))
            for number in range(len(view_blocks(previous)))
        ),
        resolution=notes[last]["resolution"],
        click_weight=notes[last]["click_weight"],
        group_of=_columns(documents, "doc", "category"),
        source_of=_columns(documents, "doc", "source"),
        edges=_pairs(previous.table("click_rates", "edges")),
    )


def organise_incremental(workspace: Workspace, previous: PreviousRun, *, policy: Policy) -> Outcome:
    """Regroup touched documents with the choices of the previous run."""
    evidence = scaled_evidence(load_evidence(workspace, second_share=policy.trained_share), previous)
    source = document_sources(evidence, previous)
    policy = replace(policy, click_weight=previous.click_weight)
    views = projected_candidates(evidence, previous, source, policy=policy)
    links = link_documents(evidence, views, source, policy=policy)
    first = first_groups(evidence, previous)
    touched = touched_documents(evidence, previous, links, first)
    # Local moves alone can stop early: when a pair loses a document to a third one, the other stays behind.
    group = regroup(first, links, touched, resolution=previous.resolution, seed=policy.seed)
    group = move_locally(group, weights(links), touched, resolution=previous.resolution)
    best = matching.best_two(matching.group_assignments(links.assignments, group))
    open_M = np.isin(np.arange(len(group)), touched)
    by_clicks = Grouping(links.space, links.assignments, group, source, *best)
    strong = with_strong_members(by_clicks, least_share=policy.min_member_share, open_M=open_M)
    grouped, by_content = pair_unclicked(strong, evidence.graph, new=open_M)
    notes: dict[str, object] = {
        "incremental": True,
        "documents_new": sum(doc not in previous.group_of for doc in evidence.doc_ids),
        "documents_touched": len(touched),
        "round_1": {
            "resolution": previous.resolution,
            "click_weight": previous.click_weight,
            "sources": int(source.max(initial=0)) + 1,
        },
        **by_content,
    }
    # The partner of a touched document is touched as well: its category has changed.
    unclicked = np.asarray(evidence.graph.clicks.sum(axis=0)).ravel() == 0
    open_M |= unclicked & np.isin(grouped.group, grouped.group[open_M & unclicked])
    return Outcome(evidence, grouped, notes, previous.projections, open_M)


def scaled_evidence(entities: Evidence, previous: PreviousRun) -> Evidence:
    """Document features on the scale of the previous run; query features are scaled by the projection."""
    seen = entities.graph.has_image
    views = [
        replace(view, documents_MF=one.document.standard(view.documents_MF, seen))
        for one, view in zip(previous.projections, entities.views, strict=True)
    ]
    return replace(entities, views=tuple(views))


def projected_candidates(
    evidence: Evidence, previous: PreviousRun, source: np.ndarray, *, policy: Policy
) -> list[ViewCandidates]:
    """Candidates of each query in each view, in the space of the previous run."""
    views = []
    for one, view in zip(previous.projections, evidence.views, strict=True):
        documents = one.documents(view.documents_MF, source, evidence.graph.has_image)
        space = Space(one.queries(view.queries_NF), documents)
        found = assignments.candidates(space, evidence.graph, source, policy=policy)
        views.append(ViewCandidates(space, found, view.share))
    return views


def _columns(table: pa.Table, key: str, value: str) -> dict[str, Any]:
    return dict(zip(table.column(key).to_pylist(), table.column(value).to_pylist(), strict=True))


def _pairs(edges: pa.Table) -> set[tuple[str, str]]:
    return set(zip(edges.column("query").to_pylist(), edges.column("doc").to_pylist(), strict=True))


def document_sources(evidence: Evidence, previous: PreviousRun) -> np.ndarray:
    """(M,): the previous source; of a new document, the majority source of its nearest old ones by features."""
    source = np.array([previous.source_of.get(doc, -1) for doc in evidence.doc_ids], dtype=np.int64)
    new = np.flatnonzero(source < 0)
    old = np.flatnonzero((source >= 0) & evidence.graph.has_image)
    if len(new) and len(old):
        rows = unit_rows(evidence.views[0].documents_MF)
        near = assignments.neighbours(rows[old], rows[new], SOURCE_NEIGHBOURS)[1]
        source[new] = (source[old][near].mean(axis=1) > 0.5).astype(np.int64)
    return np.maximum(source, 0)


def first_groups(evidence: Evidence, previous: PreviousRun) -> np.ndarray:
    """(M,): the previous group; a new document is a group of its own."""
    free = max(previous.group_of.values(), default=-1) + 1
    return np.array([previous.group_of.get(doc, free + i) for i, doc in enumerate(evidence.doc_ids)], dtype=np.int64)


def touched_documents(evidence: Evidence, previous: PreviousRun, links: Links, group: np.ndarray) -> np.ndarray:
    """Sorted rows: new documents, those whose clicks changed, all linked to one of these, and the groups of all these.

    The groups are needed because a document whose partner was matched with a new one has no link to either left.
    """
    ids = evidence.query_ids, evidence.doc_ids
    now = {(ids[0][q], ids[1][d]) for q, d in evidence.edges_P2.tolist()}
    changed = {doc for _, doc in now ^ previous.edges} | {doc for doc in ids[1] if doc not in previous.group_of}
    first = np.array([doc in changed for doc in ids[1]], dtype=bool)
    near = first.copy()
    pairs = links.graph_E2
    near[pairs[first[pairs[:, 0]], 1]] = True
    near[pairs[first[pairs[:, 1]], 0]] = True
    return np.flatnonzero(np.isin(group, group[near]))


def regroup(group: np.ndarray, links: Links, touched: np.ndarray, *, resolution: float, seed: int) -> np.ndarray:
    """(M,): groups of the touched documents by Leiden on the pairs among them; the other groups are unchanged."""
    place = np.full(len(group), -1)
    place[touched] = np.arange(len(touched))
    pairs = place[links.graph_E2]
    among = pairs[(pairs >= 0).all(axis=1)]
    affinity = csr_array(links.affinity[touched][:, touched])
    found = matching.leiden_groups(affinity, among, resolution=resolution, seed=seed)
    group = group.copy()
    group[touched] = int(group.max(initial=-1)) + 1 + found
    return group


def weights(links: Links) -> csr_array:
    """(M, M) symmetric: affinities of the linked pairs."""
    i, j = links.graph_E2[:, 0], links.graph_E2[:, 1]
    value = np.asarray(links.affinity[i, j]).ravel() if len(i) else np.zeros(0)
    size = links.affinity.shape[0]
    return csr_array((np.tile(value, 2), (np.concatenate([i, j]), np.concatenate([j, i]))), shape=(size, size))


def move_locally(group: np.ndarray, weight: csr_array, touched: np.ndarray, *, resolution: float) -> np.ndarray:
    """(M,) groups from 0, without gaps, after local moves of `touched`.

    The local moving step of Louvain and Leiden under the constant Potts model (Traag, Waltman, van Eck 2019). A
    document joins the group with the largest

        sum of weights to its members - resolution * number of its members

    its own group and an empty one (gain 0) included; ties: stay, else the smaller number. Passes over the rows are
    repeated until nothing moves, at most `MAX_PASSES` times; each move raises the objective.
    """
    group = group.copy()
    size = np.bincount(group, minlength=int(group.max(initial=0)) + len(touched) + 2)
    free = int(group.max(initial=0)) + 1
    for _ in range(MAX_PASSES):
        moved = False
        for i in touched.tolist():
            at, links = int(group[i]), slice(weight.indptr[i], weight.indptr[i + 1])
            total: dict[int, float] = {}
            for j, w in zip(weight.indices[links].tolist(), weight.data[links].tolist(), strict=True):
                total[int(group[j])] = total.get(int(group[j]), 0.0) + w
            # The document is removed from its group while the gains are compared.
            size[at] -= 1
            gain = {g: w - resolution * int(size[g]) for g, w in total.items()}
            gain.setdefault(at, -resolution * int(size[at]))
            best = min(gain, key=lambda g: (-gain[g], g != at, g))
            if gain[best] < -1e-12:  # an empty group, with gain 0, is better
                best, free = free, free + 1
                size = np.append(size, 0) if best >= len(size) else size
            size[best] += 1
            moved |= best != at
            group[i] = best
        if not moved:
            break
    return np.unique(group, return_inverse=True)[1].astype(np.int64)
