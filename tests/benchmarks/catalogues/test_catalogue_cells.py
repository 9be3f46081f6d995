"""Cells of the catalogues benchmark: settings, names, and the table of --list."""

import json
from dataclasses import replace

import pytest

from benchmarks.catalogues.__main__ import main
from benchmarks.catalogues.cell import Cell
from benchmarks.catalogues.cells import CELLS, chosen, listed


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"domain": "shoes"}, "domain is 'shoes'"),
        ({"text": "long"}, "text is 'long'"),
        ({"clicked": 0.0}, "clicked is 0.0; it must be 0.01 to 1"),
        ({"noise": 1.5}, "noise is 1.5"),
        ({"documents": (3, 1)}, "documents is"),
        ({"documents": (0, 1)}, "documents is"),
        ({"test_categories": 799}, "test_categories is 799"),
    ],
)
def test_an_impossible_setting_is_refused_with_its_limit(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Cell(**changes)  # type: ignore[arg-type]


def test_a_cell_survives_json() -> None:
    cell = Cell(documents=(2, 5), noise=0.3)
    assert Cell.from_json(json.loads(json.dumps(cell.as_json()))) == cell


def test_unknown_settings_of_a_file_are_refused() -> None:
    with pytest.raises(ValueError, match="no field colour"):
        Cell.from_json(Cell().as_json() | {"colour": 1})


def test_names_are_unique_and_every_cell_differs_from_its_base_in_the_named_setting() -> None:
    known = {one.name: one for one in CELLS}
    assert len(known) == len(CELLS)
    for one in CELLS:
        if one.base:
            base = known[one.base]
            assert not base.base
            assert one.cell.domain == base.cell.domain
            assert one.cell != base.cell
            setting = one.name.removeprefix(f"{one.base}-").split("-")[0]
            assert getattr(one.cell, setting) != getattr(base.cell, setting), one.name


def test_every_cell_is_small() -> None:
    for one in CELLS:
        documents = one.cell.categories * sum(one.cell.documents) / 2
        pictures = (one.cell.categories - one.cell.test_categories) * one.cell.clicked * one.cell.pictures
        assert documents <= 8000, one.name
        assert pictures <= 1600, one.name


def test_list_prints_one_line_for_each_cell_with_ranges(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(CELLS) + 1
    assert lines[0].split()[:2] == ["cell", "categories"]
    assert "1-3" in lines[1]


def test_a_flag_is_listed_as_a_word() -> None:
    assert "yes" in listed([replace(CELLS[0], cell=Cell(leaf=True))])


def test_an_unknown_name_gives_one_line_with_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--cells", "nothing"]) == 2
    assert "no cell is called nothing; the names are icons" in capsys.readouterr().err
    assert [one.name for one in chosen(["emoji", "icons"])] == ["icons", "emoji"]
