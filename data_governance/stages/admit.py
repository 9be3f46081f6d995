"""Stage 1, admit: validate ids, counts, texts and images; drop bad rows.

Each image is decoded once, here: fault, hash and features come from one pass, and no later stage needs pixels. The
behaviour log, which has no images and no bound, is read in batches: see admit_log.py.
"""

import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from tqdm import tqdm

from data_governance.context import GovernanceContext
from data_governance.entities import DOCUMENT, QUERY, Side
from data_governance.image_cache import ImageCache, cache_key, load_cache
from data_governance.inputs import rules
from data_governance.inputs.behaviour_log import Log
from data_governance.inputs.encoder import Encoder
from data_governance.inputs.engine import Engine, threads
from data_governance.inputs.images import decode_square, hash64
from data_governance.inputs.map_keeper import MapKeeper, map_keeper
from data_governance.inputs.mapping import Rule, reasons
from data_governance.inputs.tables import Source, feature_column, image_bytes
from data_governance.policy import Policy
from data_governance.stage import LOG, LOG_DROPPED, StageResult
from data_governance.stages.admit_log import BOT_QUERY, admit_log, bot_queries, drop_queries, reasons_of
from data_governance.stages.lookalikes import lookalikes, near_misses
from data_governance.stages.readiness import shortfalls
from runtime.tables import ROW_DETAIL, ROW_FAULT

logger = logging.getLogger(__name__)


# (fault or None, sha256 of the bytes or None without a valid image, perceptual hash)
DecodedFacts = tuple[str | None, str | None, int]
RULES: dict[Side, list[Rule]] = {
    QUERY: [rules.readable_row, rules.query_id, rules.image_fault, rules.query_has_image],
    DOCUMENT: [
        rules.readable_row,
        rules.document_id,
        rules.image_fault,
        rules.document_text,
        rules.document_shows_something,
    ],
}


def run(context: GovernanceContext) -> StageResult:
    """Stage 1 on the inputs of the run, into its new folder.

    Raises:
        ValueError: what is usable is too little for the next stages.
    """
    result = admit(context)
    missing = shortfalls(result.tables[DOCUMENT.table], result.shards(LOG))
    if missing:
        raise ValueError(" ".join(missing))
    return result


def admit(context: GovernanceContext) -> StageResult:
    """Drop bad rows; hash and embed the images of the others.

    Image features of earlier runs, in the folder of this run or in `context.previous`, are reused.

    Raises:
        ValueError: a table without a usable row.
    """
    inputs, policy, engine, encoder = context.inputs, context.policy, context.engine, context.encoder
    out, folder = context.workspace.out, context.workspace.begin("admit")
    key = cache_key(policy, encoder)
    cache, keeper = load_cache((out, context.previous), key), map_keeper(out, encoder, policy=policy)
    widths = cache.block_widths or encoder.block_widths(policy.image_size)
    notes = {"encoder": encoder.name, "recipe": key, "images_taken_over": 0}
    notes |= {"blocks": widths, "views": encoder.blocks_per_view(len(widths))}
    result, admitted = StageResult(notes=notes, folder=folder), {}
    for side, source in ((QUERY, inputs.queries), (DOCUMENT, inputs.catalogue)):
        facts = image_facts(source, policy=policy, encoder=encoder, cache=cache, width=sum(widths), keeper=keeper)
        result.notes["images_taken_over"] += facts.num_reused
        table = source.table.append_column("row", pa.array(range(source.table.num_rows), pa.int64()))
        for name, column in facts.columns.items():
            table = table.append_column(name, column)
        why = with_duplicates(table.column(side.key), reasons(table, RULES[side], policy=policy))
        kept = drop_rejected(result, table, side, why)
        result.tables[f"{side.table}_features"] = pa.table(
            {side.key: kept.column(side.key), "features": feature_column(facts.features[_kept_mask(why)])}
        )
        result.tables[side.table] = admitted[side.key] = without(kept, "image_fault", ROW_FAULT, ROW_DETAIL)
    lost = admit_log(result, inputs.behaviour, admitted, policy=policy, engine=engine)
    for line in [
        *(line for source in (inputs.behaviour, inputs.queries, inputs.catalogue) for line in source.warnings),
        *lookalikes(admitted[QUERY.key], QUERY),
        *lookalikes(admitted[DOCUMENT.key], DOCUMENT),
        *near_misses(result.shards(LOG_DROPPED), admitted),
    ]:
        logger.warning("warning: %s", line)
    kept = drop_bots(result, result.tables[QUERY.table], engine=engine)
    for name in (QUERY.table, f"{QUERY.table}_features"):
        result.tables[name] = result.tables[name].filter(kept)
    record_lost_files(result, [replace(inputs.behaviour, lost=tuple(lost)), inputs.queries, inputs.catalogue])
    for name in (QUERY.source, DOCUMENT.source, LOG):
        if result.counts[name][1] == 0:
            found = {d["reason"] for d in result.decisions if d["table"] == name}
            found |= reasons_of(result.shards(LOG_DROPPED)) if name == LOG else set()
            listed = ", ".join(sorted(found))
            raise ValueError(f"{name}: no row is usable ({listed}). `check` lists the first rows of each reason.")
    return result


