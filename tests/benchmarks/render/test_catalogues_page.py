"""docs/catalogues.md: all named cells, with and without their numbers."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.catalogues.cells import CELLS
from benchmarks.render import catalogues

MACHINE = {"cores": 2, "cpu": "a processor", "memory_gib": 24, "torch": "2.0"}
FROM = {"command": "python -m benchmarks.catalogues", "environment": MACHINE, "threads": 1, "simulated": True}


def measured(name: str, **changed: Any) -> dict[str, Any]:
    [cell] = [one.cell for one in CELLS if one.name == name]
    levels = {"recall_at_1": 0.25, "recall_at_10": 0.5, "mrr_at_10": 0.3}
    gain = {metric: {"difference": 0.04, "low": 0.01, "high": 0.07} for metric in levels}
    part = {"trained": levels, "frozen": levels | {"recall_at_1": 0.21}, "queries": 300, "difference": gain}
    return {
        "recipe": "auto",
        "published": ["trained", "75% trained"],
        "seeds": [0, 1],
        "settings": {key: value for key, value in cell.as_json().items() if key != "seed"},
        "unseen": part,
        "seen": part,
        "governance": {"label_accuracy_before": 0.8, "label_accuracy_after": 0.95},
        "first_seed": {"rows": {"catalogue": 2000, "queries": 850}},
        "cpu_seconds": 200.4,
    } | changed


def written(folder: Path, cells: dict[str, Any]) -> Path:
    (folder / "catalogues.json").write_text(json.dumps({**FROM, "cells": cells}))
    return folder


def line(page: str, name: str) -> str:
    return next(line for line in page.splitlines() if line.startswith(f"| {name} |"))


def test_without_a_file_the_cells_and_the_command_are_shown(tmp_path: Path) -> None:
    page = catalogues.cells(tmp_path)
    assert all(line(page, one.name) for one in CELLS)
    assert page.endswith(
        "Not measured yet. Run `python -m benchmarks.catalogues --json benchmarks/results/catalogues.json`."
    )


def test_a_measured_cell_shows_levels_and_signed_points(tmp_path: Path) -> None:
    page = catalogues.cells(written(tmp_path, {"icons-noise-50": measured("icons-noise-50")}))
    found = line(page, "icons-noise-50")
    assert "| noise 0.5 (0.2) | 2,000 | 850 | 0.210 | 0.250 | **+4.0 [+1.0, +7.0]** |" in found
    assert "| 0.300 | 0.300 | +0% |" in found
    assert found.endswith("| 0.800 -> 0.950 | trained, 75% trained | 200 |")
    assert "not run" in line(page, "emoji")
    assert "seeds 0, 1" in page
    assert "From `catalogues.json`, written by `python -m benchmarks.catalogues`" in page


def test_a_cell_of_other_settings_counts_as_not_run(tmp_path: Path) -> None:
    page = catalogues.cells(written(tmp_path, {"emoji": measured("icons")}))
    assert "not run" in line(page, "emoji")


def test_a_missing_number_stops_the_rendering(tmp_path: Path) -> None:
    row = measured("icons")
    del row["governance"]
    with pytest.raises(ValueError, match="catalogues.json lacks 'governance' of the cell icons"):
        catalogues.cells(written(tmp_path, {"icons": row}))
