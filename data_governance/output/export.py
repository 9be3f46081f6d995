"""Export the governed folder: samples, categories and dropped rows."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data_governance.context import GovernanceContext
from data_governance.entities import DOCUMENT, QUERY, Side
from data_governance.grouping.category_keys import events
from data_governance.inputs import shards
from data_governance.inputs.tables import TABLES, Source, image_bytes
from data_governance.policy import Policy
from data_governance.stage import DECISIONS, LOG, LOG_DROPPED, Workspace
from data_governance.stages.balance import band, sizes
from modeling_oclear.visible_text_oclear import visible
from runtime.files import atomic_file, empty_partial, replace_folder
from runtime.tables import IMAGE, IMAGE_TYPE

LEAST_HELD_OUT = 60  # categories
ROWS_PER_SHARD = 10_000
ROWS_PER_GROUP = 256  # reading a single image reads the whole row group
BYTES_PER_GROUP = 32 * 2**20
ImageCell = dict[str, Any] | None
SAMPLES = pa.schema(
    [
        ("sample_id", pa.string()),
        ("side", pa.string()),
        ("image", IMAGE_TYPE),
        ("text", pa.string()),
        ("category_id", pa.int64()),
        ("weight", pa.float64()),
        ("split", pa.string()),
    ]
)
DROPPED = pa.schema([*DECISIONS, pa.field("image", IMAGE_TYPE), pa.field("text", pa.string())])


def export(context: GovernanceContext) -> None:
    """Write samples, categories, category map, dropped rows and policy; each is renamed into place.

    ledger.json is deleted first and written last (ledger.write): a folder that has it is complete.

    Raises:
        ValueError: when a file cannot be written; the stages stay complete.
    """
    out = context.workspace.out
    try:
        (out / "ledger.json").unlink(missing_ok=True)
        _export(context)
        _write_dropped(context)
        (out / "policy.toml").write_text(context.policy.to_toml())
    except OSError as error:
        raise ValueError(
            f"export: cannot write {out} ({error.strerror or error}). Free space, then run again."
        ) from error


def _export(context: GovernanceContext) -> None:
    workspace, policy = context.workspace, context.policy
    members = workspace.table("balance", "members")
    content = sizes(members)
    keys = workspace.table("overrides", "keys")
    key_of = dict(zip(keys.column("category").to_pylist(), keys.column("category_key").to_pylist(), strict=True))
    key_of = {category: key_of[category] for category in content}
    changes = events(key_of, {c: entry["document"] for c, entry in content.items()}, context.previous_keys)
    # category_id follows the order of the keys, so that it changes as little as they do.
    order = sorted(content, key=lambda category: key_of[category])
    number = {category: i for i, category in enumerate(order)}
    split = splits({key_of[c]: content[c] for c in order}, share=policy.validation_share)
    catalogue = context.inputs.catalogue.table
    doc_row = first_rows(catalogue.column("doc_id"))
    leaf = catalogue.column("leaf")
    categories = []
    for category in order:
        entry, key = content[category], key_of[category]
        first = entry["document"][0]
        queries = len(entry["query"])
        categories.append(
            {
                "category_id": number[category],
                "category_key": key,
                "size": queries + len(entry["document"]),
                "documents": len(entry["document"]),
                "queries": queries,
                "representative": first,
                "leaf": leaf[doc_row[first]].as_py(),
                "band": band(queries, policy=policy),
            }
        )
    _write(pa.Table.from_pylist(categories), workspace.out / "categories.parquet")
    map_schema = pa.schema([("old_key", pa.string()), ("event", pa.string()), ("new_key", pa.string())])
    rows = [dict(zip(map_schema.names, event, strict=True)) for event in changes]
    _write(pa.Table.from_pylist(rows, schema=map_schema), workspace.out / "category_map.parquet")
    splits_of = {category: split[key_of[category]] for category in order}
    _write_samples(context, members, number, splits_of)


def previous_categories(previous: Path | None) -> dict[str, list[str]]:
    """category_key -> document ids of an earlier governed folder; empty without one.

    Raises:
        ValueError: when the folder holds no governed data.
    """
    if previous is None:
        return {}
    if not (previous / "categories.parquet").exists():
        raise ValueError(f"--previous {previous}: no categories.parquet there. Give an earlier --out folder.")
    table = pq.read_table(previous / "categories.parquet")
    key = dict(zip(table.column("category_id").to_pylist(), table.column("category_key").to_pylist(), strict=True))
    samples = pq.read_table(previous / "samples", columns=["sample_id", "side", "category_id"])
    found: dict[str, list[str]] = {}
    for row_id, side, category in zip(*(samples.column(c).to_pylist() for c in samples.column_names), strict=True):
        if side == "document":
            found.setdefault(key[category], []).append(row_id)
    return found


def splits(content: dict[str, dict[str, Any]], *, share: float) -> dict[str, str]:
    """category_key -> "train" or "validation".

    Of the categories with a query and a document, the `share` with the smallest sha256 of their key is held out, so
    that the split is stable from run to run. Categories are held out whole. In small data it is more than the share,
    `LEAST_HELD_OUT` categories or a fifth of all, because fewer judge nothing; a share of 0 holds out none.
    """
    eligible = [key for key, entry in content.items() if entry["query"] and entry["document"]]
    eligible.sort(key=lambda key: hashlib.sha256(f"validation {key}".encode()).hexdigest())
    least = min(LEAST_HELD_OUT, len(eligible) // 5) if share > 0 else 0
    held = set(eligible[: max(round(share * len(eligible)), least)])
    return {key: "validation" if key in held else "train" for key in content}


def first_rows(ids: pa.ChunkedArray) -> dict[str, int]:
    """id -> its first row in the table."""
    found: dict[str, int] = {}
    for i, row_id in enumerate(ids.to_pylist()):
        found.setdefault(row_id, i)
    return found


def _write_samples(
    context: GovernanceContext, members: pa.Table, number: dict[int, int], splits_of: dict[int, str]
) -> None:
    workspace = context.workspace
    part = empty_partial(workspace.out / "samples")
    shard = 0
    for side, source in ((QUERY, context.inputs.queries), (DOCUMENT, context.inputs.catalogue)):
        at = _rows_of_ids(workspace, side)
        sha_of = _shas(workspace, side)
        mine = members.filter(pc.equal(members.column("side"), side.name)).sort_by("id")
        for start in range(0, mine.num_rows, ROWS_PER_SHARD):
            rows = mine.slice(start, ROWS_PER_SHARD)
            ids = rows.column("id").to_pylist()
            category = rows.column("category").to_pylist()
            with pq.ParquetWriter(part / f"{shard:05d}.parquet", SAMPLES) as writer:
                places = [at[row_id] for row_id in ids]
                for first, images in image_groups(source, places, policy=context.policy):
                    group = slice(first, first + len(images))
                    _check_unchanged(source, ids[group], places[group], images, sha_of)
                    columns = {
                        "sample_id": pa.array(ids[group], pa.string()),
                        "side": pa.array([side.name] * len(images)),
                        "image": pa.array(images, IMAGE_TYPE),
                        "text": pa.array([visible(text) for text in texts(source, places[group], context.policy)]),
                        "category_id": pa.array([number[c] for c in category[group]], pa.int64()),
                        "weight": pa.array(rows.column("weight").to_numpy()[group].astype(np.float64)),
                        "split": pa.array([splits_of[c] for c in category[group]]),
                    }
                    writer.write_table(pa.table(columns, schema=SAMPLES), row_group_size=ROWS_PER_GROUP)
            shard += 1
    replace_folder(workspace.out / "samples")


def _shas(workspace: Workspace, side: Side) -> dict[str, str | None]:
    """Id -> sha256 of its image as it was admitted."""
    admitted = workspace.table("admit", side.table)
    return dict(zip(admitted.column(side.key).to_pylist(), admitted.column("sha").to_pylist(), strict=True))


def _check_unchanged(
    source: Source, ids: list[str], rows: list[int], images: list[ImageCell], sha_of: dict[str, str | None]
) -> None:
    """Picture files must be what they were when they were admitted: a label must not lie beside another picture."""
    for row_id, row, image in zip(ids, rows, images, strict=True):
        if source.images.size(row):
            continue  # the bytes are in the table
        if (hashlib.sha256(image["bytes"]).hexdigest() if image else None) != sha_of[row_id]:
            raise ValueError(
                f"{source.name}: the picture file of {row_id} changed while it was governed. Run again when no other "
                "program writes the pictures."
            )


def _rows_of_ids(workspace: Workspace, side: Side) -> dict[str, int]:
    """Id -> number of its row in the input table, for every admitted row."""
    admitted = workspace.table("admit", side.table)
    return dict(zip(admitted.column(side.key).to_pylist(), admitted.column("row").to_pylist(), strict=True))


def image_groups(source: Source, rows: list[int], *, policy: Policy) -> Iterator[tuple[int, list[ImageCell]]]:
    """(place of the first, images) of some rows: bytes, never a local path; a group is as large as a row group may be.

    An image that cannot be read or is too large is null.
    """
    first, held = 0, list[ImageCell]()
    num_bytes = 0
    for place, row in enumerate(rows):
        cell = source.images[row] if len(source.images) else None
        data, _ = image_bytes(cell, source.folder, max_bytes=policy.max_image_bytes)
        if held and (len(held) == ROWS_PER_GROUP or num_bytes + len(data or b"") > BYTES_PER_GROUP):
            yield first, held
            first, held, num_bytes = place, [], 0
        held.append(None if data is None else dict(zip(IMAGE, (data, None), strict=True)))
        num_bytes += len(data or b"")
    if held:
        yield first, held


def texts(source: Source, rows: list[int], policy: Policy) -> list[str]:
    """Texts of some rows, cut at the policy's limit; "" where it is missing."""
    if "text" not in source.table.column_names:
        return [""] * len(rows)
    picked = source.table.column("text").take(pa.array(rows, pa.int64())).to_pylist()
    return [(value or "")[: policy.max_text_characters] for value in picked]


