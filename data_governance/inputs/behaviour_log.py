"""Read the behaviour log in batches of bounded size, however many rows it has.

Opening reads footers and headers: a file with missing columns or wrong types is rejected at once. A truncated file, or
one with an open quote, is found while it is read, and then all of its rows are rejected, but no other file's.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from data_governance.inputs.shards import gathered
from data_governance.inputs.tables import TABLES
from runtime.tables import BrokenFile, conform, open_table
from runtime.tables import Part as TablePart

# Rows in memory at once, some 50 MB with their ids; also the rows of a shard.
ROWS_PER_BATCH = 250_000
Stream = Callable[[], Iterator[pa.Table]]


@dataclass(frozen=True)
class Part:
    """One file of the log; each call of `stream` reads it from the start."""

    name: str
    stream: Stream

    def batches(self) -> Iterator[pa.Table]:
        """Tables of `ROWS_PER_BATCH` rows, with the marks of bad rows; the last one may be shorter.

        Raises:
            BrokenFile: when the file turns out to be damaged.
        """
        return gathered(self.stream(), rows=ROWS_PER_BATCH)


@dataclass(frozen=True)
class Log:
    """An opened log.

    Attributes:
        folder: of its files; None without files.
        files: number of files; 0 for a table of the Hub or in memory.
        lost: (file name, reason) of the files of a folder that could not be used.
        warnings: sentences about what was read and is probably not what was meant.
    """

    name: str
    parts: tuple[Part, ...]
    folder: Path | None = None
    files: int = 0
    lost: tuple[tuple[str, str], ...] = ()
    warnings: tuple[str, ...] = ()


def open_log(location: str, *, name: str = "behaviour") -> Log:
    """Open a log in any format that `runtime.tables.locate` finds, and check its columns.

    Raises:
        ValueError: naming table, column and remedy.
    """
    opened = open_table(location, TABLES[name], skip_bad_files=True, mark=True, stream_text=True)
    parts = tuple(Part(part.name, _stream(part, name)) for part in opened.parts)
    log = Log(name, parts, opened.folder, opened.files, opened.lost, opened.warnings)
    if not any(_has_rows(part) for part in log.parts):
        raise ValueError(f"{name}: {location} has no rows. Give a table with at least one.")
    return log


def _stream(part: TablePart, name: str) -> Stream:
    return lambda: part.tables(TABLES[name], rows=ROWS_PER_BATCH, mark=True)


def _has_rows(part: Part) -> bool:
    try:
        return any(table.num_rows for table in part.stream())
    except BrokenFile:
        return True  # it has rows by its footer; admit_log.py reports why they cannot be read


def log_of(table: pa.Table, *, name: str = "behaviour") -> Log:
    """A log from a table in memory."""
    return Log(name, (Part("memory", lambda: iter([conform(table, TABLES[name], mark=True)])),))
