"""Stage folders: Parquet tables that are complete or absent.

A folder that exists is complete. Its digest covers the inputs, the policy, the source and every stage before it, so a
rerun reuses what is up to date and computes the rest.

A table that grows with the log is written as shards while the stage works; the decisions about its rows are shards too.
Everything else is held in memory until the stage commits.
"""

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data_governance.inputs import shards
from runtime.files import empty_partial, final_name, replace_folder

DECISIONS = pa.schema(
    [
        ("table", pa.string()),
        ("row_id", pa.string()),
        ("decision", pa.string()),
        ("stage", pa.string()),
        ("reason", pa.string()),
        ("figures", pa.string()),
    ]
)
# `restored`: an override brought back a row that an earlier stage dropped.
KINDS = ("kept", "dropped", "merged", "relabelled", "restored")
# The only table in shards, and the shards of its dropped rows: columns of `DECISIONS`, then the row as it was read.
LOG, LOG_DROPPED = "behaviour", "behaviour_dropped"


@dataclass
class StageResult:
    """Output of a stage.

    Attributes:
        tables: name -> rows for the next stages.
        decisions: rows of `DECISIONS` without the stage's name.
        counts: table -> (rows in, rows kept); the difference must equal the rows dropped.
        notes: statistics of the stage as a whole, for ledger.json.
        folder: temporary folder (`Workspace.begin`) with the shards written so far; None without shards.
    """

    tables: dict[str, pa.Table] = field(default_factory=dict)
    decisions: list[dict[str, Any]] = field(default_factory=list)
    counts: dict[str, tuple[int, int]] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)
    folder: Path | None = None

    def shards(self, table: str) -> list[Path]:
        return [] if self.folder is None else shards.listed(self.folder / table)

    def add_shard(self, table: str, rows: pa.Table, *, first: int) -> None:
        """Write one shard of a table, replacing one with the same first row.

        Raises:
            ValueError: when it cannot be written.
        """
        assert self.folder is not None
        with disk_errors(self.folder):
            shards.write(rows, self.folder / table, first=first)

    def decide(
        self, table: str, row_ids: Iterable[Any], decision: str, reasons: Iterable[str] | str, **figures: Any
    ) -> None:
        """Record one decision per row; each of `figures` is one value for all rows, or a sequence of one per row."""
        ids = list(row_ids)
        why = [reasons] * len(ids) if isinstance(reasons, str) else list(reasons)
        for i, (row_id, reason) in enumerate(zip(ids, why, strict=True)):
            shown = {k: _plain(v if isinstance(v, (int, float, str)) else v[i]) for k, v in figures.items()}
            row = {"table": table, "row_id": str(row_id), "decision": decision, "reason": reason}
            self.decisions.append({**row, "figures": json.dumps(shown, ensure_ascii=True, sort_keys=True)})


def _plain(value: Any) -> Any:
    value = value.item() if hasattr(value, "item") else value
    return round(value, 6) if isinstance(value, float) else value


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Turn an OSError into a ValueError that tells the caller to free space."""
    try:
        yield
    except OSError as error:
        raise ValueError(
            f"stage {final_name(folder)}: cannot write {folder} ({error.strerror or error}). "
            "Free space, then run again."
        ) from error


@dataclass(frozen=True)
class Workspace:
    """The governed folder of one run.

    Attributes:
        stages: names of all stages in order; not needed to read or write a single one.
    """

    out: Path
    stages: tuple[str, ...] = ()

    def folder(self, name: str) -> Path:
        return self.out / "stages" / name

    def table(self, name: str, table: str) -> pa.Table:
        return pq.read_table(self.folder(name) / f"{table}.parquet")

    def shards(self, name: str, table: str) -> list[Path]:
        return shards.listed(self.folder(name) / table)

    def begin(self, name: str) -> Path:
        """Create an empty folder under the temporary name, deleting what a killed run left there."""
        with disk_errors(self.folder(name)):
            return empty_partial(self.folder(name))

    def record(self, name: str) -> dict[str, Any]:
        return dict(json.loads((self.folder(name) / "stage.json").read_text()))

    def is_complete(self, name: str, digest: str) -> bool:
        return (self.folder(name) / "stage.json").exists() and self.record(name)["digest"] == digest

    def commit(self, name: str, result: StageResult, *, digest: str, seconds: float) -> None:
        """Check conservation of rows, write everything under the temporary name, rename.

        Raises:
            ValueError: when it cannot be written; the stages before stay complete.
        """
        check_conservation(name, result)
        part = result.folder or self.begin(name)
        with disk_errors(part):
            for table, rows in result.tables.items():
                # Vectors hardly repeat: a dictionary of them costs a third of the time to write, and saves nothing.
                plain = [f.name for f in rows.schema if not pa.types.is_fixed_size_list(f.type)]
                pq.write_table(rows, part / f"{table}.parquet", use_dictionary=plain)
            decisions = [{**row, "stage": name} for row in result.decisions]
            pq.write_table(pa.Table.from_pylist(decisions, schema=DECISIONS), part / "decisions.parquet")
            facts = {"digest": digest, "seconds": round(seconds, 2), "counts": result.counts, "notes": result.notes}
            (part / "stage.json").write_text(json.dumps(facts, indent=1, sort_keys=True))
            replace_folder(self.folder(name))


def check_conservation(name: str, result: StageResult) -> None:
    """Assert rows in = rows kept + rows dropped, for every table that the stage counts."""
    dropped: dict[str, int] = {}
    for row in result.decisions:
        assert row["decision"] in KINDS, row
        dropped[row["table"]] = dropped.get(row["table"], 0) + (row["decision"] == "dropped")
    if result.shards(LOG_DROPPED):
        dropped[LOG] = dropped.get(LOG, 0) + shards.count(result.shards(LOG_DROPPED))
    if result.shards(LOG):
        assert result.counts[LOG][1] == shards.count(result.shards(LOG)), f"{name}: rows kept are not those on disk"
    for table, (rows_in, kept) in result.counts.items():
        gone = dropped.get(table, 0)
        assert rows_in == kept + gone, f"{name} {table}: {rows_in} in, {kept} kept, {gone} dropped"
    loose = {table for table, gone in dropped.items() if gone and table not in result.counts}
    assert not loose, f"{name}: drops rows of {sorted(loose)} without counting them"
