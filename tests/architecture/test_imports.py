"""Guards on the shape of the code base: who imports whom, and what may ship to the Hub."""

import ast
import re
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
OURS = (
    "oclear",
    "runtime",
    "modeling_oclear",
    "data_governance",
    "train",
    "retrieval",
    "hub_cards",
    "examples",
    "benchmarks",
)
MAY_IMPORT = {
    "runtime": {"modeling_oclear"},  # its image decoder alone (tested below)
    "modeling_oclear": set(),
    # The model package only for its image encoder, its image decoder and what text is visible (tested below).
    "data_governance": {"runtime", "modeling_oclear"},
    "train": {"runtime", "modeling_oclear", "data_governance", "retrieval"},
    "retrieval": {"runtime", "modeling_oclear"},
    "hub_cards": {"runtime", "modeling_oclear"},
    "oclear": {
        "runtime",
        "modeling_oclear",
        "data_governance",
        "train",
        "retrieval",
        "hub_cards",
        "examples",
    },  # one entry point
}
HUB_ALLOWED = {"torch", "transformers", "numpy", "PIL", "safetensors", "huggingface_hub"} | set(sys.stdlib_module_names)
NOT_SHIPPED = {"__init__.py", "packaged_weights.py", "publishing.py", "code_files.py"}


def imports_of(path: Path) -> list[tuple[int, str, int]]:
    """(line, module, relative level) of every import statement, those inside functions too."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name, 0) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found.append((node.lineno, node.module or "", node.level))
    return found


def sources(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


@pytest.mark.parametrize("package", sorted(MAY_IMPORT))
def test_imports_between_packages_flow_one_way(package: str) -> None:
    wrong = []
    for path in sources(package):
        for line, module, level in imports_of(path):
            top = module.split(".")[0]
            if level == 0 and top in OURS and top != package and top not in MAY_IMPORT[package]:
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports {module}")
    assert not wrong, wrong


def test_runtime_touches_the_model_package_only_for_its_image_decoder() -> None:
    found = {module for path in sources("runtime") for _, module, level in imports_of(path) if level == 0}
    assert {name for name in found if name.split(".")[0] in set(OURS) - {"runtime"}} == {
        "modeling_oclear.image_decoding_oclear"
    }


def test_governance_touches_the_model_package_only_for_its_encoder_its_pixels_and_visible_text() -> None:
    shared = {
        "modeling_oclear.image_decoding_oclear",
        "modeling_oclear.image_processing_oclear",
        "modeling_oclear.visible_text_oclear",
    }
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {module}"
        for path in sources("data_governance")
        for line, module, _ in imports_of(path)
        if module.split(".")[0] == "modeling_oclear" and path.name != "encoder.py" and module not in shared
    ]
    assert not wrong, wrong


def test_what_ships_to_the_hub_imports_flat_siblings_and_the_allowed_libraries_only() -> None:
    wrong = []
    for path in sources("modeling_oclear"):
        if path.name in NOT_SHIPPED:
            continue
        for line, module, level in imports_of(path):
            flat = level == 1 and re.fullmatch(r"[a-z_]+_oclear", module) is not None
            # Only sentence-transformers itself loads this file.
            flat = flat or (path.name == "sentence_oclear.py" and module.startswith("sentence_transformers."))
            if not flat and (level > 0 or module.split(".")[0] not in HUB_ALLOWED):
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports {'.' * level}{module}")
    assert not wrong, wrong


def test_shipped_files_import_none_that_stay_home() -> None:
    home = {name.removesuffix(".py") for name in NOT_SHIPPED}
    wrong = [
        f"{path.name}:{line}"
        for path in sources("modeling_oclear")
        if path.name not in NOT_SHIPPED
        for line, module, _ in imports_of(path)
        if module.split(".")[-1] in home
    ]
    assert not wrong, wrong


def test_no_file_in_train_hides_a_library() -> None:
    taken = set(sys.stdlib_module_names) | set(packages_distributions()) - {"train"}
    hidden = [path.name for path in (ROOT / "train").iterdir() if path.stem in taken]
    assert not hidden, f"{hidden}: train/ comes first on the path under accelerate launch"


def test_no_drawer_modules() -> None:
    drawers = {"utils", "common", "helpers", "misc"}
    assert not [str(p) for package in OURS for p in sources(package) if p.stem in drawers]
