"""Compare governance's joins in ibis with plain DuckDB SQL.

On a synthetic click log, both do the same four steps, each in its own process: reject ids that queries or catalogue
lack, count clicks per pair of entities with a position correction, total them, compute rates with rank and cap. Ours
runs on governance's engine, which writes a Parquet folder after every step. The SQL is one script that keeps its tables
in memory, with the same settings. The benchmark stops when the check sums of the two differ.
"""

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import duckdb
from tqdm import tqdm

from benchmarks import processes, result_file
from data_governance.inputs.engine import Engine
from data_governance.inputs.relations import aggregated, known_ids, ranked
from data_governance.policy import Policy

POWER = 0.5
LEAST = {"rows": 100, "rounds": 1}
CHECKS = "count(*), sum(clicks)::BIGINT, sum(rate)"
# Integer arithmetic in place of a random function: every engine and version writes the same log. A tenth of the
# queries has most of the events, as in real logs; one id in a hundred is unknown.
SYNTHETIC_LOG = """
COPY (
  SELECT 'q' || (q % {queries}) AS query_id, 'd' || d AS doc_id, i AS row,
         CAST(1 + (i * 7919) % 3 AS BIGINT) AS clicks, CAST(3 + (i * 104729) % 20 AS DOUBLE) AS impressions,
         CASE WHEN i % 11 = 0 THEN NULL ELSE CAST(1 + (i * 611953) % 10 AS DOUBLE) END AS position
  FROM (
    SELECT i, CASE WHEN i % 3 = 0 THEN (i * 48271) % {queries} ELSE (i * 69621) % ({queries} // 10 + 1) END AS q,
           CASE WHEN i % 100 = 7 THEN {documents} + i % 50
                ELSE ((i * 48271) % {queries} * 31 + (i * 40692) % 8) % {documents} END AS d
    FROM range({rows}) t(i)
  )
) TO '{path}' (FORMAT parquet)
"""
ENTITIES = """
COPY (SELECT '{letter}' || i AS {key}, '{letter}' || (i - CASE WHEN i % 40 = 0 AND i > 0 THEN 1 ELSE 0 END) AS entity
      FROM range({count}) t(i)) TO '{path}' (FORMAT parquet)
"""
SQL = """
CREATE TABLE known AS
  SELECT b.* FROM read_parquet('{data}/behaviour/*.parquet') b
  WHERE query_id IN (SELECT query_id FROM read_parquet('{data}/query_id/*.parquet'))
    AND doc_id IN (SELECT doc_id FROM read_parquet('{data}/doc_id/*.parquet'));
CREATE TABLE edges AS
  SELECT q.entity AS query, d.entity AS doc, sum(clicks)::BIGINT AS clicks,
         sum(floor(impressions * coalesce(position, 1.0) ** -{power} * 1e6 + 0.5)::BIGINT)::BIGINT / 1e6 AS shown
  FROM known JOIN read_parquet('{data}/query_id/*.parquet') q USING (query_id)
             JOIN read_parquet('{data}/doc_id/*.parquet') d USING (doc_id) GROUP BY ALL;
CREATE TABLE base AS SELECT round(sum(clicks) / sum(shown), 6) AS base FROM edges;
CREATE TABLE strong AS
  WITH rated AS (SELECT *, floor((clicks + {prior} * base) / (shown + {prior}) * 1e6 + 0.5) / 1e6 AS rate
                 FROM edges, base),
  placed AS (SELECT *, max(rate) OVER (PARTITION BY query) AS best,
                    row_number() OVER (PARTITION BY query ORDER BY rate DESC, doc) AS place FROM rated)
  SELECT query, doc, clicks, shown, rate FROM placed
  WHERE clicks > 0 AND rate >= {share} * best AND place <= {cap};
"""


def write_tables(folder: Path, *, rows: int, queries: int, documents: int) -> None:
    """Write behaviour, query_id and doc_id; one query or document in forty is a copy of the one before it."""
    with duckdb.connect() as engine:
        engine.execute("SET threads = 1")
        (folder / "behaviour").mkdir()
        path = folder / "behaviour" / "0.parquet"
        engine.execute(SYNTHETIC_LOG.format(rows=rows, queries=queries, documents=documents, path=path))
        for letter, key, count in (("q", "query_id", queries), ("d", "doc_id", documents)):
            (folder / key).mkdir()
            path = folder / key / "0.parquet"
            engine.execute(ENTITIES.format(letter=letter, key=key, count=count, path=path))


def ours(data: Path, out: Path, *, memory: str, threads: int) -> dict[str, Any]:
    """Run the expressions of relations.py on governance's engine."""
    policy = Policy(memory_limit=memory, threads=threads)
    engine = Engine(policy)
    entities = {key: engine.read(data / key) for key in ("query_id", "doc_id")}
    flags = known_ids(engine.read(data / "behaviour"), {key: table.select(key) for key, table in entities.items()})
    both = flags.query_id_known.notnull() & flags.doc_id_known.notnull()
    known = engine.keep(flags.filter(both).drop("query_id_known", "doc_id_known"))
    edges = engine.keep(aggregated(known, entities, power=POWER))
    totals = engine.fetch(edges.aggregate(clicks=edges.clicks.sum().cast("float64"), shown=edges.shown.sum()))
    base = round(totals.column("clicks")[0].as_py() / totals.column("shown")[0].as_py(), 6)
    found = ranked(edges, base=base, policy=policy)
    strong = engine.keep(found.filter(found.strong).select("query", "doc", "clicks", "shown", "rate"))
    sums = engine.fetch(strong.aggregate(edges=strong.count(), clicks=strong.clicks.sum(), rates=strong.rate.sum()))
    return check_sums(*sums.to_pylist()[0].values())


