"""Number of threads to use: what the user asks for, else the idle cores.

More threads than idle cores make torch several times slower than one thread, because all threads of an operation wait
for the one that shares its core. `OCLEAR_THREADS` overrides the count in every command.
"""

import os

import psutil

THREADS_VARIABLE = "OCLEAR_THREADS"


def available_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def busy_cores() -> float:
    """Cores of the machine in use, the smaller of now and the average of the last minute.

    The smaller one, so that a command that has just ended does not count.
    """
    return min(psutil.getloadavg()[0], psutil.cpu_percent(interval=0.2) / 100 * (psutil.cpu_count() or 1))


def free_threads(*, cores: int, load: float, processes: int = 1) -> int:
    """Threads for each of `processes` on `cores` cores of which `load` are busy; at least 1.

    >>> free_threads(cores=8, load=2.2, processes=2)
    3
    """
    return max(1, (cores - round(load)) // processes)


def requested_threads() -> int | None:
    """Value of OCLEAR_THREADS; None if it is not set.

    Raises:
        ValueError: it is not a whole number above 0.
    """
    value = os.environ.get(THREADS_VARIABLE)
    if value is None:
        return None
    if not value.isdecimal() or int(value) < 1:
        raise ValueError(f"{THREADS_VARIABLE} is {value!r}; give a whole number above 0")
    return int(value)


def num_threads(*, processes: int = 1) -> int:
    """Threads for this process: OCLEAR_THREADS, else the idle cores divided by the processes of this machine.

    Raises:
        ValueError: OCLEAR_THREADS is not a whole number above 0.
    """
    requested = requested_threads()
    if requested is not None:
        return requested
    return free_threads(cores=available_cores(), load=busy_cores(), processes=processes)
