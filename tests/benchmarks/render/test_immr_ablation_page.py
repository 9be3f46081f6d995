"""Rendered ablation table: signed changes, parts without effect, no table without a file."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.immr.ablation.suite import PARTS
from benchmarks.immr.ablation.variants import FULL, SWITCHED, TRAINED
from benchmarks.render import immr, immr_ablation
from benchmarks.render.immr_format import METRICS


def row(value: float, difference: float | None) -> dict[str, Any]:
    metrics: dict[str, Any] = dict.fromkeys(METRICS, value)
    metrics |= {"evaluations": 300, "cells": 3}
    if difference is not None:
        spans = {"difference": difference, "low": difference - 0.01, "high": difference + 0.01, "p": 0.1}
        change = {**dict.fromkeys(METRICS, spans), "cells": 2}
        metrics |= {"moved": 7, "change": change, "cells": 2}
    return metrics


def written(folder: Path) -> Path:
    changes = {"governance": -0.25, "memory": 0.0004}
    parts = {part: dict.fromkeys(("unseen", "missing"), row(0.2, change)) for part, change in changes.items()}
    result = {
        "command": "python -m benchmarks.immr.ablation",
        "commit": "abc",
        "environment": {"cores": 2, "cpu": "CPU", "memory_gib": 8.0, "python": "3.11", "torch": "2.13"},
        "world": "hard-0",
        "max_steps": None,
        "parts": {FULL: dict.fromkeys(("unseen", "missing"), row(0.4, None)), **parts},
        "cells": {str(seed): {"seed": seed} for seed in (0, 1, 2)},
    }
    (folder / "immr_ablation_x_202611.json").write_text(json.dumps(result))
    return folder


def test_without_a_file_there_is_no_table(tmp_path: Path) -> None:
    assert immr_ablation.ablation(tmp_path) == immr_ablation.short(tmp_path) == ""


def test_changes_of_each_part_are_shown_and_parts_without_effect_are_named(tmp_path: Path) -> None:
    found = immr_ablation.ablation(written(tmp_path))
    assert "| **none: OCLEAR** | 0.400 | 0.400 | 0.400 |" in found
    assert "| governance (raw clicks, every document a category of its own) | 0.200" in found
    assert "| **-25.0 [-26.0, -24.0]** |" in found
    assert "| +0.0 [-1.0, +1.0] |" in found
    assert "7 of 200" in found
    assert "Without concept memory no metric changes" in found
    assert "training seeds 0, 1, 2" in found
    assert "With fewer seeds: governance, concept memory" in found
    assert "**-25.0 [-26.0, -24.0]**" in immr_ablation.short(tmp_path)


def test_a_missing_number_stops_the_rendering(tmp_path: Path) -> None:
    path = written(tmp_path) / "immr_ablation_x_202611.json"
    result = json.loads(path.read_text())
    del result["parts"]["memory"]["missing"]
    path.write_text(json.dumps(result))
    with pytest.raises(ValueError, match="lacks 'missing'"):
        immr_ablation.ablation(tmp_path)


def test_the_result_file_of_the_ablation_is_not_read_as_that_of_the_benchmark(tmp_path: Path) -> None:
    assert immr.newest(written(tmp_path)) is None
    assert set(immr.blocks(tmp_path)) - {"immr-ablation"} == set(immr.SECTIONS)
    assert "## Ablation" in immr.blocks(tmp_path)["immr-ablation"]


def test_every_measured_part_has_a_title() -> None:
    assert set(immr_ablation.PARTS) == set(PARTS) == {*TRAINED, *SWITCHED}
