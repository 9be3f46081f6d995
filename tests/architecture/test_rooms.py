"""Inside a package, imports follow the order of folders and form no circle."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# Package -> its folders and top-level modules from low to high; those in one line may import each other.
ROOMS: dict[str, tuple[tuple[str, ...], ...]] = {
    "data_governance": (
        ("policy",),
        ("inputs",),
        ("stage",),
        ("entities", "image_cache"),
        ("noise", "grouping"),
        ("context",),
        ("stages",),
        ("output",),
        ("reports",),
        ("pipeline",),
        ("__main__",),
    ),
    "train": (
        ("recipes", "parallel", "journal", "launch"),
        ("context",),
        ("inputs", "encoders"),
        ("class_weights",),
        ("checkpoints", "planner"),
        ("image_stage",),
        ("ensemble",),
        ("selection",),
        ("text_stage", "publish"),
        ("pipeline",),
        ("command",),
        ("run",),
    ),
}


def modules(package: str) -> dict[str, Path]:
    """Dotted name -> file, for every module of a package."""
    paths = sorted((ROOT / package).rglob("*.py"))
    names = {path: ".".join(path.relative_to(ROOT).with_suffix("").parts) for path in paths}
    return {name.removesuffix(".__init__"): path for path, name in names.items()}


def imports(package: str) -> dict[str, set[str]]:
    """Module -> modules of the same package that it imports, inside functions too."""
    known = modules(package)
    found: dict[str, set[str]] = {}
    for name, path in known.items():
        found[name] = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                for alias in node.names:
                    whole = f"{node.module}.{alias.name}"
                    found[name].add(whole if whole in known else node.module)
            elif isinstance(node, ast.Import):
                found[name] |= {alias.name for alias in node.names}
        found[name] &= set(known) - {name, package}
    return found


def room(module: str) -> str:
    """Folder or top-level module below the package."""
    return module.split(".")[1]


@pytest.mark.parametrize("package", sorted(ROOMS))
def test_every_folder_and_module_has_a_place_in_the_order(package: str) -> None:
    listed = [name for line in ROOMS[package] for name in line]
    assert sorted(listed) == sorted({room(module) for module in modules(package) if module != package})


@pytest.mark.parametrize("package", sorted(ROOMS))
def test_no_module_imports_from_a_room_above_its_own(package: str) -> None:
    rank = {name: number for number, line in enumerate(ROOMS[package]) for name in line}
    upward = [
        f"{module} imports {other}"
        for module, others in imports(package).items()
        if module != package
        for other in others
        if rank[room(other)] > rank[room(module)]
    ]
    assert not upward, upward


@pytest.mark.parametrize("package", sorted(ROOMS))
def test_no_modules_import_each_other_in_a_circle(package: str) -> None:
    circle: list[str] = []
    try:
        TopologicalSorter(imports(package)).prepare()
    except CycleError as error:
        circle = error.args[1]
    assert not circle, " -> ".join(circle)