def _write_dropped(context: GovernanceContext) -> None:
    """Write one file per input table: every dropped row as it was read, with its stage, reason and figures."""
    workspace, overrides = context.workspace, context.overrides
    folder = workspace.out / "dropped"
    folder.mkdir(exist_ok=True)
    dropped = finally_dropped(pa.concat_tables([workspace.table(stage, "decisions") for stage in workspace.stages]))
    rejected = dropped.filter(pc.equal(dropped.column("table"), "overrides"))
    if overrides is None:
        (folder / "overrides.parquet").unlink(missing_ok=True)
    else:
        rows = [json.loads(figures)["row"] - 1 for figures in rejected.column("figures").to_pylist()]
        original = overrides.table.take(pa.array(rows, pa.int64()))
        _write(_beside(rejected, {c: original.column(c) for c in original.column_names}), folder / "overrides.parquet")
    for side, source in ((QUERY, context.inputs.queries), (DOCUMENT, context.inputs.catalogue)):
        mine = dropped.filter(pc.equal(dropped.column("table"), side.source))
        at = _rows_of_ids(workspace, side)
        facts = zip(*(mine.column(c).to_pylist() for c in ("row_id", "stage", "figures")), strict=True)
        rows = [json.loads(figures)["row"] if stage == "admit" else at[row_id] for row_id, stage, figures in facts]
        with atomic_file(folder / f"{side.source}.parquet") as part, pq.ParquetWriter(part, DROPPED) as writer:
            for first, images in image_groups(source, rows, policy=context.policy):
                group = slice(first, first + len(images))
                shown = {
                    "image": pa.array(images, IMAGE_TYPE),
                    "text": pa.array(texts(source, rows[group], context.policy)),
                }
                writer.write_table(_beside(mine.slice(first, len(images)), shown))
    _write_log_dropped(workspace, folder / "behaviour.parquet")


