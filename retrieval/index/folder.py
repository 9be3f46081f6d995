"""The index folder: a base, changes to it, and versions between which a reader never sees a mixture.

    index/current.json            the number of the version that is searched
    index/version-0003.json       what it consists of: a base and changes, in order
    index/base-0001/              index.faiss, documents.arrow, fields.arrow, donors.safetensors, index.json
    index/change-0003/            vectors.npy, documents.arrow, fields.arrow, removed.arrow

Folders are immutable. A write makes new ones, brings them to the disk, and renames `current.json` last: until then, and
after a crash, the version before is searched. The files are mapped into memory, so that opening takes no time and costs
no memory that a search does not touch. The last KEPT versions can be gone back to; what none of them uses is removed.
"""

import contextlib
import datetime
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.ipc
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from retrieval.index import vector_search
from retrieval.index.imputation import Donors
from retrieval.index.store import Index
from retrieval.index.vector_search import ChangedSearcher, Searcher
from runtime.files import atomic_folder, held_lock, write_json

FORMAT = 2
KEPT = 3
SECONDS_TO_WAIT = 300.0  # for another writer: a compaction of a million documents takes a minute
MOST_TRIES = 10  # to open an index that others write to
CURRENT = "current.json"
PARTS = ("version-", "base-", "change-")

Array = NDArray[np.float32]


class IndexBusy(ValueError):
    """Another process writes to the index."""


@dataclass(frozen=True)
class Version:
    """What an index consists of.

    Attributes:
        id: of this version alone: a folder that is made anew counts from 1 again. number: counts up.
        base: its folder. changes: folders of the changes, in order.
        documents: that a search can find. cause: the operation that made it. time: of that, UTC.
        counts: what the operation did, such as {"added": 3}.
    """

    id: str
    number: int
    base: str
    changes: tuple[str, ...]
    documents: int
    cause: str
    time: str
    counts: dict[str, int]


@dataclass(frozen=True)
class Change:
    """Rows that are added to an index, and ids whose earlier rows are gone.

    Attributes:
        vectors_ME: as in the base. documents, fields: row by row; `fields` may have other columns than the base.
    """

    vectors_ME: Array
    documents: pa.Table
    fields: pa.Table
    removed: Sequence[str]


def save_index(index: Index, folder: Path) -> Version:
    """Write an index as a new version of its folder; searches see the older one until it is complete.

    Raises:
        ValueError: the folder holds something that is not an index, or another process writes to it.
    """
    with writing(folder):
        return write_base(index, folder, cause="build", counts={})


def write_base(index: Index, folder: Path, *, cause: str, counts: dict[str, int]) -> Version:
    """As `save_index`, by a caller that holds the lock; the rows of `index` are written without those that are gone."""
    index = index.settled()
    number = next_number(folder)
    name = f"base-{number:04d}"
    assert isinstance(index.searcher, Searcher)
    with atomic_folder(folder / name) as partial:
        vector_search.write(index.searcher, str(partial / "index.faiss"))
        _write_table(index.documents, partial / "documents.arrow")
        _write_table(index.fields, partial / "fields.arrow")
        if index.donors is not None:
            donors = {"image": index.donors.image_SD, "shift": index.donors.shift_SD}
            save_file({key: value.astype(np.float16) for key, value in donors.items()}, partial / "donors.safetensors")
        write_json(partial / "index.json", {"format": FORMAT} | index.info)
        _to_disk(partial)
    version = Version(uuid.uuid4().hex, number, name, (), len(index), cause, utc_now(), counts)
    switch(folder, version)
    return version


