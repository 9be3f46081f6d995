"""Every `python -m MODULE` that a page, a result file or a source file names exists."""

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
OURS = ("train", "data_governance", "retrieval", "hub_cards", "examples", "benchmarks", "modeling_oclear")
COMMAND = re.compile(rf"python -m ((?:{'|'.join(OURS)})(?:\.[a-z_]\w*)*)\b(?!\.[{{\"]|\{{)")


def is_runnable(module: str) -> bool:
    """Whether `python -m` finds a file of this repository that runs something."""
    path = ROOT / Path(*module.split("."))
    if path.is_dir():
        return (path / "__main__.py").is_file()
    file = path.with_suffix(".py")
    return file.is_file() and "__main__" in file.read_text(encoding="utf-8")


def test_every_command_that_is_named_exists() -> None:
    names = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
    missing = []
    for name in names:
        # Tests write results with invented commands.
        if not name.endswith((".md", ".json", ".py", ".yaml", ".j2", "Makefile")) or name.startswith("tests/"):
            continue
        for module in set(COMMAND.findall((ROOT / name).read_text(encoding="utf-8"))):
            if not is_runnable(module):
                missing.append(f"{name}: python -m {module}")
    assert not missing, missing


def test_no_two_test_files_have_the_same_name() -> None:
    # pytest imports test files by their name alone, so the second of two would not be run.
    names = [path.name for path in sorted((ROOT / "tests").rglob("test_*.py"))]
    assert len(names) == len(set(names)), sorted(name for name in set(names) if names.count(name) > 1)
