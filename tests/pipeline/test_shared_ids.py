"""Queries and documents that share their ids, through the commands from the tables to the metrics."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_governance.__main__ import main as governance
from tests.support.commands import TRAIN, python_output
from tests.support.synthetic_shop import write_shop
from tests.support.tiny_retrieval import call
from train.recipes.registry import recipe_by_name

CATEGORIES, QUERIES = 8, 3


@pytest.fixture
def tables(tmp_path: Path) -> Path:
    """Tables of a shop whose queries are 0 to 23 and whose documents are 0 to 15, and its judgements."""
    shop = write_shop(tmp_path, categories=CATEGORIES, queries=QUERIES, noise=0.0)
    names: dict[str, dict[str, str]] = {}
    for name, key in (("queries", "query_id"), ("catalogue", "doc_id")):
        table = pq.read_table(tmp_path / f"{name}.parquet")
        names[key] = {row_id: str(number) for number, row_id in enumerate(table.column(key).to_pylist())}
        pq.write_table(table.set_column(0, key, pa.array(names[key].values())), tmp_path / f"{name}.parquet")
    log = [
        row | {key: names[key][row[key]] for key in names}
        for row in pq.read_table(tmp_path / "behaviour.parquet").to_pylist()
    ]
    pq.write_table(pa.Table.from_pylist(log), tmp_path / "behaviour.parquet")
    right = [
        {"query_id": names["query_id"][query], "doc_id": names["doc_id"][document], "relevance": 1}
        for query, category in shop.query_truth.items()
        for document, other in shop.document_truth.items()
        if category == other
    ]
    pq.write_table(pa.Table.from_pylist(right), tmp_path / "qrels.parquet")
    return tmp_path


def test_ids_that_both_tables_use_go_through_every_command(tables: Path) -> None:
    words = [f"--{name}={tables / name}.parquet" for name in ("behaviour", "queries", "catalogue")]
    governed, run, index = tables / "governed", tables / "run", tables / "index"
    assert governance(["check", *words]) == 0
    assert governance(["run", *words, "--out", str(governed)]) == 0
    samples = pq.read_table(governed / "samples").to_pylist()
    ids = {
        side: sorted(int(row["sample_id"]) for row in samples if row["side"] == side) for side in ("query", "document")
    }
    assert ids == {"query": [*range(CATEGORIES * QUERIES)], "document": [*range(2 * CATEGORIES)]}
    recipe = recipe_by_name("tiny").with_changes(
        {"image.steps": 4, "image.warmup_steps": 1, "image.checkpoint_every": 4}
    )
    (tables / "few.json").write_text(json.dumps(recipe.to_json()))
    python_output(TRAIN, "--data", governed, "--out", run, "--recipe", tables / "few.json")
    model = ["--model", run / "hub", "--catalogue", tables / "catalogue.parquet"]
    assert call("index", *model, "--out", index) == 0
    judged = [*model, "--queries", tables / "queries.parquet", "--qrels", tables / "qrels.parquet"]
    assert call("evaluate", *judged, "--index", index, "--out", tables / "metrics.json") == 0
    metrics = json.loads((tables / "metrics.json").read_text())
    assert (metrics["queries"], metrics["documents"]) == (CATEGORIES * QUERIES, 2 * CATEGORIES)
    assert metrics["unreadable_queries"] == metrics["skipped_documents"] == []
    assert metrics["qrels"] == {"unknown_queries": 0, "unknown_documents": 0, "outside_gallery": 0}
