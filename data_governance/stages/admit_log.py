"""Stage 1, the log: behaviour rows go through the rules batch by batch, shard in, shard out.

First every batch is split by the rules into a shard of good and a shard of dropped rows. Then the engine finds the ids
that queries or catalogue lack in the good shards where they lie, and the shards that have such rows are written anew
without them. A row has the first reason that applies: the rules in their order, then the query, then the document.
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from tqdm import tqdm

from data_governance.inputs import rules, shards
from data_governance.inputs.behaviour_log import BrokenFile, Log
from data_governance.inputs.engine import Engine
from data_governance.inputs.mapping import Rule, marked
from data_governance.inputs.relations import unknown_ids
from data_governance.inputs.tables import TABLES
from data_governance.policy import Policy
from data_governance.stage import DECISIONS, LOG, LOG_DROPPED, StageResult
from runtime.tables import none_usable

BEHAVIOUR_RULES: list[Rule] = [
    rules.behaviour_ids,
    rules.behaviour_clicks,
    rules.behaviour_impressions,
    rules.behaviour_position,
]


def admit_log(
    result: StageResult, log: Log, seen: dict[str, pa.Table], *, policy: Policy, engine: Engine
) -> list[tuple[str, str]]:
    """Write the shards of good and of dropped rows and count them; returns (file, why) of all lost files.

    Raises:
        ValueError: when no file can be read to its end.
    """
    rows_in, lost = _by_rules(result, log, policy=policy)
    _without_unknown(result, seen, engine=engine)
    kept, gone = (shards.count(result.shards(name)) for name in (LOG, LOG_DROPPED))
    assert rows_in == kept + gone, f"{log.name}: {rows_in} in, {kept} kept, {gone} dropped"
    result.counts[LOG] = (rows_in, kept)
    return lost


def _by_rules(result: StageResult, log: Log, *, policy: Policy) -> tuple[int, list[tuple[str, str]]]:
    """(rows in, lost files): a file that breaks off takes its shards along, and the next begins with its first row."""
    lost, row = list(log.lost), 0
    with tqdm(desc=f"admit {log.name}", unit="row", unit_scale=True, delay=1, mininterval=1) as bar:
        for part in log.parts:
            begun = row
            try:
                for batch in part.batches():
                    _split(result, batch, first=row, policy=policy)
                    row += batch.num_rows
                    bar.update(batch.num_rows)
            except BrokenFile as error:
                lost.append((part.name, str(error)))
                for name in (LOG, LOG_DROPPED):
                    for path in result.shards(name):
                        if shards.first_row(path) >= begun:
                            path.unlink()
                row = begun
    if lost and len(lost) == max(log.files, 1):
        raise none_usable(lost, files=log.files, folder=log.folder or Path())
    return row, sorted(lost)


def _split(result: StageResult, batch: pa.Table, *, first: int, policy: Policy) -> None:
    why = marked(batch, BEHAVIOUR_RULES, policy=policy)
    rows = numbered(batch, first)
    sound = pc.equal(why, "")
    good, bad = rows.filter(sound), rows.filter(pc.invert(sound))
    assert good.num_rows + bad.num_rows == batch.num_rows
    clicks = good.column_names.index("clicks")
    result.add_shard(LOG, good.set_column(clicks, "clicks", good.column("clicks").cast(pa.int64())), first=first)
    result.add_shard(LOG_DROPPED, dropped(bad, why.filter(pc.invert(sound))), first=first)


def numbered(batch: pa.Table, first: int) -> pa.Table:
    """The batch with the numbers of its rows in the log, and their names: query>document#row."""
    row = pa.array(np.arange(first, first + batch.num_rows))
    query, document = (pc.fill_null(batch.column(key), "None") for key in ("query_id", "doc_id"))
    names = pc.binary_join_element_wise(query, ">", document, "#", row.cast(pa.string()), "")
    return batch.append_column("row", row).append_column("row_id", names)


def dropped(rows: pa.Table, why: pa.ChunkedArray) -> pa.Table:
    """Decisions of this stage about numbered rows, with the rows as they came."""
    number = pc.cast(rows.column("row"), pa.string())
    return log_decisions(rows, "admit", why, pc.binary_join_element_wise('{"row": ', number, "}", ""))


def log_decisions(rows: pa.Table, stage: str, why: pa.ChunkedArray, figures: pa.ChunkedArray) -> pa.Table:
    """`DECISIONS` to drop behaviour rows, then the number and the declared columns of each."""
    said = {"table": LOG, "decision": "dropped", "stage": stage}
    columns = {name: pa.repeat(value, rows.num_rows) for name, value in said.items()}
    columns |= {"row_id": rows.column("row_id"), "reason": why, "figures": figures, "row": rows.column("row")}
    came = [(name, pc.cast(rows.column(name), kind.pa_type)) for name, kind in TABLES[LOG].columns.items()]
    return pa.table({name: columns[name] for name in (*DECISIONS.names, "row")} | dict(came))


def _without_unknown(result: StageResult, seen: dict[str, pa.Table], *, engine: Engine) -> None:
    """Two left joins on the engine; the shards without an unknown id stay as they are."""
    good = result.shards(LOG)
    if not good or result.folder is None:
        return
    known = {key: engine.load(seen[key].select([key])) for key in ("query_id", "doc_id")}
    found = engine.stream(unknown_ids(engine.read(result.folder / LOG), known))
    earlier = {path.name: path for path in result.shards(LOG_DROPPED)}
    for path, lost in shards.by_shard(found, good):
        first, rows = shards.first_row(path), pq.read_table(path)
        gone = shards.picked(rows, lost)
        why = pc.if_else(lost.column("unknown_query"), "unknown_query", "unknown_document")
        parts = [dropped(rows.filter(pa.array(gone)), why)]
        parts += [pq.read_table(earlier[path.name])] if path.name in earlier else []
        result.add_shard(LOG, rows.filter(pa.array(~gone)), first=first)
        result.add_shard(LOG_DROPPED, pa.concat_tables(parts).sort_by("row"), first=first)


def reasons_of(paths: Iterable[Path]) -> set[str]:
    """The distinct reasons in shards of dropped rows."""
    found = set[str]()
    for table in shards.batches(paths, ["reason"]):
        found |= set(pc.unique(table.column("reason")).to_pylist())
    return found
