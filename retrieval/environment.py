"""What a result was measured with, and by which command, without saying where or by whom."""

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

PACKAGES = ("torch", "transformers", "datasets", "faiss-cpu", "numpy", "pillow", "pyarrow")


def environment() -> dict[str, str | int | float]:
    """Versions, processor model, cores, memory and operating system; never a host name, user, address or path."""
    found: dict[str, str | int | float] = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    found["cpu"] = _cpu_model()
    found["cores"] = available_cores()
    found["memory_gib"] = round(_memory_bytes() / 2**30, 1)
    found["os"] = f"{platform.system()} {platform.machine()}"
    return found


def available_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def default_threads() -> int:
    """Cores that are free, at least one: threads that wait for a busy core slow all others.

    Busy is what is so now and was so over the last minute: a command that has just ended does not count.
    """
    return max(1, available_cores() - round(min(psutil.getloadavg()[0], _busy_now())))


def _busy_now() -> float:
    return psutil.cpu_percent(interval=0.2) / 100 * (psutil.cpu_count() or 1)


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _memory_bytes() -> int:
    if not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
        return 0
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def command_line(arguments: list[str] | None = None) -> str:
    """The command that was run, with paths below the working folder as they are and other paths cut to their name."""
    words = sys.argv[1:] if arguments is None else arguments
    return " ".join(["python -m retrieval", *(_relative(word) for word in words)])


def _relative(word: str) -> str:
    if not (word.startswith("/") or ".." in Path(word).parts):
        return word
    place = Path(word).resolve()
    here = Path.cwd().resolve()
    return str(place.relative_to(here)) if place.is_relative_to(here) else place.name
