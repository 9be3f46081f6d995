"""Long files and functions of the code base, as advice for a reader."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = (
    "oclear",
    "runtime",
    "modeling_oclear",
    "data_governance",
    "train",
    "retrieval",
    "hub_cards",
    "benchmarks",
    "examples",
)
MAX_FUNCTION_LINES, MAX_FILE_LINES = 60, 500


def long_parts(name: str, source: str) -> Iterator[str]:
    """One line for a long file and for each long function in it."""
    if (lines := source.count("\n")) > MAX_FILE_LINES:
        yield f"{name} has {lines} lines"
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef):
            length = (node.end_lineno or 0) - node.lineno + 1
            if length > MAX_FUNCTION_LINES:
                yield f"{name}:{node.lineno} {node.name} has {length} lines"


def advice() -> list[str]:
    """One line for every long file and function."""
    return [
        part
        for package in PACKAGES
        for path in sorted((ROOT / package).rglob("*.py"))
        for part in long_parts(str(path.relative_to(ROOT)), path.read_text())
    ]
