"""The governance pipeline: run outdated stages, export, write the ledger."""

import hashlib
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import faiss
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from data_governance import image_cache, stage
from data_governance.context import GovernanceContext, Inputs, Request
from data_governance.inputs import behaviour_log, engine, mapping, tables
from data_governance.inputs.encoder import Encoder
from data_governance.inputs.engine import Engine
from data_governance.output import export, ledger
from data_governance.policy import Policy
from data_governance.stage import StageResult, Workspace
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
from runtime.files import only_user
from runtime.tables import visible_files


@dataclass(frozen=True)
class Stage:
    """One step of the pipeline.

    Attributes:
        name: of its folder below `stages/`, and in the ledger.
        reads: fields of the policy, and extra inputs (see `extra_input`), that the digest of the stage covers.
        run: computes the tables of the stage from the context.
    """

    name: str
    reads: tuple[str, ...]
    run: Callable[[GovernanceContext], StageResult]

    def source_digest(self) -> str:
        """Digest of the source files whose change makes a finished stage stale."""
        return mapping.source_digest(*mapping.with_imports(sys.modules[self.run.__module__]), stage)


POLICY_FIELDS = tuple(field.name for field in fields(Policy))
PIPELINE: tuple[Stage, ...] = (
    # Four fields only: decoding and embedding are most of a run, and another threshold must not repeat them.
    Stage("admit", ("max_image_pixels", "max_image_bytes", "max_text_characters", "image_size"), admit.run),
    Stage("dedupe", POLICY_FIELDS, dedupe.run),
    Stage("click_rates", POLICY_FIELDS, click_rates.run),
    Stage("organise", (*POLICY_FIELDS, "previous_groups"), organise.run),
    Stage("clean", POLICY_FIELDS, clean.run),
    Stage("merge_split", POLICY_FIELDS, merge_split.run),
    Stage("overrides", (*POLICY_FIELDS, "overrides", "previous_keys"), overrides.run),
    Stage("balance", POLICY_FIELDS, balance.run),
)


def govern(request: Request, policy: Policy) -> dict[str, Any]:
    """Run the stages that are not up to date, export, write the ledger; returns ledger.json.

    Raises:
        ValueError: for a mistake of the caller, naming table, value and remedy.
    """
    # BLAS gives other last bits with another number of threads, and equal inputs must give equal tables. Matrices of a
    # thousand dimensions gain little from a second thread, and take five times as long when the other core is busy.
    with threadpool_limits(limits=1, user_api="blas"), only_user(request.out):
        context = open_context(request, policy)
        digest = input_digest(request, context)
        with tqdm(PIPELINE, desc="govern", unit="stage") as bar:
            for step in bar:
                bar.set_postfix_str(step.name)
                digest = stage_digest(digest, step, values_read(step, context))
                if not context.workspace.is_complete(step.name, digest):
                    start = time.monotonic()
                    result = step.run(context)
                    seconds = time.monotonic() - start
                    context.workspace.commit(step.name, result, digest=digest, seconds=seconds)
        export.export(context)
        return ledger.write(context.workspace, policy=policy)


def open_context(request: Request, policy: Policy) -> GovernanceContext:
    """Open inputs, engine and encoder.

    Raises:
        ValueError: for an input that cannot be read, or an earlier run that cannot be continued.
    """
    threads = engine.threads(policy)
    faiss.omp_set_num_threads(threads)
    context = GovernanceContext(
        workspace=Workspace(request.out, tuple(step.name for step in PIPELINE)),
        inputs=Inputs(
            behaviour=behaviour_log.open_log(request.behaviour),
            queries=tables.open_source(request.queries, name="queries"),
            catalogue=tables.open_source(request.catalogue, name="catalogue"),
        ),
        policy=policy,
        engine=Engine(policy, engine=request.engine),
        encoder=Encoder(request.encoder, threads=threads),
        overrides=overrides.open_overrides(request.overrides),
        previous=request.previous,
        previous_keys=export.previous_categories(request.previous),
        incremental=request.incremental,
    )
    if request.incremental:
        if request.previous is None or request.previous.resolve() == request.out.resolve():
            raise ValueError("--incremental needs --previous with an earlier governed folder other than --out.")
        key = image_cache.cache_key(policy, context.encoder)
        organise_incremental.check_previous(Workspace(request.previous), key=key)
    return context


def input_digest(request: Request, context: GovernanceContext) -> str:
    """Digest of the encoder, the engine, and names, sizes and times of the input files and of pictures they name."""
    encoder = context.encoder
    digest = hashlib.sha256(f"{encoder.name} {encoder.dtype} {request.engine}".encode())
    for location in (request.behaviour, request.queries, request.catalogue):
        path = Path(location)
        for file in visible_files(path) if path.is_dir() else [path]:
            stat = file.stat() if file.exists() else None
            name = file.relative_to(path).as_posix() if path.is_dir() else file.name
            fact = [name, stat.st_size, stat.st_mtime_ns] if stat else [location]
            digest.update(json.dumps(fact).encode())
    for source in (context.inputs.queries, context.inputs.catalogue):
        for picture in tables.picture_files(source):
            digest.update(json.dumps(picture).encode())
    return digest.hexdigest()


def values_read(step: Stage, context: GovernanceContext) -> dict[str, Any]:
    """Value of everything that a stage reads besides the stages before it, in a form that JSON takes."""
    policy = asdict(context.policy)
    return {name: policy[name] if name in policy else extra_input(name, context) for name in step.reads}


def extra_input(name: str, context: GovernanceContext) -> Any:
    """Value of an input that is no field of the policy."""
    if name == "overrides":
        return None if context.overrides is None else context.overrides.table.to_pylist()
    if name == "previous_keys":
        return sorted(context.previous_keys.items())
    assert name == "previous_groups", name
    if not context.incremental or context.previous is None:
        return None
    return Workspace(context.previous).record("organise")["digest"]


def stage_digest(before: str, step: Stage, values: dict[str, Any]) -> str:
    """Digest of everything before a stage, of its source, and of the values that it reads."""
    return hashlib.sha256(json.dumps([before, step.name, step.source_digest(), values]).encode()).hexdigest()[:16]
