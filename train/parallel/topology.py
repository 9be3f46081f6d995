"""Processes, threads and device of a run, checked against the requested launch.

Some launch settings silently do nothing. `accelerate launch --cpu --num_processes 2` starts one process; an FSDP
configuration on a machine without GPUs trains data-parallel; a plain `Accelerator()` on a CPU leaves each of two
processes on its own. Such a run stops here, before it has computed anything.
"""

import datetime
import logging
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import psutil
import torch
from accelerate import Accelerator, DistributedType
from accelerate.commands.config.config_args import default_config_file, load_config_from_file
from accelerate.commands.launch import launch_command_parser
from accelerate.utils import InitProcessGroupKwargs

from runtime.threads import num_threads
from train.parallel.rendezvous import rendezvous_init_method
from train.parallel.watchdog import limit_minutes

logger = logging.getLogger(__name__)

# Other ranks wait this long while the main one caches features; in the training loop the watchdog's limit applies.
LEAST_WAIT = datetime.timedelta(hours=2)


@dataclass(frozen=True)
class RequestedLaunch:
    """Number of processes (None = not given) and FSDP, as the launcher was told."""

    num_processes: int | None
    fsdp: bool


def use_huge_pages() -> None:
    """Let torch request memory pages of 2 MiB; call it before the first tensor is allocated.

    A step reads rows that lie far apart in tables of gigabytes, and allocates tensors of tens of megabytes. In pages
    of 4 KiB it waits for address look-ups and fresh pages: with pages of 2 MiB gathering took half the time at ten
    million classes (docs/head.md). torch reads the variable at its first allocation and never again; operating systems
    other than Linux ignore it.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


def start_topology(*, tracker: str, folder: Path, seed: int) -> Accelerator:
    """Join the process group, compare it with the requested launch, log it.

    Args:
        tracker: "none" or "tensorboard". folder: where the tracker writes.

    Raises:
        ValueError: the topology differs from the requested one.
    """
    threads = set_threads()
    requested = requested_launch(launcher_arguments(), environment=dict(os.environ))
    _check_processes(requested, int(os.environ.get("WORLD_SIZE", "1")))
    accelerator = Accelerator(
        cpu=not torch.accelerator.is_available(),
        kwargs_handlers=[InitProcessGroupKwargs(init_method=rendezvous_init_method(), timeout=group_timeout())],
        log_with=None if tracker == "none" else tracker,
        project_dir=str(folder),
    )
    _check_processes(requested, accelerator.num_processes)
    if requested.fsdp and accelerator.distributed_type != DistributedType.FSDP:
        raise ValueError(
            f"FSDP was asked for, but accelerate gives {accelerator.distributed_type.value} on "
            f"{accelerator.device.type}: FSDP needs GPUs; use train/launch/cpu_two_processes.yaml on a CPU"
        )
    torch.manual_seed(seed)
    if accelerator.is_main_process:
        logger.info("%s", describe(accelerator, threads=threads))
    return accelerator


def exit_process(code: int) -> NoReturn:
    """End the process with `code`; with several ranks, without the interpreter's own shutdown.

    Gloo's threads outlive `destroy_process_group` where something still refers to a group, and one that drops a tensor
    while the interpreter shuts down aborts the process (pytorch/pytorch#179291). The launcher then kills the main rank
    too, which may still be fitting the text stage.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def group_timeout() -> datetime.timedelta:
    """How long a collective waits before the library gives up; longer than the watchdog, which names the rank.

    Raises:
        ValueError: `OCLEAR_COLLECTIVE_MINUTES` is no number above 0.
    """
    return max(LEAST_WAIT, datetime.timedelta(minutes=2 * limit_minutes()))


def describe(accelerator: Accelerator, *, threads: int) -> str:
    """One line: processes, backend, kind of parallelism, device, threads."""
    backend = accelerator.state.backend or "no process group"
    return (
        f"topology: {accelerator.num_processes} process(es), {backend}, {accelerator.distributed_type.value}, "
        f"device {accelerator.device.type}, {threads} thread(s) each"
    )


def launcher_arguments() -> list[str]:
    """Arguments of the `accelerate launch` that started this process; empty if it was started otherwise.

    They are read from the command line of the parent process, because accelerate passes neither the requested number
    of processes nor FSDP on to the one process that it starts when it ignores both (1.15: `simple_launcher`). No
    environment variable tells that launch from one that requested a single process.
    """
    try:
        words = psutil.Process(os.getppid()).cmdline()
    except psutil.Error:
        return []
    return arguments_of_launch(words)


def arguments_of_launch(words: list[str]) -> list[str]:
    """Words after `accelerate launch`, `accelerate-launch` or their `python -m` forms; empty for another command."""
    for place, word in enumerate(words):
        name = Path(word).name
        if name in ("accelerate-launch", "accelerate.commands.launch"):
            return words[place + 1 :]
        if name in ("accelerate", "accelerate.commands.accelerate_cli") and words[place + 1 : place + 2] == ["launch"]:
            return words[place + 2 :]
    return []


def requested_launch(arguments: list[str], *, environment: dict[str, str]) -> RequestedLaunch:
    """Launch that the launcher's arguments, its configuration file and its environment variables request.

    Args:
        arguments: words after `accelerate launch`; empty if unknown.
    """
    fsdp = environment.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    if not arguments:
        return RequestedLaunch(num_processes=None, fsdp=fsdp)
    options, _ = launch_command_parser().parse_known_args(arguments)
    processes = options.num_processes
    # The launcher reads its default file only without --cpu.
    if options.config_file is not None or (Path(default_config_file).is_file() and not options.cpu):
        settings = load_config_from_file(options.config_file)
        processes = settings.num_processes if processes is None else processes
        fsdp = fsdp or settings.distributed_type == DistributedType.FSDP
    return RequestedLaunch(num_processes=processes, fsdp=fsdp)


def _check_processes(requested: RequestedLaunch, running: int) -> None:
    if requested.num_processes is not None and requested.num_processes > 0 and requested.num_processes != running:
        raise ValueError(
            f"{requested.num_processes} processes were asked for, but accelerate runs {running}; on a CPU use "
            "`--config_file train/launch/cpu_two_processes.yaml` or `--multi_gpu` (accelerate's name for several "
            "processes on one machine), not `--cpu`"
        )


def set_threads() -> int:
    """Set and return torch's number of threads: OCLEAR_THREADS, else the idle cores divided by the local processes.

    Raises:
        ValueError: `OCLEAR_THREADS` is not a whole number above 0.
    """
    threads = num_threads(processes=int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    torch.set_num_threads(threads)
    return threads
