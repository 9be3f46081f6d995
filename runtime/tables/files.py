"""Find the files of a table: formats, compression, folders with parts and partition keys.

The content decides where it can: a file that begins as Parquet or as a compressed stream is read as that, whatever its
name says. Every file of a folder is read, or listed with the reason why not.
"""

import bz2
import gzip
import io
import lzma
import os
import re
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import datasets
import pyarrow as pa
from datasets import Dataset

from runtime.tables.schema import one_line

# The only list of file formats, by suffix; any of them may be compressed, except Parquet, which is inside.
FORMATS = {
    ".parquet": "parquet",
    ".csv": "csv",
    ".tsv": "csv",
    ".json": "json",
    ".jsonl": "json",
    ".ndjson": "json",
}
COMPRESSIONS: dict[str, Callable[[Path], IO[bytes]]] = {
    ".gz": lambda path: io.BufferedReader(gzip.GzipFile(path)),
    ".bz2": bz2.BZ2File,
    ".xz": lzma.LZMAFile,
    ".zst": lambda path: io.BufferedReader(pa.input_stream(str(path), compression="zstd")),
}
MAGIC = {b"\x1f\x8b": ".gz", b"BZh": ".bz2", b"\xfd7zXZ\x00": ".xz", b"\x28\xb5\x2f\xfd": ".zst"}
# Data in a format that is not read: each such file of a folder is named. Other files (pictures, notes) are not data.
NOT_READ = frozenset(
    {
        *(".arrow", ".avro", ".feather", ".ipc", ".orc", ".hdf5", ".h5", ".npy", ".npz", ".pickle", ".pkl"),
        *(".dat", ".data", ".db", ".sqlite", ".txt", ".tab", ".xml", ".xls", ".xlsx", ".ods"),
        *(".zip", ".7z", ".rar", ".tar", ".tgz", ".lz4", ".snappy"),
    }
)
HUB_ID = re.compile(r"(?P<repo>[\w-][\w.-]*/[\w-][\w.-]*)(?::(?P<split>[\w.-]+))?")
HIVE = re.compile(r"([^=/]+)=([^/]*)")
HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"


@dataclass(frozen=True)
class TableFile:
    """One file of a table.

    Attributes:
        name: path below the folder of the table, for messages.
        label: the same where the table has several files; "" for a single one, which needs no naming.
        keys: values of partition keys in the path (`leaf=shoes/0.parquet`); null values are None.
    """

    path: Path
    name: str
    label: str = ""
    keys: tuple[tuple[str, str | None], ...] = ()


@dataclass(frozen=True)
class Location:
    """Where the rows of a table are: files, or one data set.

    Attributes:
        folder: below which image paths must lie; None for a Hub data set, which has no paths.
        unread: (file name, reason) of data files of the folder in a format that is not read.
    """

    files: tuple[TableFile, ...] = ()
    data: Dataset | None = None
    folder: Path | None = None
    unread: tuple[tuple[str, str], ...] = ()

    @property
    def num_files(self) -> int:
        """Files that the table comes in: one for a `datasets` folder, none for a Hub data set."""
        return len(self.files) + len(self.unread) or int(self.folder is not None)


def split_name(name: str) -> tuple[str, str]:
    """(suffix of the format, suffix of the compression), both in lower case and either possibly "".

    >>> split_name("part-0.CSV.gz"), split_name("d.parquet"), split_name("part-0")
    (('.csv', '.gz'), ('.parquet', ''), ('', ''))
    """
    path = Path(name.lower())
    if path.suffix in COMPRESSIONS:
        return Path(path.stem).suffix, path.suffix
    return path.suffix, ""


def is_table(name: str) -> bool:
    """Whether a file is of a format that is read, by its name."""
    return split_name(name)[0] in FORMATS


