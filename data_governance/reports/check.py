"""Validate the inputs without writing output.

Opens and decodes like the first stage, without the encoder, and continues after an error, so that one call shows all.
"""

import json
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
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
from data_governance.reports.page import write_page
from data_governance.stage import LOG, LOG_DROPPED, StageResult
from data_governance.stages import admit
from data_governance.stages.admit_log import admit_log
from data_governance.stages.lookalikes import lookalikes, near_misses
from data_governance.stages.overrides import open_overrides
from data_governance.stages.readiness import doubts, shortfalls
from runtime.tables import remedy, rows_in_files

T = TypeVar("T")
# Rows of a reason in a line, and on the page.
SHOWN, ON_PAGE = 3, 8
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
    "image_is_a_url": "nothing is downloaded: save the picture below the table's folder and write its path",
    "image_is_base64": "base64 is not decoded: store the bytes, or save a file and write its path",
    "image_path_without_folder": "a Hub table must hold bytes",
    "text_too_long": "shorten the text or raise max_text_characters",
    "file_unusable": "repair or remove the file; the other files of the folder are used",
    "unknown_id": "name an id of queries or catalogue",
    "neither_image_nor_text": "give the document an image or a text",
}


@dataclass
class Findings:
    """What `check` prints and what its page shows: lines in order, and whether a run would fail."""

    lines: list[str] = field(default_factory=list)
    failed: bool = False

    def say(self, line: str) -> None:
        print(line)
        self.lines.append(line)

    def error(self, line: str) -> None:
        self.failed = True
        self.say(f"error: {line}")


def check(request: Request, policy: Policy, *, html: Path | None = None) -> int:
    """Print one line for each kind of error; returns 1 when a run or a training could not use the inputs, else 0.

    Args:
        html: also write a page with examples of the rejected rows of each reason.
    """
    found = Findings()
    with tempfile.TemporaryDirectory(prefix="governance-") as folder:
        result = StageResult(folder=Path(folder))
        _check(request, result, policy, found)
        if html is not None:
            write_check(html, found.lines, result.counts, rejected(result))
    return int(found.failed)


def _check(request: Request, result: StageResult, policy: Policy, found: Findings) -> None:
    queries = _opened(lambda: open_source(request.queries, name="queries"), found)
    catalogue = _opened(lambda: open_source(request.catalogue, name="catalogue"), found)
    log = _opened(lambda: open_log(request.behaviour), found)
    overrides = _opened(lambda: open_overrides(request.overrides), found)
    usable: dict[str, pa.Table] = {}
    for side, source in ((QUERY, queries), (DOCUMENT, catalogue)):
        if source is not None:
            usable[side.key] = _usable_rows(result, source, side, policy)
    if log is not None and len(usable) == 2:
        engine = Engine(policy, engine=request.engine)
        try:
            lost = admit_log(result, log, usable, policy=policy, engine=engine)
            log = replace(log, lost=tuple(lost))
            admit.drop_bots(result, usable[QUERY.key], engine=engine)
        except ValueError as error:
            found.error(str(error))
    admit.record_lost_files(result, [source for source in (log, queries, catalogue) if source is not None])
    if overrides is not None and len(usable) == 2:
        _check_overrides(result, overrides, usable)
    for line in _lines(result):
        found.say(line)
    for table in (log, queries, catalogue):
        for line in () if table is None else table.warnings:
            found.say(f"warning: {line}")
    for side in SIDES.values():
        for line in lookalikes(usable.get(side.key), side):
            found.say(f"warning: {line}")
    for line in near_misses(result.shards(LOG_DROPPED), usable):
        found.say(f"warning: {line}")
    for name, (rows_in, kept) in result.counts.items():
        found.say(f"{name}: {kept} of {rows_in} rows are usable")
        found.failed |= kept == 0 and name != "overrides"
    for name, location in (
        ("behaviour", request.behaviour),
        ("queries", request.queries),
        ("catalogue", request.catalogue),
    ):
        if name in result.counts:
            found.say(_counted(name, rows_in_files(location, name=name), result.counts[name][0]))
    if len(usable) == 2 and not found.failed and LOG in result.counts:
        for line in shortfalls(usable[DOCUMENT.key], result.shards(LOG)):
            found.error(line)
        for line in doubts(result.shards(LOG)):
            found.say(f"warning: {line}")
    found.say("a run would fail: correct the lines marked `error`" if found.failed else "a run would go through")


