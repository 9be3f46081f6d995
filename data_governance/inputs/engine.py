"""Relational engine: run ibis expressions on embedded DuckDB, or on Spark.

Both give the same rows. Tables that grow with the log are read from shards and written as Parquet by the engine, and
never held in this process. Tables of entities are Arrow: DuckDB reads them without a copy, within the policy's memory
limit, and spills to disk beyond it; Spark exchanges them as Parquet folders, which keeps nulls null and the lineage
short. On a cluster, TMPDIR and --out must be folders that all workers share.
"""

import glob
import os
import re
import shutil
import sys
import tempfile
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import ibis
import pyarrow as pa
import pyarrow.parquet as pq

from data_governance.inputs.shards import listed
from data_governance.policy import Policy
from runtime.threads import num_threads, requested_threads

ENGINES = ("duckdb", "spark")
# Rows of a streamed result in memory at once.
ROWS_PER_BATCH = 100_000
SPARK_NEEDS = "--engine spark needs pyspark 4.0 (pip install 'pyspark>=4.0,<4.1') and Java 17 or later"


def threads(policy: Policy) -> int:
    """Threads to use: the policy's, else OCLEAR_THREADS, else OMP_NUM_THREADS, else the idle cores."""
    openmp = os.environ.get("OMP_NUM_THREADS", "")
    named = int(openmp) if openmp.isdecimal() else 0
    return policy.threads or requested_threads() or named or num_threads()


class Engine:
    """One connection; its files are in the system's temporary folder and are deleted with it, unless killed."""

    def __init__(self, policy: Policy, *, engine: str = "duckdb") -> None:
        if engine not in ENGINES:
            raise ValueError(f"--engine {engine} is not one of {', '.join(ENGINES)}.")
        self._exchange = Path(tempfile.mkdtemp(prefix="governance-"))
        weakref.finalize(self, shutil.rmtree, self._exchange, ignore_errors=True)
        self._tables = 0
        self._on_spark = engine == "spark"
        if self._on_spark:
            self._connection = _spark(policy)
            return
        try:
            # By default DuckDB spills into the current working directory.
            spill = str(self._exchange / "spill")
            self._connection = ibis.duckdb.connect(
                memory_limit=policy.memory_limit, threads=threads(policy), temp_directory=spill
            )
            # Expressions that need an order have an order_by; preserving the input order costs memory.
            self._connection.con.execute("SET preserve_insertion_order = false")
        except duckdb.Error as error:
            raise ValueError(
                f"policy memory_limit = {policy.memory_limit!r}: not understood. Write e.g. 2GB."
            ) from error

    def load(self, table: pa.Table) -> ibis.Table:
        """An Arrow table as an ibis table; on DuckDB without a copy."""
        if not self._on_spark:
            return ibis.memtable(table)
        folder = self._folder()
        folder.mkdir()
        pq.write_table(table, folder / "0.parquet")
        return self._connection.read_parquet(folder)

    def read(self, folder: Path) -> ibis.Table:
        """The Parquet files of a folder as an ibis table, read in place; they must exist while it is used."""
        name = glob.escape(str(folder.resolve()))
        return self._connection.read_parquet(name if self._on_spark else f"{name}/*.parquet")

    def keep(self, expression: ibis.Table) -> ibis.Table:
        """Compute an expression once, into Parquet, and read it from there."""
        return self.read(self._written(expression, in_order=False))

    def stream(self, expression: ibis.Table) -> Iterator[pa.Table]:
        """The rows of an expression in its order, in batches; all are written to disk before the first is returned."""
        for path in listed(self._written(expression, in_order=True)):
            with pq.ParquetFile(path) as opened:
                for batch in opened.iter_batches(ROWS_PER_BATCH):
                    yield pa.Table.from_batches([batch]).cast(expression.schema().to_pyarrow())
            path.unlink()

    def fetch(self, expression: ibis.Table) -> pa.Table:
        """The rows of an expression as one table, in its order if it has one."""
        if not self._on_spark:
            return self._connection.to_pyarrow(expression)
        return pq.read_table(self._written(expression, in_order=True)).cast(expression.schema().to_pyarrow())

    def _written(self, expression: ibis.Table, *, in_order: bool) -> Path:
        """Folder with the rows of an expression; one file if `in_order`.

        Raises:
            ValueError: when it cannot be written.
        """
        folder = self._folder()
        if self._on_spark:
            rows = self._connection._session.sql(self._connection.compile(expression))
            # One writer keeps the order of the expression.
            (rows.coalesce(1) if in_order else rows).write.parquet(str(folder))
            return folder
        folder.mkdir()
        try:
            # Version 2 files are a third smaller and faster to write.
            self._connection.to_parquet(expression, folder / "0.parquet", parquet_version="v2")
        except duckdb.IOException as error:
            raise ValueError(
                f"engine: cannot write {folder} ({' '.join(str(error).split())[:200]}). Free space there or set TMPDIR."
            ) from error
        return folder

    def _folder(self) -> Path:
        self._tables += 1
        return self._exchange / f"{self._tables:04d}"


def _spark(policy: Policy) -> Any:
    """An ibis connection to Spark: the environment's master (spark-submit), else local mode in this process.

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
    """Convert DuckDB's "2GB" or "1.5 GiB" to the JVM's format, in whole megabytes.

    Raises:
        ValueError: when it is not a size.
    """
    found = re.fullmatch(r"\s*([0-9.]+)\s*([KMGT])i?B\s*", limit, re.IGNORECASE)
    if found is None:
        raise ValueError(f"policy memory_limit = {limit!r}: not understood. Write e.g. 2GB.")
    scale = {"K": 1 / 1024, "M": 1, "G": 1024, "T": 1024**2}[found[2].upper()]
    return f"{max(int(float(found[1]) * scale), 1)}m"
