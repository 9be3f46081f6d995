"""The watchdog names the rank that others wait for, whether it is stopped or busy elsewhere."""

import signal
import time
from pathlib import Path

import pytest

from tests.support.ranks import Job, finished
from tests.support.synthetic_governed import write_governed
from train.parallel import watchdog
from train.parallel.topology import group_timeout
from train.parallel.watchdog import EXIT_CODE, Beat, Watchdog, limit_minutes, missing_ranks


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (
            [Beat(4, 7, 30), Beat(9, 7, 31), Beat(9, 7, 31)],
            [Beat(4, 7, 30), Beat(12, 7, 31), Beat(9, 7, 31, ended=True)],
            "rank 0 did not arrive: it writes no heartbeats any more, last in step 7",
        ),
        (
            [Beat(4, 7, 31), Beat(9, 7, 30)],
            [Beat(6, 7, 31), Beat(12, 7, 30)],
            "rank 1 did not arrive: it is running, in step 7, but has entered 30 collectives of 31",
        ),
        ([Beat(4, 7, 31), None], [Beat(6, 7, 31), None], "rank 1 did not arrive: it never wrote a heartbeat"),
        (
            [Beat(4, 7, 31), Beat(9, 7, 31)],
            [Beat(6, 7, 31), Beat(12, 7, 31)],
            "every rank is running and has entered 31 collectives: one of a library hangs",
        ),
    ],
)
def test_missing_ranks_follow_from_two_reads(first: list[Beat | None], second: list[Beat | None], message: str) -> None:
    assert missing_ranks(first, second) == message


def test_limit_must_be_a_number_of_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OCLEAR_COLLECTIVE_MINUTES", raising=False)
    assert limit_minutes() == 30
    assert group_timeout().total_seconds() == 7200
    monkeypatch.setenv("OCLEAR_COLLECTIVE_MINUTES", "240")
    assert group_timeout().total_seconds() == 8 * 3600
    for wrong in ("soon", "0", "-1", "nan"):
        monkeypatch.setenv("OCLEAR_COLLECTIVE_MINUTES", wrong)
        with pytest.raises(ValueError, match=f"OCLEAR_COLLECTIVE_MINUTES is '{wrong}'; give a number"):
            limit_minutes()


def test_rank_without_progress_names_the_missing_rank_and_exits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OCLEAR_COLLECTIVE_MINUTES", "0.002")
    monkeypatch.setattr(watchdog, "world_size", lambda: 2)
    codes: list[int] = []
    guard = Watchdog(tmp_path)

    def end(code: int) -> None:
        codes.append(code)
        guard.ended.set()

    monkeypatch.setattr("train.parallel.watchdog.os._exit", end)
    guard.step = 5
    with guard:
        deadline = time.monotonic() + 60
        while not codes and time.monotonic() < deadline:
            time.sleep(0.01)
    assert codes == [EXIT_CODE]
    error = capsys.readouterr().err
    assert "error (rank 0): no progress for 0.12 s in step 5, the limit of OCLEAR_COLLECTIVE_MINUTES" in error
    assert "rank 1 did not arrive: it never wrote a heartbeat" in error


def test_no_heartbeat_is_left_after_a_normal_end_or_written_by_one_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Watchdog(tmp_path):
        pass
    assert not any(tmp_path.iterdir())
    monkeypatch.setattr(watchdog, "world_size", lambda: 2)
    with Watchdog(tmp_path) as guard:
        while not list(tmp_path.glob("heartbeats/rank-00000.json")):
            guard.step += 1
            time.sleep(0.005)
    assert not any(tmp_path.iterdir())


@pytest.mark.distributed
def test_two_ranks_name_the_stopped_third_and_the_run_can_be_resumed(tmp_path: Path) -> None:
    write_governed(tmp_path / "governed")
    words = ["--data", tmp_path / "governed", "--out", tmp_path / "run", "--recipe", "tiny", "--resume"]
    limit = {"OCLEAR_COLLECTIVE_MINUTES": "0.25"}
    with Job(*words, ranks=3, log=tmp_path / "log", variables=limit) as job:
        assert job.wait_for_steps(tmp_path / "run", 5), job.output()
        job.signal(signal.SIGSTOP, 1)
        codes = job.codes(but=1)
        said = [line for line in job.output().splitlines() if line.startswith("error (rank")]
    # The first to end may take the other's connection away before its own limit is over.
    assert EXIT_CODE in codes
    assert 0 not in codes
    assert said
    for line in said:
        assert "rank 1 did not arrive: it writes no heartbeats any more, last in step" in line
    finished(*words, ranks=3, log=tmp_path / "log")
    assert not (tmp_path / "run" / "heartbeats").exists()
