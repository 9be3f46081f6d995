"""Commands of the code base in subprocesses, on one or several ranks."""

import os
import subprocess
import sys
from pathlib import Path

from accelerate.state import AcceleratorState

ROOT = Path(__file__).resolve().parents[2]
TRAIN = ROOT / "train" / "run.py"
FSDP2_TRAIN = ROOT / "tests" / "support" / "fsdp2_gloo.py"  # the same command, with FSDP2 on CPU ranks
TIMEOUT = 600  # seconds of a command
# What `accelerate launch` sets for FSDP2, for ranks that torchrun starts.
FSDP2 = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT",
}


def run_python(*words: object, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run `python WORDS` on one thread without network; `variables` are extra environment variables."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OCLEAR_THREADS": "1", "HF_HUB_OFFLINE": "1"} | variables
    command = [sys.executable, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=False, env=environment)


def python_output(*words: object, **variables: str) -> str:
    """Run `python WORDS` as `run_python`, assert success and return stdout."""
    done = run_python(*words, **variables)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def on_ranks(ranks: int, *words: object) -> list[object]:
    """Words of a command that runs a program on `ranks` processes of this machine."""
    return ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", ranks, *words]


def reset_accelerator() -> None:
    """Forget the process-wide state of accelerate, so that the next Accelerator is built anew."""
    AcceleratorState._reset_state(reset_partial_state=True)
