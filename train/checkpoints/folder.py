"""Find complete checkpoints, report incomplete ones, prune old ones.

A checkpoint is complete if every file that its `state.json` lists exists in its full size. It appears under its name by
one rename, and before its files are removed it is renamed to a hidden name: a process killed at any moment leaves no
incomplete checkpoint that looks complete.
"""

import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

from runtime.files import write_json

logger = logging.getLogger(__name__)

STATE_FILE = "state.json"


def read_state(path: Path) -> dict[str, Any]:
    """Contents of state.json: step, metric ("figure"), identity of the run, list of files."""
    state: dict[str, Any] = json.loads((path / STATE_FILE).read_text())
    return state


def incomplete_reason(path: Path) -> str | None:
    """Why the checkpoint is incomplete, naming the file; None if it is complete."""
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


def is_complete(path: Path) -> bool:
    """Whether every listed file exists in its full size."""
    return incomplete_reason(path) is None


def newest_checkpoint(folder: Path) -> Path | None:
    """The complete checkpoint with the most steps, or None."""
    return next((path for path in _newest_first(folder) if is_complete(path)), None)


def best_checkpoint(folder: Path) -> Path | None:
    """The complete checkpoint with the largest metric, the earliest of equal ones; None if none has a metric."""
    found = [(path, read_state(path).get("figure")) for path in reversed(_newest_first(folder)) if is_complete(path)]
    measured = [(path, float(metric)) for path, metric in found if metric is not None]
    return max(measured, key=lambda pair: pair[1])[0] if measured else None


def checkpoint_to_resume(folder: Path) -> Path | None:
    """The newest complete checkpoint, logging why newer ones are skipped; None in a folder without any.

    Raises:
        ValueError: there are checkpoints, but all are incomplete; names the folder and the files.
    """
    incomplete: dict[str, str] = {}
    for path in _newest_first(folder):
        reason = incomplete_reason(path)
        if reason is None:
            for name, skipped_for in incomplete.items():
                logger.info("checkpoint %s is skipped: %s", name, skipped_for)
            return path
        incomplete[path.name] = reason
    if incomplete:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in incomplete.items())
        raise ValueError(
            f"{folder} holds no complete checkpoint ({reasons}); put the file back, or remove the folder to start from "
            "the beginning"
        )
    return None


def publish_checkpoint(partial: Path, final: Path, state: dict[str, Any], *, keep: int) -> None:
    """List the files of `partial` in state.json, rename it to `final`, and remove old checkpoints.

    Args:
        state: contents of state.json beside the list. keep: how many of the newest to keep beside the best one.
    """
    files = {str(path.relative_to(partial)): path.stat().st_size for path in partial.rglob("*") if path.is_file()}
    write_json(partial / STATE_FILE, {**state, "files": files})
    _remove(final)
    os.replace(partial, final)
    best = best_checkpoint(final.parent)
    kept = [path for path in _newest_first(final.parent) if is_complete(path)]
    for old in kept[keep:]:
        if old != best:
            _remove(old)


def drop_checkpoints_after(folder: Path, step: int) -> None:
    """Remove the checkpoints of more than `step` steps."""
    for path in _newest_first(folder):
        if int(path.name.removeprefix("step-")) > step:
            _remove(path)


def clear_partial(partial: Path) -> None:
    """Create the empty folder `partial`; remove what killed processes have left beside it."""
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
