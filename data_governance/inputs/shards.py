"""Shards: Parquet files of a growing table, named by their first row.

No process holds such a table: a stage reads and writes one shard at a time, and results of the engine about single rows
come back sorted by row and are matched with their shard here (`by_shard`).
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

# Columns with few repeated values: dictionary encoding costs time and saves nothing.
NO_DICTIONARY = ("row", "row_id", "figures")


def write(table: pa.Table, folder: Path, *, first: int) -> None:
    """Write one shard, replacing one with the same first row; no file for no rows."""
    path = folder / f"{first:012d}.parquet"
    path.unlink(missing_ok=True)
    if table.num_rows:
        folder.mkdir(exist_ok=True)
        pq.write_table(table, path, use_dictionary=[c for c in table.column_names if c not in NO_DICTIONARY])


def listed(folder: Path) -> list[Path]:
    """The shards of a folder in the order of their rows; empty if the folder is missing."""
    return sorted(folder.glob("*.parquet"))


def first_row(path: Path) -> int:
    return int(path.stem)


def count(paths: Iterable[Path]) -> int:
    """Number of rows, from the footers."""
    return sum(pq.read_metadata(path).num_rows for path in paths)


def batches(paths: Iterable[Path], columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """One table per shard."""
    for path in paths:
        yield pq.read_table(path, columns=columns)


def gathered(tables: Iterable[pa.Table], *, rows: int) -> Iterator[pa.Table]:
    """The same rows in tables of `rows` each; the last one may be shorter. At most `rows` and one table are held."""
    waiting: list[pa.Table] = []
    held = 0
    for table in tables:
        waiting.append(table)
        held += table.num_rows
        if held >= rows:
            joined = pa.concat_tables(waiting)
            whole = held - held % rows
            for start in range(0, whole, rows):
                yield joined.slice(start, rows)
            waiting, held = [joined.slice(whole)], held - whole
    if held:
        yield pa.concat_tables(waiting)


def by_shard(found: Iterable[pa.Table], paths: Sequence[Path]) -> Iterator[tuple[Path, pa.Table]]:
    """(shard, rows of `found` about it) for every shard that has any; `found` is sorted by its column `row`."""
    firsts = np.array([first_row(path) for path in paths])
    waiting: list[pa.Table] = []
    now = -1
    for table in found:
        place = np.searchsorted(firsts, table.column("row").to_numpy(), side="right") - 1
        cuts = [0, *(np.flatnonzero(np.diff(place)) + 1).tolist(), len(place)]
        for start, end in zip(cuts[:-1], cuts[1:], strict=True):
            if start == end:
                continue
            if waiting and place[start] != now:
                yield paths[now], pa.concat_tables(waiting)
                waiting = []
            now = int(place[start])
            waiting.append(table.slice(start, end - start))
    if waiting:
        yield paths[now], pa.concat_tables(waiting)


def picked(table: pa.Table, found: pa.Table) -> np.ndarray:
    """(rows of `table`,) bool: those whose row number is in `found`; both are sorted by `row`."""
    rows, wanted = table.column("row").to_numpy(), found.column("row").to_numpy()
    mask = np.zeros(len(rows), dtype=bool)
    mask[np.searchsorted(rows, wanted)] = True
    return mask
