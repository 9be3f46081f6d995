"""Overrides are applied and in the ledger with their reason, or rejected."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from data_governance.__main__ import main
from data_governance.inputs.tables import Source
from data_governance.reports import lineage
from data_governance.stage import DECISIONS, StageResult, Workspace, check_conservation
from data_governance.stages import overrides
from tests.support.synthetic_shop import SyntheticShop


def samples(governed: Path) -> dict[tuple[str, str], str]:
    """(side, id) -> category_key."""
    categories = pq.read_table(governed / "categories.parquet")
    key = dict(
        zip(categories.column("category_id").to_pylist(), categories.column("category_key").to_pylist(), strict=True)
    )
    rows = pq.read_table(governed / "samples", columns=["side", "sample_id", "category_id"]).to_pylist()
    return {(row["side"], row["sample_id"]): key[row["category_id"]] for row in rows}


def write(path: Path, rows: Sequence[tuple[str, str, str, str | None, str]]) -> Path:
    names = ("side", "id", "action", "category_key", "why")
    pq.write_table(pa.table({n: pa.array([r[i] for r in rows], pa.string()) for i, n in enumerate(names)}), path)
    return path


@pytest.fixture(scope="module")
def strict(shop: SyntheticShop, governed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose policy drops many queries as ambiguous."""
    out = tmp_path_factory.mktemp("strict") / "governed"
    shutil.copytree(governed, out)
    (out.parent / "policy.toml").write_text("min_query_margin = 0.9\n")
    assert run(shop, out) == 0
    return out


def run(shop: SyntheticShop, out: Path, *words: str) -> int:
    return main(["run", *shop.arguments, "--policy", str(out.parent / "policy.toml"), "--out", str(out), *words])


def again(shop: SyntheticShop, strict: Path, out: Path, *words: str) -> int:
    shutil.copytree(strict, out)
    (out.parent / "policy.toml").write_text((strict.parent / "policy.toml").read_text())
    return run(shop, out, *words)


