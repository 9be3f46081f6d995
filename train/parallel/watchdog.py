"""Watchdog: heartbeat files of the ranks, and an exit that names a hanging rank.

A rank that is stopped, or that hangs outside a collective, leaves all others waiting in one, until the library reports
a connection timeout without naming it. Here a thread of each rank writes a small heartbeat file every few seconds:
number of the heartbeat, step, and collectives entered. When a rank has made no progress for the limit, its thread reads
all files twice, reports the ranks that write no heartbeats or have entered fewer collectives, and ends the process;
`torchrun --max-restarts` then starts all of them again.

`OCLEAR_COLLECTIVE_MINUTES` is the limit in the loop of the image stage. It belongs to the machine, not to the recipe.
All ranks must share the run folder, as they must for checkpoints.
"""

import contextlib
import dataclasses
import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from runtime.files import write_json
from train.parallel.collectives import CollectiveCounter, counting, on_main, rank, world_size

MINUTES_VARIABLE = "OCLEAR_COLLECTIVE_MINUTES"
DEFAULT_MINUTES = 30.0
EXIT_CODE = 3
SECONDS_BETWEEN_BEATS = 5.0
BEATS_PER_LIMIT = 8  # at least so many heartbeats within the limit


@dataclasses.dataclass(frozen=True)
class Beat:
    """Last heartbeat of a rank.

    Attributes:
        beat: number of the heartbeat. step: current step. arrived: collectives entered.
        ended: its own watchdog has ended it, after it had waited for others.
    """

    beat: int
    step: int
    arrived: int
    ended: bool = False


def limit_minutes() -> float:
    """Minutes without progress of a rank after which the run ends.

    Raises:
        ValueError: the variable is no number above 0.
    """
    setting = os.environ.get(MINUTES_VARIABLE)
    if setting is None:
        return DEFAULT_MINUTES
    try:
        minutes = float(setting)
    except ValueError:
        minutes = 0.0
    if not minutes > 0:
        raise ValueError(f"{MINUTES_VARIABLE} is {setting!r}; give a number of minutes above 0")
    return minutes


class Watchdog:
    """Writes and checks heartbeats while the `with` block runs; does nothing in a run of one process.

    The caller sets `step` at the start of each step.

    Args:
        folder: the run.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "heartbeats"
        self.seconds = 60 * limit_minutes()
        self.interval = min(SECONDS_BETWEEN_BEATS, self.seconds / BEATS_PER_LIMIT)
        self.step = 0
        self.collectives = CollectiveCounter()
        self.counting = contextlib.ExitStack()
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._run, name="watchdog", daemon=True)

    def __enter__(self) -> Self:
        on_main(lambda: shutil.rmtree(self.folder, ignore_errors=True))  # left by a run that was killed
        self.collectives = self.counting.enter_context(counting())
        if world_size() > 1:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._write(0, self._progress())
            self.thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.counting.close()
        if not self.thread.is_alive():
            return
        self.ended.set()
        self.thread.join()
        if error is None:
            file_of(self.folder, rank()).unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # only the last rank to end can remove it
                self.folder.rmdir()

    def _progress(self) -> tuple[int, int]:
        """(step, collectives entered)."""
        return self.step, self.collectives.count

    def _run(self) -> None:
        number, before, since = 0, (-1, -1), time.monotonic()
        while not self.ended.is_set():
            now = self._progress()
            if now != before:
                before, since = now, time.monotonic()
            number += 1
            self._write(number, now)
            if time.monotonic() - since > self.seconds:
                self._check_ranks(number, now)
            self.ended.wait(self.interval)

    def _write(self, number: int, now: tuple[int, int], *, ended: bool = False) -> None:
        beat = Beat(beat=number, step=now[0], arrived=now[1], ended=ended)
        write_json(file_of(self.folder, rank()), dataclasses.asdict(beat))

    def _check_ranks(self, number: int, now: tuple[int, int]) -> None:
        """Read all heartbeats twice, writing own ones meanwhile; report the missing ranks and end the process."""
        # Clocks of machines are not compared: a file that does not change between the reads is that of a stopped rank.
        first = read_beats(self.folder, world_size())
        for turn in range(1, 4):
            self.ended.wait(self.interval)
            self._write(number + turn, now)
        second = read_beats(self.folder, world_size())
        if self._progress() != now or self.ended.is_set():
            return
        # Printed, not logged: the process ends here, whatever logging is configured.
        print(
            f"error (rank {rank()}): no progress for {self.seconds:g} s in step {now[0]}, the limit of "
            f"{MINUTES_VARIABLE}: {missing_ranks(first, second)}; this rank ends, continue with --resume",
            file=sys.stderr,
            flush=True,
        )
        self._write(number, now, ended=True)
        os._exit(EXIT_CODE)  # the main thread cannot be interrupted in a collective


def file_of(folder: Path, part: int) -> Path:
    """Heartbeat file of rank `part`."""
    return folder / f"rank-{part:05d}.json"


def read_beats(folder: Path, ranks: int) -> list[Beat | None]:
    """Last heartbeat of every rank; None if there is no readable file."""
    found: list[Beat | None] = []
    for part in range(ranks):
        try:
            found.append(Beat(**json.loads(file_of(folder, part).read_text())))
        except (OSError, ValueError, TypeError):
            found.append(None)
    return found


def missing_ranks(first: Sequence[Beat | None], second: Sequence[Beat | None]) -> str:
    """Message that names the ranks that others wait for, from two reads of the heartbeats.

    >>> missing_ranks([Beat(4, 7, 30), Beat(9, 7, 31)], [Beat(4, 7, 30), Beat(12, 7, 31)])
    'rank 0 did not arrive: it writes no heartbeats any more, last in step 7'
    >>> missing_ranks([Beat(4, 7, 30), Beat(9, 7, 31)], [Beat(6, 7, 30), Beat(12, 7, 31)])
    'rank 0 did not arrive: it is running, in step 7, but has entered 30 collectives of 31'
    """
    most = max((beat.arrived for beat in second if beat is not None), default=0)
    messages = []
    for part, (before, after) in enumerate(zip(first, second, strict=True)):
        if after is None:
            messages.append(f"rank {part} did not arrive: it never wrote a heartbeat")
        elif after.ended:
            continue
        elif before is not None and before.beat == after.beat:
            messages.append(f"rank {part} did not arrive: it writes no heartbeats any more, last in step {after.step}")
        elif after.arrived < most:
            messages.append(
                f"rank {part} did not arrive: it is running, in step {after.step}, but has entered {after.arrived} "
                f"collectives of {most}"
            )
    return "; ".join(messages) or f"every rank is running and has entered {most} collectives: one of a library hangs"
