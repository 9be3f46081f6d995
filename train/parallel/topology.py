"""Where the run really runs: threads, processes, device; and a stop when that is not what was asked for.

Why: some launch settings silently do nothing. `accelerate launch --cpu --num_processes 2` starts one process; an FSDP
file on a machine without GPUs trains something else; a plain `Accelerator()` on a CPU leaves each of two processes
on its own. A run that is not the one asked for stops here, before it has cost anything.
"""

import datetime
import functools
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import psutil
import torch
from accelerate import Accelerator, DistributedType
from accelerate.commands.config.config_args import default_config_file, load_config_from_file
from accelerate.commands.launch import launch_command_parser
from accelerate.utils import InitProcessGroupKwargs
from torch._C._distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import register_rendezvous_handler, rendezvous

from runtime.threads import num_threads
from train.parallel.watchdog import limit_minutes

RESTART_SCHEME = "restart"
# Other ranks wait this long while the main one caches features; in the loop the limit is that of watchdog.py.
LEAST_WAIT = datetime.timedelta(hours=2)


@dataclass(frozen=True)
class Asked:
    """What the launcher was told: number of processes (None = not said) and whether FSDP."""

    num_processes: int | None
    fsdp: bool


def start_topology(*, tracker: str, folder: Path, seed: int) -> Accelerator:
    """Join the process group, compare it with what was asked for, print it.

    Args:
        tracker: "none" or "tensorboard". folder: where the tracker writes.

    Raises:
        ValueError: the topology is not the one asked for.
    """
    threads = set_threads()
    asked = asked_for(launcher_arguments(), environment=dict(os.environ))
    really = int(os.environ.get("WORLD_SIZE", "1"))
    _same_processes(asked, really)
    accelerator = Accelerator(
        cpu=not torch.accelerator.is_available(),
        kwargs_handlers=[InitProcessGroupKwargs(init_method=meeting_place(), timeout=group_timeout())],
        log_with=None if tracker == "none" else tracker,
        project_dir=str(folder),
    )
    _same_processes(asked, accelerator.num_processes)
    if asked.fsdp and accelerator.distributed_type != DistributedType.FSDP:
        raise ValueError(
            f"FSDP was asked for, but accelerate gives {accelerator.distributed_type.value} on "
            f"{accelerator.device.type}: FSDP needs GPUs; use train/launch/cpu_two_processes.yaml on a CPU"
        )
    torch.manual_seed(seed)
    if accelerator.is_main_process:
        print(describe(accelerator, threads=threads), flush=True)
    return accelerator


def leave(code: int) -> NoReturn:
    """End the process with `code`; one of several without taking the interpreter apart.

    Gloo's threads outlive `destroy_process_group` where something still refers to a group, and one that drops a tensor
    while the interpreter ends aborts the process (pytorch/pytorch#179291). The launcher then kills the main rank too,
    which may still be fitting the text side.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def meeting_place() -> str | None:
    """How the ranks find each other: None is as torch does it, else by a store in which each start has its own keys.

    torchrun keeps one store through all restarts, and torch 2.13 takes no care which start has written what. A rank
    that is ready before another then finds the address of the one that was killed, cannot connect, and costs a
    restart, until none is left. Each machine counts restarts for itself: on several, launch with
    TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 instead, which makes a store for every start.
    """
    is_kept = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True" and os.environ.get("GROUP_WORLD_SIZE") == "1"
    if not is_kept or "TORCHELASTIC_RESTART_COUNT" not in os.environ:
        return None
    _know_restarts()
    return f"{RESTART_SCHEME}://"


@functools.cache
def _know_restarts() -> None:
    register_rendezvous_handler(RESTART_SCHEME, _own_keys)


def _own_keys(url: str, **options: Any) -> Iterator[tuple[Store, int, int]]:
    """What env:// gives, with the keys of this start apart from those of the starts before."""
    store, part, parts = next(rendezvous(f"env:{url.partition(':')[2]}", **options))
    yield PrefixStore(f"start-{os.environ['TORCHELASTIC_RESTART_COUNT']}", store), part, parts


def group_timeout() -> datetime.timedelta:
    """How long a collective waits before the library gives up; longer than the watchdog, which knows names.

    Raises:
        ValueError: `OCLEAR_COLLECTIVE_MINUTES` is no number above 0.
    """
    return max(LEAST_WAIT, datetime.timedelta(minutes=2 * limit_minutes()))


def describe(accelerator: Accelerator, *, threads: int) -> str:
    """One line that says what the run has."""
    backend = accelerator.state.backend or "no process group"
    return (
        f"topology: {accelerator.num_processes} process(es), {backend}, {accelerator.distributed_type.value}, "
        f"device {accelerator.device.type}, {threads} thread(s) each"
    )


def launcher_arguments() -> list[str]:
    """Arguments of the `accelerate launch` that started this process; empty when it was started otherwise."""
    try:
        words = psutil.Process(os.getppid()).cmdline()
    except psutil.Error:
        return []
    return arguments_of_launch(words)


def arguments_of_launch(words: list[str]) -> list[str]:
    """What follows `accelerate launch`, `accelerate-launch` or their `python -m` forms; empty for another command."""
    for place, word in enumerate(words):
        name = Path(word).name
        if name in ("accelerate-launch", "accelerate.commands.launch"):
            return words[place + 1 :]
        if name in ("accelerate", "accelerate.commands.accelerate_cli") and words[place + 1 : place + 2] == ["launch"]:
            return words[place + 2 :]
    return []


def asked_for(arguments: list[str], *, environment: dict[str, str]) -> Asked:
    """What the launcher's own arguments, its configuration file and its variables ask for.

    Args:
        arguments: what followed `accelerate launch`; empty when unknown.
    """
    fsdp = environment.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    if not arguments:
        return Asked(num_processes=None, fsdp=fsdp)
    said, _ = launch_command_parser().parse_known_args(arguments)
    processes = said.num_processes
    # The launcher reads its default file only without --cpu.
    if said.config_file is not None or (Path(default_config_file).is_file() and not said.cpu):
        settings = load_config_from_file(said.config_file)
        processes = settings.num_processes if processes is None else processes
        fsdp = fsdp or settings.distributed_type == DistributedType.FSDP
    return Asked(num_processes=processes, fsdp=fsdp)


def _same_processes(asked: Asked, really: int) -> None:
    if asked.num_processes is not None and asked.num_processes > 0 and asked.num_processes != really:
        raise ValueError(
            f"{asked.num_processes} processes were asked for, but accelerate runs {really}; on a CPU use "
            "`--config_file train/launch/cpu_two_processes.yaml` or `--multi_gpu` (accelerate's name for several "
            "processes on one machine), not `--cpu`"
        )


def set_threads() -> int:
    """Set and return torch's number of threads: OCLEAR_THREADS, else the idle cores shared by this machine's processes.

    Raises:
        ValueError: `OCLEAR_THREADS` is not a whole number above 0.
    """
    threads = num_threads(processes=int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    torch.set_num_threads(threads)
    return threads
