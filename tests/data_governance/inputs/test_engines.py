"""DuckDB and Spark give equal rows, and invalid settings are errors."""

import gc
import importlib.util
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from benchmarks.governance import relational
from data_governance.inputs import relations
from data_governance.inputs.behaviour_log import log_of
from data_governance.inputs.engine import Engine, jvm_memory
from data_governance.policy import Policy
from data_governance.stage import StageResult, Workspace
from data_governance.stages import click_rates
from data_governance.stages.admit_log import admit_log, reasons_of

POLICY = Policy(threads=1, memory_limit="1GB", max_documents_per_query=3)
NAN = float("nan")


def behaviour(rows: int) -> pa.Table:
    """Ids of which some are unknown or missing; impressions and positions of which some are missing or not a number."""
    rng = np.random.default_rng(5)
    impressions = [None if r < 0.2 else NAN if r < 0.3 else float(rng.integers(1, 9)) for r in rng.random(rows)]
    position = [None if r < 0.2 else NAN if r < 0.3 else float(rng.integers(1, 6)) for r in rng.random(rows)]
    return pa.table(
        {
            "query_id": [None if i == 3 else f"q{rng.integers(14)}" for i in range(rows)],
            "doc_id": [f"d{rng.integers(9)}" for _ in range(rows)],
            "clicks": pa.array(rng.integers(0, 3, rows).astype(float)),
            "impressions": pa.array(impressions, pa.float64()),
            "position": pa.array(position, pa.float64()),
        }
    )


def relational_part(engine: Engine, folder: Path) -> list[Any]:
    """What admit and click_rates make of a small log in several shards: rows kept, rows dropped, counts, notes."""
    queries, documents = [f"q{i}" for i in range(12)], [f"d{i}" for i in range(8)]
    known_ids = {"query_id": pa.table({"query_id": queries}), "doc_id": pa.table({"doc_id": documents})}
    workspace = Workspace(folder)
    admitted = StageResult(folder=workspace.begin("admit"))
    admit_log(admitted, log_of(behaviour(400)), known_ids, policy=POLICY, engine=engine)
    workspace.commit("admit", admitted, digest="d", seconds=0)
    entities = {
        "queries": pa.table({"query_id": queries, "entity": [f"q{i // 2 * 2}" for i in range(12)]}),
        "documents": pa.table({"doc_id": documents, "entity": ["d0", "d0", *documents[2:]]}),
    }
    workspace.commit("dedupe", StageResult(tables=entities), digest="d", seconds=0)
    rates = click_rates.click_rates(workspace, policy=POLICY, engine=engine)
    workspace.commit("click_rates", rates, digest="d", seconds=0)
    found: list[Any] = [admitted.counts, rates.counts, rates.notes]
    for stage, name in (("admit", "behaviour"), ("admit", "behaviour_dropped"), ("click_rates", "behaviour_dropped")):
        for path in workspace.shards(stage, name):
            table = pq.read_table(path)
            found.append((stage, name, path.name, str(table.schema), repr(table.to_pylist())))
    edges = workspace.table("click_rates", "edges")
    return [*found, str(edges.schema), edges.to_pylist()]


HAS_SPARK = importlib.util.find_spec("pyspark") is not None and shutil.which("java") is not None


@pytest.mark.slow
@pytest.mark.skipif(not HAS_SPARK, reason="pyspark or Java is not installed")
# py4j leaves its sockets to the collector; pandas and pyspark 4.0 warn about each other.
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning")
def test_duckdb_and_spark_give_the_same_rows_decisions_and_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data_governance.inputs.behaviour_log.ROWS_PER_BATCH", 77)
    duckdb, spark = (relational_part(Engine(POLICY, engine=name), tmp_path / name) for name in ("duckdb", "spark"))
    assert duckdb == spark
    reasons = set[str]()
    for stage in ("admit", "click_rates"):
        reasons |= reasons_of(Workspace(tmp_path / "spark").shards(stage, "behaviour_dropped"))
    assert reasons >= {"missing_id", "unknown_query", "unknown_document", "fewer_impressions_than_clicks", "weak_edge"}


def test_clicks_and_rates_are_bit_equal_in_any_order_of_rows() -> None:
    """Sums of fractions would differ in their last bits: engines add in orders of their own."""
    rows = behaviour(4_000).append_column("row", pa.array(range(4_000), pa.int64()))
    rows = rows.filter(pc.is_valid(rows.column("query_id")))
    engine, found = Engine(POLICY), []
    ids = {"query_id": [f"q{i}" for i in range(14)], "doc_id": [f"d{i}" for i in range(9)]}
    for order in (np.arange(rows.num_rows), np.random.default_rng(1).permutation(rows.num_rows)):
        entities = {key: engine.load(pa.table({key: own, "entity": own})) for key, own in ids.items()}
        edges = relations.aggregated(engine.load(rows.take(pa.array(order))), entities, power=0.37)
        ranked = relations.ranked(edges, base=0.123457, policy=POLICY)
        found.append(engine.fetch(ranked.order_by(["query", "doc"])))
    assert found[0].equals(found[1])
    shown = found[0].column("shown").to_numpy()
    assert len(set(shown.tolist())) > 50
    np.testing.assert_array_equal(shown, np.round(shown, 6))


def test_a_missing_engine_is_an_error_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="--engine sparc is not one of duckdb, spark"):
        Engine(POLICY, engine="sparc")
    monkeypatch.setitem(sys.modules, "pyspark.errors", None)
    with pytest.raises(ValueError, match=r"--engine spark needs pyspark 4\.0 \(pip install"):
        Engine(POLICY, engine="spark")


@pytest.mark.parametrize(("limit", "jvm"), [("2GB", "2048m"), ("1.5 GiB", "1536m"), ("300MB", "300m")])
def test_a_memory_limit_is_converted_to_the_format_of_the_jvm(limit: str, jvm: str) -> None:
    assert jvm_memory(limit) == jvm


def test_the_engine_spills_to_the_temporary_folder_and_removes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    for name in ("temporary", "called_from"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "called_from")
    engine = Engine(Policy(memory_limit="40MB", threads=1))
    numbers = pa.table({"number": np.random.default_rng(0).permutation(10_000_000)})
    first = next(engine.stream(engine.load(numbers).order_by("number")))
    assert first.column("number")[0].as_py() == 0
    assert not list((tmp_path / "called_from").iterdir())
    assert list((tmp_path / "temporary").glob("governance-*/spill"))
    del engine
    gc.collect()
    assert not list((tmp_path / "temporary").iterdir())


def test_an_invalid_memory_limit_is_rejected() -> None:
    with pytest.raises(ValueError, match="memory_limit = 'much': not understood"):
        jvm_memory("much")


def test_the_ibis_benchmark_and_plain_sql_give_equal_sums(tmp_path: Path) -> None:
    relational.write_tables(tmp_path, rows=3_000, queries=300, documents=90)
    sums = []
    for name, method in relational.METHODS.items():
        (tmp_path / name).mkdir()
        sums.append(method(tmp_path, tmp_path / name, memory="500MB", threads=1))
    assert sums[0] == sums[1]
    assert sums[0]["edges"] > 300
