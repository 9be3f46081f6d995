"""The public names of `retrieval`: the list is complete, every name loads, and importing it is cheap."""

import ast
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import retrieval

HEAVY = ("torch", "transformers", "faiss", "datasets", "pyarrow", "numpy")


@pytest.mark.parametrize("name", retrieval.__all__)
def test_every_public_name_loads(name: str) -> None:
    found = getattr(retrieval, name)
    assert name == "metrics" or getattr(found, "__name__", name) == name


def test_the_list_of_public_names_is_complete() -> None:
    tree = ast.parse(Path(str(retrieval.__file__)).read_text())
    checked = [alias.asname for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names]
    public = sorted(name for name in checked if name and name != "TYPE_CHECKING")
    assert public == sorted(retrieval.__all__) == sorted({*retrieval._SOURCES, "metrics"})
    assert dir(retrieval) == sorted(retrieval.__all__)


def test_a_name_that_is_not_public_is_an_attribute_error() -> None:
    missing: Any = retrieval
    with pytest.raises(AttributeError, match="module 'retrieval' has no attribute 'nothing'"):
        _ = missing.nothing


@pytest.mark.parametrize(
    "words", ["import retrieval", "import retrieval.__main__ as m; m.build_parser().format_help()"]
)
def test_importing_the_package_and_showing_the_help_load_no_heavy_library(words: str) -> None:
    script = f"import sys; {words}; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
