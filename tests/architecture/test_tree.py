"""Guards on what is committed: sizes, addresses, paths of one machine, docstrings."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

from tests.support.length_advice import MAX_FILE_LINES, MAX_FUNCTION_LINES, long_parts

PACKAGES = ("oclear", "runtime", "modeling_oclear", "data_governance", "train", "retrieval", "hub_cards")
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


@pytest.mark.parametrize("package", PACKAGES)
def test_every_file_has_a_docstring(package: str) -> None:
    empty = [
        str(path.relative_to(ROOT))
        for path in sorted((ROOT / package).rglob("*.py"))
        if (source := path.read_text()).strip() and ast.get_docstring(ast.parse(source)) is None
    ]
    assert not empty


def test_long_files_and_functions_are_reported_as_advice() -> None:
    lines = "\n".join(f"    x{place} = {place}" for place in range(MAX_FUNCTION_LINES))
    found = list(long_parts("long.py", f"def long() -> None:\n{lines}\n\n\ndef short() -> None:\n    pass\n"))
    assert found == [f"long.py:1 long has {MAX_FUNCTION_LINES + 1} lines"]
    assert list(long_parts("long.py", "x = 1\n" * (MAX_FILE_LINES + 1))) == [f"long.py has {MAX_FILE_LINES + 1} lines"]
