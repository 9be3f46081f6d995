"""README says what the result files and the sources say: rendering it again changes nothing."""

from pathlib import Path

from benchmarks import render

ROOT = Path(__file__).resolve().parents[2]


def test_readme_is_what_rendering_gives() -> None:
    readme = (ROOT / "README.md").read_text()
    assert render.rendered(readme) == readme, "run python -m benchmarks.render"


def test_every_source_file_opens_with_one_line_that_says_what_it_is() -> None:
    empty = [
        str(path)
        for package in render.PACKAGES
        for path in (ROOT / package).rglob("*.py")
        if path.name != "__init__.py" and not render.first_line(path)
    ]
    assert not empty
