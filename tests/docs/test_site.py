"""The docs site: pages and navigation agree, links inside the repository lead somewhere, the reference is complete."""

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks.render import reference
from data_governance.policy import Policy
from oclear.command import COMMANDS
from train.recipes.recipe import Recipe

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
SOURCE = re.compile(rf"`((?:{'|'.join(reference.PACKAGES)}|tests)/[\w/]+\.(?:py|yaml|ipynb))")
LINK = re.compile(r"\]\(([^)#\s]+)")


@pytest.fixture(scope="module")
def generated() -> dict[str, str]:
    return reference.pages()


def pages_of(entry: Any) -> Iterator[str]:
    """Every page below an entry of `nav`."""
    if isinstance(entry, str):
        yield entry
    elif isinstance(entry, dict):
        for inner in entry.values():
            yield from pages_of(inner)
    else:
        for inner in entry:
            yield from pages_of(inner)


def nav_pages() -> list[str]:
    return list(pages_of(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]))


def test_every_page_of_the_navigation_exists_and_every_page_is_in_the_navigation(generated: dict[str, str]) -> None:
    pages = nav_pages()
    assert len(set(pages)) == len(pages)
    written = {str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md")}
    assert set(pages) == written | set(generated)


def test_generated_pages_are_not_committed(generated: dict[str, str]) -> None:
    assert not [name for name in generated if (DOCS / name).exists()]


@pytest.mark.parametrize(
    "name", ["README.md", "CONTRIBUTING.md", *sorted(str(p.relative_to(ROOT)) for p in DOCS.rglob("*.md"))]
)
def test_links_to_files_lead_somewhere(name: str, generated: dict[str, str]) -> None:
    page = ROOT / name
    missing = []
    for target in LINK.findall(page.read_text()):
        path = (page.parent / target).resolve()
        is_generated = path.is_relative_to(DOCS) and str(path.relative_to(DOCS)) in generated
        if not target.startswith(("http:", "https:")) and not path.exists() and not is_generated:
            missing.append(target)
    assert not missing


@pytest.mark.parametrize(
    "name", ["README.md", "CONTRIBUTING.md", *sorted(str(p.relative_to(ROOT)) for p in DOCS.rglob("*.md"))]
)
def test_source_files_named_on_a_page_exist(name: str) -> None:
    if name == "docs/log.md":  # a dated record: it names files as they were
        return
    named = set(SOURCE.findall((ROOT / name).read_text()))
    assert not [path for path in named if not (ROOT / path).exists()]


def test_readme_has_at_most_150_lines() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_the_command_page_holds_every_subcommand(generated: dict[str, str]) -> None:
    page = generated["reference/cli.md"]
    for name in COMMANDS:
        assert f"oclear {name}" in page
        assert name == "demo" or f"## oclear {name}\n" in page
    assert "--behaviour" in page
    assert "--max-steps" in page


def test_every_field_of_recipe_and_policy_has_a_meaning() -> None:
    for kind in (Recipe, Policy):
        without = [name for name, is_described in described_fields(kind) if not is_described]
        assert not without, f"{kind.__name__}: describe {without} in the docstring"


def described_fields(kind: type[Any]) -> Iterator[tuple[str, bool]]:
    """(field, whether it has a meaning) of a dataclass and of the dataclasses in it."""
    rows = [line.split(" | ") for line in reference.field_tables(kind) if line.startswith("| `")]
    assert rows
    for row in rows:
        yield row[0].removeprefix("| "), bool(row[3].removesuffix("|").strip())


def test_the_code_map_names_every_source_file_once(generated: dict[str, str]) -> None:
    page = generated["reference/code_map.md"]
    for package in reference.PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            if path.name != "__init__.py":
                section = page.split(f"### {path.parent.relative_to(ROOT)}/\n")[1].split("### ")[0]
                assert section.count(f"| `{path.name}` | ") == 1


def test_descriptions_are_read_from_either_kind_of_docstring() -> None:
    @dataclasses.dataclass
    class Inner:
        """A part.

        Attributes:
            one: the first. two, three: the others
                on two lines.
        """

        one: int
        two: int = 2
        three: float | None = None

    found = reference.described(Inner)
    assert found == {"one": "the first.", "two": "the others on two lines.", "three": "the others on two lines."}


class Nested:
    """Dataclasses in a dataclass, as a recipe has them."""

    @dataclasses.dataclass
    class Part:
        width: int = 3
        """Width in pixels."""

    @dataclasses.dataclass
    class Whole:
        part: "Nested.Part"
        """The part."""


def test_nested_dataclasses_become_sections() -> None:
    lines = reference.field_tables(Nested.Whole)
    assert "### `part`: Part" in lines
    assert "| `width` | `int` | `3` | Width in pixels. |" in lines
