"""The requested launch is read from the launcher's arguments; torch gets the idle cores of the machine."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from train.parallel.topology import RequestedLaunch, arguments_of_launch, requested_launch, set_threads

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
def test_number_of_processes_is_read_from_launcher_arguments(words: str, processes: int) -> None:
    assert requested_launch(words.split(), environment={}) == RequestedLaunch(num_processes=processes, fsdp=False)


def test_fsdp_is_read_from_configuration_file_and_environment() -> None:
    assert requested_launch(["--config_file", str(LAUNCH / "fsdp2.yaml"), "train/run.py"], environment={}).fsdp
    assert requested_launch([], environment={"ACCELERATE_USE_FSDP": "true"}).fsdp


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
def test_every_form_of_the_launch_command_is_recognised(command: str, arguments: str) -> None:
    assert arguments_of_launch(command.split()) == arguments.split()


def test_no_launcher_requests_nothing() -> None:
    assert requested_launch([], environment={}) == RequestedLaunch(num_processes=None, fsdp=False)


def test_thread_count_must_be_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OCLEAR_THREADS", "many")
    with pytest.raises(ValueError, match="OCLEAR_THREADS is 'many'"):
        set_threads()


@pytest.mark.parametrize(("ranks", "output"), [("1", "last words\ninterpreter shutdown\n"), ("2", "last words\n")])
def test_rank_of_several_exits_with_its_code_and_output_but_without_interpreter_shutdown(
    ranks: str, output: str
) -> None:
    code = "import atexit; atexit.register(print, 'interpreter shutdown')"
    code += "; from train.parallel.topology import exit_process"
    code += "; print('last words'); exit_process(3)"
    environment = {**os.environ, "WORLD_SIZE": ranks}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert (done.returncode, done.stdout) == (3, output)
