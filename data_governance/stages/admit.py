"""Stage 1, admit: ids, counts, texts and images are checked; what is bad is quarantined with its reason.

Each image is decoded once, here: fault, hash and features come from the same pass, and no later stage needs pixels.

The log, which has no images and no end, goes its own way: admit_log.py.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from tqdm import tqdm

from data_governance import image_cache
from data_governance.image_cache import Memory
from data_governance.inputs import rules
from data_governance.inputs.behaviour_log import Log
from data_governance.inputs.encoder import Encoder
from data_governance.inputs.engine import Engine, threads
from data_governance.inputs.images import decode_square, hash64
from data_governance.inputs.mapping import Rule, reasons
from data_governance.inputs.tables import Source, feature_column, image_bytes
from data_governance.policy import Policy
from data_governance.stage import LOG, LOG_DROPPED, StageResult
from data_governance.stages.admit_log import admit_log, reasons_of

ROWS_PER_BATCH = 256
# (fault or None, sha256 of the bytes or None where there is no good image, perceptual hash)
DecodedFacts = tuple[str | None, str | None, int]
QUERY_RULES: list[Rule] = [rules.query_id, rules.image_fault, rules.query_has_image]
DOCUMENT_RULES: list[Rule] = [
    rules.document_id,
    rules.image_fault,
    rules.document_text,
    rules.document_shows_something,
]


@dataclass(frozen=True)
class Inputs:
    """The log and the two opened tables."""

    behaviour: Log
    queries: Source
    catalogue: Source


def admit(
    inputs: Inputs,
    folder: Path,
    *,
    policy: Policy,
    engine: Engine,
    encoder: Encoder,
    earlier: tuple[Path | None, ...] = (),
) -> StageResult:
    """Quarantine bad rows; hash and embed the images of the good ones, but those seen in `earlier` governed folders.

    The shards of the log are written into `folder`, which is empty.
    """
    recipe = image_cache.recipe(policy, encoder)
    memory = image_cache.remembered(earlier, recipe)
    notes = {"encoder": encoder.name, "recipe": recipe, "images_taken_over": 0}
    result, seen = StageResult(notes=notes, folder=folder), {}
    for source, key, chosen in (
        (inputs.queries, "query_id", QUERY_RULES),
        (inputs.catalogue, "doc_id", DOCUMENT_RULES),
    ):
        facts = image_facts(source, policy=policy, encoder=encoder, memory=memory)
        result.notes["images_taken_over"] += facts.taken_over
        table = source.table.drop_columns(["image"])
        table = table.append_column("row", pa.array(range(table.num_rows), pa.int64()))
        for name, column in facts.columns.items():
            table = table.append_column(name, column)
        why = with_duplicates(table.column(key), reasons(table, chosen, policy=policy))
        kept = set_aside(result, source.name, table, key, why)
        name = "queries" if key == "query_id" else "documents"
        result.tables[f"{name}_features"] = pa.table(
            {key: kept.column(key), "features": feature_column(facts.features[_kept_mask(why)])}
        )
        result.tables[name] = seen[key] = kept.drop_columns(["image_fault"])
    result.notes |= {"blocks": encoder.blocks, "views": encoder.views}
    lost = admit_log(result, inputs.behaviour, seen, policy=policy, engine=engine)
    lost_files(result, [replace(inputs.behaviour, lost=tuple(lost)), inputs.queries, inputs.catalogue])
    for kind in ("queries", "catalogue", LOG):
        if result.counts[kind][1] == 0:
            told = {d["reason"] for d in result.decisions if d["table"] == kind}
            told |= reasons_of(result.shards(LOG_DROPPED)) if kind == LOG else set()
            why_all = ", ".join(sorted(told))
            raise ValueError(f"{kind}: no row is usable ({why_all}). `check` lists the first rows of each reason.")
    return result


def lost_files(result: StageResult, sources: Sequence[Source | Log]) -> None:
    """Files of a folder that could not be used are decisions of their own: how many rows they held is not known."""
    lost = [(source.name, file, why) for source in sources for file, why in source.lost]
    if lost:
        files = sum(source.files for source in sources)
        names = [f"{name}/{file}" for name, file, _ in lost]
        result.decide("files", names, "dropped", "file_unusable", why=[why for _, _, why in lost])
        result.counts["files"] = (files, files - len(lost))


def _kept_mask(why: Sequence[str]) -> np.ndarray:
    return np.array([not reason for reason in why], dtype=bool)


def with_duplicates(ids: pa.ChunkedArray, why: Sequence[str]) -> list[str]:
    """Of several sound rows with one id the first stays; the others are `duplicate_id`."""
    seen: set[str] = set()
    found = list(why)
    for i, row_id in enumerate(ids.to_pylist()):
        if not found[i]:
            found[i] = "duplicate_id" if row_id in seen else ""
            seen.add(row_id)
    return found


def set_aside(result: StageResult, name: str, table: pa.Table, key: str, why: Sequence[str]) -> pa.Table:
    keep = pa.array(_kept_mask(why))
    ids = [f"{row_id}" if row_id else f"row {i}" for i, row_id in enumerate(table.column(key).to_pylist())]
    bad = [i for i, reason in enumerate(why) if reason]
    result.decide(name, [ids[i] for i in bad], "dropped", [why[i] for i in bad], row=bad)
    kept = table.filter(keep)
    result.counts[name] = (table.num_rows, kept.num_rows)
    return kept


@dataclass(frozen=True)
class ImageFacts:
    """Per row of a table: columns image_fault, has_image, sha, hash; features (N, W) float16, 0 without image.

    `taken_over` counts the rows whose image an earlier run had seen.
    """

    columns: dict[str, pa.Array]
    features: np.ndarray
    taken_over: int


def image_facts(source: Source, *, policy: Policy, encoder: Encoder, memory: Memory) -> ImageFacts:
    """Decode, hash and embed every new image of a table, in batches; decoding overlaps with the encoder."""
    found: list[DecodedFacts] = []
    parts: list[np.ndarray] = []
    taken_over = 0
    encoder.blocks = encoder.blocks or memory.blocks
    if not encoder.blocks:
        encoder.features(np.zeros((1, policy.image_size, policy.image_size, 3), dtype=np.uint8))
    total = source.table.num_rows
    with tqdm(total=total, desc=f"embed {source.name}", unit="image", delay=1, mininterval=1) as bar:
        for squares, new, facts in decoded_batches(source, policy=policy, known=memory.hash_of):
            values = np.zeros((len(facts), sum(encoder.blocks)), dtype=np.float16)
            if len(new):
                values[new] = encoder.features(squares)
            old = [i for i, (_, sha, _) in enumerate(facts) if sha in memory.row_of]
            if old:
                values[old] = memory.features[[memory.row_of[str(facts[i][1])] for i in old]]
            taken_over += len(old)
            parts.append(values)
            found += facts
            bar.update(len(facts))
    columns = {
        "image_fault": pa.array([fault or "" for fault, _, _ in found]),
        "has_image": pa.array([sha is not None for _, sha, _ in found]),
        "sha": pa.array([sha for _, sha, _ in found], pa.string()),
        "hash": pa.array([bits for _, _, bits in found], pa.int64()),
    }
    return ImageFacts(columns, np.concatenate(parts), taken_over)


def decoded_batches(
    source: Source, *, policy: Policy, known: Mapping[str, int] = MappingProxyType({})
) -> Iterator[tuple[np.ndarray, list[int], list[DecodedFacts]]]:
    """Batches of (squares (E, S, S, 3), their places in the batch, facts of each row).

    Only sound images have a square; one whose sha256 is `known` has its hash from there and is not decoded.
    """

    def one(cell: dict[str, Any] | None) -> tuple[np.ndarray | None, DecodedFacts]:
        data, fault = image_bytes(cell, source.folder, max_bytes=policy.max_image_bytes)
        if data is None:
            return None, (fault, None, 0)
        sha = hashlib.sha256(data).hexdigest()
        if sha in known:
            return None, (None, sha, known[sha])
        square, fault = decode_square(data, size=policy.image_size, max_pixels=policy.max_image_pixels)
        return (None, (fault, None, 0)) if square is None else (square, (None, sha, hash64(square)))

    cells = source.table.column("image")
    with ThreadPoolExecutor(threads(policy)) as pool:
        for start in range(0, len(cells), ROWS_PER_BATCH):
            done = list(pool.map(one, cells.slice(start, ROWS_PER_BATCH).to_pylist()))
            new = [(i, square) for i, (square, _) in enumerate(done) if square is not None]
            squares = np.stack([square for _, square in new]) if new else np.zeros((0, 0, 0, 3), dtype=np.uint8)
            yield squares, [i for i, _ in new], [facts for _, facts in done]


def leaf_of(table: pa.Table) -> list[str]:
    """The leaf of every document; "" where there is none."""
    return [value or "" for value in pc.fill_null(table.column("leaf"), "").to_pylist()]
