"""Heartbeats of the ranks, and an end with a name when one of them does not arrive.

Why: a rank that is stopped, or stuck in something of its own, leaves all others waiting in a collective, and what they
hear in the end, if anything, is that a connection timed out. Here each rank has a thread that writes a small file every
few seconds: the beat, the step, and how many collectives it has come to. When a rank has not moved on for the limit,
its thread looks at all files twice, says who does not beat any more or has come to fewer collectives, and ends it all;
`torchrun --max-restarts` then starts all of them again. No clock is compared between machines: a file that does not
change while one looks is that of a rank that is stopped.

`OCLEAR_COLLECTIVE_MINUTES` is the limit, of the loop of the image side. It belongs to the machine, not to the recipe.
The run folder must be one that all ranks share, as checkpoints need it anyway.
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
from train.parallel.collectives import ARRIVALS, on_main, rank, world_size

MINUTES_VARIABLE = "OCLEAR_COLLECTIVE_MINUTES"
DEFAULT_MINUTES = 30.0
EXIT_CODE = 3
SECONDS_BETWEEN_BEATS = 5.0
BEATS_PER_LIMIT = 8  # at least so many within the limit


@dataclasses.dataclass(frozen=True)
class Beat:
    """What a rank last wrote: number of the beat, step that it is in, collectives that it has come to.

    `ended`: its own watchdog has ended it, having waited for others.
    """

    beat: int
    step: int
    arrived: int
    ended: bool = False


def limit_minutes() -> float:
    """How long a rank may stand still before the run ends.

    Raises:
        ValueError: the variable is no number above 0.
    """
    wish = os.environ.get(MINUTES_VARIABLE)
    if wish is None:
        return DEFAULT_MINUTES
    try:
        minutes = float(wish)
    except ValueError:
        minutes = 0.0
    if not minutes > 0:
        raise ValueError(f"{MINUTES_VARIABLE} is {wish!r}; give a number of minutes above 0")
    return minutes


class Watchdog:
    """Beats and watches while the `with` block runs; does nothing in a run of one process.

    Args:
        folder: the run.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "heartbeats"
        self.seconds = 60 * limit_minutes()
        self.interval = min(SECONDS_BETWEEN_BEATS, self.seconds / BEATS_PER_LIMIT)
        self.step = 0
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._run, name="watchdog", daemon=True)

    def __enter__(self) -> Self:
        on_main(lambda: shutil.rmtree(self.folder, ignore_errors=True))  # of a call that was killed
        if world_size() > 1:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._write(0, (self.step, ARRIVALS.count))
            self.thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self.thread.is_alive():
            return
        self.ended.set()
        self.thread.join()
        if error is None:
            file_of(self.folder, rank()).unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # the last rank to end finds it empty
                self.folder.rmdir()

    def _run(self) -> None:
        number, before, since = 0, (-1, -1), time.monotonic()
        while not self.ended.is_set():
            now = self.step, ARRIVALS.count
            if now != before:
                before, since = now, time.monotonic()
            number += 1
            self._write(number, now)
            if time.monotonic() - since > self.seconds:
                self._look(number, now)
            self.ended.wait(self.interval)

    def _write(self, number: int, now: tuple[int, int], *, ended: bool = False) -> None:
        beat = Beat(beat=number, step=now[0], arrived=now[1], ended=ended)
        write_json(file_of(self.folder, rank()), dataclasses.asdict(beat))

    def _look(self, number: int, now: tuple[int, int]) -> None:
        """Look at all ranks twice, beating on meanwhile; say who is missing, and end the process."""
        first = read_beats(self.folder, world_size())
        for turn in range(1, 4):
            self.ended.wait(self.interval)
            self._write(number + turn, now)
        second = read_beats(self.folder, world_size())
        if (self.step, ARRIVALS.count) != now or self.ended.is_set():
            return
        print(
            f"error (rank {rank()}): no progress for {self.seconds:g} s in step {now[0]}, the limit of "
            f"{MINUTES_VARIABLE}: {missing_ranks(first, second)}; this rank ends, go on with --resume",
            file=sys.stderr,
            flush=True,
        )
        self._write(number, now, ended=True)
        os._exit(EXIT_CODE)  # the main thread cannot be called back from a collective


def file_of(folder: Path, part: int) -> Path:
    """Where rank `part` beats."""
    return folder / f"rank-{part:05d}.json"


def read_beats(folder: Path, ranks: int) -> list[Beat | None]:
    """The last beat of every rank; None where there is none."""
    found: list[Beat | None] = []
    for part in range(ranks):
        try:
            found.append(Beat(**json.loads(file_of(folder, part).read_text())))
        except (OSError, ValueError, TypeError):
            found.append(None)
    return found


def missing_ranks(first: Sequence[Beat | None], second: Sequence[Beat | None]) -> str:
    """Who did not arrive, from two looks at the beats, in words.

    >>> missing_ranks([Beat(4, 7, 30), Beat(9, 7, 31)], [Beat(4, 7, 30), Beat(12, 7, 31)])
    'rank 0 did not arrive: it does not beat any more, last in step 7'
    >>> missing_ranks([Beat(4, 7, 30), Beat(9, 7, 31)], [Beat(6, 7, 30), Beat(12, 7, 31)])
    'rank 0 did not arrive: it lives, in step 7, but has come to 30 collectives of 31'
    """
    most = max((beat.arrived for beat in second if beat is not None), default=0)
    said = []
    for part, (before, after) in enumerate(zip(first, second, strict=True)):
        if after is None:
            said.append(f"rank {part} did not arrive: it never beat")
        elif after.ended:
            continue
        elif before is not None and before.beat == after.beat:
            said.append(f"rank {part} did not arrive: it does not beat any more, last in step {after.step}")
        elif after.arrived < most:
            said.append(
                f"rank {part} did not arrive: it lives, in step {after.step}, but has come to {after.arrived} "
                f"collectives of {most}"
            )
    return "; ".join(said) or f"every rank lives and has come to {most} collectives: a library's own hangs"
