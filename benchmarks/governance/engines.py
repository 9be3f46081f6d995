"""Compare all tables of governance on DuckDB and on a Spark cluster.

The data: drawings of coloured fields in two styles, two documents a category. Most clicks go to the query's own
category. The log has every kind of bad row: missing and unknown ids, clicks and impressions that are no counts,
positions below one, fewer impressions than clicks, missing values and NaN. It is governed twice by
`data_governance.pipeline`, each time in a new process. These joins run on the engine: known ids (admit), clicks per
pair of entities, their totals, rates with rank and cap; the other stages are numpy on the driver. All tables of all
stages and of the governed folder are compared, since one different row would change what follows.
"""

import io
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from benchmarks import processes, result_file
from benchmarks.governance import killed
from data_governance.context import Request
from data_governance.pipeline import govern
from data_governance.policy import Policy

ENGINES = ("duckdb", "spark")
MASTER = "local-cluster[2,1,1024]"
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
QUERIES_PER_CATEGORY = 8
SIDE = 48
WRONG = 0.2
# One row in so many is bad, each kind in turn.
BAD_EVERY = 50


def drawing(pattern: np.ndarray, rng: np.random.Generator, *, light: bool) -> dict[str, Any]:
    """PNG of a pattern (6, 6, 3) with a little noise, in its own colours or in light ones."""
    cells = pattern // 2 + 128 if light else pattern
    cells = np.clip(cells + rng.integers(-12, 13, cells.shape), 0, 255).astype(np.uint8)
    out = io.BytesIO()
    Image.fromarray(cells).resize((SIDE, SIDE), Image.Resampling.NEAREST).save(out, "PNG")
    return {"bytes": out.getvalue(), "path": None}


def write_tables(folder: Path, *, rows: int, categories: int, seed: int) -> None:
    """Write behaviour, queries and catalogue; one query is a copy of another, one cannot be decoded."""
    rng = np.random.default_rng(seed)
    patterns = rng.integers(0, 256, (categories, 6, 6, 3))
    documents = [drawing(pattern, rng, light=light) for pattern in patterns for light in (False, True)]
    asked = np.arange(categories * QUERIES_PER_CATEGORY) % categories
    queries = [drawing(patterns[category], rng, light=False) for category in asked]
    queries[1], queries[2] = queries[0], {"bytes": b"no image", "path": None}
    names = [f"d{number:05d}" for number in range(len(documents))]
    catalogue = {"doc_id": names, "image": pa.array(documents, IMAGE), "text": ["" for _ in names]}
    catalogue["leaf"] = [f"leaf{number // 2 % 5}" for number in range(len(names))]
    pq.write_table(pa.table(catalogue), folder / "catalogue.parquet")
    query_ids = [f"q{number:05d}" for number in range(len(queries))]
    pq.write_table(pa.table({"query_id": query_ids, "image": pa.array(queries, IMAGE)}), folder / "queries.parquet")
    pq.write_table(behaviour(rows, asked, len(names), rng), folder / "behaviour.parquet")


