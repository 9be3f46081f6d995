"""The pipeline: a list that one can read aloud, with resume, conservation and the ledger at the end."""

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import faiss
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from data_governance import image_cache, stage
from data_governance.inputs import behaviour_log, engine, mapping, tables
from data_governance.inputs.encoder import Encoder
from data_governance.inputs.engine import Engine
from data_governance.output import export, ledger
from data_governance.policy import Policy
from data_governance.stage import STAGES, StageResult, Workspace
from data_governance.stages import (
    admit,
    balance,
    clean,
    click_rates,
    dedupe,
    merge_split,
    organise,
    organise_incremental,
    overrides,
)
from data_governance.stages.admit import Inputs

STEPS = (admit, dedupe, click_rates, organise, clean, merge_split, overrides, balance)
# The files whose change makes a finished stage stale; later stages follow by the chain of digests.
SOURCES = {name: mapping.with_imports(module) for name, module in zip(STAGES, STEPS, strict=True)}
ADMIT_FIELDS = ("max_image_pixels", "max_image_bytes", "max_text_characters", "image_size")


@dataclass(frozen=True)
class Request:
    """What the command line asks for; locations are files, folders or Hub ids."""

    behaviour: str
    queries: str
    catalogue: str
    out: Path
    encoder: Path | None = None
    previous: Path | None = None
    engine: str = "duckdb"
    overrides: Path | None = None
    incremental: bool = False


def govern(request: Request, policy: Policy) -> dict[str, Any]:
    """Run what is not yet done, export, write the ledger; returns ledger.json.

    Linear algebra runs on one thread, whatever numpy was imported with: another number of threads gives other last
    bits, and the same tables are to come of the same input. Matrices of a thousand dimensions gain little from a second
    thread and take five times as long with one when the other core is busy.

    Raises:
        ValueError: for a caller's mistake, naming table, value and remedy.
    """
    with threadpool_limits(limits=1, user_api="blas"):
        return _govern(request, policy)


def _govern(request: Request, policy: Policy) -> dict[str, Any]:
    workspace = Workspace(request.out)
    relations = Engine(policy, engine=request.engine)
    inputs = open_inputs(request)
    decided = overrides.open_overrides(request.overrides)
    previous = export.previous_categories(request.previous)
    threads = engine.threads(policy)
    faiss.omp_set_num_threads(threads)
    eyes = Encoder(request.encoder, threads=threads)
    known = earlier_run(request, policy, eyes)
    steps: dict[str, Callable[[], StageResult]] = {
        "admit": lambda: admit.admit(
            inputs,
            workspace.begin("admit"),
            policy=policy,
            engine=relations,
            encoder=eyes,
            earlier=(request.out, request.previous),
        ),
        "dedupe": lambda: dedupe.dedupe(workspace, policy=policy),
        "weigh": lambda: click_rates.weigh(workspace, policy=policy, engine=relations),
        "organise": lambda: (
            organise_incremental.organise_again(workspace, known, policy=policy)
            if known
            else organise.organise(workspace, policy=policy)
        ),
        "clean": lambda: clean.clean(workspace, policy=policy),
        "merge_split": lambda: merge_split.merge_split(workspace, policy=policy),
        "overrides": lambda: overrides.overrides(workspace, decided, previous=previous),
        "balance": lambda: balance.balance(workspace, policy=policy),
    }
    digest = input_digest(request, eyes)
    extra = {
        "overrides": overrides.digest(decided, previous),
        "organise": organise_incremental.digest(request.previous, known),
    }
    with tqdm(STAGES, desc="govern", unit="stage") as bar:
        for name in bar:
            bar.set_postfix_str(name)
            digest = stage_digest(digest, name, policy, extra=extra.get(name, ""))
            if not workspace.is_whole(name, digest):
                start = time.monotonic()
                result = steps[name]()
                workspace.commit(name, result, digest=digest, seconds=time.monotonic() - start)
    export.export(workspace, inputs, policy=policy, previous=previous, overrides=decided)
    return ledger.write(workspace, policy=policy)


def earlier_run(request: Request, policy: Policy, eyes: Encoder) -> organise_incremental.Earlier | None:
    """What an incremental run takes over; None for a full one.

    Raises:
        ValueError: when there is nothing to take over.
    """
    if not request.incremental:
        return None
    if request.previous is None or request.previous.resolve() == request.out.resolve():
        raise ValueError("--incremental needs --previous with an earlier governed folder other than --out.")
    return organise_incremental.earlier(Workspace(request.previous), recipe=image_cache.recipe(policy, eyes))


def open_inputs(request: Request) -> Inputs:
    return Inputs(
        behaviour=behaviour_log.open_log(request.behaviour),
        queries=tables.open_source(request.queries, name="queries"),
        catalogue=tables.open_source(request.catalogue, name="catalogue"),
    )


def input_digest(request: Request, encoder: Encoder) -> str:
    """Of the files' names, sizes and times, the encoder and the engine."""
    digest = hashlib.sha256(f"{encoder.name} {request.engine}".encode())
    for location in (request.behaviour, request.queries, request.catalogue):
        path = Path(location)
        files = sorted(f for f in path.rglob("*") if f.is_file()) if path.is_dir() else [path]
        for file in files:
            stat = file.stat() if file.exists() else None
            fact = [file.name, stat.st_size, stat.st_mtime_ns] if stat else [location]
            digest.update(json.dumps(fact).encode())
    return digest.hexdigest()


def stage_digest(before: str, name: str, policy: Policy, *, extra: str = "") -> str:
    """Of everything before this stage, its source, what else it reads, and the policy (admit reads four fields)."""
    fields = asdict(policy)
    read = {field: fields[field] for field in ADMIT_FIELDS} if name == "admit" else fields
    source = mapping.source_digest(*SOURCES[name], stage)
    return hashlib.sha256(json.dumps([before, name, source, read, extra]).encode()).hexdigest()[:16]