def locate(location: str | Path, *, name: str) -> Location:
    """Find a table: a file, a folder of files, a `datasets` folder, or a Hub id (`org/name` or `org/name:split`).

    The files of a folder may be in folders below it, of mixed formats and compressed. Names that begin with `.` or `_`
    are skipped, as other tools do.

    Args:
        name: of the table, in messages.

    Raises:
        ValueError: there is no such file, folder or data set, or the folder holds no table.
    """
    path = Path(location)
    if not path.exists():
        return Location(data=_hub_dataset(str(location), name))
    if not path.is_dir():
        return Location(files=(TableFile(path, path.name),), folder=path.parent)
    if (path / "dataset_dict.json").is_file():
        raise ValueError(f"{name}: {path} holds several splits. Give the folder of one of them.")
    if (path / "state.json").is_file():
        return Location(data=datasets.load_from_disk(str(path)), folder=path)
    files, unread = [], []
    for file in visible_files(path):
        below = file.relative_to(path)
        if is_table(file.name):
            files.append(TableFile(file, below.as_posix(), below.as_posix(), _hive_keys(below.parent)))
        elif split_name(file.name)[0] in NOT_READ or (not file.suffix and _is_part(file)) or _only_packed(file.name):
            known = ", ".join(FORMATS)
            unread.append((below.as_posix(), f"{name}: {below.as_posix()} is none of {known}. Convert or remove it."))
    if not files:
        raise ValueError(f"{name}: {path} holds no {', '.join(FORMATS)} file.")
    return Location(files=tuple(files), folder=path, unread=tuple(unread))


def visible_files(folder: Path) -> list[Path]:
    """All files below a folder in the order of their names, without hidden ones; links to folders are followed once."""
    found, seen = list[Path](), set[str]()
    for at, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(at)
        # A link to a folder above would be walked for ever.
        folders[:] = [] if real in seen else sorted(one for one in folders if not one.startswith((".", "_")))
        if real not in seen:
            found += [Path(at) / one for one in names if not one.startswith((".", "_"))]
        seen.add(real)
    return sorted(found)


def _is_part(file: Path) -> bool:
    """`part-00000` without a suffix, as Hadoop writes it."""
    return file.name.lower().startswith("part")


def _only_packed(name: str) -> bool:
    return Path(name.lower()).suffix in COMPRESSIONS


def _hive_keys(below: Path) -> tuple[tuple[str, str | None], ...]:
    found = []
    for part in below.parts:
        if match := HIVE.fullmatch(part):
            value = urllib.parse.unquote(match[2])
            found.append((urllib.parse.unquote(match[1]), None if value == HIVE_NULL else value))
    return tuple(found)


def _hub_dataset(location: str, name: str) -> Dataset:
    match = HUB_ID.fullmatch(location)
    path = Path(location)
    # A path below an existing folder is a wrong path, not the id of a data set.
    if match is None or is_table(path.name) or path.parent.is_dir():
        raise ValueError(
            f"{name}: {location} does not exist: there is no such file or folder. Give a file, a folder or a Hub data "
            "set id (org/name or org/name:split)."
        )
    try:
        return datasets.load_dataset(match["repo"], split=match["split"] or "train")
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{name}: neither a path nor a readable Hub data set: {location} ({one_line(error)})"
        ) from error


def format_of(file: Path, *, name: str) -> str:
    """Format of a file: "parquet", "csv" or "json", by its suffix, or "parquet" by its content.

    Raises:
        ValueError: another suffix, or a packed Parquet file.
    """
    suffix, packed = split_name(file.name)
    if suffix not in FORMATS:
        raise ValueError(f"{name}: {file.name} is none of {', '.join(FORMATS)}.")
    form = "parquet" if _begins(file, 4) == b"PAR1" else FORMATS[suffix]
    if form == "parquet" and packed:
        raise ValueError(f"{name}: {file.name} is packed as {packed}. Unpack it: Parquet is compressed inside.")
    return form


def _begins(file: Path, size: int) -> bytes:
    try:
        with file.open("rb") as opened:
            return opened.read(size)
    except OSError:
        return b""  # whoever reads the file reports why


def open_bytes(file: Path) -> IO[bytes]:
    """The bytes of a file, unpacked where it is compressed, whatever its name says."""
    begin = _begins(file, 6)
    for magic, suffix in MAGIC.items():
        if begin.startswith(magic):
            return COMPRESSIONS[suffix](file)
    return file.open("rb")