def drop_bots(result: StageResult, queries: pa.Table, *, engine: Engine) -> pa.ChunkedArray:
    """Reject queries that click like a robot, with their rows of the log, and warn.

    Args:
        queries: the usable ones; `row` is their number, if there is one.

    Returns:
        (rows of `queries`,) bool: it is kept.
    """
    bots = bot_queries(result, engine=engine)
    drop_queries(result, bots, BOT_QUERY, engine=engine)
    is_bot = pc.is_in(queries.column(QUERY.key), pa.array(bots, pa.string()))
    gone = queries.filter(is_bot)
    if not gone.num_rows:
        return pc.invert(is_bot)
    places = {"row": gone.column("row").to_pylist()} if "row" in gone.column_names else {}
    result.decide(QUERY.source, gone.column(QUERY.key).to_pylist(), "dropped", BOT_QUERY, **places)
    rows_in, kept = result.counts[QUERY.source]
    result.counts[QUERY.source] = (rows_in, kept - gone.num_rows)
    logger.warning(
        "%d of %d queries click like a robot and are rejected (%s), such as %s",
        gone.num_rows,
        rows_in,
        BOT_QUERY,
        ", ".join(bots[:3]),
    )
    return pc.invert(is_bot)


def record_lost_files(result: StageResult, sources: Sequence[Source | Log]) -> None:
    """Record files of a folder that could not be used; how many rows they held is unknown, so files are counted."""
    lost = [(source.name, file, why) for source in sources for file, why in source.lost]
    if lost:
        files = sum(source.files for source in sources)
        names = [f"{name}/{file}" for name, file, _ in lost]
        result.decide("files", names, "dropped", "file_unusable", why=[why for _, _, why in lost])
        result.counts["files"] = (files, files - len(lost))


def without(table: pa.Table, *names: str) -> pa.Table:
    """The table without some columns, as far as it has them."""
    return table.drop_columns([name for name in names if name in table.column_names])


def _kept_mask(why: Sequence[str]) -> np.ndarray:
    return np.array([not reason for reason in why], dtype=bool)


def with_duplicates(ids: pa.ChunkedArray, why: Sequence[str]) -> list[str]:
    """The reasons, with `duplicate_id` for all valid rows of one id but the first."""
    seen: set[str] = set()
    found = list(why)
    for i, row_id in enumerate(ids.to_pylist()):
        if not found[i]:
            found[i] = "duplicate_id" if row_id in seen else ""
            seen.add(row_id)
    return found


