"""Governed samples on disk: columns are read completely, images on demand.

Labels and weights of a billion samples fit in memory, their images do not. An image is read with its row group, of
which a process keeps the last few, so memory does not grow with the number of samples. Row groups of a few hundred rows
suit random access; one group per shard suits only reading in order.
"""

import mmap
import os
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

SIDES = ("query", "document")
BYTES_KEPT = 2**24  # of row groups, in each process that reads images
FILES_KEPT = 8
ROWS_AT_ONCE = 8192


@dataclass(frozen=True, slots=True)
class RowGroup:
    """Row group `place` of shard `file`; its rows are `first` to `first + rows` of the table."""

    file: int
    place: int
    first: int
    rows: int


def own_pages(count: int, kind: Any) -> np.ndarray:
    """(count,) zeros in memory pages of their own, which are returned to the system with the array, unlike the heap."""
    return np.ndarray(count, kind, buffer=mmap.mmap(-1, max(1, count * np.dtype(kind).itemsize)))


def in_own_pages(values: np.ndarray) -> np.ndarray:
    """Copy in memory pages of its own; see `own_pages`."""
    found = own_pages(len(values), values.dtype)
    found[:] = values
    return found


class SampleTable:
    """All shards of `samples/`, in the order of their names.

    Args:
        files: the shards; their columns are checked (samples.py).
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self.files = list(files)
        self.groups: list[RowGroup] = []
        first = 0
        for file, path in enumerate(self.files):
            described = pq.read_metadata(path)
            for place in range(described.num_row_groups):
                rows = described.row_group(place).num_rows
                if rows:
                    self.groups.append(RowGroup(file, place, first, rows))
                first += rows
        self._rows = first
        self._firsts = np.array([group.first for group in self.groups], np.int64)
        self._of_side: dict[str, np.ndarray] = {}
        self._has_image: np.ndarray | None = None
        self._process = os.getpid()
        self._open: OrderedDict[int, pq.ParquetFile] = OrderedDict()
        self._kept: OrderedDict[int, pa.Table] = OrderedDict()

    def __len__(self) -> int:
        return self._rows

    def column(self, name: str) -> Iterator[pa.ChunkedArray]:
        """Values of one column in order, some thousand rows at a time."""
        for path in self.files:
            with pq.ParquetFile(path) as file:
                for batch in file.iter_batches(ROWS_AT_ONCE, columns=[name], use_threads=False):
                    values = pa.chunked_array([batch.column(0)])
                    is_dictionary = pa.types.is_dictionary(values.type)
                    yield values.cast(values.type.value_type) if is_dictionary else values

    def rows_of(self, side: str) -> np.ndarray:
        """Rows of the table that are of `side`, ascending, in the smallest integer type."""
        if side not in self._of_side:
            kind, first, parts = np.uint32 if self._rows < 2**32 else np.int64, 0, []
            for values in self.column("side"):
                places = np.flatnonzero(pc.equal(values, side).to_numpy().astype(bool))
                parts.append((places + first).astype(kind))
                first += len(values)
            self._of_side[side] = np.concatenate(parts)
        return self._of_side[side]

    def of_side(self, name: str, side: str) -> pa.ChunkedArray:
        """One column of the rows of `side`; read anew at each call."""
        first, parts, rows = 0, [], self.rows_of(side)
        for values in self.column(name):
            low, high = np.searchsorted(rows, (first, first + len(values)))
            parts.append(values.take(pa.array(rows[low:high].astype(np.int64) - first)))
            first += len(values)
        return pa.chunked_array([chunk for part in parts for chunk in part.chunks], type=parts[0].type)

    def ids(self, side: str) -> pa.ChunkedArray:
        """Sample ids of the rows of `side`."""
        return self.of_side("sample_id", side)

    def has_image(self) -> np.ndarray:
        """(rows,) bool. Row groups are read once, and only if their statistics do not decide."""
        if self._has_image is None:
            self._has_image = self._find_images()
        return self._has_image

    def _find_images(self) -> np.ndarray:
        found = own_pages(self._rows, bool)
        for number, group in enumerate(self.groups):
            missing = self._images_missing(group)
            if missing is None or 0 < missing < group.rows:
                part = pc.is_valid(_image_bytes(self._group(number))).to_numpy()
            else:
                part = np.full(group.rows, missing == 0)
            found[group.first : group.first + group.rows] = part
        return found

    def image(self, row: int) -> tuple[str, bytes | None]:
        """Sample id and encoded image (None = missing) of one row of the table."""
        number = int(np.searchsorted(self._firsts, row, side="right")) - 1
        place = row - self.groups[number].first
        table = self._group(number)
        return table.column("sample_id")[place].as_py(), table.column("image")[place].as_py()

    def in_order(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        """All row groups in order; `image` is a column of bytes."""
        for group in self.groups:
            yield _flat(self._file(group.file).read_row_group(group.place, columns=list(columns), use_threads=False))

    def _images_missing(self, group: RowGroup) -> int | None:
        described = self._file(group.file).metadata.row_group(group.place)
        for place in range(described.num_columns):
            column = described.column(place)
            if column.path_in_schema in ("image", "image.bytes"):
                statistics = column.statistics
                return statistics.null_count if statistics is not None and statistics.has_null_count else None
        return None

    def _file(self, number: int) -> pq.ParquetFile:
        if self._process != os.getpid():  # after a fork: two processes would share the position of an open file
            self._open, self._process = OrderedDict(), os.getpid()
        if number not in self._open:
            self._open[number] = pq.ParquetFile(self.files[number])
            if len(self._open) > FILES_KEPT:
                self._open.popitem(last=False)[1].close()
        self._open.move_to_end(number)
        return self._open[number]

    def _group(self, number: int) -> pa.Table:
        """Ids and images of a row group; the last ones stay in memory."""
        if number not in self._kept:
            group = self.groups[number]
            columns = ["sample_id", "image"]
            read = self._file(group.file).read_row_group(group.place, columns=columns, use_threads=False)
            self._kept[number] = _flat(read)
            while len(self._kept) > 1 and sum(table.nbytes for table in self._kept.values()) > BYTES_KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(number)
        return self._kept[number]


def _flat(table: pa.Table) -> pa.Table:
    """`table` with its image column as plain bytes."""
    if "image" not in table.column_names:
        return table
    return table.set_column(table.column_names.index("image"), "image", _image_bytes(table))


def _image_bytes(table: pa.Table) -> pa.ChunkedArray:
    image = table.column("image")
    return pc.struct_field(image, "bytes") if pa.types.is_struct(image.type) else image
