"""Record of the software and hardware that a result was computed with.

Result files are published, so the record holds versions, processor, cores, memory and operating system, and never a
host name, user name, network address or path.
"""

import importlib.metadata
import platform
from collections.abc import Iterable
from pathlib import Path

import psutil

from runtime.threads import available_cores

PACKAGES = ("torch", "transformers", "datasets", "faiss-cpu", "numpy", "pillow", "pyarrow")


def environment(packages: Iterable[str] = PACKAGES) -> dict[str, str | int | float]:
    """Flat record of the machine and of the versions of Python and some packages ("absent" if not installed)."""
    return {
        "python": platform.python_version(),
        **{name: version or "absent" for name, version in package_versions(packages).items()},
        "cpu": cpu_model(),
        "cores": available_cores(),
        "memory_gib": memory_gib(),
        "os": system(),
    }


def package_versions(packages: Iterable[str]) -> dict[str, str | None]:
    """Installed version of each distribution; None if it is not installed."""
    return {name: _version(name) for name in packages}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def cpu_model() -> str:
    """Name of the processor as the operating system reports it."""
    listing = Path("/proc/cpuinfo")
    if listing.is_file():
        for line in listing.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def memory_gib() -> float:
    """Memory of the machine in GiB, one decimal."""
    return round(psutil.virtual_memory().total / 2**30, 1)


def system() -> str:
    """Operating system and processor architecture, for example "Linux x86_64"."""
    return f"{platform.system()} {platform.machine()}"


def distribution() -> str:
    """Name of the Linux distribution; "unknown" elsewhere."""
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME", "unknown")
    except OSError:
        return "unknown"
