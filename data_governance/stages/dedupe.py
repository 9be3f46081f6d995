"""Stage 2, dedupe: merge rows with equal image and text into one entity.

Two documents with one image but different texts stay separate: catalogues draw different things alike, and their
clicks differ. Exact duplicates (equal bytes) are merged first; then documents whose 64-bit hashes differ in at most
`duplicate_radius` bits and whose features agree. Queries are merged only if their bytes are equal: other renderings of
a drawing are useful training data.
"""

from collections.abc import Iterator
from itertools import combinations, count
from math import comb, log2

import igraph
import numpy as np
import pyarrow as pa

from data_governance.context import GovernanceContext
from data_governance.entities import DOCUMENT, QUERY
from data_governance.inputs.tables import feature_matrix
from data_governance.policy import Policy
from data_governance.stage import StageResult, Workspace

HASH_RECIPE = "dct32-64"


def run(context: GovernanceContext) -> StageResult:
    """Stage 2 in the folder of the run."""
    return dedupe(context.workspace, policy=context.policy)


def dedupe(workspace: Workspace, *, policy: Policy) -> StageResult:
    """Add the column `entity` to queries and documents; record merged rows."""
    result = StageResult(notes={"hash": HASH_RECIPE, "radius": policy.duplicate_radius})
    for side in (QUERY, DOCUMENT):
        rows = workspace.table("admit", side.table)
        ids = rows.column(side.key).to_pylist()
        texts = [""] * len(ids) if side is QUERY else text_keys(rows)
        representative = exact_entities(rows.column("sha").to_pylist(), texts)
        reason = np.where(representative != np.arange(len(ids)), "same_bytes", "").astype(object)
        if side is DOCUMENT:
            features = feature_matrix(workspace.table("admit", "documents_features").column("features"))
            near, crowded = near_entities(rows, representative, features, policy=policy)
            reason[(near != representative) & (reason == "")] = "near_duplicate"
            representative = near
            result.notes["crowded_buckets"] = crowded
        merged = np.flatnonzero(representative != np.arange(len(ids)))
        into = [ids[representative[i]] for i in merged]
        result.decide(side.source, [ids[i] for i in merged], "merged", [str(reason[i]) for i in merged], into=into)
        result.tables[side.table] = rows.append_column("entity", pa.array([ids[i] for i in representative]))
        result.counts[side.source] = (len(ids), len(ids))
    return result


def text_keys(documents: pa.Table) -> list[str]:
    """Leaf and text of each document, ignoring case and spacing."""
    rows = zip(documents.column("leaf").to_pylist(), documents.column("text").to_pylist(), strict=True)
    return [f"{leaf or ''}\x00{' '.join((text or '').lower().split())}" for leaf, text in rows]


def exact_entities(shas: list[str | None], texts: list[str]) -> np.ndarray:
    """(N,): the first row with equal bytes and text; the row itself without an image."""
    first: dict[tuple[str, str], int] = {}
    both = enumerate(zip(shas, texts, strict=True))
    return np.array([i if sha is None else first.setdefault((sha, text), i) for i, (sha, text) in both], dtype=np.int64)


def near_entities(
    rows: pa.Table, representative: np.ndarray, features: np.ndarray, *, policy: Policy
) -> tuple[np.ndarray, int]:
    """(entity of each row, number of buckets too large to compare); the smallest row number represents a group.

    Args:
        representative: (N,) entity of each row after exact merging.
    """
    alone = np.flatnonzero((representative == np.arange(len(representative))) & rows.column("has_image").to_numpy())
    hashes = rows.column("hash").to_numpy()
    pairs, crowded = hash_pairs(hashes[alone], radius=policy.duplicate_radius, most=policy.duplicate_bucket)
    pairs = alone[pairs]
    texts = np.array(text_keys(rows), dtype=object)
    pairs = pairs[texts[pairs[:, 0]] == texts[pairs[:, 1]]]
    unit = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-9)
    same = (unit[pairs[:, 0]] * unit[pairs[:, 1]]).sum(axis=1) >= policy.duplicate_cosine
    exact = np.stack([np.arange(len(representative)), representative], axis=1)
    graph = igraph.Graph(n=len(representative), edges=np.concatenate([pairs[same], exact]).tolist())
    membership = np.array(graph.connected_components().membership)
    smallest = np.full(membership.max() + 1, len(membership))
    np.minimum.at(smallest, membership, np.arange(len(membership)))
    return smallest[membership], crowded


