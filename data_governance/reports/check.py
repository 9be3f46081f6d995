"""Validate the inputs without writing output.

Opens and decodes like the first stage, without the encoder, and continues after an error, so that one call shows all.
"""

import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from data_governance.context import Request
from data_governance.entities import DOCUMENT, QUERY, SIDES, Side
from data_governance.inputs import shards
from data_governance.inputs.behaviour_log import open_log
from data_governance.inputs.engine import Engine
from data_governance.inputs.mapping import reasons
from data_governance.inputs.tables import Source, open_source
from data_governance.policy import Policy
from data_governance.stage import LOG, LOG_DROPPED, StageResult
from data_governance.stages import admit
from data_governance.stages.admit_log import admit_log
from data_governance.stages.overrides import open_overrides
from runtime.tables import remedy

T = TypeVar("T")
SHOWN = 3
REMEDIES = {
    "missing_id": "fill the id",
    "duplicate_id": "make ids unique; the first row is used",
    "unknown_query": "add the query to queries or drop the row",
    "unknown_document": "add the document to the catalogue or drop the row",
    "clicks_missing": "write 0 or drop the row",
    "clicks_negative": "clicks are counts",
    "clicks_not_whole": "clicks are counts",
    "clicks_too_large": "a billion at most: clicks are counts",
    "impressions_too_large": "a billion at most: impressions are counts",
    "impressions_negative": "impressions are counts",
    "impressions_not_whole": "impressions are counts",
    "fewer_impressions_than_clicks": "count both over the same time",
    "position_below_one": "positions count from 1",
    "bot_query": "the query clicks on far more documents than others, each about equally often: leave it out",
    "image_missing": "a query needs an image",
    "image_undecodable": "save the image again as PNG, JPEG or WebP",
    "image_format_refused": "save the image as PNG, JPEG or WebP",
    "image_too_many_pixels": "shrink the image or raise max_image_pixels",
    "image_file_too_large": "shrink the file or raise max_image_bytes",
    "image_file_missing": "paths are read below the table's folder",
    "image_path_escapes_folder": "paths must stay below the table's folder",
    "image_path_without_folder": "a Hub table must hold bytes",
    "text_too_long": "shorten the text or raise max_text_characters",
    "file_unusable": "repair or remove the file; the other files of the folder are used",
    "unknown_id": "name an id of queries or catalogue",
    "neither_image_nor_text": "give the document an image or a text",
}


def check(request: Request, policy: Policy) -> int:
    """Print one line for each kind of error; returns 1 when a table cannot be used at all, else 0."""
    with tempfile.TemporaryDirectory(prefix="governance-") as folder:
        return _check(request, StageResult(folder=Path(folder)), policy)


def _check(request: Request, result: StageResult, policy: Policy) -> int:
    queries, failed_queries = _opened(lambda: open_source(request.queries, name="queries"))
    catalogue, failed_catalogue = _opened(lambda: open_source(request.catalogue, name="catalogue"))
    log, failed_log = _opened(lambda: open_log(request.behaviour))
    overrides, failed_overrides = _opened(lambda: open_overrides(request.overrides))
    failed = failed_queries or failed_catalogue or failed_log or failed_overrides
    usable: dict[str, pa.Table] = {}
    for side, source in ((QUERY, queries), (DOCUMENT, catalogue)):
        if source is not None:
            usable[side.key] = _usable_rows(result, source, side, policy)
    if log is not None and len(usable) == 2:
        engine = Engine(policy, engine=request.engine)
        try:
            lost = admit_log(result, log, usable, policy=policy, engine=engine)
            log = replace(log, lost=tuple(lost))
        except ValueError as error:
            print(f"error: {error}")
            failed = True
    admit.record_lost_files(result, [source for source in (log, queries, catalogue) if source is not None])
    if overrides is not None and len(usable) == 2:
        _check_overrides(result, overrides, usable)
    for line in _lines(result):
        print(line)
    for name, (rows_in, kept) in result.counts.items():
        print(f"{name}: {kept} of {rows_in} rows are usable")
        failed |= kept == 0 and name != "overrides"
    print("a run would fail: correct the lines marked `error`" if failed else "a run would go through")
    return int(failed)


def _opened(opener: Callable[[], T]) -> tuple[T | None, bool]:
    """(input, False), or (None, True) with the error printed."""
    try:
        return opener(), False
    except ValueError as error:
        print(f"error: {error}")
        return None, True


def _check_overrides(result: StageResult, overrides: Source, usable: dict[str, pa.Table]) -> None:
    """Record ids of the overrides that no usable row has; category keys exist only after a run."""
    known = {name: set(usable[side.key].column(side.key).to_pylist()) for name, side in SIDES.items()}
    rows = zip(overrides.table.column("side").to_pylist(), overrides.table.column("id").to_pylist(), strict=True)
    lost = [row_id for side, row_id in rows if row_id not in known[side]]
    result.decide("overrides", lost, "dropped", "unknown_id")
    result.counts["overrides"] = (overrides.table.num_rows, overrides.table.num_rows - len(lost))


def _usable_rows(result: StageResult, source: Source, side: Side, policy: Policy) -> pa.Table:
    faults = [facts for _, _, batch in admit.decoded_batches(source, policy=policy) for facts in batch]
    table = source.table.append_column("image_fault", pa.array([fault or "" for fault, _, _ in faults]))
    table = table.append_column("has_image", pa.array([sha is not None for _, sha, _ in faults]))
    why = admit.with_duplicates(table.column(side.key), reasons(table, admit.RULES[side], policy=policy))
    return admit.drop_rejected(result, table, side, why)


def _lines(result: StageResult) -> list[str]:
    """One line for each table and reason, with the first ids; decisions about the log are read shard by shard."""
    counted: Counter[tuple[str, str]] = Counter()
    first: dict[tuple[str, str], list[str]] = {}
    for row in result.decisions:
        fault = row["table"], row["reason"]
        counted[fault] += 1
        first.setdefault(fault, []).append(row["row_id"])
    for part in shards.batches(result.shards(LOG_DROPPED), ["reason", "row_id"]):
        for reason in pc.unique(part.column("reason")).to_pylist():
            ids = part.filter(pc.equal(part.column("reason"), reason)).column("row_id")
            counted[LOG, reason] += len(ids)
            first.setdefault((LOG, reason), []).extend(ids[:SHOWN].to_pylist())
    lines = []
    for (table, reason), rows in sorted(counted.items()):
        total = result.counts[table][0]
        kind = "error" if rows == total and table != "overrides" else "warning"
        shown = ", ".join(first[table, reason][:SHOWN])
        what = REMEDIES.get(reason) or remedy(reason)
        lines.append(f"{kind}: {table}: {reason} in {rows} of {total} rows ({shown}): {what}")
    return lines
