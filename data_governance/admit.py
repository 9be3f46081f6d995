"""Stage 1, admit: ids, counts, texts and images are checked; what is bad is quarantined with its reason.

Each image is decoded once, here: fault, hash and features come from the same pass, and no later stage needs pixels.

In: the three opened inputs. Out: tables behaviour, queries, documents and their features. Next: dedupe.py.
"""

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from tqdm import tqdm

from data_governance import rules
from data_governance.encoder import Encoder
from data_governance.engine import Engine, threads
from data_governance.images import decode_square, hash64
from data_governance.mapping import Rule, reasons
from data_governance.policy import Policy
from data_governance.stage import StageResult
from data_governance.tables import Source, feature_column, image_bytes

ROWS_PER_BATCH = 256
# (fault or None, sha256 of the bytes or None where there is no good image, perceptual hash)
DecodedFacts = tuple[str | None, str | None, int]
BEHAVIOUR_RULES: list[Rule] = [
    rules.behaviour_ids,
    rules.behaviour_clicks,
    rules.behaviour_impressions,
    rules.behaviour_position,
]
QUERY_RULES: list[Rule] = [rules.query_id, rules.image_fault, rules.query_has_image]
DOCUMENT_RULES: list[Rule] = [
    rules.document_id,
    rules.image_fault,
    rules.document_text,
    rules.document_shows_something,
]


@dataclass(frozen=True)
class Inputs:
    """The three opened tables."""

    behaviour: Source
    queries: Source
    catalogue: Source


def admit(inputs: Inputs, *, policy: Policy, engine: Engine, encoder: Encoder) -> StageResult:
    """Quarantine bad rows; hash and embed the images of the good ones."""
    result = StageResult(notes={"encoder": encoder.name})
    seen = {}
    for source, key, chosen in (
        (inputs.queries, "query_id", QUERY_RULES),
        (inputs.catalogue, "doc_id", DOCUMENT_RULES),
    ):
        facts = image_facts(source, policy=policy, encoder=encoder)
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
    result.notes["blocks"] = encoder.blocks
    admit_behaviour(result, inputs.behaviour.table, seen, policy=policy, engine=engine)
    for name in ("queries", "documents", "behaviour"):
        if result.tables[name].num_rows == 0:
            kind = "catalogue" if name == "documents" else name
            why_all = ", ".join(sorted({d["reason"] for d in result.decisions if d["table"] == kind}))
            raise ValueError(f"{kind}: no row is usable ({why_all}). `check` lists the first rows of each reason.")
    return result


def admit_behaviour(
    result: StageResult, table: pa.Table, seen: dict[str, pa.Table], *, policy: Policy, engine: Engine
) -> None:
    """Rules first, then ids that queries or catalogue lack, found by two left joins."""
    table = table.append_column("row", pa.array(range(table.num_rows), pa.int64()))
    rows = engine.load(table)
    for key in ("query_id", "doc_id"):
        known = engine.load(seen[key].select([key])).mutate(one=1)
        flag = known.rename({f"{key}_known": key})
        rows = rows.left_join(flag, rows[key] == flag[f"{key}_known"]).drop("one")
    known_rows = engine.fetch(rows.order_by("row").select("row", "query_id_known", "doc_id_known"))
    why = reasons(table, BEHAVIOUR_RULES, policy=policy)
    lost = [
        "unknown_query" if q is None else "unknown_document" if d is None else ""
        for q, d in zip(
            known_rows.column("query_id_known").to_pylist(), known_rows.column("doc_id_known").to_pylist(), strict=True
        )
    ]
    parts = (table.column(c).to_pylist() for c in ("query_id", "doc_id", "row"))
    names = [f"{q}>{d}#{r}" for q, d, r in zip(*parts, strict=True)]
    table = table.append_column("row_id", pa.array(names))
    kept = set_aside(result, "behaviour", table, "row_id", [a or b for a, b in zip(why, lost, strict=True)])
    whole = {c: kept.column(c).cast(pa.int64()) for c in ("clicks",)}
    kept = kept.set_column(kept.column_names.index("clicks"), "clicks", whole["clicks"])
    result.tables["behaviour"] = kept


