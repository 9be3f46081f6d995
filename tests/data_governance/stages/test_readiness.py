"""What `check` says about a log that a run can use but no training can be judged by."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_governance.__main__ import main
from data_governance.stages.readiness import ENOUGH, doubts
from tests.support.synthetic_shop import write_shop


def shard(folder: Path, *, queries: int, documents: int, clicks: int = 1) -> Path:
    path = folder / "part.parquet"
    rows = max(queries, documents)
    names = {
        "query_id": [f"q{row % queries}" for row in range(rows)],
        "doc_id": [f"d{row % documents}" for row in range(rows)],
    }
    pq.write_table(pa.table({**names, "clicks": [clicks] * rows}), path)
    return path


def test_enough_queries_and_documents_leave_no_doubt(tmp_path: Path) -> None:
    assert doubts([shard(tmp_path, queries=ENOUGH, documents=ENOUGH)]) == []


@pytest.mark.parametrize(("queries", "documents"), [(1, 80), (80, 1), (ENOUGH - 1, ENOUGH)])
def test_few_of_either_are_named_with_the_consequence_and_the_remedy(
    tmp_path: Path, queries: int, documents: int
) -> None:
    [line] = doubts([shard(tmp_path, queries=queries, documents=documents)])
    assert line.startswith(f"behaviour: {queries} queries click on {documents} documents.")
    assert "the frozen encoder would be published. Bring a longer log." in line


def test_rows_without_clicks_do_not_count(tmp_path: Path) -> None:
    [line] = doubts([shard(tmp_path, queries=80, documents=80, clicks=0)])
    assert line.startswith("behaviour: 0 queries click on 0 documents.")


def test_check_says_it_and_a_run_still_goes_through(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shop = write_shop(tmp_path, categories=5, queries=3, noise=0.0)
    assert main(["check", *shop.arguments]) == 0
    said = capsys.readouterr().out
    assert "warning: behaviour: 15 queries click on 10 documents." in said
    assert said.rstrip().endswith("a run would go through")
