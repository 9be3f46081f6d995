"""What the launcher was asked for is read from its own words; what torch gets is what the machine has free."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from train.parallel.topology import Asked, arguments_of_launch, asked_for, set_threads

LAUNCH = Path(__file__).parents[3] / "train" / "launch"


@pytest.mark.parametrize(
    ("words", "processes"),
    [
        ("--cpu --num_processes 2 train/run.py --data x", 2),
        ("--multi_gpu --num_processes 3 train/run.py", 3),
        (f"--config_file {LAUNCH / 'cpu_two_processes.yaml'} train/run.py --seed 4", 2),
        (f"--config_file {LAUNCH / 'cpu_two_processes.yaml'} --num_processes 4 train/run.py", 4),
        (f"--config_file {LAUNCH / 'one_process.yaml'} train/run.py", 1),
    ],
)
def test_the_number_of_processes_is_read_from_the_launchers_words(words: str, processes: int) -> None:
    assert asked_for(words.split(), environment={}) == Asked(num_processes=processes, fsdp=False)


def test_fsdp_is_read_from_the_file_and_from_the_environment() -> None:
    assert asked_for(["--config_file", str(LAUNCH / "fsdp2.yaml"), "train/run.py"], environment={}).fsdp
    assert asked_for([], environment={"ACCELERATE_USE_FSDP": "true"}).fsdp


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        ("python bin/accelerate launch --cpu x.py", "--cpu x.py"),
        ("bin/accelerate-launch --cpu x.py", "--cpu x.py"),
        ("python -m accelerate.commands.accelerate_cli launch --cpu x.py", "--cpu x.py"),
        ("python -m accelerate.commands.launch --cpu x.py", "--cpu x.py"),
        ("bash -c accelerate config", ""),
        ("torchrun --nproc_per_node 2 train/run.py", ""),
    ],
)
def test_every_form_of_the_launcher_is_recognised(command: str, arguments: str) -> None:
    assert arguments_of_launch(command.split()) == arguments.split()


def test_nothing_is_asked_for_without_a_launcher() -> None:
    assert asked_for([], environment={}) == Asked(num_processes=None, fsdp=False)


def test_a_wish_for_threads_that_is_no_number_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OCLEAR_THREADS", "many")
    with pytest.raises(ValueError, match="OCLEAR_THREADS is 'many'"):
        set_threads()


@pytest.mark.parametrize(("ranks", "said"), [("1", "last words\ntaken apart\n"), ("2", "last words\n")])
def test_one_rank_of_several_ends_with_its_code_and_words_before_the_interpreter_is_taken_apart(
    ranks: str, said: str
) -> None:
    words = "import atexit; atexit.register(print, 'taken apart'); from train.parallel.topology import leave"
    words += "; print('last words'); leave(3)"
    environment = {**os.environ, "WORLD_SIZE": ranks}
    done = subprocess.run([sys.executable, "-c", words], capture_output=True, text=True, env=environment, check=False)
    assert (done.returncode, done.stdout) == (3, said)
