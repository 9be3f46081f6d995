"""The relational engine: ibis expressions on an embedded DuckDB, or on Spark when one machine is outgrown.

Both run the same expressions and give the same rows. DuckDB takes Arrow tables as they are, within the policy's memory
limit, and spills beyond it. Spark exchanges tables as Parquet folders, which keeps missing values missing and its
lineage short; on a cluster TMPDIR must name a folder that all workers see.

In: Arrow tables. Out: an ibis connection whose tables can be joined. Next: admit.py and weigh.py.
"""

import os
import re
import shutil
import sys
import tempfile
import weakref
from pathlib import Path
from typing import Any

import duckdb
import ibis
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from data_governance.policy import Policy

ENGINES = ("duckdb", "spark")
SPARK_NEEDS = "--engine spark needs pyspark 4.0 (pip install 'pyspark>=4.0,<4.1') and Java 17 or later"


def threads(policy: Policy) -> int:
    """Threads to use: the policy's, or OMP_NUM_THREADS, or the cores of this process that the machine's load leaves.

    More threads than idle cores make torch several times slower than one thread.
    """
    named = os.environ.get("OMP_NUM_THREADS", "")
    cores = len(os.sched_getaffinity(0))
    # Busy is what is so now and was so over the last minute: a command that has just ended does not count.
    busy = min(psutil.getloadavg()[0], psutil.cpu_percent(interval=0.2) / 100 * (psutil.cpu_count() or 1))
    idle = max(1, round(cores - busy))
    return policy.threads or (int(named) if named.isdigit() and int(named) else min(cores, idle))


class Engine:
    """One connection; what it needs on disk lies in the system's temporary folder and goes with it."""

    def __init__(self, policy: Policy, *, engine: str = "duckdb") -> None:
        if engine not in ENGINES:
            raise ValueError(f"--engine {engine} is not one of {', '.join(ENGINES)}.")
        self._exchange: Path | None = None
        self._tables = 0
        if engine == "spark":
            self._exchange = Path(tempfile.mkdtemp(prefix="governance-"))
            weakref.finalize(self, shutil.rmtree, self._exchange, ignore_errors=True)
            self._connection = _spark(policy)
            return
        try:
            self._connection = ibis.duckdb.connect(memory_limit=policy.memory_limit, threads=threads(policy))
        except duckdb.Error as error:
            raise ValueError(
                f"policy memory_limit = {policy.memory_limit!r}: not understood. Write e.g. 2GB."
            ) from error

    def load(self, table: pa.Table) -> ibis.Table:
        """An Arrow table as an ibis table; on DuckDB without a copy."""
        if self._exchange is None:
            return ibis.memtable(table)
        folder = self._folder()
        folder.mkdir()
        pq.write_table(table, folder / "0.parquet")
        return self._connection.read_parquet(folder)

    def fetch(self, expression: ibis.Table) -> pa.Table:
        """Run an expression; its order is kept where it has one."""
        if self._exchange is None:
            return self._connection.to_pyarrow(expression)
        folder = self._folder()
        # One writer: the rows come back in the order of the expression.
        self._connection._session.sql(self._connection.compile(expression)).coalesce(1).write.parquet(str(folder))
        return pq.read_table(folder).cast(expression.schema().to_pyarrow())

    def _folder(self) -> Path:
        assert self._exchange is not None
        self._tables += 1
        return self._exchange / f"{self._tables:04d}"


def _spark(policy: Policy) -> Any:
    """An ibis connection to Spark: the master that the environment names (spark-submit), else all in this process.

    Raises:
        ValueError: when pyspark or Java is missing.
    """
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    try:
        from pyspark.errors import PySparkRuntimeError
        from pyspark.sql import SparkSession
    except ImportError as error:
        raise ValueError(f"{SPARK_NEEDS} ({error}).") from error
    cores = threads(policy)
    builder = SparkSession.builder.appName("governance")
    builder = builder.config("spark.sql.session.timeZone", "UTC").config("spark.sql.ansi.enabled", "false")
    if "SPARK_MASTER" not in os.environ and "MASTER" not in os.environ:
        builder = builder.master(f"local[{cores}]").config("spark.driver.bindAddress", "127.0.0.1")
        builder = builder.config("spark.driver.host", "127.0.0.1").config("spark.ui.enabled", "false")
        builder = builder.config("spark.driver.memory", jvm_memory(policy.memory_limit))
        builder = builder.config("spark.sql.shuffle.partitions", str(2 * cores))
    try:
        session = builder.getOrCreate()
    except PySparkRuntimeError as error:
        raise ValueError(f"{SPARK_NEEDS} ({' '.join(str(error).split())[:160]}).") from error
    session.sparkContext.setLogLevel("ERROR")
    return ibis.pyspark.connect(session)


def jvm_memory(limit: str) -> str:
    """DuckDB's "2GB" or "1.5 GiB" as the JVM wants it, in whole megabytes.

    Raises:
        ValueError: for what is no size.
    """
    found = re.fullmatch(r"\s*([0-9.]+)\s*([KMGT])i?B\s*", limit, re.IGNORECASE)
    if found is None:
        raise ValueError(f"policy memory_limit = {limit!r}: not understood. Write e.g. 2GB.")
    scale = {"K": 1 / 1024, "M": 1, "G": 1024, "T": 1024**2}[found[2].upper()]
    return f"{max(int(float(found[1]) * scale), 1)}m"
