"""What a run writes down about itself: one line a step, the recipe, the environment, the timings.

Why: cards and tables are rendered from these files and nothing else, so they hold what a reader needs to judge a
number (versions, processor, cores, memory) and nothing about who ran it or where.
"""

import contextlib
import json
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from accelerate import Accelerator
from tqdm import tqdm

from runtime.environment import cpu_model, distribution, memory_gib, package_versions, system
from runtime.files import write_json, write_text
from runtime.threads import available_cores

PACKAGES = ("oclear", "torch", "transformers", "datasets", "accelerate", "numpy", "safetensors", "pillow", "pyarrow")
STEPS_FILE, CALLS_FILE = "train.jsonl", "calls.json"


def environment(accelerator: Accelerator) -> dict[str, Any]:
    """Versions, processor, cores, memory, system, topology; no host, user, address or path."""
    device = accelerator.device
    return {
        "python": platform.python_version(),
        "packages": package_versions(PACKAGES),
        "system": system(),
        "distribution": distribution(),
        "cpu": cpu_model(),
        "cores": available_cores(),
        "threads": torch.get_num_threads(),
        "memory_gib": memory_gib(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "processes": accelerator.num_processes,
        "distributed_type": accelerator.distributed_type.value,
        "mixed_precision": str(accelerator.mixed_precision),
    }


class Stopwatch:
    """Seconds by stage: `with stopwatch.stage("features"): ...`; those of earlier calls of the same run beside them.

    Args:
        folder: the run, where `calls.json` keeps them; None keeps nothing (ranks other than the main one).
        resume: go on from the calls that are there. A killed call counts up to its last note.
    """

    def __init__(self, folder: Path | None = None, *, resume: bool = False) -> None:
        self.path = None if folder is None else folder / CALLS_FILE
        known = resume and self.path is not None and self.path.is_file()
        self.earlier: list[dict[str, float]] = json.loads(self.path.read_text()) if known and self.path else []
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[Callable[[], None]]:
        """Time what runs inside, which may call what it is given to note the time until then."""
        begun = time.perf_counter()

        def note() -> None:
            self.seconds[name] = round(time.perf_counter() - begun, 2)
            if self.path is not None:
                write_json(self.path, self.calls)

        yield note
        note()

    @property
    def calls(self) -> list[dict[str, float]]:
        """Seconds by stage of every call, this one last."""
        return [*self.earlier, self.seconds]

    @property
    def totals(self) -> dict[str, float]:
        """Seconds by stage of this call's stages, summed over all calls."""
        return {name: round(sum(call.get(name, 0.0) for call in self.calls), 2) for name in self.seconds}


class Journal:
    """Writes train.jsonl and the progress bar; silent on ranks other than the main one.

    Args:
        accelerator: its trackers, where there are any, get the same figures.
        folder: the run. steps: steps of the whole run. start: step that comes first; later lines are cut off.
    """

    def __init__(self, accelerator: Accelerator, folder: Path, *, steps: int, start: int, rows_per_step: int) -> None:
        self.accelerator, self.rows_per_step = accelerator, rows_per_step
        self.main = accelerator.is_main_process
        self.path = folder / STEPS_FILE
        if self.main:
            # A process killed while it cuts must not lose the lines before: a new file takes the place of the old one.
            kept = self.path.read_text().splitlines(keepends=True)[:start] if self.path.exists() else []
            write_text(self.path, "".join(kept))
            self.file = self.path.open("a")
        self.bar = tqdm(total=steps, initial=start, unit="step", desc="image side", disable=not self.main)
        self.clock = time.perf_counter()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.close()
        if self.main:
            self.file.close()

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write the line of one step, and flush it.

        Args:
            metrics: of the step, with "loss".
        """
        now = time.perf_counter()
        speed = self.rows_per_step / max(now - self.clock, 1e-9)
        self.clock = now
        if not self.main:
            return
        line = {"step": step, **metrics, "samples_per_second": round(speed, 2)}
        self.file.write(json.dumps(line) + "\n")
        self.file.flush()
        self.accelerator.log({key: value for key, value in line.items() if key != "step"}, step=step)
        self.bar.set_postfix({"loss": f"{metrics['loss']:.3f}", "samples/s": f"{speed:.0f}"}, refresh=False)
        self.bar.update()
