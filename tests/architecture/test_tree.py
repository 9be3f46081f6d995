"""Guards on what is committed: sizes, addresses, paths of one machine, README's tree."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MACHINE_PATH = re.compile(r"(?<![\w.:/$}])/(?:work|root|mnt|home/\w+)/")


def tracked() -> list[Path]:
    names = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
    return [ROOT / name for name in names if name and (ROOT / name).is_file()]


def texts() -> list[tuple[Path, str]]:
    found = []
    for path in tracked():
        try:
            found.append((path, path.read_text()))
        except UnicodeDecodeError:
            continue
    return found


def test_no_tracked_file_is_over_one_megabyte() -> None:
    assert not [str(path) for path in tracked() if path.stat().st_size > 1_000_000]


def test_no_weights_are_tracked() -> None:
    weights = {".safetensors", ".pt", ".pth", ".bin", ".pkl", ".onnx", ".npz"}
    assert not [str(path) for path in tracked() if path.suffix in weights]


def test_no_path_of_one_machine_is_written_down() -> None:
    here = Path(__file__).resolve()
    wrong = [str(path) for path, text in texts() if path != here and MACHINE_PATH.search(text)]
    assert not wrong, wrong


def test_lock_files_hold_no_registry_address() -> None:
    wrong = [str(path) for path, text in texts() if path.name.endswith("lock.json") and '"resolved"' in text]
    assert not wrong, wrong


@pytest.mark.parametrize(
    "package", ["runtime", "modeling_oclear", "data_governance", "train", "retrieval", "hub_cards"]
)
def test_files_and_functions_stay_small_and_say_what_they_are(package: str) -> None:
    wrong = []
    for path in sorted((ROOT / package).rglob("*.py")):
        source = path.read_text()
        if not source.strip():
            continue
        tree = ast.parse(source)
        name = str(path.relative_to(ROOT))
        if ast.get_docstring(tree) is None:
            wrong.append(f"{name}: no docstring")
        if source.count("\n") > 500:
            wrong.append(f"{name}: {source.count(chr(10))} lines")
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and (node.end_lineno or 0) - node.lineno + 1 > 60:
                wrong.append(f"{name}:{node.lineno} {node.name} is over 60 lines")
    assert not wrong, wrong


def test_the_readme_tree_names_every_source_file() -> None:
    readme = (ROOT / "README.md").read_text()
    packages = (
        "runtime",
        "modeling_oclear",
        "data_governance",
        "train",
        "retrieval",
        "hub_cards",
        "benchmarks",
        "examples",
    )
    missing = [
        str(path.relative_to(ROOT))
        for package in packages
        for path in sorted((ROOT / package).rglob("*.py"))
        if path.name != "__init__.py" and path.name not in readme
    ]
    assert not missing, f"README's tree lacks {missing}"
