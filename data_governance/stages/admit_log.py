"""Stage 1, behaviour log: validate rows in batches, write them as shards.

The rules split each batch into a shard of kept and a shard of dropped rows. Then the engine finds kept rows with
unknown ids, and their shards are rewritten without them. A row's reason is the first that applies: the rules in their
order, then an unknown query, then an unknown document.
"""

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from tqdm import tqdm

from data_governance.inputs import rules, shards
from data_governance.inputs.behaviour_log import Log
from data_governance.inputs.engine import Engine
from data_governance.inputs.mapping import Rule, marked
from data_governance.inputs.relations import clicks_by_query, rows_of_queries, unknown_ids
from data_governance.inputs.tables import TABLES
from data_governance.policy import Policy
from data_governance.stage import DECISIONS, LOG, LOG_DROPPED, StageResult
from runtime.tables import MARKS, ROW_DETAIL, BrokenFile, none_usable

BOT_QUERY = "bot_query"
BOT_DOCUMENTS, BOT_FACTOR, BOT_SHARE = 20, 10, 0.1
USUAL_QUANTILE = 0.9

BEHAVIOUR_RULES: list[Rule] = [
    rules.behaviour_row,
    rules.behaviour_ids,
    rules.behaviour_clicks,
    rules.behaviour_impressions,
    rules.behaviour_position,
]


def admit_log(
    result: StageResult, log: Log, admitted: dict[str, pa.Table], *, policy: Policy, engine: Engine
) -> list[tuple[str, str]]:
    """Write and count the shards of kept and dropped rows; returns (file, reason) of all unusable files.

    Args:
        admitted: id column name -> table with the known ids.

    Raises:
        ValueError: when no file can be read to its end.
    """
    rows_in, lost = _apply_rules(result, log, policy=policy)
    _drop_unknown(result, admitted, engine=engine)
    kept, gone = (shards.count(result.shards(name)) for name in (LOG, LOG_DROPPED))
    assert rows_in == kept + gone, f"{log.name}: {rows_in} in, {kept} kept, {gone} dropped"
    result.counts[LOG] = (rows_in, kept)
    return lost


def _apply_rules(result: StageResult, log: Log, *, policy: Policy) -> tuple[int, list[tuple[str, str]]]:
    """(rows in, unusable files); the shards of a truncated file are deleted and its row numbers are used again."""
    lost, row = list(log.lost), 0
    with tqdm(desc=f"admit {log.name}", unit="row", unit_scale=True, delay=1, mininterval=1) as bar:
        for part in log.parts:
            first_of_file = row
            try:
                for batch in part.batches():
                    _split(result, batch, first=row, policy=policy)
                    row += batch.num_rows
                    bar.update(batch.num_rows)
            except BrokenFile as error:
                lost.append((part.name, str(error)))
                for name in (LOG, LOG_DROPPED):
                    for path in result.shards(name):
                        if shards.first_row(path) >= first_of_file:
                            path.unlink()
                row = first_of_file
    if lost and len(lost) == max(log.files, 1):
        raise none_usable(lost, files=log.files, folder=log.folder or Path())
    return row, sorted(lost)


def _split(result: StageResult, batch: pa.Table, *, first: int, policy: Policy) -> None:
    why = marked(batch, BEHAVIOUR_RULES, policy=policy)
    rows = numbered(batch, first)
    is_valid = pc.equal(why, "")
    good, bad = rows.filter(is_valid), rows.filter(pc.invert(is_valid))
    assert good.num_rows + bad.num_rows == batch.num_rows
    good = good.drop_columns(list(MARKS))
    clicks = good.column_names.index("clicks")
    result.add_shard(LOG, good.set_column(clicks, "clicks", good.column("clicks").cast(pa.int64())), first=first)
    result.add_shard(LOG_DROPPED, dropped(bad, why.filter(pc.invert(is_valid))), first=first)


def numbered(batch: pa.Table, first: int) -> pa.Table:
    """The batch with `row`, the number of a row in the log, and `row_id`, its name: query>document#row."""
    row = pa.array(np.arange(first, first + batch.num_rows))
    query, document = (pc.fill_null(batch.column(key), "None") for key in ("query_id", "doc_id"))
    names = pc.binary_join_element_wise(query, ">", document, "#", row.cast(pa.string()), "")
    return batch.append_column("row", row).append_column("row_id", names)