def _kept_mask(why: list[str | None]) -> np.ndarray:
    return np.array([not reason for reason in why], dtype=bool)


def with_duplicates(ids: pa.ChunkedArray, why: list[str | None]) -> list[str | None]:
    """Of several sound rows with one id the first stays; the others are `duplicate_id`."""
    seen: set[str] = set()
    found = list(why)
    for i, row_id in enumerate(ids.to_pylist()):
        if not found[i]:
            found[i] = "duplicate_id" if row_id in seen else ""
            seen.add(row_id)
    return found


def set_aside(result: StageResult, name: str, table: pa.Table, key: str, why: list[str | None]) -> pa.Table:
    keep = pa.array(_kept_mask(why))
    ids = [f"{row_id}" if row_id else f"row {i}" for i, row_id in enumerate(table.column(key).to_pylist())]
    bad = [i for i, reason in enumerate(why) if reason]
    result.decide(name, [ids[i] for i in bad], "dropped", [str(why[i]) for i in bad], row=bad)
    kept = table.filter(keep)
    result.counts[name] = (table.num_rows, kept.num_rows)
    return kept


@dataclass(frozen=True)
class ImageFacts:
    """Per row of a table: columns image_fault, has_image, sha, hash; features (N, W) float16, 0 without image."""

    columns: dict[str, pa.Array]
    features: np.ndarray


def image_facts(source: Source, *, policy: Policy, encoder: Encoder) -> ImageFacts:
    """Decode, hash and embed every image of a table, in batches; decoding overlaps with the encoder."""
    faults: list[str] = []
    shas: list[str | None] = []
    hashes: list[int] = []
    parts: list[np.ndarray] = []
    total = source.table.num_rows
    with tqdm(total=total, desc=f"embed {source.name}", unit="image", delay=1, mininterval=1) as bar:
        for squares, facts in decoded_batches(source, policy=policy):
            parts.append(encoder.features(squares))
            for fault, sha, bits in facts:
                faults.append(fault or "")
                shas.append(sha)
                hashes.append(bits)
            bar.update(len(facts))
    features = np.concatenate(parts)
    has_image = np.array([sha is not None for sha in shas])
    features[~has_image] = 0
    columns = {
        "image_fault": pa.array(faults),
        "has_image": pa.array(has_image),
        "sha": pa.array(shas, pa.string()),
        "hash": pa.array(hashes, pa.int64()),
    }
    return ImageFacts(columns, features)


def decoded_batches(source: Source, *, policy: Policy) -> Iterator[tuple[np.ndarray, list[DecodedFacts]]]:
    """Batches of (squares (B, S, S, 3), facts of each row); a faulty or missing image is all black."""
    black = np.zeros((policy.image_size,) * 2 + (3,), dtype=np.uint8)

    def one(cell: dict[str, Any] | None) -> tuple[np.ndarray, DecodedFacts]:
        data, fault = image_bytes(cell, source.folder, max_bytes=policy.max_image_bytes)
        if data is None:
            return black, (fault, None, 0)
        square, fault = decode_square(data, size=policy.image_size, max_pixels=policy.max_image_pixels)
        if square is None:
            return black, (fault, None, 0)
        return square, (None, hashlib.sha256(data).hexdigest(), hash64(square))

    cells = source.table.column("image")
    with ThreadPoolExecutor(threads(policy)) as pool:
        for start in range(0, len(cells), ROWS_PER_BATCH):
            done = list(pool.map(one, cells.slice(start, ROWS_PER_BATCH).to_pylist()))
            yield np.stack([square for square, _ in done]), [facts for _, facts in done]


def leaf_of(table: pa.Table) -> list[str]:
    """The leaf of every document; "" where there is none."""
    return [value or "" for value in pc.fill_null(table.column("leaf"), "").to_pylist()]
