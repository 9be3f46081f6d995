"""Apply per-row rules with `datasets.map`, and digest source files.

The only module that calls `map`.
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
    """The first reason found for each row, in the order of the rules; "" where no rule rejects it."""
    found: list[str] = marked(table, chosen, policy=policy).to_pylist()
    return found


def marked(table: pa.Table, chosen: Sequence[Rule], *, policy: Policy) -> pa.ChunkedArray:
    """`reasons` as a column."""
    disable_progress_bar()  # the stages show their own progress bars
    digest = source_digest(rules)
    # The cache is not used, so any fingerprint will do; the default one hashes all bytes of the table. `map` itself
    # fingerprints an imported function by name only: the source digest in `fn_kwargs` makes an edited rule a new one.
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
    """A module and what it imports of its package, `runtime` and `modeling_oclear`, directly or not, but no policy.

    Imports are read from the source, inside functions too. The policy's values are digested instead of its source.
    """
    package = module.__name__.partition(".")[0]
    followed = (package, "runtime", "modeling_oclear")
    found, waiting = dict[str, ModuleType](), [module.__name__]
    while waiting:
        name = waiting.pop()
        if name in found or name == f"{package}.policy":
            continue
        found[name] = importlib.import_module(name)
        for node in ast.walk(ast.parse(inspect.getsource(found[name]))):
            if isinstance(node, ast.ImportFrom):
                parent = _parent(node, found[name])
                if parent.partition(".")[0] in followed:
                    waiting += [_module_of(parent, alias.name) for alias in node.names]
            elif isinstance(node, ast.Import):
                waiting += [alias.name for alias in node.names if alias.name.partition(".")[0] in followed]
    return tuple(found[name] for name in sorted(found))


def _parent(node: ast.ImportFrom, module: ModuleType) -> str:
    """What `from parent import name` names, relative imports too."""
    if node.level == 0:
        return str(node.module)
    base = module.__name__ if hasattr(module, "__path__") else module.__name__.rpartition(".")[0]
    base = base.rsplit(".", node.level - 1)[0] if node.level > 1 else base
    return f"{base}.{node.module}" if node.module else base


def _module_of(parent: str, name: str) -> str:
    """The module that `from parent import name` reads: `parent.name` if that is a module, else `parent`."""
    found = importlib.import_module(parent)
    is_module = hasattr(found, "__path__") and importlib.util.find_spec(f"{parent}.{name}") is not None
    return f"{parent}.{name}" if is_module else parent


def source_digest(*modules: Any) -> str:
    """Sixteen hexadecimal digits of the modules' sources."""
    digest = hashlib.sha256()
    for module in modules:
        digest.update(inspect.getsource(module).encode())
    return digest.hexdigest()[:16]
