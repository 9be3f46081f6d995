"""Several processes fill one file: each row once, resumed after a kill, one run at a time."""

import logging
import resource
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from train.inputs import feature_files
from train.inputs.feature_files import Progress, RowFile, WorkerGroup, fill_rows, locked

ROWS, BATCH = 53, 3


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feature_files, "ROWS_PER_BLOCK", 2 * BATCH)
    monkeypatch.setattr(feature_files, "SECONDS_BETWEEN_CHECKS", 0.005)


class ThreadGroup(WorkerGroup):
    """Ranks as threads: the main one's answer reaches all, as a broadcast would bring it."""

    def __init__(self, rank: int, size: int, meeting: threading.Barrier, answers: list[Any]) -> None:
        super().__init__(together=False)
        self.rank, self.size, self.meeting, self.answers = rank, size, meeting, answers

    def on_main(self, function: Callable[[], Any]) -> Any:
        if self.rank == 0:
            self.answers[:] = [function()]
        self.meeting.wait(20)
        answer = self.answers[0]
        self.meeting.wait(20)
        return answer

    def barrier(self) -> None:
        self.meeting.wait(20)


def value_of(rows: np.ndarray) -> np.ndarray:
    return np.stack([rows, rows**2], axis=1)


def fill(folder: Path, ranks: int, *, rows: int = ROWS, fail_at: int | None = None) -> list[list[int]]:
    """Fill `a.npy` and `b.npy` on so many ranks; the rows that each computed. Rank 0 fails at row `fail_at`."""
    meeting, answers = threading.Barrier(ranks), [None]
    computed: list[list[int]] = [[] for _ in range(ranks)]
    progress = Progress(folder / "made.progress", rows)
    files = {"a": RowFile(folder / "a.npy", (rows, 2), np.float32), "b": RowFile(folder / "b.npy", (rows,), bool)}

    def one(rank: int) -> None:
        def batches(wanted: np.ndarray) -> Iterator[dict[str, np.ndarray]]:
            for start in range(0, len(wanted), BATCH):
                part = wanted[start : start + BATCH]
                if fail_at is not None and fail_at in part:
                    raise RuntimeError("killed")
                computed[rank].extend(part.tolist())
                yield {"a": value_of(part), "b": part % 5 == 0}

        fill_rows(files, progress, group=ThreadGroup(rank, ranks, meeting, answers), batches=batches)

    threads = [threading.Thread(target=one, args=(rank,)) for rank in range(1, ranks)]
    for thread in threads:
        thread.start()
    one(0)
    for thread in threads:
        thread.join(20)
    return computed


def whole(folder: Path, rows: int = ROWS) -> None:
    assert (np.load(folder / "a.npy") == value_of(np.arange(rows))).all()
    assert (np.load(folder / "b.npy") == (np.arange(rows) % 5 == 0)).all()


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("rows", [ROWS, 6, 1])
def test_every_row_is_computed_by_one_rank_without_gaps(tmp_path: Path, ranks: int, rows: int) -> None:
    computed = fill(tmp_path, ranks, rows=rows)
    assert sorted(row for part in computed for row in part) == list(range(rows))
    assert all(part == list(range(part[0], part[-1] + 1)) for part in computed if part)
    if rows == ROWS:
        assert all(computed)
    whole(tmp_path, rows)


def test_rows_of_a_killed_run_are_not_computed_again_by_another_number_of_ranks(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="killed"):
        fill(tmp_path, 1, fail_at=20)
    left = sorted(row for part in fill(tmp_path, 3) for row in part)
    assert left == list(range(18, ROWS))  # blocks of six: 0 to 17 were done, 18 and 19 were not marked
    whole(tmp_path)


def test_deleted_file_is_computed_from_the_beginning(tmp_path: Path) -> None:
    fill(tmp_path, 1)
    (tmp_path / "b.npy").unlink()
    assert fill(tmp_path, 1) == [list(range(ROWS))]
    whole(tmp_path)


def test_zero_rows_or_width_give_an_empty_array(tmp_path: Path) -> None:
    file = RowFile(tmp_path / "a.npy", (4, 0, 3), np.float16)
    fill_rows(
        {"a": file},
        Progress(tmp_path / "a.progress", 4),
        group=WorkerGroup(together=False),
        batches=lambda rows: iter([{"a": np.zeros((len(rows), 0, 3))}]),
    )
    assert np.load(tmp_path / "a.npy").shape == (4, 0, 3)


def test_full_disk_is_reported_in_one_line_and_unfinished_blocks_stay_unmarked(tmp_path: Path) -> None:
    fill(tmp_path, 1, rows=6)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    folder = tmp_path / "full"
    folder.mkdir()
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, before[1]))
    try:
        with pytest.raises(ValueError, match=r"cannot write features to .*full \(File too large\); free space there"):
            fill(folder, 1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    fill(folder, 1)
    whole(folder)


def test_second_run_waits_for_the_lock(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="train.inputs.feature_files")
    order: list[str] = []

    def second() -> None:
        with locked(tmp_path / "images", group=WorkerGroup(together=False)):
            order.append("second")

    thread = threading.Thread(target=second)
    with locked(tmp_path / "images", group=WorkerGroup(together=False)):
        thread.start()
        thread.join(0.2)
        order.append("first")
    thread.join(20)
    assert order == ["first", "second"]
    assert caplog.messages == ["another run fills images; waiting for it"]