def write_change(folder: Path, before: Version, change: Change, *, documents: int, cause: str, counts: Any) -> Version:
    """Add a change to the newest version; the caller holds the lock."""
    number = next_number(folder)
    name = f"change-{number:04d}"
    with atomic_folder(folder / name) as partial:
        np.save(partial / "vectors.npy", change.vectors_ME)
        _write_table(change.documents, partial / "documents.arrow")
        _write_table(change.fields, partial / "fields.arrow")
        _write_table(pa.table({"doc_id": pa.array(change.removed, pa.string())}), partial / "removed.arrow")
        _to_disk(partial)
    parts = (*before.changes, name)
    version = Version(uuid.uuid4().hex, number, before.base, parts, documents, cause, utc_now(), counts)
    switch(folder, version)
    return version


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Hold the lock of an index folder, which is made if there is none; another writer is waited for.

    Raises:
        IndexBusy: it still writes after SECONDS_TO_WAIT.
        ValueError: the folder holds something else, or cannot be written.
    """
    if folder.exists() and (not folder.is_dir() or not all(_is_ours(file.name) for file in folder.iterdir())):
        raise ValueError(f"--out {folder}: holds something that is not an index: name a new or an index folder")
    busy = IndexBusy(
        f"index {folder}: another process has been writing for {SECONDS_TO_WAIT:g} s: try again when it has ended"
    )
    with held_lock(folder / ".lock", seconds=SECONDS_TO_WAIT, busy=busy, name=f"index {folder}"):
        _remove_unfinished(folder)
        yield


def _remove_unfinished(folder: Path) -> None:
    """Remove versions that a killed writer left: they were never searched, and nobody was told of them."""
    if (folder / CURRENT).is_file():
        now = current_version(folder).number
        for file in _version_files(folder):
            if _number(file) > now:
                file.unlink()


def _number(file: Path) -> int:
    return int(file.stem.removeprefix("version-"))


def _version_files(folder: Path) -> list[Path]:
    """Files of versions, by number."""
    return sorted(folder.glob("version-*.json"), key=_number)


def _is_ours(name: str) -> bool:
    earlier = ("index.faiss", "documents.parquet", "index.json")  # of format 1, which a new build replaces
    return name in (CURRENT, ".lock", *earlier) or name.removeprefix(".").startswith((*PARTS, CURRENT))


def switch(folder: Path, version: Version) -> None:
    """Make a version the one that is searched, and remove what the KEPT newest versions do not use."""
    write_json(folder / f"version-{version.number:04d}.json", asdict(version))
    _to_disk(folder)
    write_json(folder / CURRENT, {"format": FORMAT, "version": version.number})
    _to_disk(folder)
    kept = versions(folder)[-KEPT:]
    used = {CURRENT, ".lock", *(f"version-{one.number:04d}.json" for one in kept)}
    used |= {name for one in kept for name in (one.base, *one.changes)}
    for file in folder.iterdir():
        if file.name not in used:  # maps of a removed file stay readable
            shutil.rmtree(file) if file.is_dir() else file.unlink()


def versions(folder: Path) -> list[Version]:
    """The versions that an index can be taken back to, oldest first; the last is the newest.

    Raises:
        ValueError: no index there, or a version cannot be read.
    """
    now = current_version(folder).number
    return [read_version(folder, _number(file)) for file in _version_files(folder) if _number(file) <= now]


def next_number(folder: Path) -> int:
    """Number of the next version; 1 in a new folder."""
    return max(map(_number, _version_files(folder)), default=0) + 1


def current_version(folder: Path) -> Version:
    """The version that is searched.

    Raises:
        ValueError: no index there, one of another format, or a damaged one.
    """
    if not (folder / CURRENT).is_file():
        old = " of an earlier version" if (folder / "index.faiss").is_file() else ""
        found = f"holds an index{old}" if old else f"no {CURRENT}"
        raise ValueError(f"index {folder}: {found}: build it with `oclear index`")
    try:
        found = json.loads((folder / CURRENT).read_text())
        kind, number = found["format"], int(found["version"])
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise ValueError(f"index {folder}: {CURRENT} is damaged: build the index again") from error
    if kind != FORMAT:
        raise ValueError(f"index {folder}: format {kind}, this version reads {FORMAT}: build it again")
    return read_version(folder, number)


def read_version(folder: Path, number: int) -> Version:
    """One version of an index.

    Raises:
        ValueError: there is none of this number, or it is damaged.
    """
    try:
        found = json.loads((folder / f"version-{number:04d}.json").read_text())
        version = Version(**found | {"changes": tuple(found["changes"])})
    except FileNotFoundError as error:
        there = ", ".join(str(_number(file)) for file in _version_files(folder))
        raise ValueError(f"index {folder}: there is no version {number}; it has {there or 'none'}") from error
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise ValueError(f"index {folder}: version {number} is damaged: build the index again") from error
    for name in (version.base, *version.changes):
        if Path(name).name != name or not name.startswith(PARTS):
            raise ValueError(f"index {folder}: version {number} names {name!r}, which is no part of an index")
    return version


def load_index(folder: Path, *, version: int | None = None) -> Index:
    """Open an index folder.

    Args:
        version: its number; None = the current one.

    Raises:
        ValueError: not an index folder, damaged, or its files do not belong together.
    """
    for _ in range(MOST_TRIES):
        found = current_version(folder) if version is None else read_version(folder, version)
        try:
            base = _read_base(folder / found.base, folder)
            return _with_changes(base, [_read_change(folder / name, folder) for name in found.changes])
        except ValueError:
            # A writer that made KEPT versions since has removed this one's files.
            if version is not None or current_version(folder).number == found.number:
                raise
    raise ValueError(f"index {folder}: it changed {MOST_TRIES} times while it was opened: try again")


def _read_base(part: Path, folder: Path) -> Index:
    try:
        info = json.loads((part / "index.json").read_text())
        documents, fields = _read_table(part / "documents.arrow"), _read_table(part / "fields.arrow")
        kind, width, recall = str(info["kind"]), int(info["width"]), float(info["recall_at_10_against_exact"])
        donors = None
        if (part / "donors.safetensors").is_file():
            halves = load_file(part / "donors.safetensors")
            donors = Donors(halves["image"].astype(np.float32), halves["shift"].astype(np.float32))
    except (ValueError, KeyError, TypeError, OSError, pa.ArrowException, SafetensorError) as error:
        raise ValueError(f"index {folder}: {part.name} is damaged ({type(error).__name__}): build it again") from error
    searcher = vector_search.read(str(part / "index.faiss"), width=width, kind=kind, recall_at_10=recall)
    if searcher.size != len(documents) or (fields.num_columns and len(fields) != len(documents)):
        raise ValueError(f"index {folder}: {searcher.size} vectors but {len(documents)} documents: build it again")
    return Index(searcher, documents, info, fields, donors=donors)


def _read_change(part: Path, folder: Path) -> Change:
    try:
        documents, fields = _read_table(part / "documents.arrow"), _read_table(part / "fields.arrow")
        removed = _read_table(part / "removed.arrow").column("doc_id").to_pylist()
        vectors_ME = np.load(part / "vectors.npy", mmap_mode="r", allow_pickle=False)
    except (ValueError, KeyError, OSError, EOFError, pa.ArrowException) as error:
        raise ValueError(f"index {folder}: {part.name} is damaged ({type(error).__name__}): build it again") from error
    if len(vectors_ME) != len(documents):
        raise ValueError(f"index {folder}: {part.name} has {len(vectors_ME)} vectors and {len(documents)} documents")
    return Change(vectors_ME, documents, fields, removed)


def _with_changes(base: Index, changes: Sequence[Change]) -> Index:
    if not changes:
        return base
    assert isinstance(base.searcher, Searcher)
    last = {name: place for place, change in enumerate(changes) for name in change.removed}
    alive = [~is_in(base.documents.column("doc_id"), list(last))]
    for place, change in enumerate(changes):
        names = change.documents.column("doc_id").to_pylist()
        alive.append(np.array([last.get(name, -1) <= place for name in names], dtype=np.bool_))
    added_ME = np.concatenate([change.vectors_ME for change in changes]).astype(np.float32, copy=False)
    alive_N = np.concatenate(alive)
    parts: list[Index | Change] = [base, *changes]
    return Index(
        ChangedSearcher(base.searcher, added_ME, alive_N),
        pa.concat_tables([part.documents for part in parts]),
        base.info | {"documents": int(alive_N.sum())},
        joined_fields([part.fields for part in parts], [len(part.documents) for part in parts]),
        alive_N,
        base.donors,
    )


def is_in(column: pa.ChunkedArray, names: Sequence[str]) -> NDArray[np.bool_]:
    """Which values of a column are among some names."""
    mask: NDArray[np.bool_] = pa.compute.is_in(column, value_set=pa.array(names, pa.string())).to_numpy()
    return mask


def joined_fields(tables: Sequence[pa.Table], rows: Sequence[int]) -> pa.Table:
    """The fields of several parts below one another; a column that a part lacks has no value there.

    Raises:
        pyarrow.ArrowException: a column has types that do not fit together.
    """
    if not any(table.num_columns for table in tables):
        return pa.table({})
    # A table without columns has no rows either: one of nulls stands for it.
    filled = [
        table if table.num_columns else pa.table({"": pa.nulls(count)})
        for table, count in zip(tables, rows, strict=True)
    ]
    found = pa.concat_tables(filled, promote_options="permissive")
    return found.drop_columns([""]) if "" in found.column_names else found


def _write_table(table: pa.Table, path: Path) -> None:
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)


def _read_table(path: Path) -> pa.Table:
    return pa.ipc.open_file(pa.memory_map(str(path))).read_all()


def _to_disk(folder: Path) -> None:
    """Wait until the files of a folder, and their names, are on the disk."""
    for path in (*(file for file in folder.iterdir() if file.is_file()), folder):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def utc_now() -> str:
    """The time as versions record it."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
