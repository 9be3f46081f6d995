"""The relational engine: ibis expressions on an embedded DuckDB with a memory limit that a policy sets.

In: Arrow tables. Out: an ibis connection whose tables can be joined. Next: admit.py and weigh.py.
"""

import os

import duckdb
import ibis
import psutil
import pyarrow as pa

from data_governance.policy import Policy


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
    """One in-memory DuckDB; beyond the limit it spills to the system's temporary folder."""

    def __init__(self, policy: Policy, *, engine: str = "duckdb") -> None:
        if engine != "duckdb":
            raise ValueError(f"--engine {engine} is not available: this version runs on duckdb.")
        try:
            self._connection = ibis.duckdb.connect(memory_limit=policy.memory_limit, threads=threads(policy))
        except duckdb.Error as error:
            raise ValueError(
                f"policy memory_limit = {policy.memory_limit!r}: not understood. Write e.g. 2GB."
            ) from error

    def load(self, table: pa.Table) -> ibis.Table:
        """An Arrow table as an ibis table, without a copy."""
        return ibis.memtable(table)

    def fetch(self, expression: ibis.Table) -> pa.Table:
        """Run an expression."""
        return self._connection.to_pyarrow(expression)
