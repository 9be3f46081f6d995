"""Stage 2, dedupe: rows that show and say the same become one entity.

Two documents with one picture but different texts stay two: catalogues draw different things alike, and their clicks
tell them apart. Exact duplicates (equal bytes) are collapsed first. Near-duplicates are documents whose 64-bit hashes
differ in at most `duplicate_radius` bits and whose features agree: with a radius of r < 4, two such hashes are equal in
at least one of four 16-bit blocks, so four self-joins find all pairs (the pigeonhole of Manku, Jain, Das Sarma 2007,
"Detecting near-duplicates for web crawling"). Query events are only collapsed when byte-equal: their renderings are
data.

In: admitted queries and documents. Out: the same with a column `entity` (the id that stands for them). Next: weigh.py.
"""

import igraph
import numpy as np
import pyarrow as pa

from data_governance.engine import Engine
from data_governance.policy import Policy
from data_governance.stage import StageResult, Workspace
from data_governance.tables import feature_matrix

HASH_RECIPE = "dct32-64"


def dedupe(workspace: Workspace, *, policy: Policy, engine: Engine) -> StageResult:
    """Add `entity` to queries and documents; record what was merged."""
    result = StageResult(notes={"hash": HASH_RECIPE, "radius": policy.duplicate_radius})
    for name, key, table_name in (("queries", "query_id", "queries"), ("documents", "doc_id", "catalogue")):
        rows = workspace.table("admit", name)
        ids = rows.column(key).to_pylist()
        said = [""] * len(ids) if name == "queries" else spoken(rows)
        stands_for = exact_entities(rows.column("sha").to_pylist(), said)
        reason = np.where(stands_for != np.arange(len(ids)), "same_bytes", "").astype(object)
        if name == "documents":
            features = feature_matrix(workspace.table("admit", "documents_features").column("features"))
            near, crowded = near_entities(rows, stands_for, features, policy=policy, engine=engine)
            reason[(near != stands_for) & (reason == "")] = "near_duplicate"
            stands_for = near
            result.notes["crowded_buckets"] = crowded
        merged = np.flatnonzero(stands_for != np.arange(len(ids)))
        into = [ids[stands_for[i]] for i in merged]
        result.decide(table_name, [ids[i] for i in merged], "merged", [str(reason[i]) for i in merged], into=into)
        result.tables[name] = rows.append_column("entity", pa.array([ids[i] for i in stands_for]))
        result.counts[table_name] = (len(ids), len(ids))
    return result


def spoken(documents: pa.Table) -> list[str]:
    """What a document says beside its picture: leaf and text, without case and spacing."""
    rows = zip(documents.column("leaf").to_pylist(), documents.column("text").to_pylist(), strict=True)
    return [f"{leaf or ''}\x00{' '.join((text or '').lower().split())}" for leaf, text in rows]


def exact_entities(shas: list[str | None], said: list[str]) -> np.ndarray:
    """(N,): the first row with the same bytes that says the same (itself when there is none, or no image)."""
    first: dict[tuple[str, str], int] = {}
    both = enumerate(zip(shas, said, strict=True))
    return np.array([i if sha is None else first.setdefault((sha, text), i) for i, (sha, text) in both], dtype=np.int64)


def near_entities(
    rows: pa.Table, stands_for: np.ndarray, features: np.ndarray, *, policy: Policy, engine: Engine
) -> tuple[np.ndarray, int]:
    """(entity of each row, number of buckets too crowded to compare); the smallest row number stands for a group."""
    alone = np.flatnonzero((stands_for == np.arange(len(stands_for))) & rows.column("has_image").to_numpy())
    hashes = rows.column("hash").to_numpy()
    pairs, crowded = hash_pairs(hashes[alone], policy=policy, engine=engine)
    pairs = alone[pairs]
    said = np.array(spoken(rows), dtype=object)
    pairs = pairs[said[pairs[:, 0]] == said[pairs[:, 1]]]
    unit = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-9)
    same = (unit[pairs[:, 0]] * unit[pairs[:, 1]]).sum(axis=1) >= policy.duplicate_cosine
    exact = np.stack([np.arange(len(stands_for)), stands_for], axis=1)
    graph = igraph.Graph(n=len(stands_for), edges=np.concatenate([pairs[same], exact]).tolist())
    membership = np.array(graph.connected_components().membership)
    smallest = np.full(membership.max() + 1, len(membership))
    np.minimum.at(smallest, membership, np.arange(len(membership)))
    return smallest[membership], crowded


def hash_pairs(hashes: np.ndarray, *, policy: Policy, engine: Engine) -> tuple[np.ndarray, int]:
    """All pairs (P, 2) of rows i < j whose int64 hashes differ in at most `duplicate_radius` bits."""
    bits = hashes.view(np.uint64)
    found, crowded = [np.zeros((0, 2), dtype=np.int64)], 0
    for block in range(4):
        part = ((bits >> np.uint64(16 * block)) & np.uint64(0xFFFF)).astype(np.int64)
        table = engine.load(pa.table({"row": np.arange(len(bits)), "part": part}))
        sizes = table.group_by("part").aggregate(size=table.row.count())
        crowded += engine.fetch(sizes.filter(sizes["size"] > policy.duplicate_bucket)).num_rows
        left = table.join(sizes.filter(sizes["size"] <= policy.duplicate_bucket), "part").drop("size")
        right = table.rename(other="row", other_part="part")
        pairs = left.join(right, [left.part == right.other_part, left.row < right.other]).select("row", "other")
        got = engine.fetch(pairs)
        i, j = got.column("row").to_numpy(), got.column("other").to_numpy()
        near = np.bitwise_count(bits[i] ^ bits[j]) <= policy.duplicate_radius
        found.append(np.stack([i[near], j[near]], axis=1))
    return np.unique(np.concatenate(found), axis=0), crowded
