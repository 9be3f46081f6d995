"""One command of torchrun or accelerate survives a killed rank and reaches the same result."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.support.commands import ROOT
from tests.support.curves import assert_same_run
from tests.support.ranks import finished, steps_done
from tests.support.synthetic_governed import write_governed

# Neither is given a port: one that was free when the test looked may be taken when the launcher has started.
TORCHRUN = ("torch.distributed.run", "--standalone", "--max-restarts", 3, "--nproc-per-node", 2)
ACCELERATE = (
    "accelerate.commands.accelerate_cli",
    "launch",
    "--config_file",
    ROOT / "train" / "launch" / "cpu_two_processes.yaml",
    "--max_restarts",
    3,
)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`alone`: one process without a stop."""
    base = tmp_path_factory.mktemp("launchers")
    write_governed(base / "governed")
    finished(*words_for(base, "alone"), log=base / "log")
    return base


def words_for(base: Path, out: str) -> list[object]:
    words: list[object] = ["--data", base / "governed", "--out", base / out, "--recipe", "tiny"]
    return [*words, "--features", base / "features"]


def ranks_of(launcher: int) -> list[psutil.Process]:
    children = psutil.Process(launcher).children(recursive=True)
    return [child for child in children if "run.py" in " ".join(child.cmdline())]


@pytest.mark.distributed
@pytest.mark.parametrize("launcher", [TORCHRUN, ACCELERATE], ids=["torchrun", "accelerate"])
def test_one_command_goes_on_by_itself_after_a_killed_rank(
    base: Path, reordered_tiny: Path, launcher: tuple[object, ...]
) -> None:
    out = base / str(launcher[0])
    words = [*launcher, ROOT / "train" / "run.py", *words_for(base, out.name), "--resume"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OCLEAR_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", *map(str, words)]
    with (base / f"{out.name}.log").open("w+") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
        try:
            deadline = time.monotonic() + 300
            while steps_done(out) < 30:
                assert process.poll() is None, Path(log.name).read_text()[-3000:]
                assert time.monotonic() < deadline, Path(log.name).read_text()[-3000:]
                time.sleep(0.01)
            ranks_of(process.pid)[1].send_signal(signal.SIGKILL)
            assert process.wait(timeout=300) == 0, Path(log.name).read_text()[-3000:]
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    assert "resumed from step-000000" in Path(log.name).read_text()
    assert_same_run(out, base / "alone", reordered=[reordered_tiny])
