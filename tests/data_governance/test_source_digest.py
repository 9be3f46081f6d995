"""A finished stage is stale when any source file that it imports is edited."""

import importlib
from pathlib import Path

import pytest

from data_governance.inputs import mapping


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A package with rooms: a stage that imports a module by name, a name of a module, and a package by `import`."""
    files = {
        "__init__.py": "",
        "policy.py": "LIMIT = 1\n",
        "stages/__init__.py": "",
        "stages/first.py": (
            "from rooms_of_a_test.noise import margins\n"
            "from rooms_of_a_test.policy import LIMIT\n"
            "from rooms_of_a_test.grouping.matching import best\n"
            "import rooms_of_a_test.output\n"
            "from runtime.threads import available_cores\n"
        ),
        "noise/__init__.py": "",
        "noise/margins.py": "def f():\n    from rooms_of_a_test.noise import deep\n    return deep\n",
        "noise/deep.py": "X = 1\n",
        "noise/unread.py": "X = 1\n",
        "grouping/__init__.py": "",
        "grouping/matching.py": "best = 1\n",
        "output/__init__.py": "Y = 1\n",
    }
    for name, text in files.items():
        path = tmp_path / "rooms_of_a_test" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    return "rooms_of_a_test"


def test_imports_are_followed_through_sub_packages_without_the_policy(package: str) -> None:
    found = mapping.with_imports(importlib.import_module(f"{package}.stages.first"))
    names = {module.__name__.removeprefix(f"{package}.") for module in found}
    assert names == {"stages.first", "noise.margins", "noise.deep", "grouping.matching", "output", "runtime.threads"}
