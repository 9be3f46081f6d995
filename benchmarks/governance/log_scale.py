"""Measure whether governance's memory grows with the length of the behaviour log.

Queries and catalogue are the same small tables for every length. The log is written in shards; most rows have no click,
one in a hundred is bad, of each kind in turn. For every length admit, dedupe and click_rates run in a new process,
whose peak memory includes libraries and engine. A stand-in replaces the image encoder, since images do not grow with
the log. Seconds are CPU seconds.

    python -m benchmarks.governance.log_scale --rows 1000000 10000000
"""

import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from benchmarks import processes, result_file
from benchmarks.governance.bad_rows import IMAGE, StandIn, png
from data_governance.context import GovernanceContext, Inputs
from data_governance.inputs import shards
from data_governance.inputs.behaviour_log import open_log
from data_governance.inputs.engine import Engine
from data_governance.inputs.tables import open_source
from data_governance.policy import Policy
from data_governance.stage import LOG, LOG_DROPPED, StageResult, Workspace
from data_governance.stages import admit, click_rates, dedupe

QUERIES, DOCUMENTS, SHOWN_PER_QUERY = 500, 2_000, 40
ROWS_PER_FILE = 500_000
BAD_EVERY = 100
BAD = (("query_id", None), ("query_id", "nobody"), ("doc_id", "nothing"), ("clicks", -1.0), ("position", 0.0))


def write_entities(folder: Path) -> None:
    """Write queries with a drawing each and documents with a text, every eighth also with a drawing."""
    cells = pa.array([png(i) for i in range(QUERIES)], IMAGE)
    pq.write_table(
        pa.table({"query_id": [f"q{i}" for i in range(QUERIES)], "image": cells}), folder / "queries.parquet"
    )
    drawn = pa.array([png(QUERIES + i) if i % 8 == 0 else None for i in range(DOCUMENTS)], IMAGE)
    names = [f"d{i}" for i in range(DOCUMENTS)]
    texts = [f"thing {i}" for i in range(DOCUMENTS)]
    pq.write_table(pa.table({"doc_id": names, "image": drawn, "text": texts}), folder / "catalogue.parquet")


def part_of_log(rows: int, rng: np.random.Generator) -> pa.Table:
    """Draw rows: a query shows its own few documents, the first ones most often; lower positions are clicked less."""
    query = rng.integers(0, QUERIES, rows)
    place = np.minimum(rng.geometric(0.1, rows), SHOWN_PER_QUERY)
    clicks = (rng.random(rows) < 0.5 / place).astype(float)
    columns = {
        "query_id": pc.binary_join_element_wise("q", pa.array(query).cast(pa.string()), ""),
        "doc_id": pc.binary_join_element_wise("d", pa.array((query * 3 + place) % DOCUMENTS).cast(pa.string()), ""),
        "clicks": pa.array(clicks),
        "impressions": pa.array(rng.integers(1, 5, rows).astype(float)),
        "position": pa.array(place.astype(float)),
    }
    kind = np.where(np.arange(rows) % BAD_EVERY == 0, np.arange(rows) // BAD_EVERY % len(BAD), -1)
    for number, (name, value) in enumerate(BAD):
        wrong = pa.scalar(value, columns[name].type)
        columns[name] = pc.if_else(pa.array(kind == number), wrong, columns[name])
    return pa.table(columns)


def write_tables(folder: Path, rows: int, *, seed: int) -> int:
    """Write queries, catalogue and a log of one length; return the bytes of the log."""
    log = folder / "behaviour"
    log.mkdir(parents=True)
    write_entities(folder)
    rng = np.random.default_rng(seed)
    for first in range(0, rows, ROWS_PER_FILE):
        pq.write_table(part_of_log(min(ROWS_PER_FILE, rows - first), rng), log / f"{first:012d}.parquet")
    return sum(path.stat().st_size for path in log.iterdir())


def measured(folder: Path, *, memory: str) -> dict[str, Any]:
    """Counts, CPU seconds and peak memory of the three stages, in this process."""
    policy = Policy(threads=1, memory_limit=memory)
    engine, workspace = Engine(policy), Workspace(folder / "governed")
    inputs = Inputs(
        open_log(str(folder / "behaviour")),
        *(open_source(str(folder / f"{name}.parquet"), name=name) for name in ("queries", "catalogue")),
    )
    steps: dict[str, Callable[[], StageResult]] = {
        "admit": lambda: admit.admit(GovernanceContext(workspace, inputs, policy, engine, StandIn())),
        "dedupe": lambda: dedupe.dedupe(workspace, policy=policy),
        "click_rates": lambda: click_rates.click_rates(workspace, policy=policy, engine=engine),
    }
    seconds, counts = {}, {}
    for name, step in steps.items():
        start = time.process_time()
        result = step()
        workspace.commit(name, result, digest="made", seconds=0)
        seconds[name] = round(time.process_time() - start, 2)
        counts[name] = result.counts.get(LOG)
    rows_in, kept = counts["admit"] or (0, 0)
    return {
        "rows": rows_in,
        "dropped_by_admit": rows_in - kept,
        "dropped_by_click_rates": shards.count(workspace.shards("click_rates", LOG_DROPPED)),
        "edges": workspace.table("click_rates", "edges").num_rows,
        "cpu_seconds": seconds,
        "rows_per_second": {name: int(rows_in / max(seconds[name], 0.01)) for name in ("admit", "click_rates")},
        "peak_gib": processes.peak_gib(),
    }


def one_length(rows: int, *, memory: str, seed: int, home: Path) -> dict[str, Any]:
    """Write the tables and measure in a new process.

    Raises:
        ValueError: when it fails; the message ends with its error output.
    """
    folder = home / str(rows)
    size = write_tables(folder, rows, seed=seed)
    words = ["--measure", str(folder), "--memory", memory]
    return {**processes.run_module("governance.log_scale", words), "log_mib": round(size / 2**20, 1)}


def main(words: list[str] | None = None) -> int:
    """Run the command line; 2 after a mistake of the caller."""
    example = "python -m benchmarks.governance.log_scale --rows 1000000 10000000 --json result.json"
    parser = result_file.command_parser("governance.log_scale", str(__doc__), example=example)
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000], help="lengths of the log")
    parser.add_argument("--memory", default="500MB", help="memory limit of the engine")
    parser.add_argument("--measure", type=Path, help="measure the tables of this folder, in this process")
    options = parser.parse_args(words)
    if min(options.rows) < QUERIES:
        print(f"error: --rows takes numbers of at least {QUERIES}", file=sys.stderr)
        return 2
    if options.measure is not None:
        print(json.dumps(measured(options.measure, memory=options.memory)))
        return 0
    runs = []
    try:
        for rows in options.rows:
            with tempfile.TemporaryDirectory() as home:
                runs.append(one_length(rows, memory=options.memory, seed=options.seed, home=Path(home)))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    sizes = {"queries": QUERIES, "documents": DOCUMENTS, "memory_limit": options.memory, "bad_every": BAD_EVERY}
    growth = round(max(run["peak_gib"] for run in runs) / runs[0]["peak_gib"] - 1, 4)
    metrics = {"simulated": True, "encoder": "stand-in", **sizes, "runs": runs, "growth_of_peak": growth}
    result_file.write_result("governance.log_scale", metrics, options.json, words)
    return 0


if __name__ == "__main__":
    sys.exit(main())
