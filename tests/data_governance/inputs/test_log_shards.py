"""The log in shards equals a plain loop, and truncated files are rejected."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from benchmarks.governance.engines import behaviour
from data_governance import stage
from data_governance.__main__ import main
from data_governance.inputs import behaviour_log, rules, shards
from data_governance.inputs.behaviour_log import open_log
from data_governance.inputs.engine import Engine
from data_governance.pipeline import PIPELINE
from data_governance.policy import Policy
from data_governance.reports.contact_sheets import DROPPED_SHOWN, dropped_rows
from data_governance.reports.lineage import row_lineage
from data_governance.stage import LOG, LOG_DROPPED, StageResult, Workspace
from data_governance.stages import admit_log, click_rates
from runtime.tables import ROW_DETAIL, ROW_FAULT
from tests.data_governance.test_pipeline import same_tables
from tests.data_governance.test_resume import facts, no_file_larger_than
from tests.support.synthetic_shop import SyntheticShop

POLICY = Policy(threads=1, memory_limit="500MB", max_documents_per_query=3)
QUERIES, DOCUMENTS = [f"q{i:05d}" for i in range(12)], [f"d{i:05d}" for i in range(11)]
NAMES = ("behaviour", "admit", "edges", "click_rates")


def synthetic_log(rows: int = 600) -> pa.Table:
    """Every kind of bad row; the last document is unknown."""
    return behaviour(rows, np.arange(12) % 6, 12, np.random.default_rng(3))


def write_files(table: pa.Table, folder: Path, *, rows: int) -> Path:
    folder.mkdir()
    for number, start in enumerate(range(0, table.num_rows, rows)):
        pq.write_table(table.slice(start, rows), folder / f"{number:03d}.parquet", row_group_size=50)
    return folder


def admitted(location: Path, out: Path) -> tuple[StageResult, list[tuple[str, str]]]:
    result = StageResult(folder=Workspace(out).begin("admit"))
    known_ids = {"query_id": pa.table({"query_id": QUERIES}), "doc_id": pa.table({"doc_id": DOCUMENTS})}
    lost = admit_log.admit_log(result, open_log(str(location)), known_ids, policy=POLICY, engine=Engine(POLICY))
    return result, lost


def governed_log(location: Path, out: Path) -> list[Any]:
    """What admit and click_rates make of a log: rows that go on, rows dropped, edges, counts, notes."""
    workspace = Workspace(out)
    result, _ = admitted(location, out)
    workspace.commit("admit", result, digest="d", seconds=0)
    entities = {
        "queries": pa.table({"query_id": QUERIES, "entity": [QUERIES[i // 2 * 2] for i in range(12)]}),
        "documents": pa.table({"doc_id": DOCUMENTS, "entity": DOCUMENTS}),
    }
    workspace.commit("dedupe", StageResult(tables=entities), digest="d", seconds=0)
    rates = click_rates.click_rates(workspace, policy=POLICY, engine=Engine(POLICY))
    workspace.commit("click_rates", rates, digest="d", seconds=0)
    found = [
        repr(rows_of(workspace, *name))
        for name in (("admit", LOG), ("admit", LOG_DROPPED), ("click_rates", LOG_DROPPED))
    ]
    return [*found, workspace.table("click_rates", "edges").to_pylist(), result.counts, rates.counts, rates.notes]


def rows_of(workspace: Workspace, name: str, table: str) -> list[dict[str, Any]]:
    return pa.concat_tables(shards.batches(workspace.shards(name, table))).to_pylist()


def by_a_plain_loop(log: pa.Table) -> list[str]:
    """The reason of every row, "" for good ones."""
    batch = log.to_pydict()
    found = [rule(batch, policy=POLICY) for rule in admit_log.BEHAVIOUR_RULES]
    reasons = []
    for i, (query, document) in enumerate(zip(batch["query_id"], batch["doc_id"], strict=True)):
        first = next((of_rule[i] for of_rule in found if of_rule[i]), "")
        lost = "unknown_query" if query not in QUERIES else "unknown_document" if document not in DOCUMENTS else ""
        reasons.append(first or lost)
    return reasons


def test_rows_names_and_reasons_equal_a_plain_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(behaviour_log, "ROWS_PER_BATCH", 37)
    log = synthetic_log()
    result, lost = admitted(write_files(log, tmp_path / "log", rows=250), tmp_path / "out")
    why, workspace = by_a_plain_loop(log), Workspace(tmp_path / "out")
    assert not lost
    assert {*why} > {"", "missing_id", "unknown_query", "unknown_document", "clicks_missing", "position_below_one"}
    workspace.commit("admit", result, digest="d", seconds=0)
    rows = log.to_pylist()
    good, bad = rows_of(workspace, "admit", LOG), rows_of(workspace, "admit", LOG_DROPPED)
    assert [row["row"] for row in good] == [i for i, reason in enumerate(why) if not reason]
    assert [(row["row"], row["reason"]) for row in bad] == [(i, reason) for i, reason in enumerate(why) if reason]
    for row in good + bad:
        came = rows[row["row"]]
        assert row["row_id"] == f"{came['query_id']}>{came['doc_id']}#{row['row']}"
        assert repr({name: row[name] for name in came}) == repr(came) or row["clicks"] == came["clicks"]
    assert [row["figures"] for row in bad] == [f'{{"row": {row["row"]}}}' for row in bad]


def test_tables_do_not_depend_on_files_and_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = synthetic_log()
    pq.write_table(log, tmp_path / "log.parquet")
    whole = governed_log(tmp_path / "log.parquet", tmp_path / "whole")
    assert whole[5][LOG][0] > whole[5][LOG][1] > 0
    for files, batch in ((600, 13), (131, 250_000)):
        monkeypatch.setattr(behaviour_log, "ROWS_PER_BATCH", batch)
        monkeypatch.setattr("data_governance.inputs.engine.ROWS_PER_BATCH", 5)
        name = f"{files}_{batch}"
        folder = write_files(log, tmp_path / name, rows=files)
        assert governed_log(folder, tmp_path / f"out_{name}") == whole, name


def cut_inside(path: Path) -> None:
    """The footer stays whole, the data of the last rows does not."""
    meta = pq.read_metadata(path)
    at = meta.row_group(meta.num_row_groups - 1).column(0).data_page_offset
    data = bytearray(path.read_bytes())
    data[at : at + 40] = b"\xff" * 40
    path.write_bytes(bytes(data))


def test_a_truncated_file_loses_its_rows_and_no_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(behaviour_log, "ROWS_PER_BATCH", 40)
    log = synthetic_log()
    folder = write_files(log, tmp_path / "log", rows=200)
    cut_inside(folder / "001.parquet")
    result, lost = admitted(folder, tmp_path / "out")
    assert [name for name, _ in lost] == ["001.parquet"]
    assert "behaviour: 001.parquet cannot be read as parquet" in lost[0][1]
    others = pa.concat_tables([log.slice(0, 200), log.slice(400)])
    pq.write_table(others, tmp_path / "others.parquet")
    alone, _ = admitted(tmp_path / "others.parquet", tmp_path / "alone")
    assert result.counts == alone.counts
    for name in (LOG, LOG_DROPPED):
        ours, theirs = (pa.concat_tables(shards.batches(r.shards(name))) for r in (result, alone))
        assert repr(ours.to_pylist()) == repr(theirs.to_pylist())
    for number in (0, 2):
        cut_inside(folder / f"{number:03d}.parquet")
    with pytest.raises(ValueError, match="None of the 3 files of log can be used"):
        admitted(folder, tmp_path / "none")


def test_text_files_are_read_in_blocks_and_typed_by_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.tables.encoding.BLOCK_BYTES", 256)
    rows = pa.table({"query_id": [f"{i:03d}" for i in range(99)], "doc_id": ["7"] * 99, "clicks": [1] * 99})
    pyarrow.csv.write_csv(rows, tmp_path / "log.csv")
    (tmp_path / "log.jsonl").write_text(
        "".join(f'{{"query_id": "{i:03d}", "doc_id": 7, "clicks": {1.0 if i > 90 else 1}}}\n' for i in range(99))
    )
    for name in ("log.csv", "log.jsonl"):
        parts = list(open_log(str(tmp_path / name)).parts[0].stream())
        found = pa.concat_tables(parts)
        assert len(parts) > 3
        assert found.select(["query_id", "doc_id"]).equals(rows.select(["query_id", "doc_id"])), name
        assert found.column("clicks").to_pylist() == [1.0] * 99
    (tmp_path / "log.csv").write_text((tmp_path / "log.csv").read_text() + '"100","7",many\n')
    last = list(open_log(str(tmp_path / "log.csv")).parts[0].batches())[-1].to_pylist()[-1]
    assert last[ROW_FAULT] == "clicks_not_a_number"
    assert last[ROW_DETAIL] == "log.csv: line 101: 'clicks' is 'many'"


def test_lost_rows_fail_the_conservation_check(tmp_path: Path) -> None:
    pq.write_table(synthetic_log(100), tmp_path / "log.parquet")
    result, _ = admitted(tmp_path / "log.parquet", tmp_path / "out")
    stage.check_conservation("admit", result)
    result.shards(LOG_DROPPED)[0].unlink()
    with pytest.raises(AssertionError, match="100 in, .* kept, 0 dropped"):
        stage.check_conservation("admit", result)
    result.shards(LOG)[0].unlink()
    result.add_shard(LOG, pa.table({"row": [0]}), first=0)
    with pytest.raises(AssertionError, match="rows kept are not those on disk"):
        stage.check_conservation("admit", result)


def test_a_full_disk_while_reading_the_log_is_an_error_that_names_the_stage(tmp_path: Path) -> None:
    pq.write_table(synthetic_log(20_000), tmp_path / "log.parquet")
    workspace = Workspace(tmp_path / "out")
    workspace.commit("admit", StageResult(), digest="before", seconds=0)
    with no_file_larger_than(5_000), pytest.raises(ValueError, match=r"stage admit: cannot write .*run again"):
        admitted(tmp_path / "log.parquet", tmp_path / "out")
    assert workspace.is_complete("admit", "before")


def test_shards_left_by_a_killed_run_are_ignored(shop: SyntheticShop, governed: Path, tmp_path: Path) -> None:
    again = tmp_path / "governed"
    shutil.copytree(governed, again)
    names = [step.name for step in PIPELINE]
    for name in names[names.index("click_rates") :]:
        shutil.rmtree(again / "stages" / name)
    left = again / "stages" / ".click_rates.partial" / LOG_DROPPED
    left.mkdir(parents=True)
    (left / "000000000000.parquet").write_bytes(b"PAR1 cut off")
    assert main(["run", *shop.arguments, "--out", str(again)]) == 0
    assert not list((again / "stages").glob(".*.partial"))
    same_tables(governed, again)


def test_a_log_in_several_files_gives_the_tables_of_a_single_file(
    shop: SyntheticShop, governed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(behaviour_log, "ROWS_PER_BATCH", 17)
    again = tmp_path / "governed"
    shutil.copytree(governed, again)  # its images are not decoded again
    folder = write_files(pq.read_table(shop.folder / "behaviour.parquet"), tmp_path / "log", rows=50)
    words = [str(folder) if word.endswith("behaviour.parquet") else word for word in shop.arguments]
    assert main(["run", *words, "--out", str(again)]) == 0
    assert len(Workspace(again).shards("admit", LOG)) > 10
    same_tables(governed, again)
    assert pq.read_table(again / "dropped" / "behaviour.parquet").equals(
        pq.read_table(governed / "dropped" / "behaviour.parquet")
    )
    ours, theirs = facts(again), facts(governed)
    for found in (ours, theirs):
        found["notes"]["admit"].pop("images_taken_over")
    assert ours == theirs
    row = pq.read_table(shop.folder / "behaviour.parquet").to_pylist()[130]
    name = f"{row['query_id']}>{row['doc_id']}#130"
    assert row_lineage(again, name) == row_lineage(governed, name)


def test_the_report_counts_all_dropped_rows_and_shows_the_first(tmp_path: Path) -> None:
    why = ["a"] * 3 + ["b"] * 30 + ["a"] * 20
    table = pa.table({"reason": why, "row_id": [str(i) for i in range(53)], "text": [""] * 53})
    pq.write_table(table, tmp_path / "dropped.parquet", row_group_size=4)
    found = dropped_rows(tmp_path / "dropped.parquet")
    assert {reason: count for reason, (count, _) in found.items()} == {"a": 23, "b": 30}
    numbers = [i for i, reason in enumerate(why) if reason == "a"][:DROPPED_SHOWN]
    assert found["a"][1] == [(i, {"reason": "a", "row_id": str(i)}) for i in numbers]


def test_rows_are_gathered_and_matched_with_their_shards() -> None:
    parts = [pa.table({"row": np.arange(a, b)}) for a, b in ((0, 3), (3, 3), (3, 10), (10, 11))]
    assert [t.column("row").to_pylist() for t in shards.gathered(parts, rows=4)] == [
        [0, 1, 2, 3],
        [4, 5, 6, 7],
        [8, 9, 10],
    ]
    paths = [Path(f"{first:012d}.parquet") for first in (0, 4, 8)]
    found = [pa.table({"row": rows}) for rows in ([1, 2], pa.array([], pa.int64()), [3, 9], [10])]
    met = [(path.stem[-1], rows.column("row").to_pylist()) for path, rows in shards.by_shard(found, paths)]
    assert met == [("0", [1, 2, 3]), ("8", [9, 10])]
    assert shards.picked(parts[2], pa.table({"row": [4, 9]})).tolist() == [False, True] + [False] * 4 + [True]


def test_the_log_is_checked_by_all_behaviour_rules() -> None:
    named = [name for name in vars(rules) if name.startswith("behaviour_")]
    assert [rule.__name__ for rule in admit_log.BEHAVIOUR_RULES] == named
