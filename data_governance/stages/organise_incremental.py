"""Stage 4 again, after few new rows: what was chosen before holds, and only touched documents may change their group.

`--incremental` with `--previous`: the learned space (lens.py), the resolution, the trust in clicks and the sources of
documents are taken over, where a full run learns them in rounds and tests them on hidden clicks. Shares and affinities
are computed once, over all rows; then the documents that are new, that gained or lost a click, or that are tied to
such a one, and the categories of all these, are grouped among themselves as a full run would, and move to the category
that gains most, a frozen one too (the local moving step of Louvain and Leiden under the constant Potts model, Traag,
Waltman, van Eck 2019), until none moves. Moves alone would end where a pair that lost a document has drawn another one
along. The others are frozen: they begin and stay in the category in which the previous run left them, joined and parted
as it was, and merge_split.py leaves it alone. Choices age: run in full when much has changed.
"""

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from scipy.sparse import csr_array

from data_governance.grouping import assignments, matching, projection
from data_governance.grouping.evidence import Evidence, gather, view_blocks
from data_governance.grouping.feature_space import Space, unit_rows
from data_governance.grouping.projection import Lens
from data_governance.inputs import mapping
from data_governance.policy import Policy
from data_governance.stage import StageResult, Workspace
from data_governance.stages import organise
from data_governance.stages.organise import Links, Organised, Poll

MOST_PASSES = 20
SOURCE_NEIGHBOURS = 5


@dataclass(frozen=True)
class Earlier:
    """What the previous run chose and found, by id."""

    lenses: tuple[Lens, ...]
    resolution: float
    click_weight: float
    group_of: dict[str, int]
    source_of: dict[str, int]
    edges: set[tuple[str, str]]


def earlier(previous: Workspace, *, recipe: str) -> Earlier:
    """Read the previous run.

    Raises:
        ValueError: when it has no organise stage, or its features come from another encoder.
    """
    for name in ("admit", "weigh", "organise", "merge_split"):
        if not (previous.folder(name) / "stage.json").exists():
            raise ValueError(f"--incremental: {previous.out} lacks the stage {name}. Run without --incremental.")
    if previous.record("admit")["notes"].get("recipe") != recipe:
        raise ValueError(
            f"--incremental: {previous.out} was made by another encoder, image size or version. Run without it."
        )
    if not (previous.folder("organise") / "lens_0.parquet").exists():
        raise ValueError(
            f"--incremental: {previous.out} was made by a version that kept no learned space. Run once without it."
        )
    notes = previous.record("organise")["notes"]
    last = max((name for name in notes if name.startswith("round_")), key=lambda name: int(name.split("_")[1]))
    documents = previous.table("merge_split", "documents")
    return Earlier(
        lenses=tuple(
            projection.read(*(previous.table("organise", f"{name}_{number}") for name in ("lens", "lens_sources")))
            for number in range(len(view_blocks(previous)))
        ),
        resolution=notes[last]["resolution"],
        click_weight=notes[last]["click_weight"],
        group_of=_columns(documents, "doc", "category"),
        source_of=_columns(documents, "doc", "source"),
        edges=_pairs(previous.table("weigh", "edges")),
    )


def digest(previous: Path | None, known: Earlier | None) -> str:
    """Of what an incremental organise reads besides the stages before it; "" for a full one."""
    if known is None or previous is None:
        return ""
    code = mapping.source_digest(sys.modules[__name__])
    return f"{code} {Workspace(previous).record('organise')['digest']}"


def organise_again(workspace: Workspace, known: Earlier, *, policy: Policy) -> StageResult:
    """The organise stage with the choices of the previous run."""
    evidence = standard_evidence(gather(workspace, second_share=policy.trained_share), known)
    source = sources(evidence, known)
    policy = replace(policy, click_weight=known.click_weight)
    links = organise.paired(evidence, looked_at(evidence, known, source, policy=policy), source, policy=policy)
    first = first_groups(evidence, known)
    touched = touched_documents(evidence, known, links, first)
    again = regrouped(first, links, touched, resolution=known.resolution, seed=policy.seed)
    group = settled(again, weights(links), touched, resolution=known.resolution)
    best = matching.best_two(matching.group_shares(links.shares, group))
    open_M = np.isin(np.arange(len(group)), touched)
    by_clicks = Organised(links.space, links.shares, group, source, *best)
    grouped, by_content = organise.with_unclicked(by_clicks, evidence.nodes, new=open_M)
    notes: dict[str, object] = {
        "incremental": True,
        "documents_new": sum(doc not in known.group_of for doc in evidence.doc_ids),
        "documents_touched": len(touched),
        "round_1": {
            "resolution": known.resolution,
            "click_weight": known.click_weight,
            "sources": int(source.max(initial=0)) + 1,
        },
        **by_content,
    }
    # A lone document that a touched one was paired with is touched as well: its category is another one now.
    unclicked = np.asarray(evidence.nodes.clicks.sum(axis=0)).ravel() == 0
    open_M |= unclicked & np.isin(grouped.group, grouped.group[open_M & unclicked])
    result = organise.stage_result(workspace, evidence, grouped, notes, policy=policy, touched=open_M)
    for number, one in enumerate(known.lenses):
        result.tables |= one.tables(number)
    return result