def plain(data: Path, out: Path, *, memory: str, threads: int) -> dict[str, Any]:
    """Run the SQL script."""
    policy = Policy()
    with duckdb.connect() as engine:
        engine.execute(f"SET memory_limit = '{memory}'; SET threads = {threads}; SET temp_directory = '{out}/spill'")
        engine.execute("SET preserve_insertion_order = false")
        filled = {"prior": policy.click_prior, "share": policy.min_edge_share, "cap": policy.max_documents_per_query}
        engine.execute(SQL.format(data=data, power=POWER, **filled))
        return check_sums(*engine.execute(f"SELECT {CHECKS} FROM strong").fetchall()[0])


def check_sums(edges: int, clicks: int, rates: float) -> dict[str, Any]:
    """Sums over all rows, which need no hash function of an engine."""
    return {"edges": int(edges), "clicks": int(clicks), "rates": round(float(rates), 2)}


METHODS = {"ours": ours, "plain": plain}


def measure_method(name: str, data: Path, *, memory: str, threads: int) -> dict[str, Any]:
    """Seconds after a warm-up on a few rows, peak memory and check sums of one method, in this process."""
    with tempfile.TemporaryDirectory() as folder:
        few, first, out = (Path(folder) / part for part in ("few", "first", "out"))
        for path in (few, first, out):
            path.mkdir()
        write_tables(few, rows=1_000, queries=100, documents=30)
        METHODS[name](few, first, memory=memory, threads=threads)
        start = time.perf_counter()
        sums = METHODS[name](data, out, memory=memory, threads=threads)
        seconds = round(time.perf_counter() - start, 2)
    return {"seconds": seconds, "peak_gib": processes.peak_gib(), "checks": sums}


def compare(*, rows: int, queries: int, documents: int, memory: str, threads: int, rounds: int) -> dict[str, Any]:
    """Run both methods on one synthetic log, alternating for some rounds.

    Returns:
        Sizes; of each method the median `seconds`, those of every round and the highest peak; the ratio of the medians.

    Raises:
        ValueError: when their check sums differ.
    """
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in METHODS}
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder)
        write_tables(data, rows=rows, queries=queries, documents=documents)
        for name in tqdm([*METHODS] * rounds, desc="relational", unit="run"):
            words = ["--contestant", name, "--data", str(data), "--memory", memory, "--threads", str(threads)]
            runs[name].append(processes.run_module("governance.relational", words))
    sums = [run["checks"] for results in runs.values() for run in results]
    if any(one != sums[0] for one in sums):
        raise ValueError(f"check sums differ: {sums}. The two methods do not compute the same.")
    size = {"rows": rows, "queries": queries, "documents": documents, "memory_limit": memory, "engine_threads": threads}
    found = {name: _of_rounds(results) for name, results in runs.items()}
    ratio = round(found["ours"]["seconds"] / found["plain"]["seconds"], 3)
    return {"simulated": True, **size, **found, "seconds_ours_over_plain": ratio, "checks": sums[0]}


def _of_rounds(runs: list[dict[str, Any]]) -> dict[str, Any]:
    seconds = [run["seconds"] for run in runs]
    peak = max(run["peak_gib"] for run in runs)
    return {"seconds": round(statistics.median(seconds), 2), "peak_gib": peak, "seconds_of_rounds": seconds}


def main(words: list[str] | None = None) -> int:
    parser = result_file.command_parser(
        "governance.relational", str(__doc__), example="python -m benchmarks.governance.relational --rows 10000000"
    )
    parser.add_argument("--rows", type=int, default=100_000, help="rows of the synthetic click log")
    parser.add_argument("--queries", type=int, help="default: a tenth of the rows")
    parser.add_argument("--documents", type=int, help="default: three hundredths of the rows")
    parser.add_argument("--memory", default="2GB", help="memory limit of the engine")
    parser.add_argument("--threads", type=int, default=1, help="threads of the engine")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each method, alternating; medians are compared")
    parser.add_argument("--contestant", choices=tuple(METHODS), help="run this method only (needs --data)")
    parser.add_argument("--data", type=Path, help="folder of the synthetic tables, with --contestant")
    options = parser.parse_args(words)
    if options.contestant:
        print(
            json.dumps(measure_method(options.contestant, options.data, memory=options.memory, threads=options.threads))
        )
        return 0
    for flag in ("rows", "rounds"):
        if (value := getattr(options, flag)) < (least := LEAST[flag]):
            parser.error(f"--{flag} {value}: at least {least}")
    try:
        metrics = compare(
            rows=options.rows,
            queries=options.queries or max(options.rows // 10, 1),
            documents=options.documents or max(3 * options.rows // 100, 1),
            memory=options.memory,
            threads=options.threads,
            rounds=options.rounds,
        )
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    result_file.write_result("governance.relational", metrics, options.json, words)
    return 0


if __name__ == "__main__":
    sys.exit(main())