def dropped(rows: pa.Table, why: pa.ChunkedArray) -> pa.Table:
    """Decisions of this stage to drop numbered rows, with the rows as they were read, and where a bad value stands."""
    number = pc.cast(rows.column("row"), pa.string())
    details = rows.column(ROW_DETAIL).to_pylist() if ROW_DETAIL in rows.column_names else [None] * rows.num_rows
    more = pa.array(["" if one is None else f', "why": {json.dumps(one)}' for one in details], pa.string())
    return log_decisions(rows, "admit", why, pc.binary_join_element_wise('{"row": ', number, more, "}", ""))


def log_decisions(rows: pa.Table, stage: str, why: pa.ChunkedArray, figures: pa.ChunkedArray) -> pa.Table:
    """Columns of `DECISIONS` to drop behaviour rows, then the number and the declared columns of each."""
    constant = {"table": LOG, "decision": "dropped", "stage": stage}
    columns = {name: pa.repeat(value, rows.num_rows) for name, value in constant.items()}
    columns |= {"row_id": rows.column("row_id"), "reason": why, "figures": figures, "row": rows.column("row")}
    original = [(name, pc.cast(rows.column(name), kind.pa_type)) for name, kind in TABLES[LOG].columns.items()]
    return pa.table({name: columns[name] for name in (*DECISIONS.names, "row")} | dict(original))


def _drop_unknown(result: StageResult, admitted: dict[str, pa.Table], *, engine: Engine) -> None:
    """Drop rows with an unknown query or document; shards without one are not rewritten."""
    good = result.shards(LOG)
    if not good or result.folder is None:
        return
    known = {key: engine.load(admitted[key].select([key])) for key in ("query_id", "doc_id")}
    found = engine.stream(unknown_ids(engine.read(result.folder / LOG), known))
    earlier = {path.name: path for path in result.shards(LOG_DROPPED)}
    for path, unknown in shards.by_shard(found, good):
        first, rows = shards.first_row(path), pq.read_table(path)
        gone = shards.picked(rows, unknown)
        why = pc.if_else(unknown.column("unknown_query"), "unknown_query", "unknown_document")
        parts = [dropped(rows.filter(pa.array(gone)), why)]
        parts += [pq.read_table(earlier[path.name])] if path.name in earlier else []
        result.add_shard(LOG, rows.filter(pa.array(~gone)), first=first)
        result.add_shard(LOG_DROPPED, pa.concat_tables(parts).sort_by("row"), first=first)


def bot_queries(result: StageResult, *, engine: Engine) -> list[str]:
    """Queries that click like a robot: on far more documents than others do, and on each about equally often.

    Such a query belongs to no category, and its clicks would join all of them. It has clicked more than
    `BOT_DOCUMENTS` documents and `BOT_FACTOR` times as many as nine tenths of the queries do at most, and no document
    has `BOT_SHARE` of its clicks. A popular query has many documents too, but comes back to a few of them.
    """
    if not result.shards(LOG) or result.folder is None:
        return []
    found = engine.fetch(clicks_by_query(engine.read(result.folder / LOG)))
    documents, clicks, most = (found.column(name).to_numpy() for name in ("documents", "clicks", "most"))
    if not len(documents):
        return []
    usual = np.quantile(documents, USUAL_QUANTILE, method="lower")
    is_bot = (documents > max(BOT_DOCUMENTS, BOT_FACTOR * usual)) & (most < BOT_SHARE * clicks)
    ids: list[str] = found.column("query_id").filter(pa.array(is_bot)).to_pylist()
    return ids


def drop_queries(result: StageResult, query_ids: list[str], reason: str, *, engine: Engine) -> None:
    """Move the log's rows of some queries from the kept to the dropped ones."""
    if not query_ids or result.folder is None:
        return
    found = engine.stream(rows_of_queries(engine.read(result.folder / LOG), query_ids))
    earlier = {path.name: path for path in result.shards(LOG_DROPPED)}
    moved = 0
    for path, mine in shards.by_shard(found, result.shards(LOG)):
        first, rows = shards.first_row(path), pq.read_table(path)
        gone = shards.picked(rows, mine)
        parts = [dropped(rows.filter(pa.array(gone)), pa.chunked_array([pa.repeat(reason, int(gone.sum()))]))]
        parts += [pq.read_table(earlier[path.name])] if path.name in earlier else []
        result.add_shard(LOG, rows.filter(pa.array(~gone)), first=first)
        result.add_shard(LOG_DROPPED, pa.concat_tables(parts).sort_by("row"), first=first)
        moved += int(gone.sum())
    rows_in, kept = result.counts[LOG]
    result.counts[LOG] = (rows_in, kept - moved)


def reasons_of(paths: Iterable[Path]) -> set[str]:
    """Distinct reasons in shards of dropped rows."""
    found = set[str]()
    for table in shards.batches(paths, ["reason"]):
        found |= set(pc.unique(table.column("reason")).to_pylist())
    return found