@pytest.fixture(scope="module")
def decided(shop: SyntheticShop, strict: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A run with one override of every kind."""
    before = samples(strict)
    queries = sorted(row_id for side, row_id in before if side == "query")
    documents = sorted(row_id for side, row_id in before if side == "document")
    gone = sorted(set(shop.query_truth) - set(queries))
    home = before["query", queries[0]]
    other = next(key for key in sorted(set(before.values())) if key != home)
    # The smallest document of a category gave it its key.
    moved = documents[0]
    elsewhere = next(key for key in sorted(set(before.values())) if key != before["document", moved])
    rows: list[tuple[str, str, str, str | None, str]] = [
        ("query", queries[0], "relabel", other, "it shows the other thing"),
        ("query", queries[1], "drop", None, "a finger in front of the camera"),
        ("query", gone[0], "keep", None, "dark but right"),
        ("query", queries[2], "keep", None, ""),
        ("document", moved, "relabel", elsewhere, "same product"),
        ("document", documents[1], "drop", None, "no longer sold"),
        ("query", "nobody", "drop", None, "typing error"),
        ("query", queries[3], "relabel", "000000000000", "no such category"),
        ("query", gone[1], "drop", None, "agreed"),
    ]
    out = tmp_path_factory.mktemp("decided") / "governed"
    assert again(shop, strict, out, "--overrides", str(write(out.parent / "o.parquet", rows))) == 0
    return {"out": out, "before": before, "after": samples(out), "rows": rows, "other": other, "elsewhere": elsewhere}


def test_every_override_is_applied_and_nothing_else_moves(decided: dict[str, Any]) -> None:
    before, after, rows = decided["before"], decided["after"], decided["rows"]
    named = {(row[0], row[1]): row for row in rows}
    relabelled, dropped, kept = (("query", rows[i][1]) for i in range(3))
    assert after[relabelled] == decided["other"]
    assert dropped not in after
    assert kept not in before
    assert kept in after
    assert after["query", rows[3][1]] == before["query", rows[3][1]]
    assert after["document", rows[4][1]] == decided["elsewhere"]
    assert ("document", rows[5][1]) not in after
    assert after["query", rows[7][1]] == before["query", rows[7][1]]
    untouched = {row: key for row, key in before.items() if row not in named}
    lost = {row for row in untouched if after.get(row) != untouched[row]}
    # A category that lost its last document loses its queries with it.
    alone = {key for (side, _), key in before.items() if side == "document"} - {
        key for (side, _), key in after.items() if side == "document"
    }
    assert all(untouched[row] in alone for row in lost)


def test_the_ledger_has_each_override_with_its_reason(decided: dict[str, Any]) -> None:
    rows = pq.read_table(decided["out"] / "ledger.parquet").to_pylist()
    by_row = {(row["table"], row["row_id"]): row for row in rows if row["stage"] == "overrides"}
    kinds = {i: by_row["queries" if r[0] == "query" else "catalogue", r[1]] for i, r in enumerate(decided["rows"][:6])}
    assert [kinds[i]["decision"] for i in range(6)] == [
        "relabelled",
        "dropped",
        "restored",
        "kept",
        "relabelled",
        "dropped",
    ]
    assert [kinds[i]["reason"] for i in (0, 1, 2, 3)] == [
        "it shows the other thing",
        "a finger in front of the camera",
        "dark but right",
        "no reason given",
    ]
    assert json.loads(kinds[2]["figures"])["was"].startswith("dropped by organise")
    assert by_row["overrides", "nobody"]["reason"] == "unknown_id"
    assert by_row["overrides", decided["rows"][7][1]]["reason"] == "unknown_category_key"
    assert by_row["overrides", decided["rows"][8][1]]["reason"] == "already_dropped"
    lineage_text = "\n".join(lineage.row_lineage(decided["out"], decided["rows"][2][1]))
    assert "dark but right" in lineage_text
    assert "now: query of category" in lineage_text


def test_rows_are_conserved_and_rejected_overrides_are_exported(decided: dict[str, Any]) -> None:
    facts = json.loads((decided["out"] / "ledger.json").read_text())
    assert facts["overrides"] == {"given": 9, "set_aside": {"unknown_category_key": 1, "unknown_id": 1}}
    for entry in facts["stages"]:
        assert entry["rows_in"] == entry["kept"] + entry["dropped"], entry
    for name, rows in facts["rows"].items():
        assert rows["in"] == rows["kept"] + rows["dropped"]
        assert pq.read_metadata(decided["out"] / "dropped" / f"{name}.parquet").num_rows == rows["dropped"]
    rejected = pq.read_table(decided["out"] / "dropped" / "overrides.parquet").to_pylist()
    assert {(row["id"], row["reason"], row["why"]) for row in rejected} == {
        ("nobody", "unknown_id", "typing error"),
        (decided["rows"][7][1], "unknown_category_key", "no such category"),
    }


def test_keys_are_kept_and_the_map_lists_what_overrides_moved(
    decided: dict[str, Any], shop: SyntheticShop, strict: Path, tmp_path: Path
) -> None:
    assert set(decided["after"].values()) <= set(decided["before"].values())
    words = ["--overrides", str(decided["out"].parent / "o.parquet"), "--previous", str(strict)]
    assert again(shop, strict, tmp_path / "linked", *words) == 0
    assert samples(tmp_path / "linked") == decided["after"]
    events = pq.read_table(tmp_path / "linked" / "category_map.parquet").to_pylist()
    moved = decided["rows"][4][1]
    came, went = decided["before"]["document", moved], decided["elsewhere"]
    assert {"old_key": came, "event": "merged", "new_key": went} in events


def test_overrides_rerun_only_later_stages_and_removing_them_restores_the_tables(
    decided: dict[str, Any], shop: SyntheticShop, strict: Path, tmp_path: Path
) -> None:
    out = tmp_path / "governed"
    shutil.copytree(decided["out"], out)
    (tmp_path / "policy.toml").write_text((strict.parent / "policy.toml").read_text())
    first = (strict / "stages" / "merge_split" / "stage.json").stat().st_mtime_ns
    assert (out / "stages" / "merge_split" / "stage.json").stat().st_mtime_ns == first
    assert run(shop, out) == 0
    assert samples(out) == decided["before"]
    assert not (out / "dropped" / "overrides.parquet").exists()


class Tables(Workspace):
    """Stage tables in memory."""

    def __init__(self, **tables: pa.Table) -> None:
        super().__init__(Path("none"), ("admit", "clean", "overrides"))
        object.__setattr__(self, "tables", tables)

    def table(self, name: str, table: str) -> pa.Table:
        found = vars(self)["tables"]
        return found.get(f"{name}_{table}", DECISIONS.empty_table())


def test_keep_undoes_what_cleaning_did_and_changes_nothing_else() -> None:
    """Two categories; q1 was dropped by clean, q2 relabelled from 0 to 1, q3 stands for q4 too and was left alone."""
    ids = ["q1", "q2", "q3", "q4"]
    docs = pa.table({"doc": ["a", "b"], "category": [0, 1]})
    gone = StageResult()
    gone.decide("queries", ["q1"], "dropped", "unsupported_by_category")
    gone.decide("queries", ["q2"], "relabelled", "prototype_and_neighbours_agree")
    workspace = Tables(
        dedupe_queries=pa.table({"query_id": ids, "entity": ["q1", "q2", "q3", "q3"]}),
        dedupe_documents=pa.table({"doc_id": ["a", "b"], "entity": ["a", "b"]}),
        organise_queries=pa.table({"query": ["q1", "q2", "q3"], "category": [1, 0, 1]}),
        organise_documents=docs,
        clean_decisions=pa.Table.from_pylist([{**d, "stage": "clean"} for d in gone.decisions], schema=DECISIONS),
        merge_split_queries=pa.table({"query": ["q2", "q3"], "category": [1, 1], "lead": [0.5, 0.5]}),
        merge_split_documents=docs,
    )
    rows = [{"side": "query", "id": i, "action": "keep", "category_key": None, "why": "seen"} for i in ids[:3]]
    given = Source("overrides", pa.Table.from_pylist(rows), None)
    result = overrides.overrides(workspace, given, previous={})
    check_conservation("overrides", result)
    queries = result.tables["queries"].to_pylist()
    assert [(q["id"], q["category"]) for q in queries] == [("q1", 1), ("q2", 0), ("q3", 1), ("q4", 1)]
    assert [d["decision"] for d in result.decisions] == ["restored", "relabelled", "kept"]
    assert result.counts["queries"] == (4, 4)


WRONG: list[tuple[str, dict[str, str | None], str]] = [
    ("side", {"side": "picture"}, "row 1: side 'picture' is not one of query, document"),
    ("action", {"action": "burn"}, "row 1: action 'burn' is not one of keep, drop, relabel"),
    ("id", {"id": ""}, "row 1: the id is missing"),
    ("no key", {"action": "relabel"}, "row 1: relabel needs a category_key"),
    ("key", {"category_key": "0123"}, "row 1: only relabel takes a category_key"),
]


@pytest.mark.parametrize(("change", "message"), [w[1:] for w in WRONG], ids=[w[0] for w in WRONG])
def test_an_invalid_override_is_an_error_that_names_row_and_value(
    tmp_path: Path, change: dict[str, str | None], message: str
) -> None:
    row = {"side": "query", "id": "q", "action": "keep", "category_key": None, "why": None} | change
    schema = pa.schema([(name, pa.string()) for name in row])
    pq.write_table(pa.Table.from_pylist([row], schema=schema), tmp_path / "o.parquet")
    with pytest.raises(ValueError, match=message):
        overrides.open_overrides(tmp_path / "o.parquet")


def test_two_overrides_of_one_row_and_a_missing_column_are_errors(tmp_path: Path) -> None:
    twice = [("query", "q", "drop", None, ""), ("query", "q", "keep", None, "")]
    with pytest.raises(ValueError, match="row 2: query q is listed in row 1 too"):
        overrides.open_overrides(write(tmp_path / "o.parquet", twice))
    (tmp_path / "o.csv").write_text("side,id\nquery,q\n")
    with pytest.raises(ValueError, match="overrides: column 'action' is missing"):
        overrides.open_overrides(tmp_path / "o.csv")


def test_ids_and_keys_of_a_csv_stay_text(tmp_path: Path) -> None:
    (tmp_path / "o.csv").write_text("side,id,action,category_key,why\nquery,007,relabel,001234567890,\n")
    source = overrides.open_overrides(tmp_path / "o.csv")
    assert source is not None
    row = source.table.to_pylist()[0]
    assert (row["id"], row["category_key"]) == ("007", "001234567890")


def test_check_names_unknown_ids_of_the_overrides_and_a_broken_file(
    shop: SyntheticShop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "o.parquet", [("query", "nobody", "drop", None, "")])
    assert main(["check", *shop.arguments, "--overrides", str(path)]) == 0
    assert "warning: overrides: unknown_id in 1 of 1 rows (nobody)" in capsys.readouterr().out
    path = write(tmp_path / "o.parquet", [("query", "nobody", "burn", None, "")])
    assert main(["check", *shop.arguments, "--overrides", str(path)]) == 1
    assert "error: overrides: row 1: action 'burn'" in capsys.readouterr().out
