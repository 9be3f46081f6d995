"""Atomic writes: a reader sees the old file or folder or the new one, never a half-written one.

Everything is written as `.NAME.partial` beside its final place, then renamed. A process that is killed leaves at most
that partial file, which the next write replaces.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout


def partial_path(path: Path) -> Path:
    """Where `path` is written before it is renamed.

    >>> partial_path(Path("run/model.json")).as_posix()
    'run/.model.json.partial'
    """
    return path.with_name(f".{path.name}.partial")


def final_name(partial: Path) -> str:
    """Name that a partial path will have; another path keeps its name."""
    return partial.name.removeprefix(".").removesuffix(".partial") if partial.suffix == ".partial" else partial.name


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield the path to write to; rename it to `path` at the end, or remove it if the body raises."""
    partial = partial_path(path)
    try:
        yield partial
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file atomically."""
    with atomic_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file atomically."""
    with atomic_file(path) as partial:
        partial.write_bytes(data)


def write_json(path: Path, value: Any, *, indent: int = 2) -> None:
    """Write a value as indented JSON with a final newline, atomically."""
    write_text(path, json.dumps(value, indent=indent) + "\n")


def empty_partial(folder: Path) -> Path:
    """Create the empty partial folder of `folder`; what an interrupted write left there is removed."""
    partial = partial_path(folder)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    return partial


def replace_folder(folder: Path) -> None:
    """Rename the partial folder of `folder` to its final name; an older folder is removed first."""
    # A folder cannot be renamed onto one that has content. Readers of an interrupted replacement find no folder.
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(partial_path(folder), folder)


@contextlib.contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty folder to fill; rename it to `folder` at the end, or remove it if the body raises."""
    partial = empty_partial(folder)
    try:
        yield partial
        replace_folder(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


@contextlib.contextmanager
def only_user(folder: Path, *, lock: Path | None = None, seconds: float = 1.0) -> Iterator[None]:
    """Keep a second run out of an output folder; the lock ends with its process, however that ends.

    Args:
        folder: is created.
        lock: the file that is locked; default: `.lock` in the folder. A folder that is replaced needs it elsewhere.
        seconds: to wait for another run to end.

    Raises:
        ValueError: another run uses the folder, or it cannot be written.
    """
    busy = ValueError(f"--out {folder}: another run uses this folder. Wait until it has ended, or give another --out.")
    with held_lock(lock or folder / ".lock", seconds=seconds, busy=busy, name=f"--out {folder}"):
        yield


@contextlib.contextmanager
def held_lock(path: Path, *, seconds: float, busy: Exception, name: str) -> Iterator[None]:
    """Hold a lock file, whose folder is made if there is none; the lock ends with its process.

    Args:
        seconds: to wait for another process. busy: is raised after that. name: of the folder, in messages.

    Raises:
        ValueError: the file cannot be written.
    """
    held = FileLock(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        held.acquire(timeout=seconds)
    except Timeout as error:
        raise busy from error
    except OSError as error:
        raise ValueError(f"{name}: cannot be written ({error.strerror or error}).") from error
    try:
        yield
    finally:
        held.release()
