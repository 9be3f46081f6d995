"""`explain` shows every stage of a query, a document, a click and a dropped row."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from data_governance.__main__ import main
from data_governance.pipeline import PIPELINE
from data_governance.reports.lineage import row_lineage
from data_governance.stage import Workspace
from tests.support.synthetic_shop import SyntheticShop


def samples(governed: Path, side: str) -> list[str]:
    rows = pq.read_table(governed / "samples", columns=["sample_id", "side"], filters=[("side", "=", side)])
    return sorted(rows.column("sample_id").to_pylist())


@pytest.mark.parametrize("side", ["query", "document"])
def test_explain_names_every_stage_that_a_row_passed(
    governed: Path, side: str, capsys: pytest.CaptureFixture[str]
) -> None:
    row_id = samples(governed, side)[0]
    assert main(["explain", "--governed", str(governed), row_id]) == 0
    lines = capsys.readouterr().out.splitlines()
    stages = list(dict.fromkeys(line.split(":")[0] for line in lines))
    assert stages == [*(step.name for step in PIPELINE), "now"]
    assert any(line.startswith(f"now: {side} of category") for line in lines)


def test_explain_shows_the_values_of_the_stage_tables(governed: Path) -> None:
    row_id = samples(governed, "query")[3]
    text = "\n".join(row_lineage(governed, row_id))
    workspace = Workspace(governed)
    entity = next(r["entity"] for r in workspace.table("dedupe", "queries").to_pylist() if r["query_id"] == row_id)
    for stage, columns in (("organise", ("share", "lead")), ("clean", ("margin",))):
        row = next(r for r in workspace.table(stage, "queries").to_pylist() if r["query"] == entity)
        for column in columns:
            assert f"{column} {row[column]:.3g}" in text, (stage, column)
        mates = [d["doc"] for d in workspace.table(stage, "documents").to_pylist() if d["category"] == row["category"]]
        assert f"category {row['category']} ({', '.join(sorted(mates))})" in text
    edges = [e for e in workspace.table("click_rates", "edges").to_pylist() if e["query"] == entity]
    assert all(f"{e['doc']} ({e['clicks']} clicks, rate {e['rate']:.3g})" in text for e in edges)
    assert "clean: over all rows: " in text


def test_a_click_has_a_lineage_too(governed: Path, shop: SyntheticShop) -> None:
    row = pq.read_table(shop.folder / "behaviour.parquet").to_pylist()[5]
    text = row_lineage(governed, f"{row['query_id']}>{row['doc_id']}#5")
    assert text[0].startswith("admit: behaviour ")
    assert f"query_id {row['query_id']}" in text[0]


def test_explain_rejects_an_unknown_id_and_a_folder_without_ledger(
    governed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["explain", "--governed", str(governed), "nobody"]) == 2
    assert "error: nobody" in capsys.readouterr().err
    assert main(["explain", "--governed", str(tmp_path), "nobody"]) == 2
    assert "no ledger.json there" in capsys.readouterr().err
