"""README and the pages in docs/ say what the result files and the sources say: rendering them again changes nothing."""

from pathlib import Path

import pytest

from benchmarks.render import pages, reference

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("page", sorted(pages.PAGES))
def test_every_page_is_what_rendering_gives(page: str) -> None:
    assert pages.rendered_page(page) == (ROOT / page).read_text(), "run python -m benchmarks.render"


def test_a_page_without_markers_is_refused() -> None:
    with pytest.raises(ValueError, match="lacks the markers <!-- speed -->"):
        pages.filled("no markers", {"speed": "a table"}, page="docs/head.md")


def test_every_source_file_opens_with_one_line_that_says_what_it_is() -> None:
    empty = [
        str(path)
        for package in reference.PACKAGES
        for path in (ROOT / package).rglob("*.py")
        if path.name != "__init__.py" and not reference.first_line(path)
    ]
    assert not empty
