"""Which device computes: a name that a user gives, or the best that is there."""

from typing import Any

DEVICES = "auto, cpu, cuda, cuda:1, mps"


def device_named(name: str) -> Any:
    """The `torch.device` of a name; "auto" is a GPU where there is one, else the CPU.

    Raises:
        ValueError: an unknown name, or a device that this machine or this build of torch lacks.
    """
    import torch

    if name == "auto":
        found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return found or torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"device {name!r} is unknown; give one of {DEVICES}") from None
    count = _count(device.type)
    if device.type != "cpu" and (device.index or 0) >= count:
        there = ", ".join(["cpu", *(f"{kind}:{i}" for kind in ("cuda", "mps", "xpu") for i in range(_count(kind)))])
        raise ValueError(f"device {name!r} is not there; this machine and this build of torch have {there}")
    return device


def _count(kind: str) -> int:
    import torch

    if kind == "mps":
        return int(torch.backends.mps.is_available())
    module = getattr(torch, kind, None)
    return int(module.device_count()) if module is not None and hasattr(module, "device_count") else 0
