"""Input tables of governance: their declared columns, and how they are read.

The tables of entities are read whole, except their images, which need not fit into memory; the click log, which grows
without bound, is read by behaviour_log.py in batches. Images stay bytes or paths: nothing is decoded here.
"""

import tempfile
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset, Features, Value

from runtime.picture_files import PictureFileError, find_picture_file, read_picture_file
from runtime.tables import IMAGE, BrokenFile, Schema, none_usable, open_table

# Bytes of images in memory; more of them are on disk. Then, of one batch, and its rows.
IMAGE_MEMORY = 256 * 2**20
BATCH_BYTES, BATCH_ROWS = 64 * 2**20, 256
# Rows of a table without images at once.
ALL_ROWS = 10_000_000

TABLES = {
    "behaviour": Schema(
        "behaviour",
        Features(
            {
                "query_id": Value("string"),
                "doc_id": Value("string"),
                "clicks": Value("float64"),
                "impressions": Value("float64"),
                "position": Value("float64"),
            }
        ),
        ids=frozenset({"query_id", "doc_id"}),
        optional=frozenset({"impressions", "position"}),
    ),
    "queries": Schema("queries", Features({"query_id": Value("string"), "image": IMAGE}), ids=frozenset({"query_id"})),
    "catalogue": Schema(
        "catalogue",
        Features({"doc_id": Value("string"), "image": IMAGE, "text": Value("string"), "leaf": Value("string")}),
        ids=frozenset({"doc_id"}),
        optional=frozenset({"leaf"}),
    ),
    "overrides": Schema(
        "overrides",
        Features({name: Value("string") for name in ("side", "id", "action", "category_key", "why")}),
        ids=frozenset({"id"}),
        optional=frozenset({"category_key", "why"}),
    ),
}


class ImageCells:
    """The image column of a table, outside of memory where it is large: bytes lie in one temporary file.

    Arrow holds at most 2 GiB in one array of bytes, and a catalogue of pictures may be larger than memory.
    """

    def __init__(self) -> None:
        self._bytes = tempfile.SpooledTemporaryFile(max_size=IMAGE_MEMORY)  # noqa: SIM115 (closed with this object)
        weakref.finalize(self, self._bytes.close)
        self._place: list[tuple[int, int] | None] = []
        self._path: list[str | None] = []
        self._end = 0

    def __len__(self) -> int:
        return len(self._path)

    def append(self, cells: pa.ChunkedArray) -> None:
        """Add cells {bytes, path}.

        Raises:
            ValueError: when the temporary file cannot be written.
        """
        for cell in cells.to_pylist():
            data = None if cell is None else cell["bytes"]
            self._path.append(None if cell is None else cell["path"])
            self._place.append(None if data is None else (self._end, len(data)))
            if data is not None:
                try:
                    self._bytes.seek(self._end)
                    self._bytes.write(data)
                except OSError as error:
                    where = tempfile.gettempdir()
                    raise ValueError(
                        f"images: cannot write {where} ({error.strerror or error}). Free space or set TMPDIR."
                    ) from error
                self._end += len(data)

    def cut(self, rows: int) -> None:
        """Forget all cells but the first `rows`."""
        del self._place[rows:], self._path[rows:]

    def __getitem__(self, row: int) -> dict[str, Any] | None:
        place, path = self._place[row], self._path[row]
        if place is None:
            return None if path is None else {"bytes": None, "path": path}
        self._bytes.seek(place[0])
        return {"bytes": self._bytes.read(place[1]), "path": path}

    def size(self, row: int) -> int:
        """Bytes of a cell; 0 for a path."""
        place = self._place[row]
        return 0 if place is None else place[1]

    @property
    def paths(self) -> Iterator[str]:
        """Paths of the cells without bytes."""
        return (path for place, path in zip(self._place, self._path, strict=True) if place is None and path)


