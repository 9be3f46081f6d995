"""Run train/run.py on several ranks, forked from one preloaded process.

Importing the libraries takes many seconds per rank, and the tests that kill, stop and restart need dozens of starts.
Each rank is a process with the environment variables of torchrun that calls `main` of the command. The launchers
themselves are tested in test_launchers.py.
"""

import json
import multiprocessing
import os
import resource
import signal
import sys
import time
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from torch._C._distributed_c10d import TCPStore

from train import run
from train.inputs.sampler import StepRows, StepSampler

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["train.run"])
TIMEOUT = 240  # seconds until a job counts as hung


class Job:
    """A run of `train/run.py WORDS` on `ranks` ranks; living ranks are killed at the end of the `with` block.

    Args:
        log: file for stdout and stderr of the ranks. variables: extra environment variables.
        rows: file for the row indices of each step of rank 0. most_bytes: size limit of written files.
    """

    def __init__(
        self,
        *words: object,
        ranks: int = 1,
        log: Path,
        variables: dict[str, str] | None = None,
        rows: Path | None = None,
        most_bytes: int | None = None,
    ) -> None:
        # The ranks meet at a store of this process, so that no port has to be guessed.
        self.store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False) if ranks > 1 else None
        self.log, self.began = log, log.stat().st_size if log.exists() else 0
        shared = {"OCLEAR_THREADS": "1", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **(variables or {})}
        self.processes: list[ForkServerProcess] = []
        for part in range(ranks):
            place = {} if self.store is None else place_of(part, ranks, self.store.port)
            settings = {**shared, **place}
            given = ([str(word) for word in words], settings, log, rows if part == 0 else None, most_bytes)
            self.processes.append(CONTEXT.Process(target=_on_rank, args=given))
        for process in self.processes:
            process.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for part, process in enumerate(self.processes):
            if process.is_alive():
                self.signal(signal.SIGKILL, part)
            process.join()

    def signal(self, number: signal.Signals, part: int) -> None:
        """Send a signal to one rank."""
        pid = self.processes[part].pid
        assert pid is not None
        os.kill(pid, number)

    def kill(self) -> None:
        """SIGKILL to all ranks."""
        for part in range(len(self.processes)):
            self.signal(signal.SIGKILL, part)

    def codes(self, *, but: int | None = None) -> list[int | None]:
        """Wait for every rank, except rank `but`, and return the exit codes."""
        waited = [process for part, process in enumerate(self.processes) if part != but]
        deadline = time.monotonic() + TIMEOUT
        for process in waited:
            process.join(max(0.0, deadline - time.monotonic()))
            assert not process.is_alive(), f"a rank has not ended in {TIMEOUT} s: {self.output()[-3000:]}"
        return [process.exitcode for process in waited]

    def wait_for_steps(self, out: Path, steps: int) -> bool:
        """Return True once train.jsonl in `out` has `steps` lines, False if the job ended before."""
        deadline = time.monotonic() + TIMEOUT
        while steps_done(out) < steps:
            if not any(process.is_alive() for process in self.processes):
                return False
            assert time.monotonic() < deadline, self.output()[-3000:]
            time.sleep(0.002)
        return True

    def output(self) -> str:
        """Output of the ranks of this job."""
        return self.log.read_bytes()[self.began :].decode()


def finished(*words: object, ranks: int = 1, log: Path, **options: Any) -> str:
    """Run to the end, assert exit codes of 0, and return the output."""
    with Job(*words, ranks=ranks, log=log, **options) as job:
        codes = job.codes()
        assert codes == [0] * ranks, job.output()[-3000:]
        return job.output()


def steps_done(out: Path) -> int:
    """Number of complete lines of train.jsonl of a run."""
    path = out / "train.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def place_of(part: int, ranks: int, port: int) -> dict[str, str]:
    """Environment variables that torchrun sets for a rank."""
    return {
        "RANK": str(part),
        "LOCAL_RANK": str(part),
        "WORLD_SIZE": str(ranks),
        "LOCAL_WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }


def _on_rank(words: list[str], settings: dict[str, str], log: Path, rows: Path | None, most_bytes: int | None) -> None:
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(file, stream)
    os.environ.update(settings)
    if rows is not None:
        _write_rows(rows)
    if most_bytes is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))
    sys.argv = ["run.py", *words]
    sys.exit(run.main())


def _write_rows(path: Path) -> None:
    """Patch the sampler so that every step appends its number and rows to a file."""
    original = StepSampler.compose

    def compose(self: StepSampler, step: int, **named: Any) -> StepRows:
        found = original(self, step, **named)
        line = {"step": step, "query": found.query.rows.tolist(), "document": found.document.rows.tolist()}
        with path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        return found

    vars(sys.modules["train.inputs.sampler"])["StepSampler"].compose = compose
