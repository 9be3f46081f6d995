"""Runs that are killed at any moment, or find the disk full, end like the uninterrupted run."""

import json
import shutil
import signal
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from tests.support import curves
from tests.support.curves import Curve, assert_same_curve, read_curve
from tests.support.ranks import Job, finished, steps_done
from tests.support.synthetic_governed import write_governed
from train.checkpoints.folder import incomplete_reason, newest_checkpoint
from train.recipes.registry import recipe_by_name

FIGURES = ("step", *curves.FIGURES)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`governed`, `often.json` (a checkpoint every third step), and `whole`: an uninterrupted run with its rows."""
    base = tmp_path_factory.mktemp("surviving")
    write_governed(base / "governed")
    recipe = {**recipe_by_name("tiny").to_json(), "text.encoder": None, "image.checkpoint_every": 3}
    (base / "often.json").write_text(json.dumps(recipe))
    finished(*words_for(base, "whole"), log=base / "log", rows=base / "whole_rows.jsonl")
    return base


def words_for(base: Path, out: str) -> list[object]:
    words: list[object] = ["--data", base / "governed", "--out", base / out, "--recipe", base / "often.json"]
    return [*words, "--features", base / "features"]


@pytest.fixture(scope="module")
def reordered(reordered_tiny: Path) -> Curve:
    """Curve of the image stage, summed in another order: text and checkpoints do not change it."""
    return read_curve(reordered_tiny, FIGURES)


def rows_of_attempts(path: Path) -> list[dict[int, tuple[list[int], list[int]]]]:
    """Step -> rows of each attempt; a line that the kill cut short is left out."""
    attempts: list[dict[int, tuple[list[int], list[int]]]] = []
    last = None
    for text in path.read_text().splitlines():
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            continue
        if last is None or line["step"] != last + 1:
            attempts.append({})
        last = line["step"]
        attempts[-1][last] = (line["query"], line["document"])
    return attempts


def assert_same_rows(ours: Path, theirs: Path) -> None:
    """Each step that counts is done once, in order, and every row comes up as often as in the uninterrupted run."""
    (whole,) = rows_of_attempts(theirs)
    trajectory: dict[int, tuple[list[int], list[int]]] = {}
    for attempt in rows_of_attempts(ours):
        first = min(attempt)
        assert first <= len(trajectory), "a step is left out"
        trajectory = {step: rows for step, rows in trajectory.items() if step < first} | attempt
    for side in (0, 1):
        ours_count = Counter(row for rows in trajectory.values() for row in rows[side])
        assert ours_count == Counter(row for rows in whole.values() for row in rows[side])
    assert trajectory == whole


def assert_every_checkpoint_is_complete(run: Path) -> None:
    for path in (run / "checkpoints").glob("step-*"):
        assert incomplete_reason(path) is None, path.name


def kill_at_a_random_moment(job: Job, out: Path, rng: np.random.Generator, *, part: int | None) -> None:
    """Before the first step, or within one of the next few steps and their checkpoints, or while they are exported."""
    moment = float(rng.random())
    if moment < 0.2:
        time.sleep(moment * 5)
    else:
        job.wait_for_steps(out, steps_done(out) + int(rng.integers(1, 5)))
        time.sleep(float(rng.random()) * 0.03)
    if part is None:
        job.kill()
    else:
        job.signal(signal.SIGKILL, part)


@pytest.mark.parametrize("kills", [pytest.param(4, id="4"), pytest.param(20, id="20", marks=pytest.mark.distributed)])
def test_killed_process_resumes_bit_equal_with_every_row_used_once(base: Path, kills: int) -> None:
    out, rows, rng = base / f"killed{kills}", base / f"rows{kills}.jsonl", np.random.default_rng(kills)
    words = [*words_for(base, out.name), "--resume"]
    for _ in range(kills):
        with Job(*words, log=base / "log", rows=rows) as job:
            kill_at_a_random_moment(job, out, rng, part=None)
        assert_every_checkpoint_is_complete(out)
    finished(*words, log=base / "log", rows=rows)
    ours, whole = (read_curve(run, FIGURES) for run in (out, base / "whole"))
    assert all((ours[name] == whole[name]).all() for name in FIGURES)
    for name in ("model.safetensors", "calibration.safetensors"):
        assert (out / "hub" / name).read_bytes() == (base / "whole" / "hub" / name).read_bytes()
    assert_same_rows(rows, base / "whole_rows.jsonl")


@pytest.mark.parametrize("kills", [pytest.param(2, id="2"), pytest.param(20, id="20", marks=pytest.mark.distributed)])
def test_two_ranks_of_which_one_is_killed_end_by_themselves_and_go_on(base: Path, reordered: Curve, kills: int) -> None:
    out, rows, rng = base / f"rank_killed{kills}", base / f"two_rows{kills}.jsonl", np.random.default_rng(kills)
    words = [*words_for(base, out.name), "--resume"]
    for number in range(kills):
        with Job(*words, ranks=2, log=base / "log", rows=rows) as job:
            kill_at_a_random_moment(job, out, rng, part=number % 2)
            (other,) = job.codes(but=number % 2)
            # Rank 1 has nothing more to do once the image side is trained; until then it cannot go on alone.
            assert other != 0 or steps_done(out) == 50
        assert_every_checkpoint_is_complete(out)
    finished(*words, ranks=2, log=base / "log", rows=rows)
    assert_same_curve(read_curve(out, FIGURES), read_curve(base / "whole", FIGURES), reordered=[reordered])
    assert_same_rows(rows, base / "whole_rows.jsonl")


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("in_background", [False, True], ids=["waiting", "async"])
def test_a_full_disk_ends_the_run_with_the_checkpoint_before_it_intact(
    base: Path, reordered: Curve, ranks: int, in_background: bool
) -> None:
    out = base / f"full{ranks}{in_background}"
    recipe = {**json.loads((base / "often.json").read_text()), "runtime.checkpoint_async": in_background}
    (base / f"{out.name}.json").write_text(json.dumps(recipe))
    words = [*words_for(base, out.name), "--recipe", base / f"{out.name}.json"]
    finished(*words, "--max-steps", 6, ranks=ranks, log=base / "log")
    with Job(*words, "--resume", ranks=ranks, log=base / f"{out.name}.log", most_bytes=20_000) as job:
        assert job.codes() == [2] * ranks, job.output()[-2000:]
        said = job.output()
    assert "error: the checkpoint step-00000009 cannot be written: [Errno 27] File too large" in said
    assert "make room, then go on with --resume" in said
    assert sorted(path.name for path in (out / "checkpoints").iterdir()) == ["step-00000003", "step-00000006"]
    assert_every_checkpoint_is_complete(out)
    assert "resumed from step-00000006" in finished(*words, "--resume", ranks=ranks, log=base / "log")
    assert_same_curve(read_curve(out, FIGURES), read_curve(base / "whole", FIGURES), reordered=[reordered])


def test_seconds_of_a_run_are_the_sum_over_its_calls(base: Path) -> None:
    out = base / "calls"
    shutil.copytree(base / "whole", out)
    shutil.rmtree(newest_checkpoint(out / "checkpoints") or out)
    before = json.loads((out / "training.json").read_text())
    assert len(before["calls"]) == 1
    finished(*words_for(base, "calls"), "--resume", log=base / "log")
    after = json.loads((out / "training.json").read_text())
    assert after["calls"][:-1] == before["calls"]
    for name, seconds in after["seconds"].items():
        assert seconds == pytest.approx(before["seconds"][name] + after["calls"][-1][name])
