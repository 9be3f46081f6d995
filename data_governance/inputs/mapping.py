"""The one place that calls `datasets.map`.

`map` fingerprints an imported function by its name, so an edited rule would answer from yesterday's cache: a digest of
the sources goes into `fn_kwargs`, and with it into the fingerprint.
"""

import ast
import hashlib
import importlib
import importlib.util
import inspect
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import pyarrow as pa
from datasets import Dataset
from datasets.utils.logging import disable_progress_bar

from data_governance.inputs import rules
from data_governance.policy import Policy

Rule = Callable[..., list[str | None]]
ROWS_PER_BATCH = 10_000


def reasons(table: pa.Table, chosen: Sequence[Rule], *, policy: Policy) -> list[str]:
    """The first reason that a rule, in the order given, finds for each row; "" where all rules are content."""
    found: list[str] = marked(table, chosen, policy=policy).to_pylist()
    return found


def marked(table: pa.Table, chosen: Sequence[Rule], *, policy: Policy) -> pa.ChunkedArray:
    """`reasons` as a column: what a batch of the log is split by."""
    disable_progress_bar()  # our own bars tell the stages; one per rule would bury them
    digest = source_digest(rules)
    # No answer is looked up here, so a table in memory needs no fingerprint of its own: that would hash all its bytes.
    found = Dataset(table, fingerprint=digest).map(
        _mark,
        batched=True,
        batch_size=ROWS_PER_BATCH,
        remove_columns=table.column_names,
        keep_in_memory=True,
        load_from_cache_file=False,
        fn_kwargs={"names": [rule.__name__ for rule in chosen], "policy": policy, "source": digest},
    )
    return found.data.table.column("reason")


def _mark(batch: dict[str, list[Any]], *, names: list[str], policy: Policy, source: str) -> dict[str, list[str | None]]:
    first: list[str | None] = [None] * len(next(iter(batch.values())))
    for name in names:
        found = getattr(rules, name)(batch, policy=policy)
        first = [old or new for old, new in zip(first, found, strict=True)]
    return {"reason": [reason or "" for reason in first]}


def with_imports(module: ModuleType) -> tuple[ModuleType, ...]:
    """A module and what it imports of its own package and of `runtime`, directly or not.

    The policy is left out: its values are digested.

    Read from the sources, so that a helper which moves to a file of its own is not forgotten.
    """
    package = module.__name__.partition(".")[0]
    followed = (package, "runtime")
    found, waiting = dict[str, ModuleType](), [module.__name__]
    while waiting:
        name = waiting.pop()
        if name in found or name == f"{package}.policy":
            continue
        found[name] = importlib.import_module(name)
        for node in ast.walk(ast.parse(inspect.getsource(found[name]))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in followed:
                waiting += [_module_of(str(node.module), alias.name) for alias in node.names]
            elif isinstance(node, ast.Import):
                waiting += [alias.name for alias in node.names if alias.name.partition(".")[0] in followed]
    return tuple(found[name] for name in sorted(found))


def _module_of(parent: str, name: str) -> str:
    """The module that `from parent import name` reads: `parent.name` where that is one, else `parent`."""
    found = importlib.import_module(parent)
    is_module = hasattr(found, "__path__") and importlib.util.find_spec(f"{parent}.{name}") is not None
    return f"{parent}.{name}" if is_module else parent


def source_digest(*modules: Any) -> str:
    """Sixteen hexadecimal digits of the modules' sources."""
    digest = hashlib.sha256()
    for module in modules:
        digest.update(inspect.getsource(module).encode())
    return digest.hexdigest()[:16]
