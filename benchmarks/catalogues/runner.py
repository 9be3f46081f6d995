"""Run cells one after the other or side by side; what is finished is kept."""

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock
from typing import Any

from tqdm import tqdm

from benchmarks.catalogues.build import build
from benchmarks.catalogues.cell import Cell
from benchmarks.catalogues.cells import NamedCell
from benchmarks.catalogues.commands import Settings, call, steps
from benchmarks.catalogues.domain import Domain, UnavailableError
from benchmarks.catalogues.results import cell_result
from benchmarks.result_file import commit
from runtime.files import write_json

Domains = Callable[[str], Domain]


@dataclass(frozen=True)
class Job:
    """One cell under one seed; its result is a file, its tables and models are a folder beside it."""

    named: NamedCell
    seed: int
    out: Path

    @property
    def name(self) -> str:
        return f"{self.named.name}-s{self.seed}"

    @property
    def result(self) -> Path:
        return self.out / f"{self.name}.json"

    @property
    def folder(self) -> Path:
        return self.out / self.name

    def cell(self) -> Cell:
        """The settings of the data, with the job's seed."""
        return replace(self.named.cell, seed=self.seed)


def jobs(cells: Sequence[NamedCell], seeds: Sequence[int], out: Path) -> list[Job]:
    """Every cell under the first seed, then under the next."""
    return [Job(one, seed, out) for seed in seeds for one in cells]


def run_job(job: Job, domains: Domains, settings: Settings, *, advance: Callable[[str], None]) -> None:
    """Build the tables of a cell, run its commands, write its result; finished steps are skipped.

    Raises:
        ValueError: a command fails, or the folder holds another cell.
    """
    cell = job.cell()
    _check(job, settings)
    seconds_file = job.folder / "cpu_seconds.json"
    seconds: dict[str, float] = json.loads(seconds_file.read_text()) if seconds_file.is_file() else {}
    if not (job.folder / "data" / "cell.json").is_file():
        build(cell, domains(cell.domain), job.folder / "data", workers=1)
    advance("data")
    for step in steps(job.folder, settings, seed=job.seed):
        if not step.result.is_file():
            log = job.folder / "logs" / f"{step.name.replace(' ', '_')}.log"
            seconds[step.name] = call(step, log=log, threads=settings.threads)
            write_json(seconds_file, seconds)
        advance(step.name)
    found: dict[str, Any] = {"cell": job.named.name, "seed": job.seed, "base": job.named.base}
    found |= {"recipe": settings.recipe, "frozen_recipe": settings.frozen_recipe, "threads": settings.threads}
    found |= {"commit": commit()}
    write_json(job.result, found | {"cpu_seconds": seconds} | cell_result(job.folder))


def _check(job: Job, settings: Settings) -> None:
    """Record what a folder is for, and reject any other use of it.

    Raises:
        ValueError: the folder belongs to another cell or recipe.
    """
    file = job.folder / "job.json"
    wanted = {"cell": job.cell().as_json(), "recipe": settings.recipe, "frozen_recipe": settings.frozen_recipe}
    if file.is_file() and (found := json.loads(file.read_text())) != wanted:
        changed = sorted(name for name in wanted if found.get(name) != wanted[name])
        raise ValueError(f"{job.folder} was begun with another {', '.join(changed)}; remove it or give another --out")
    job.folder.mkdir(parents=True, exist_ok=True)
    write_json(file, wanted)


def run_all(found: Sequence[Job], domains: Domains, settings: Settings, *, workers: int) -> list[str]:
    """Run the jobs without a result, `workers` at once, with a progress bar; return one line for each failure."""
    waiting = [job for job in found if not job.result.is_file()]
    failures: list[str] = []
    lock = Lock()
    if len(waiting) < len(found):
        print(f"{len(found) - len(waiting)} of {len(found)} results exist already", flush=True)
    total = sum(1 + len(steps(job.folder, settings, seed=job.seed)) for job in waiting)
    with tqdm(total=total, unit="step", desc="cells", mininterval=0.5) as bar, ThreadPoolExecutor(workers) as pool:

        def one(job: Job) -> None:
            def advance(name: str) -> None:
                with lock:
                    bar.set_postfix_str(f"{job.name}: {name}")
                    bar.update()

            try:
                run_job(job, domains, settings, advance=advance)
            except UnavailableError as error:
                bar.write(f"{job.name} is skipped: {error}")
            except ValueError as error:
                failures.append(f"{job.name}: {error}")
                bar.write(f"error: {failures[-1]}")

        list(pool.map(one, waiting))
    return failures