def behaviour(rows: int, asked: np.ndarray, documents: int, rng: np.random.Generator) -> pa.Table:
    """Draw the click log with its bad rows."""
    query = rng.integers(0, len(asked), rows)
    clicked = 2 * asked[query] + rng.integers(0, 2, rows)
    wrong = rng.random(rows) < WRONG
    clicked[wrong] = rng.integers(0, documents, int(wrong.sum()))
    columns: dict[str, list[Any]] = {
        "query_id": [f"q{number:05d}" for number in query],
        "doc_id": [f"d{number:05d}" for number in clicked],
        "clicks": rng.integers(0, 3, rows).astype(float).tolist(),
        "impressions": [None if r < 0.2 else float(r * 20 + 3) // 1 for r in rng.random(rows)],
        "position": [
            None if r < 0.2 else float("nan") if r < 0.25 else float(r * 9) // 1 + 1 for r in rng.random(rows)
        ],
    }
    nan = float("nan")
    bad = [("query_id", None), ("query_id", "nobody"), ("doc_id", ""), ("doc_id", "nothing"), ("clicks", nan)]
    bad += [("clicks", -1.0), ("clicks", 0.5), ("impressions", -2.0), ("impressions", 0.0), ("position", 0.0)]
    for place, row in enumerate(range(0, rows, BAD_EVERY)):
        column, value = bad[place % len(bad)]
        columns[column][row] = value
        if (column, value) == ("impressions", 0.0):
            columns["clicks"][row] = 1.0
    return pa.table(columns)


def govern_with(engine: str, data: Path, out: Path) -> dict[str, Any]:
    """Govern in this process; return seconds, and Spark's master and number of workers."""
    behaviour, queries, catalogue = (str(data / f"{name}.parquet") for name in ("behaviour", "queries", "catalogue"))
    facts = govern(Request(behaviour, queries, catalogue, out, engine=engine), Policy(threads=1))
    found: dict[str, Any] = {
        "stage_seconds": {name: facts["notes"][name]["seconds"] for name in ("admit", "click_rates")}
    }
    if engine == "spark":
        from pyspark.sql import SparkSession

        session = SparkSession.getActiveSession()
        assert session is not None
        context = session.sparkContext
        # The driver counts as one of the block managers.
        workers = context._jsc.sc().getExecutorMemoryStatus().size() - 1
        found |= {"master": context.master, "worker_processes": workers, "spark": context.version}
        session.stop()
    return found


def compared(one: Path, other: Path) -> dict[str, Any]:
    """Numbers of compared tables and rows, names of unequal tables, and whether the ledgers are equal."""
    left, right = killed.tables(one), killed.tables(other)
    unequal = sorted(name for name in {*left, *right} if left.get(name) != right.get(name))
    found = {"admit/behaviour": "stages/admit/behaviour", "click_rates/edges": "stages/click_rates/edges.parquet"}
    fetched = {name: len(left[table]) for name, table in found.items()}
    return {
        "tables": len(left),
        "rows_compared": sum(map(len, left.values())),
        "rows_from_the_engine": fetched,
        "unequal_tables": unequal,
        "figures_equal": killed.ledger_without_seconds(one) == killed.ledger_without_seconds(other),
    }


def measured(*, rows: int, categories: int, master: str, seed: int) -> dict[str, Any]:
    """Write the data, govern them with both engines, compare."""
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        data.mkdir()
        write_tables(data, rows=rows, categories=categories, seed=seed)
        # Variables that Spark reads itself.
        variables = {"MASTER": master, "SPARK_LOCAL_IP": "127.0.0.1"}
        found: dict[str, Any] = {}
        for engine in ENGINES:
            words = ["--contestant", engine, "--data", str(data), "--out", str(Path(folder) / engine)]
            found[engine] = processes.run_module("governance.engines", words, variables=variables)
        size = {"rows": rows, "queries": categories * QUERIES_PER_CATEGORY, "documents": 2 * categories}
        return {"simulated": True, **size, **found, **compared(*(Path(folder) / engine for engine in ENGINES))}


def main(words: list[str] | None = None) -> int:
    parser = result_file.command_parser(
        "governance.engines", str(__doc__), example="python -m benchmarks.governance.engines --rows 50000"
    )
    parser.add_argument("--rows", type=int, default=5_000, help="rows of the synthetic click log")
    parser.add_argument("--categories", type=int, default=60, help="categories, of two documents each")
    parser.add_argument("--master", default=MASTER, help="master URL of Spark")
    parser.add_argument("--contestant", choices=ENGINES, help="run this engine only (needs --data and --out)")
    parser.add_argument("--data", type=Path, help="folder of the synthetic tables, with --contestant")
    parser.add_argument("--out", type=Path, help="governed folder, with --contestant")
    options = parser.parse_args(words)
    try:
        if options.contestant:
            print(json.dumps(govern_with(options.contestant, options.data, options.out)))
            return 0
        found = measured(rows=options.rows, categories=options.categories, master=options.master, seed=options.seed)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    result_file.write_result("governance.engines", found, options.json, words)
    return 1 if found["unequal_tables"] or not found["figures_equal"] else 0


if __name__ == "__main__":
    sys.exit(main())
