"""Each extra of setup.cfg installs what its package imports, and nothing else."""

import ast
import configparser
import re
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
EXTRA_OF = {"data_governance": "govern", "train": "train", "retrieval": "retrieval", "hub_cards": "hub"}
OURS = {"oclear", "runtime", "modeling_oclear", *EXTRA_OF}
# Modules that come with a declared distribution, and the one import that has an extra of its own.
COMES_WITH = {
    "huggingface-hub": "transformers",
    "markupsafe": "jinja2",
    "httpx": "transformers",
    "httpx2": "transformers",
}
OPTIONAL = {"pyspark"}
# Read by a library on our behalf: huggingface_hub parses the metadata of cards.
NOT_IMPORTED = {"pyyaml"}


def requirements(section: str, option: str) -> set[str]:
    """Names of the distributions that setup.cfg lists there."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    return {re.split(r"[\[<>=~!;, ]", line)[0].lower() for line in config[section][option].split("\n") if line}


def imported(package: str) -> set[str]:
    """Distributions that the files of a package import, inside functions too."""
    modules = set()
    for path in (ROOT / package).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                modules |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                modules.add(node.module.split(".")[0])
    names = packages_distributions()
    foreign = modules - OURS - set(sys.stdlib_module_names)
    return {re.sub(r"[-_.]+", "-", names.get(module, [module])[0]).lower() for module in foreign}


@pytest.mark.parametrize(("package", "extra"), EXTRA_OF.items())
def test_an_extra_installs_what_its_package_imports(package: str, extra: str) -> None:
    declared = requirements("options", "install_requires") | requirements("options.extras_require", extra)
    needed = {COMES_WITH.get(name, name) for name in imported(package) - OPTIONAL}
    assert needed - declared == set()


@pytest.mark.parametrize(("package", "extra"), EXTRA_OF.items())
def test_an_extra_installs_nothing_that_is_not_imported(package: str, extra: str) -> None:
    used = imported(package) | imported("runtime") | NOT_IMPORTED
    assert requirements("options.extras_require", extra) - used == set()
