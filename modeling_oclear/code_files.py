"""Find the Python files that the remote code of a published folder consists of.

Only the standard library is read here, so that a command that checks folders starts at once.
"""

import ast
from collections.abc import Iterable
from pathlib import Path


def code_modules(folder: Path, modules: Iterable[str]) -> tuple[list[str], list[str]]:
    """Follow relative imports from some modules of a folder.

    Args:
        folder: it holds the files, flat. modules: names without `.py`, where to start.

    Returns:
        (modules that have a file, modules that lack one), each in the order of their names.

    Raises:
        ValueError: a file is not Python.
    """
    waiting, present, missing = set(modules), set[str](), set[str]()
    while waiting:
        module = waiting.pop()
        path = folder / f"{module}.py"
        if not path.is_file():
            missing.add(module)
            continue
        present.add(module)
        waiting |= _relative_imports(path) - present - missing
    return sorted(present), sorted(missing)


def _relative_imports(path: Path) -> set[str]:
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except SyntaxError as error:
        raise ValueError(f"{path} is not Python ({error}). Export the folder again.") from error
    found = (node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level > 0)
    return {(node.module or "__init__").split(".")[0] for node in found}
