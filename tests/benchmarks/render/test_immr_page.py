"""Rendered blocks of docs/immr.md: newest file, optional sections, missing numbers."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.immr.protocol.scores import METRICS
from benchmarks.render import immr

BASELINE = "infonce.raw.concat"


def pooled(value: float) -> dict[str, Any]:
    metrics = {name: value + 0.1 * place for place, name in enumerate(METRICS)}
    spans = {name: [metric - 0.05, metric + 0.05] for name, metric in metrics.items()}
    return {**metrics, "intervals": spans, "evaluations": 900, "cells": 9}


def difference(value: float) -> dict[str, Any]:
    return {name: {"difference": value, "low": value - 0.01, "high": value + 0.01, "p": 0.5} for name in METRICS}


def synthetic_result() -> dict[str, Any]:
    compared = {
        **difference(0.03),
        "cells": 9,
        "product": dict.fromkeys(METRICS, 0.5),
        "other": dict.fromkeys(METRICS, 0.25),
    }
    judged = {"difference": 0.02, "low": 0.01, "high": 0.03, "p": 0.01, "p_holm": 0.02, "low_holm": 0.005}
    part = {**judged, "high_holm": 0.04, "evaluations": 1200, "judged": True}
    few = {**part, "judged": False, "evaluations": 40, "low_holm": None, "high_holm": None, "p_holm": None}
    slices = {"document.text=other_language": part, "query.style=noto": few}
    eval_settings = {one: dict(zip(METRICS, (0.1, 0.2, 0.3), strict=True)) for one in ("unseen", "seen")}
    return {
        "command": "python -m benchmarks.immr",
        "commit": "abc",
        "environment": {"cores": 2, "cpu": "CPU", "memory_gib": 8.0, "python": "3.11", "torch": "2.13"},
        "grid": "final",
        "max_steps": None,
        "summary": {"oclear": pooled(0.5) | {"name": "oclear"}, "best_raw_rival": pooled(0.25) | {"name": BASELINE}},
        "systems": {"oclear": pooled(0.5), BASELINE: pooled(0.25), "cosface.governed.image": pooled(0.375)},
        "comparisons": {
            "best_raw_rival": {"unseen": compared, "tiny.small": {**compared, **difference(0.0)}, "seen": {}}
        },
        "slices": dict.fromkeys(METRICS, slices),
        "main": {"unseen": {"oclear": pooled(0.5), "image_only": pooled(0.5), "difference": difference(0.02)}},
        "noise": {"noisy": pooled(0.4), "usual": pooled(0.5), "difference": difference(-0.1)},
        "styles": {"share_of_gain": 0.625},
        "heads": {BASELINE: {"settings": {"rate": 0.5, "value": 0.07, "balance": 1.0}, "seconds": 3, **eval_settings}},
        "choices": {},
        "cells": {},
    }


def written(folder: Path, result: dict[str, Any], name: str = "immr_x_202611") -> Path:
    (folder / f"{name}.json").write_text(json.dumps(result))
    return folder


def test_without_a_result_file_every_section_is_empty(tmp_path: Path) -> None:
    assert set(immr.blocks(tmp_path).values()) == {""}


def test_metrics_of_the_newest_file_are_rendered(tmp_path: Path) -> None:
    older = synthetic_result()
    older["summary"]["oclear"]["recall_at_1"] = 0.111
    written(tmp_path, older, "immr_z_202610")
    found = immr.blocks(written(tmp_path, synthetic_result()))
    assert "| **OCLEAR** | 0.500 [0.450, 0.550] | 0.600" in found["immr-results"]
    assert (
        "| best baseline on raw clicks: InfoNCE, raw labels, documents: image + text, learned | 0.250"
        in found["immr-results"]
    )
    assert "| CosFace, governed labels, documents: image | 0.375" in found["immr-results"]
    assert (
        "immr_x_202611.json`, written by `python -m benchmarks.immr`, commit abc, on 2 cores (CPU"
        in found["immr-results"]
    )
    assert "| unseen categories | **+3.0 [+2.0, +4.0]** |" in found["immr-comparisons"]
    assert "small gallery | +0.0 [-1.0, +1.0] |" in found["immr-comparisons"], (
        "an interval that contains zero is not bold"
    )
    assert "held-out queries" not in found["immr-comparisons"], "an evaluation setting without common cells has no row"
    assert (
        "| documents, text: other language | 1,200 | +2.0 [+1.0, +3.0] | [+0.5, +4.0], above zero |"
        in found["immr-slices"]
    )
    assert "| queries, style: noto | 40 | +2.0 [+1.0, +3.0] | too few evaluations |" in found["immr-slices"]
    assert "| difference, points | **-10.0 [-11.0, -9.0]** |" in found["immr-others"]
    assert "the R@1 gain over frozen features is 62%" in found["immr-others"]
    assert "| 0.100 | 0.200 | 0.100 | 0.200 | x0.5, 0.07, 1 |" in found["immr-heads"]


def test_the_readme_table_has_both_settings_and_is_empty_without_a_final_grid(tmp_path: Path) -> None:
    assert immr.short(tmp_path) == ""
    result = synthetic_result()
    result["summary"]["oclear"]["cells"], result["main"]["unseen"]["oclear"]["cells"] = 9, 3
    result["comparisons"]["image_only"] = {"unseen": result["comparisons"]["best_raw_rival"]["unseen"], "seen": {}}
    found = immr.short(written(tmp_path, result)).splitlines()
    assert found[2].startswith("| hard | unseen categories | 0.")
    assert found[2].count("**+3.0 [+2.0, +4.0]**") == 3
    assert found[3].startswith("| main | unseen categories | 0.500 |")
    assert found[5].startswith("Means of 9 runs in the hard setting and 3 in the main setting: category splits")
    assert immr.short(written(tmp_path, result | {"grid": "heads"})) == ""


def test_a_file_of_the_heads_grid_has_no_section_of_the_final_grid(tmp_path: Path) -> None:
    result = synthetic_result() | {"grid": "heads", "slices": {}}
    for name in ("main", "noise", "styles"):
        del result[name]
    found = immr.blocks(written(tmp_path, result))
    assert found["immr-others"] == found["immr-slices"] == ""
    assert "heads only on frozen features" in found["immr-results"]


@pytest.mark.parametrize(
    ("where", "block"),
    [
        (("summary", "oclear", "recall_at_1"), "immr-results"),
        (("environment", "cpu"), "immr-results"),
        (("comparisons", "best_raw_rival", "unseen", "mrr_at_10"), "immr-comparisons"),
        (("slices", "recall_at_1", "query.style=noto", "evaluations"), "immr-slices"),
        (("noise", "usual", "intervals"), "immr-others"),
        (("heads", BASELINE, "unseen", "recall_at_10"), "immr-heads"),
    ],
)
def test_a_missing_number_stops_the_rendering_and_is_named(tmp_path: Path, where: tuple[str, ...], block: str) -> None:
    result = copy.deepcopy(synthetic_result())
    inner: Any = result
    for key in where[:-1]:
        inner = inner[key]
    del inner[where[-1]]
    with pytest.raises(ValueError, match=f"lacks '{where[-1]}' for the block {block}"):
        immr.blocks(written(tmp_path, result))


def test_a_trial_run_with_fewer_steps_is_marked(tmp_path: Path) -> None:
    assert (
        "20 steps: not a result"
        in immr.blocks(written(tmp_path, synthetic_result() | {"max_steps": 20}))["immr-results"]
    )