def _write_log_dropped(workspace: Workspace, path: Path) -> None:
    """Copy the dropped rows of the log from the shards of the stages, in batches."""
    log = TABLES[LOG].columns.arrow_schema
    schema = pa.schema([*DECISIONS, *(pa.field(field.name, field.type) for field in log)])
    files = [shard for stage in workspace.stages for shard in workspace.shards(stage, LOG_DROPPED)]
    with atomic_file(path) as part, pq.ParquetWriter(part, schema) as writer:
        for table in shards.gathered(shards.batches(files, schema.names), rows=ROWS_PER_SHARD):
            writer.write_table(table)


def _beside(decisions: pa.Table, columns: dict[str, Any]) -> pa.Table:
    return pa.table({**{c: decisions.column(c) for c in decisions.column_names}, **columns})


def finally_dropped(decisions: pa.Table) -> pa.Table:
    """The rows of `decisions` (all stages, in order) that drop a row which no override restored later."""
    facts = zip(*(decisions.column(c).to_pylist() for c in ("table", "row_id", "decision")), strict=True)
    open_drops: dict[tuple[str, str], list[int]] = {}
    for i, (table, row_id, decision) in enumerate(facts):
        if decision == "dropped":
            open_drops.setdefault((table, row_id), []).append(i)
        elif decision == "restored":
            open_drops[table, row_id].pop()
    return decisions.take(pa.array(sorted(i for rows in open_drops.values() for i in rows), pa.int64()))


def _write(table: pa.Table, path: Path) -> None:
    with atomic_file(path) as part:
        pq.write_table(table, part)
