"""The folder of checkpoints: which one is whole, which is the best, what a torn one lacks, and which may go.

Why apart: these are questions about files, asked before there is a model. A checkpoint is whole when every file that
its `state.json` lists is there in its full size. It appears under its name by one rename, and it goes by a rename to a
hidden name before its files are removed: a process killed at any moment leaves nothing that looks whole and is not.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from runtime.files import write_json

STATE_FILE = "state.json"


def read_state(path: Path) -> dict[str, Any]:
    """What the checkpoint says about itself: step, figure, identity of the run, list of files."""
    state: dict[str, Any] = json.loads((path / STATE_FILE).read_text())
    return state


def torn_by(path: Path) -> str | None:
    """What makes the checkpoint unreadable, in words that name the file; None when it is whole."""
    try:
        listed = read_state(path)["files"]
    except FileNotFoundError:
        return f"{STATE_FILE} is missing"
    except (OSError, json.JSONDecodeError, KeyError, TypeError, UnicodeDecodeError):
        return f"{STATE_FILE} is cut short"
    for name, size in listed.items():
        if not (path / name).is_file():
            return f"{name} is missing"
        if (path / name).stat().st_size != size:
            return f"{name} has {(path / name).stat().st_size} of {size} bytes"
    return None


def is_whole(path: Path) -> bool:
    """Whether every file that the checkpoint's list names is there in its full size."""
    return torn_by(path) is None


def newest_checkpoint(folder: Path) -> Path | None:
    """The whole checkpoint with the most steps, or None; torn ones are passed over."""
    return next((path for path in _newest_first(folder) if is_whole(path)), None)


def best_checkpoint(folder: Path) -> Path | None:
    """The whole checkpoint with the largest figure, the earliest of equal ones; None when none has a figure."""
    known = [(path, read_state(path).get("figure")) for path in reversed(_newest_first(folder)) if is_whole(path)]
    judged = [(path, float(figure)) for path, figure in known if figure is not None]
    return max(judged, key=lambda pair: pair[1])[0] if judged else None


def checkpoint_to_resume(folder: Path) -> Path | None:
    """The newest whole checkpoint, saying which newer ones are passed over and why; None in a folder without any.

    Raises:
        ValueError: there are checkpoints, but each lacks a file; the folder and the files are named.
    """
    torn: dict[str, str] = {}
    for path in _newest_first(folder):
        reason = torn_by(path)
        if reason is None:
            for name, said in torn.items():
                print(f"checkpoint {name} is passed over: {said}", flush=True)
            return path
        torn[path.name] = reason
    if torn:
        said = "; ".join(f"{name}: {reason}" for name, reason in torn.items())
        raise ValueError(
            f"{folder} holds no whole checkpoint ({said}); put the file back, or remove the folder to start from the "
            "beginning"
        )
    return None


def put_in_place(partial: Path, whole: Path, state: dict[str, Any], *, keep: int) -> None:
    """List the files of `partial`, rename it to `whole`, and drop what need not stay.

    Args:
        state: what state.json says beside the list. keep: how many of the newest stay beside the best one.
    """
    files = {str(path.relative_to(partial)): path.stat().st_size for path in partial.rglob("*") if path.is_file()}
    write_json(partial / STATE_FILE, {**state, "files": files})
    _remove(whole)
    os.replace(partial, whole)
    best = best_checkpoint(whole.parent)
    kept = [path for path in _newest_first(whole.parent) if is_whole(path)]
    for old in kept[keep:]:
        if old != best:
            _remove(old)


def clear(partial: Path) -> None:
    """An empty `partial`, and nothing left over from calls that were killed."""
    for old in partial.parent.glob(".step-*"):
        shutil.rmtree(old)
    partial.mkdir(parents=True)


def _newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*"), reverse=True)


def _remove(path: Path) -> None:
    if path.exists():
        hidden = path.with_name(f".{path.name}.removed")
        shutil.rmtree(hidden, ignore_errors=True)
        os.replace(path, hidden)
        shutil.rmtree(hidden)
