"""After a kill or a full disk, a rerun gives the tables of an undisturbed run."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from threadpoolctl import threadpool_limits

from data_governance import stage
from data_governance.__main__ import main
from data_governance.pipeline import PIPELINE
from tests.support.synthetic_shop import SyntheticShop, write_shop

ROOT = Path(__file__).resolve().parents[2]


def killed_when(ready: Callable[[], bool], shop: SyntheticShop, out: Path) -> bool:
    """Start the user's command and kill it as soon as `ready`; False when it ended before."""
    command = [sys.executable, "-m", "data_governance", "run", *shop.arguments, "--out", str(out)]
    run = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while run.poll() is None:
        if ready():
            run.send_signal(signal.SIGKILL)
            run.wait()
            return True
        time.sleep(0.002)
    return False


def facts(governed: Path) -> Any:
    """ledger.json without the seconds."""
    found = json.loads((governed / "ledger.json").read_text())
    for notes in found["notes"].values():
        notes.pop("seconds")
    return found


def sorted_rows(governed: Path) -> dict[str, list[Any]]:
    names = ["categories.parquet", "category_map.parquet", "ledger.parquet", "samples"]
    names += [f"dropped/{name}.parquet" for name in ("behaviour", "queries", "catalogue")]
    return {name: sorted(map(repr, pq.read_table(governed / name).to_pylist())) for name in names}


def same_tables(ours: Path, theirs: Path, said: str) -> None:
    """The ledger, what is exported, and every table of every stage to the last bit."""
    assert facts(ours) == facts(theirs), said
    assert sorted_rows(ours) == sorted_rows(theirs), said
    for path in sorted((theirs / "stages").glob("*/*.parquet")):
        where = path.relative_to(theirs)
        assert pq.read_table(ours / where).equals(pq.read_table(path)), f"{said}: {where}"


@pytest.mark.slow
def test_a_run_killed_several_times_gives_the_tables_of_an_uninterrupted_one(tmp_path: Path) -> None:
    (tmp_path / "shop").mkdir()
    shop = write_shop(tmp_path / "shop", categories=6, queries=3)
    assert main(["run", *shop.arguments, "--out", str(tmp_path / "alone")]) == 0
    out = tmp_path / "out"
    stages = out / "stages"
    moment = float(np.random.default_rng().uniform(0.0, 1.0))
    begun: list[float] = []

    def a_while_after_admit() -> bool:
        if (stages / "admit").exists() and not begun:
            begun.append(time.monotonic())
        return bool(begun) and time.monotonic() - begun[0] > moment

    kills = 0
    for ready in (
        lambda: (stages / ".admit.partial").exists(),
        a_while_after_admit,
        lambda: (stages / ".organise.partial").exists() or (stages / ".clean.partial").exists(),
        lambda: (out / "categories.parquet").exists(),
    ):
        kills += killed_when(ready, shop, out)
        whole = [step.name for step in PIPELINE if (stages / step.name).exists()]
        assert all((stages / name / "stage.json").exists() for name in whole), whole
    assert kills >= 3
    assert main(["run", *shop.arguments, "--out", str(out)]) == 0
    assert not list(stages.glob(".*.partial"))
    same_tables(out, tmp_path / "alone", f"the second kill came {moment} s after admit")


def test_tables_are_bit_equal_for_any_number_of_blas_threads(tmp_path: Path) -> None:
    (tmp_path / "shop").mkdir()
    shop = write_shop(tmp_path / "shop", categories=6, queries=3)
    command = [sys.executable, "-m", "data_governance", "run", *shop.arguments, "--out", str(tmp_path / "one")]
    subprocess.run(command, cwd=ROOT, env=os.environ | {"OPENBLAS_NUM_THREADS": "1"}, check=True)
    with threadpool_limits(limits=2, user_api="blas"):
        assert main(["run", *shop.arguments, "--out", str(tmp_path / "more")]) == 0
    same_tables(tmp_path / "more", tmp_path / "one", "two threads")


def test_a_folder_with_an_interrupted_export_is_not_finished(
    shop: SyntheticShop,
    governed: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "governed"
    shutil.copytree(governed, out)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr("data_governance.output.export._write", full)
        assert main(["run", *shop.arguments, "--out", str(out)]) == 2
    assert "No space left on device" in capsys.readouterr().err
    assert not (out / "ledger.json").exists()
    assert main(["report", "--governed", str(out), "--html", str(tmp_path / "r.html")]) == 2
    assert main(["run", *shop.arguments, "--out", str(out)]) == 0
    assert facts(out) == facts(governed)


@contextmanager
def no_file_larger_than(size: int) -> Iterator[None]:
    """The operating system refuses every write beyond `size` bytes of a file, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_keeps_the_last_complete_stage(tmp_path: Path) -> None:
    workspace = stage.Workspace(tmp_path)
    small = stage.StageResult(tables={"edges": pa.table({"clicks": [1, 2, 3]})})
    workspace.commit("click_rates", small, digest="first", seconds=0)
    noise = np.random.default_rng(0).random(100_000)
    large = stage.StageResult(tables={"edges": pa.table({"clicks": noise})})
    with no_file_larger_than(20_000), pytest.raises(ValueError, match=r"stage click_rates: cannot write .*run again"):
        workspace.commit("click_rates", large, digest="second", seconds=0)
    assert workspace.is_complete("click_rates", "first")
    assert workspace.table("click_rates", "edges").column("clicks").to_pylist() == [1, 2, 3]
