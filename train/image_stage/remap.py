"""Maps class rows of a checkpoint to the categories of a newer governed folder.

Categories come, go, merge and split whenever governance runs again; a long training run continues with them. Rows are
matched by category key; `category_map.parquet` of the governed folder names the event of every old key.

| event | row | optimiser state |
|---|---|---|
| kept, renamed | unchanged, bit for bit | unchanged |
| merged | mean direction, weighted by training samples; length of the largest | of the largest |
| new, split off | mean of the embeddings of its samples under the current encoders | fresh |
| retired, now held out | dropped | dropped |

A key without an event is refused before anything changes.

Letters: P places of class rows, W width of a row.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from train.checkpoints.checkpoint import CLASSES_FILE, check_rows, load_checkpoint
from train.checkpoints.row_blocks import read_rows
from train.class_weights.class_table import ClassTable
from train.class_weights.initialization import SideRowsOfClass, start_from_means, while_running
from train.class_weights.shard import ClassShard
from train.image_stage.step import ImageStage
from train.parallel.collectives import on_main, rank

logger = logging.getLogger(__name__)

EVENTS = ("kept", "renamed", "merged", "split", "retired", "new")
ROWS_AT_ONCE = 2**16
SHOWN = 5
Event = tuple[str | None, str, str | None]


@dataclass(frozen=True)
class ClassChanges:
    """The old rows from which each new class is made.

    Attributes:
        sources: for each new class the old places that it inherits, the one with the most samples first (ties: the
            lower place); empty: it starts from its samples.
        retired: number of old classes that no new one inherits.
    """

    sources: tuple[tuple[int, ...], ...]
    retired: int

    @property
    def started(self) -> np.ndarray:
        """(N,) bool: new classes without an old row."""
        return np.array([not places for places in self.sources], dtype=bool)

    def counts(self) -> dict[str, int]:
        """Numbers of classes that were kept, merged, started and retired, for the log line."""
        taken = [len(places) for places in self.sources]
        return {
            "kept": taken.count(1),
            "merged": sum(number > 1 for number in taken),
            "started": taken.count(0),
            "retired": self.retired,
        }


def plan_changes(old: ClassTable, new: ClassTable, events: Sequence[Event]) -> ClassChanges:
    """Match two tables by key and by the map's events.

    Raises:
        ValueError: an unknown event, or a key of either table that the map does not cover; the difference is shown.
    """
    unknown = sorted({event for _, event, _ in events} - set(EVENTS))
    if unknown:
        raise ValueError(f"category_map.parquet has the events {', '.join(unknown)}; known: {', '.join(EVENTS)}")
    _check_covered(old, new, events)
    place = {key: number for number, key in enumerate(old.keys)}
    parents: dict[str, set[int]] = {key: {place[key]} for key in new.keys if key in place}
    for old_key, event, new_key in events:
        if event in ("renamed", "merged", "kept") and old_key in place and new_key is not None:
            parents.setdefault(new_key, set()).add(place[old_key])
    sources = tuple(tuple(sorted(parents.get(key, ()), key=lambda p: (-old.samples[p], p))) for key in new.keys)
    return ClassChanges(sources, len(set(place.values()) - {p for places in sources for p in places}))


def _check_covered(old: ClassTable, new: ClassTable, events: Sequence[Event]) -> None:
    here, there = set(new.keys), set(old.keys)
    covered_old = {key for key, _, _ in events if key is not None}
    covered_new = {key for _, _, key in events if key is not None}
    lost, came = sorted(there - here - covered_old), sorted(here - there - covered_new)
    if not lost and not came:
        return
    raise ValueError(
        f"the checkpoint was written with other categories: {len(new.keys)} classes here, {len(old.keys)} there; "
        f"only here: {_some(sorted(here - there))}; only there: {_some(sorted(there - here))}; category_map.parquet "
        f"names no event for {_some(lost)} and no origin of {_some(came)}. Govern "
        "with --previous and the folder that the run was started with, resume with that folder, or give another --out"
    )


def _some(keys: Sequence[str]) -> str:
    more = f" and {len(keys) - SHOWN} more" if len(keys) > SHOWN else ""
    return (", ".join(keys[:SHOWN]) or "none") + more


def resume_classes(
    side: ImageStage, path: Path, table: ClassTable, *, events: Sequence[Event], rows: dict[str, SideRowsOfClass]
) -> None:
    """Load a checkpoint of another table of classes; all ranks call it.

    Args:
        table: of this run. rows: training rows of each class of this run.

    Raises:
        ValueError: see `plan_changes`, or rows of another width or type; nothing has changed then.
    """
    old = ClassTable.read(path / CLASSES_FILE)
    changes = on_main(lambda: plan_changes(old, table, events))
    on_main(lambda: check_rows(path, side.shard, with_classes=False) and None)
    load_checkpoint(side, path, with_classes=False)
    take_rows(side.shard, path, changes, samples=old.samples)
    started = changes.started
    inputs = {"query": side.query_inputs, "document": side.document_inputs}
    embed = while_running(side.encoders, inputs, like=side.shard.like, width=side.recipe.model.hidden_size)
    start_from_means(side.shard, embed, rows, only=started, on_every_rank=True)
    if rank() == 0:
        counts = ", ".join(f"{number} {event}" for event, number in changes.counts().items())
        logger.info("categories changed: %s", counts)


def take_rows(shard: ClassShard, path: Path, changes: ClassChanges, *, samples: np.ndarray) -> None:
    """Fill the rows of this rank's classes that have old ones, with their state; the others get fresh state.

    Args:
        shard: with the optimiser history of the checkpoint. samples: training samples of the old classes.
    """
    for tensor in shard.optimizer.tensors.values():
        tensor.zero_()
    sources = changes.sources[shard.start : shard.end]
    most = max((len(places) for places in sources), default=0)
    merged = np.array([place for place, old in enumerate(sources) if len(old) > 1], dtype=np.int64)
    shape = (len(merged), shard.sub_centres, shard.hidden_size)
    total, length = torch.zeros(shape, dtype=torch.float64), torch.ones(shape[0], shape[1], 1, dtype=torch.float64)
    # The largest is copied last, so that its optimiser state remains.
    for turn in reversed(range(most)):
        pairs = [(place, old[turn]) for place, old in enumerate(sources) if len(old) > turn]
        _copy_rows(shard, path, np.array(pairs, dtype=np.int64).reshape(-1, 2))
        here = np.array([number for number, place in enumerate(merged) if len(sources[place]) > turn], dtype=np.int64)
        if len(here):
            ids = torch.from_numpy(merged[here])
            rows = shard.rows_of(ids + shard.start).double().cpu().view(len(here), *shape[1:])
            weight = np.array([samples[sources[place][turn]] for place in merged[here]], dtype=np.float64)
            length[here] = rows.norm(dim=2, keepdim=True)
            total[here] += torch.from_numpy(weight)[:, None, None] * torch.nn.functional.normalize(rows, dim=2)
            if turn == 0:
                _settle(shard, ids, torch.nn.functional.normalize(total, dim=2) * length)
    started = np.flatnonzero(changes.started[shard.start : shard.end])
    shard.optimizer.settle(torch.from_numpy(started).to(shard.weight.device))


def _settle(shard: ClassShard, places_P: Tensor, rows: Tensor) -> None:
    """Store merged rows, whose state is up to date from here on."""
    shard.optimizer.settle(places_P.to(shard.weight.device))
    shard.put_rows(places_P + shard.start, rows.flatten(1))


def _copy_rows(shard: ClassShard, path: Path, pairs_P2: np.ndarray) -> None:
    """Copy saved rows and their state, bit for bit: (place in this shard, old place) each, block by block."""
    pairs_P2 = pairs_P2[np.argsort(pairs_P2[:, 1], kind="stable")]
    for block in np.unique(pairs_P2[:, 1] // ROWS_AT_ONCE):
        inside = pairs_P2[pairs_P2[:, 1] // ROWS_AT_ONCE == block]
        first, end = int(inside[0, 1]), int(inside[-1, 1]) + 1
        here, there = (torch.from_numpy(inside[:, column].copy()) for column in (0, 1))
        for name, tensor in shard.state().items():
            saved = read_rows(path, f"classes.{name}", first=first, end=end)
            tensor.index_copy_(0, here.to(tensor.device), saved[there - first].to(tensor.device))