def hash_pairs(hashes: np.ndarray, *, radius: int, most: int) -> tuple[np.ndarray, int]:
    """All pairs (P, 2) of rows i < j whose int64 hashes differ in at most `radius` bits, and the groups not compared.

    Cut the 64 bits into m > r blocks: r flipped bits touch at most r of them, so two such hashes agree in m - r whole
    blocks, and one sorted self-join for each choice of m - r blocks finds every pair (the pigeonhole principle of
    Manku, Jain, Das Sarma 2007, "Detecting near-duplicates for web crawling"). No N x N table is built.

    The second value counts groups that were not compared because more than `most` rows share a hash, or more than
    `most` hashes share the blocks of one join; if it is 0, no pair is missing.

    Raises:
        ValueError: for a radius outside 0..16, where the joins would cost more than comparing every pair.
    """
    if not 0 <= radius <= 16:
        raise ValueError(f"radius = {radius} must lie between 0 and 16 bits: wider hashes are not near-duplicates.")
    # Equal hashes are joined as one: flat and empty images have the same.
    bits, place, size = np.unique(hashes.view(np.uint64), return_inverse=True, return_counts=True)
    order = np.argsort(place, kind="stable")
    start = np.concatenate([[0], np.cumsum(size)])
    alike, crowded = [np.zeros((0, 2), dtype=np.int64)], int((size > most).sum())
    for mask in block_masks(len(bits), radius):
        by_key = np.argsort(bits & mask)
        full, fits = _crowded(bits[by_key] & mask, most)
        crowded += full
        by_key = by_key[fits]
        alike += [by_key[pair] for pair in _near(bits[by_key], mask, radius)]
    distinct = np.unique(np.sort(np.concatenate(alike), axis=1), axis=0)
    usual = np.flatnonzero((size > 1) & (size <= most))
    left, right = np.concatenate([distinct[:, 0], usual]), np.concatenate([distinct[:, 1], usual])
    wide = size[left] * size[right] > most**2
    crowded += int(wide.sum())
    left, right = left[~wide], right[~wide]
    # Every row of the left hash with every row of the right one.
    times = size[left] * size[right]
    which = np.repeat(np.arange(len(left)), times)
    step = np.arange(len(which)) - np.repeat(np.cumsum(times) - times, times)
    i = order[start[left[which]] + step // size[right[which]]]
    j = order[start[right[which]] + step % size[right[which]]]
    once = (left != right)[which] | (i < j)
    pairs = np.sort(np.stack([i[once], j[once]], axis=1), axis=1)
    return pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))], crowded


def block_masks(rows: int, radius: int) -> list[np.uint64]:
    """The bits that each self-join compares: all choices of m - radius among m blocks, for the cheapest m.

    Cost of m: C(m, radius) joins, each sorting the rows and comparing rows^2 / 2^(bits compared + 1) chance pairs.
    """

    def cost(blocks: int) -> float:
        agreeing = 64 * (blocks - radius) // blocks
        return comb(blocks, radius) * (rows * log2(rows + 2) + rows**2 / 2.0 ** (agreeing + 1))

    blocks = min(range(radius + 1, radius + 5), key=cost)
    edge = [64 * i // blocks for i in range(blocks + 1)]
    block = [(1 << high) - (1 << low) for low, high in zip(edge, edge[1:], strict=False)]
    return [np.uint64(sum(chosen)) for chosen in combinations(block, blocks - radius)]


def _crowded(key: np.ndarray, most: int) -> tuple[int, np.ndarray]:
    """(number of runs of equal keys longer than `most`, mask of the rows in other runs); keys are sorted."""
    first = np.flatnonzero(np.concatenate([[True], key[1:] != key[:-1]])) if len(key) else np.zeros(0, dtype=np.int64)
    length = np.diff(np.concatenate([first, [len(key)]]))
    return int((length > most).sum()), np.repeat(length <= most, length)


def _near(bits: np.ndarray, mask: np.uint64, radius: int) -> Iterator[np.ndarray]:
    """Pairs (P, 2) of rows at most `radius` bits apart that agree under the mask; rows are sorted by it.

    Step s compares each row with the s-th after it, while both are in the same run.
    """
    key = bits & mask
    row = np.arange(len(bits))
    for step in count(1):
        row = row[: np.searchsorted(row, len(bits) - step)]
        row = row[key[row] == key[row + step]]
        if not len(row):
            return
        near = row[np.bitwise_count(bits[row] ^ bits[row + step]) <= radius]
        if len(near):
            yield np.stack([near, near + step], axis=1)