def _counted(name: str, on_disk: int, read: int) -> str:
    more = "" if on_disk == read else ": cells of several lines and files that cannot be read make the difference"
    return f"{name}: {on_disk} rows by the footers and lines of its files, {read} read{more}"


def _opened(opener: Callable[[], T], found: Findings) -> T | None:
    """The input, or None with the error printed."""
    try:
        return opener()
    except ValueError as error:
        found.error(str(error))
        return None


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
    table = table.append_column("sha", pa.array([sha for _, sha, _ in faults], pa.string()))
    why = admit.with_duplicates(table.column(side.key), reasons(table, admit.RULES[side], policy=policy))
    return admit.drop_rejected(result, table, side, why)


@dataclass
class Rejected:
    """Rows of one table that are rejected for one reason: how many, and (row id, where and what) of the first."""

    rows: int = 0
    first: list[tuple[str, str]] = field(default_factory=list)

    def add(self, rows: int, first: Iterable[tuple[str, str]]) -> None:
        self.rows += rows
        self.first = [*self.first, *first][:ON_PAGE]


def rejected(result: StageResult) -> dict[tuple[str, str], Rejected]:
    """(table, reason) -> its rows; decisions about the log are read shard by shard."""
    found: dict[tuple[str, str], Rejected] = {}
    for row in result.decisions:
        fault = found.setdefault((row["table"], row["reason"]), Rejected())
        fault.add(1, [(row["row_id"], _place(row["figures"]))])
    for part in shards.batches(result.shards(LOG_DROPPED), ["reason", "row_id", "figures"]):
        for reason in pc.unique(part.column("reason")).to_pylist():
            mine = part.filter(pc.equal(part.column("reason"), reason))
            some = mine.slice(0, ON_PAGE)
            ids, places = (some.column(name).to_pylist() for name in ("row_id", "figures"))
            first = zip(ids, map(_place, places), strict=True)
            found.setdefault((LOG, reason), Rejected()).add(mine.num_rows, first)
    return dict(sorted(found.items()))


def _place(figures: str) -> str:
    """File, line and value of a bad row, or its number."""
    known = json.loads(figures)
    return str(known.get("why") or (f"row {known['row']}" if "row" in known else ""))


def remedy_of(reason: str) -> str:
    """What to do about rows that are rejected for a reason."""
    return REMEDIES.get(reason) or remedy(reason)


def _lines(result: StageResult) -> list[str]:
    """One line for each table and reason, with the first ids, and the first value that could not be read."""
    lines = []
    for (table, reason), bad in rejected(result).items():
        total = result.counts[table][0]
        kind = "error" if bad.rows == total and table != "overrides" else "warning"
        shown = ", ".join(row_id for row_id, _ in bad.first[:SHOWN])
        place = bad.first[0][1]
        example = "" if not place or place.startswith("row ") else f" [{place}]"
        lines.append(f"{kind}: {table}: {reason} in {bad.rows} of {total} rows ({shown}): {remedy_of(reason)}{example}")
    return lines


def write_check(
    target: Path, lines: list[str], counts: dict[str, tuple[int, int]], bad: dict[tuple[str, str], Rejected]
) -> None:
    """Write the page: counts, and examples of each reason with its remedy."""
    write_page(
        target,
        "check",
        lines=lines,
        counts=[(name, rows_in, kept, rows_in - kept) for name, (rows_in, kept) in counts.items()],
        reasons=[(table, reason, one.rows, remedy_of(reason), one.first) for (table, reason), one in bad.items()],
    )