def standard_evidence(entities: Evidence, known: Earlier) -> Evidence:
    """The features of documents on the scales of the previous run, those of queries as they are."""
    seen = entities.nodes.has_image
    views = [
        replace(view, documents_MF=one.document.standard(view.documents_MF, seen))
        for one, view in zip(known.lenses, entities.views, strict=True)
    ]
    return replace(entities, views=tuple(views))


def looked_at(evidence: Evidence, known: Earlier, source: np.ndarray, *, policy: Policy) -> list[Poll]:
    """What each query may share itself over, view by view, through the lenses of the previous run."""
    polls = []
    for one, view in zip(known.lenses, evidence.views, strict=True):
        shown = one.documents(view.documents_MF, source, evidence.nodes.has_image)
        space = Space(one.queries(view.queries_NF), shown)
        polls.append(Poll(space, assignments.votes(space, evidence.nodes, source, policy=policy), view.share))
    return polls


def _columns(table: pa.Table, key: str, value: str) -> dict[str, Any]:
    return dict(zip(table.column(key).to_pylist(), table.column(value).to_pylist(), strict=True))


def _pairs(edges: pa.Table) -> set[tuple[str, str]]:
    return set(zip(edges.column("query").to_pylist(), edges.column("doc").to_pylist(), strict=True))


def sources(evidence: Evidence, known: Earlier) -> np.ndarray:
    """(M,): the source of a document as it was; of a new one, that of most of its nearest old ones by features."""
    source = np.array([known.source_of.get(doc, -1) for doc in evidence.doc_ids], dtype=np.int64)
    new = np.flatnonzero(source < 0)
    old = np.flatnonzero((source >= 0) & evidence.nodes.has_image)
    if len(new) and len(old):
        rows = unit_rows(evidence.views[0].documents_MF)
        near = assignments.neighbours(rows[old], rows[new], SOURCE_NEIGHBOURS)[1]
        source[new] = (source[old][near].mean(axis=1) > 0.5).astype(np.int64)
    return np.maximum(source, 0)


def first_groups(evidence: Evidence, known: Earlier) -> np.ndarray:
    """(M,): the previous group; a new document alone."""
    free = max(known.group_of.values(), default=-1) + 1
    return np.array([known.group_of.get(doc, free + i) for i, doc in enumerate(evidence.doc_ids)], dtype=np.int64)


def touched_documents(evidence: Evidence, known: Earlier, links: Links, group: np.ndarray) -> np.ndarray:
    """Sorted rows: new documents, those whose clicks changed, all tied to one of these, and the groups of all of them.

    A document that loses its partner to a new one has no tie left to it: only their old group names it.
    """
    ids = evidence.query_ids, evidence.doc_ids
    now = {(ids[0][q], ids[1][d]) for q, d in evidence.edges_P2.tolist()}
    changed = {doc for _, doc in now ^ known.edges} | {doc for doc in ids[1] if doc not in known.group_of}
    first = np.array([doc in changed for doc in ids[1]], dtype=bool)
    ring = first.copy()
    pairs = links.graph_E2
    ring[pairs[first[pairs[:, 0]], 1]] = True
    ring[pairs[first[pairs[:, 1]], 0]] = True
    return np.flatnonzero(np.isin(group, group[ring]))


def regrouped(group: np.ndarray, links: Links, touched: np.ndarray, *, resolution: float, seed: int) -> np.ndarray:
    """(M,): Leiden over the touched documents and the pairs among them, in groups of their own; the rest as before."""
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
    """(M, M) symmetric: affinities on the pairs of the graph."""
    i, j = links.graph_E2[:, 0], links.graph_E2[:, 1]
    value = np.asarray(links.affinity[i, j]).ravel() if len(i) else np.zeros(0)
    size = links.affinity.shape[0]
    return csr_array((np.tile(value, 2), (np.concatenate([i, j]), np.concatenate([j, i]))), shape=(size, size))


def settled(group: np.ndarray, weight: csr_array, touched: np.ndarray, *, resolution: float) -> np.ndarray:
    """(M,) groups from 0, without gaps, after local moves of `touched`.

    A document leaves its group and joins the one with the largest

        sum of weights to its members - resolution * number of its members

    itself included among the choices, an empty one (gain 0) too; ties: stay, else the smaller number. Repeated in the
    order of the rows until a pass moves nothing (each move raises the objective, so it ends).
    """
    group = group.copy()
    size = np.bincount(group, minlength=int(group.max(initial=0)) + len(touched) + 2)
    free = int(group.max(initial=0)) + 1
    for _ in range(MOST_PASSES):
        moved = False
        for i in touched.tolist():
            at, to = int(group[i]), slice(weight.indptr[i], weight.indptr[i + 1])
            tie: dict[int, float] = {}
            for j, w in zip(weight.indices[to].tolist(), weight.data[to].tolist(), strict=True):
                tie[int(group[j])] = tie.get(int(group[j]), 0.0) + w
            size[at] -= 1
            gain = {g: w - resolution * int(size[g]) for g, w in tie.items()}
            gain.setdefault(at, -resolution * int(size[at]))
            best = min(gain, key=lambda g: (-gain[g], g != at, g))
            if gain[best] < -1e-12:
                best, free = free, free + 1
                size = np.append(size, 0) if best >= len(size) else size
            size[best] += 1
            moved |= best != at
            group[i] = best
        if not moved:
            break
    return np.unique(group, return_inverse=True)[1].astype(np.int64)
