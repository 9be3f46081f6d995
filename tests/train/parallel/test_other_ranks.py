"""A run saved on two ranks continues on one, three and four with the same curve."""

import shutil
from pathlib import Path

import pytest

from tests.support.curves import assert_same_run
from tests.support.ranks import finished
from tests.support.synthetic_governed import write_governed


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`alone`: one process without a stop; `begun`: 24 steps on two ranks."""
    base = tmp_path_factory.mktemp("ranks")
    write_governed(base / "governed")
    finished(*words_for(base, "alone"), log=base / "log")
    finished(*words_for(base, "begun"), "--max-steps", 24, ranks=2, log=base / "log")
    return base


def words_for(base: Path, out: str) -> list[object]:
    words: list[object] = ["--data", base / "governed", "--out", base / out, "--recipe", "tiny"]
    return [*words, "--features", base / "features"]


@pytest.mark.parametrize(
    "ranks", [1, pytest.param(3, marks=pytest.mark.distributed), pytest.param(4, marks=pytest.mark.distributed)]
)
def test_what_two_ranks_saved_goes_on_with_another_number(base: Path, reordered_tiny: Path, ranks: int) -> None:
    out = base / f"on{ranks}"
    shutil.copytree(base / "begun", out)
    said = finished(*words_for(base, out.name), "--resume", ranks=ranks, log=base / "log")
    assert "resumed from step-00000024" in said
    assert f"topology: {ranks} process(es)" in said
    assert_same_run(out, base / "alone", reordered=[reordered_tiny])