def drop_rejected(result: StageResult, table: pa.Table, side: Side, why: Sequence[str]) -> pa.Table:
    """Record the rows that have a reason as dropped; returns the others."""
    ids = [f"{row_id}" if row_id else f"row {i}" for i, row_id in enumerate(table.column(side.key).to_pylist())]
    bad = [i for i, reason in enumerate(why) if reason]
    places = table.column(ROW_DETAIL).to_pylist() if ROW_DETAIL in table.column_names else [None] * table.num_rows
    plain, marked = ([i for i in bad if (places[i] is None) == is_plain] for is_plain in (True, False))
    result.decide(side.source, [ids[i] for i in plain], "dropped", [why[i] for i in plain], row=plain)
    values = [places[i] for i in marked]
    result.decide(side.source, [ids[i] for i in marked], "dropped", [why[i] for i in marked], row=marked, why=values)
    kept = table.filter(pa.array(_kept_mask(why)))
    result.counts[side.source] = (table.num_rows, kept.num_rows)
    return kept


@dataclass(frozen=True)
class ImageFacts:
    """Image columns of a table.

    Attributes:
        columns: image_fault, has_image, sha, hash.
        features: (N, W) float16; 0 for a row without an image.
        num_reused: rows whose image was in the cache.
    """

    columns: dict[str, pa.Array]
    features: np.ndarray
    num_reused: int


def image_facts(
    source: Source,
    *,
    policy: Policy,
    encoder: Encoder,
    cache: ImageCache,
    width: int,
    keeper: MapKeeper | None = None,
) -> ImageFacts:
    """Decode, hash and embed every image of a table that is not cached, in batches.

    Args:
        width: of the encoder's features. keeper: keeps the maps of new pictures.
    """
    found: list[DecodedFacts] = []
    parts: list[np.ndarray] = []
    num_reused = 0
    total = source.table.num_rows
    with tqdm(total=total, desc=f"embed {source.name}", unit="image", delay=1, mininterval=1) as bar:
        for squares, new, facts in decoded_batches(source, policy=policy, known_hashes=cache.hash_of):
            values = np.zeros((len(facts), width), dtype=np.float16)
            if len(new) and keeper is not None:
                values[new] = keeper.features(encoder, squares, [str(facts[i][1]) for i in new])
            elif len(new):
                values[new] = encoder.features(squares)
            old = [i for i, (_, sha, _) in enumerate(facts) if sha in cache.row_of]
            if old:
                values[old] = cache.features[[cache.row_of[str(facts[i][1])] for i in old]]
            num_reused += len(old)
            parts.append(values)
            found += facts
            bar.update(len(facts))
    if keeper is not None:
        keeper.flush()
    columns = {
        "image_fault": pa.array([fault or "" for fault, _, _ in found]),
        "has_image": pa.array([sha is not None for _, sha, _ in found]),
        "sha": pa.array([sha for _, sha, _ in found], pa.string()),
        "hash": pa.array([bits for _, _, bits in found], pa.int64()),
    }
    return ImageFacts(columns, np.concatenate(parts), num_reused)


def decoded_batches(
    source: Source, *, policy: Policy, known_hashes: Mapping[str, int] = MappingProxyType({})
) -> Iterator[tuple[np.ndarray, list[int], list[DecodedFacts]]]:
    """Batches of (squares (E, S, S, 3), their places in the batch, facts of each row).

    Only valid images have a square. One whose sha256 is in `known_hashes` takes its hash from there and is not decoded.
    """

    def decode(cell: dict[str, Any] | None) -> tuple[np.ndarray | None, DecodedFacts]:
        data, fault = image_bytes(cell, source.folder, max_bytes=policy.max_image_bytes)
        if data is None:
            return None, (fault, None, 0)
        sha = hashlib.sha256(data).hexdigest()
        if sha in known_hashes:
            return None, (None, sha, known_hashes[sha])
        square, fault = decode_square(
            data, size=policy.image_size, max_pixels=policy.max_image_pixels, max_bytes=policy.max_image_bytes
        )
        return (None, (fault, None, 0)) if square is None else (square, (None, sha, hash64(square)))

    # Threads help: Pillow and hashlib release the GIL.
    with ThreadPoolExecutor(threads(policy)) as pool:
        for cells in source.image_batches():
            done = list(pool.map(decode, cells))
            new = [(i, square) for i, (square, _) in enumerate(done) if square is not None]
            squares = np.stack([square for _, square in new]) if new else np.zeros((0, 0, 0, 3), dtype=np.uint8)
            yield squares, [i for i, _ in new], [facts for _, facts in done]
