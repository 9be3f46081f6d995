"""A query that clicks every document is rejected with its reason instead of joining all categories."""

import json
import logging
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_governance.__main__ import main
from tests.support.synthetic_shop import IMAGE, SyntheticShop, png, write_shop

CATEGORIES = 15


def shop_with_a_query_that_clicks_everything(folder: Path, *, popular: bool = False) -> SyntheticShop:
    """A small shop with one more query; a popular one comes back to one of its documents."""
    folder.mkdir()
    shop = write_shop(folder, categories=CATEGORIES, queries=3, noise=0.0)
    documents = list(shop.document_truth)
    queries, rows = (pq.read_table(folder / f"{name}.parquet") for name in ("queries", "behaviour"))
    picture = pa.array([{"bytes": png(2, style="filled", seed=99)}], IMAGE)
    more_queries = pa.table({"query_id": ["robot"], "image": picture})
    pq.write_table(pa.concat_tables([queries, more_queries]), folder / "queries.parquet")
    clicks = [40 if popular and place == 0 else 1 for place in range(len(documents))]
    more = pa.table({"query_id": ["robot"] * len(documents), "doc_id": documents, "clicks": clicks})
    pq.write_table(pa.concat_tables([rows, more]), folder / "behaviour.parquet")
    return shop


def governed(shop: SyntheticShop) -> Path:
    out = shop.folder / "out"
    assert main(["run", *shop.arguments, "--out", str(out)]) == 0
    return out


def categories(out: Path) -> int:
    return int(pq.read_metadata(out / "categories.parquet").num_rows)


def test_a_query_that_clicks_everything_is_rejected_and_changes_no_category(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "plain").mkdir()
    plain = governed(write_shop(tmp_path / "plain", categories=CATEGORIES, queries=3, noise=0.0))
    shop = shop_with_a_query_that_clicks_everything(tmp_path / "bot")
    with caplog.at_level(logging.WARNING, logger="data_governance"):
        out = governed(shop)
    assert "1 of 46 queries click like a robot and are rejected (bot_query), such as robot" in caplog.text
    assert categories(out) == categories(plain)
    dropped = pq.read_table(out / "dropped" / "queries.parquet")
    assert dict(zip(dropped.column("row_id").to_pylist(), dropped.column("reason").to_pylist(), strict=True)) == {
        "robot": "bot_query"
    }
    rows = pq.read_table(out / "dropped" / "behaviour.parquet")
    assert rows.column("reason").to_pylist() == ["bot_query"] * len(shop.document_truth)
    ledger = json.loads((out / "ledger.json").read_text())
    assert "bot_query" in json.dumps(ledger)


def test_a_popular_query_that_comes_back_to_its_documents_is_kept(tmp_path: Path) -> None:
    out = governed(shop_with_a_query_that_clicks_everything(tmp_path / "popular", popular=True))
    dropped = pq.read_table(out / "dropped" / "queries.parquet").column("reason").to_pylist()
    assert "bot_query" not in dropped


def test_check_names_a_robot_before_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shop = shop_with_a_query_that_clicks_everything(tmp_path / "bot")
    assert main(["check", *shop.arguments]) == 0
    said = capsys.readouterr().out
    assert "warning: queries: bot_query in 1 of 46 rows (robot)" in said
    assert "warning: behaviour: bot_query in 30 of 75 rows" in said