@dataclass(frozen=True)
class Source:
    """An opened input.

    Attributes:
        table: its rows, in the declared columns, without the images.
        folder: below which its image paths must lie; None: paths are refused.
        files: number of files that it came in; 0 for a table of the Hub.
        lost: (file name, why) of the files of a folder that could not be used; the others were.
        images: the image of every row; empty for a table without images.
        warnings: sentences about what was read and is probably not what was meant.
    """

    name: str
    table: pa.Table
    folder: Path | None
    files: int = 0
    lost: tuple[tuple[str, str], ...] = ()
    images: ImageCells = field(default_factory=ImageCells)
    warnings: tuple[str, ...] = ()

    def image_batches(self) -> Iterator[list[dict[str, Any] | None]]:
        """The images in order, `BATCH_ROWS` or some `BATCH_BYTES` at a time."""
        first, held = 0, 0
        for row in range(len(self.images)):
            size = self.images.size(row)
            if row > first and (row - first == BATCH_ROWS or held + size > BATCH_BYTES):
                yield [self.images[i] for i in range(first, row)]
                first, held = row, 0
            held += size
        if len(self.images) > first:
            yield [self.images[i] for i in range(first, len(self.images))]


def source_of(table: pa.Table, *, name: str, folder: Path | None = None) -> Source:
    """A source from a table in memory."""
    images = ImageCells()
    if "image" in table.column_names:
        images.append(table.column("image"))
        table = table.drop_columns(["image"])
    return Source(name, table, folder, images=images)


def open_source(location: str, *, name: str, mark: bool = True) -> Source:
    """Read one input table in its declared columns; damaged files of a folder are left out and listed.

    Args:
        mark: mark bad rows with their reasons (`ROW_FAULT`), instead of an error.

    Raises:
        ValueError: naming table, column and remedy.
    """
    opened = open_table(location, TABLES[name], skip_bad_files=True, mark=mark)
    tables, lost, images = list[pa.Table](), list(opened.lost), ImageCells()
    for part in opened.parts:
        before, of_part = len(images), list[pa.Table]()
        try:
            for table in part.tables(opened.schema, rows=BATCH_ROWS if _has_images(name) else ALL_ROWS, mark=mark):
                if _has_images(name):
                    images.append(table.column("image"))
                    table = table.drop_columns(["image"])
                of_part.append(table)
        except BrokenFile as error:
            lost.append((part.name, str(error)))
            images.cut(before)
        else:
            tables += of_part
    if not tables and lost:
        raise none_usable(sorted(lost), files=opened.files, folder=opened.folder or Path())
    if sum(table.num_rows for table in tables) == 0:
        raise ValueError(f"{name}: {location} has no rows. Give a table with at least one.")
    rows = pa.concat_tables(tables).combine_chunks()
    return Source(name, rows, opened.folder, opened.files, tuple(sorted(lost)), images, opened.warnings)


def _has_images(name: str) -> bool:
    return "image" in TABLES[name].columns


def image_bytes(cell: dict[str, Any] | None, folder: Path | None, *, max_bytes: int) -> tuple[bytes | None, str | None]:
    """(bytes, reason): the encoded image of a cell, or why it cannot be had; (None, None) where it is missing.

    A path is read only below the table's folder (`runtime/picture_files.py`).
    """
    if cell is None or (cell["bytes"] is None and not cell["path"]):
        return None, None
    if cell["bytes"] is not None:
        return (cell["bytes"], None) if len(cell["bytes"]) <= max_bytes else (None, "image_file_too_large")
    try:
        return read_picture_file(cell["path"], folder, max_bytes=max_bytes), None
    except PictureFileError as error:
        return None, error.reason


def picture_files(source: Source) -> Iterator[tuple[str, Any]]:
    """(path, size and times or None) of every picture file that a table names; the files are not opened."""
    for path in source.images.paths:
        try:
            found = find_picture_file(path, source.folder).stat()
            yield path, [found.st_size, found.st_mtime_ns, found.st_ctime_ns]
        except (OSError, PictureFileError):
            yield path, None


def as_dataset(table: pa.Table) -> Dataset:
    """An Arrow table as an in-memory `datasets.Dataset`."""
    return Dataset(table)


def feature_column(values_NW: np.ndarray) -> pa.Array:
    """Rows of a float16 matrix as a fixed-size list column, which Parquet and `datasets` both keep."""
    flat = pa.array(np.ascontiguousarray(values_NW, dtype=np.float16).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, values_NW.shape[1])


def feature_matrix(column: pa.ChunkedArray) -> np.ndarray:
    """Inverse of `feature_column`, as float32 (N, W)."""
    flat = column.combine_chunks()
    width = flat.type.list_size
    return flat.flatten().to_numpy(zero_copy_only=False).astype(np.float32).reshape(-1, width)
