"""Blocks of docs/governance.md come from result files."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import processes, result_file
from benchmarks.render import governance

MACHINE = {"cores": 2, "cpu": "a processor", "memory_gib": 8.0}
FACTS = {"command": "python -m benchmarks.x", "commit": "abc", "environment": MACHINE, "threads": 1}

ROUND = {
    "label_accuracy_before": 0.8,
    "label_accuracy_after": 0.97,
    "kept_share": 0.9,
    "category_pair_precision": 0.92,
    "category_pair_recall": 0.88,
    "category_pair_f1": 0.899,
}


def bar(
    task: str, value: float, limit: str | None, ok: bool | None, *, oracle: float | None = None, file: str | None
) -> dict[str, Any]:
    row = {"task": task, "value": value, "unit": "F1", "bar": limit, "ok": ok, "oracle": oracle, "rival": None}
    origin = {"command": f"python -m benchmarks.{task}", "commit": "abc", "machine": "a processor", "file": file}
    return {**row, "part": task, "from": origin}


def quality_results() -> dict[str, dict[str, Any]]:
    """Organising, cleaning and near-duplicates."""
    cell = {"precision": 0.5, "recall": 0.25, "f1": 0.3333, "seconds": 7.0}
    methods = dict.fromkeys(governance.METHODS, cell)
    stage = {"prototype_search": "exact", "prototype_recall": 1.0, "neighbour_recall": 0.75}
    cleaned = {"kind": "uniform", "noise_before": 0.2, "f1": 0.98, "oracle_f1": 0.99, "noise_after": 0.01, "kept": 0.97}
    speed = {"rows_per_second": 12_345, "peak_gib": 1.5}
    settings = [{**cleaned, **speed, "stage": {**stage, "wrong_labels_interval": [0.19, 0.21]}}]
    settings += [{**cleaned, **speed, "noise_before": 0.0, "stage": {**stage, "wrong_labels_interval": None}}]
    hashes = {"hashes": 1_000, "radius": 6, "joins": 28, "found_pairs": 9, "recall": 1.0, "precision": 1.0}
    compared = {"kind": "uniform", "noise": 0.1, "ours": {"f1": 0.9, **speed}, "cleanlab_batched": {"f1": 0.7, **speed}}
    return {
        "organising_m": {"documents": 30_000, "settings": [{"noise": 0.2, **methods}]},
        "cleaning_m": {"rows": 60_000, "categories": 6_000, "settings": settings},
        "cleaning_other_m": {"rows": 20_000, "categories": 5_000, "comparison": [compared]},
        "near_duplicates_m": {"hash": {**hashes, "seconds": 3.25, "peak_gib": 0.5}},
    }


def whole_run_results() -> dict[str, dict[str, Any]]:
    """The relational part, rounds of governance, and a run with new rows."""
    return {
        "relational_m": {
            "rows": 5_000,
            "memory_limit": "2GB",
            "ours": {"seconds": 3.0, "peak_gib": 0.5},
            "plain": {"seconds": 2.0, "peak_gib": 0.25},
            "seconds_ours_over_plain": 1.5,
        },
        "governance_loop_m": {"settings": [{"noise": 0.2, "first": ROUND, "second": ROUND}]},
        "incremental_m": {
            "queries_new": 1_200,
            "documents_new": 27,
            "full_cpu_seconds": 200.0,
            "incremental_cpu_seconds": 20.0,
            "cpu_share": 0.1,
            "keys_kept": 0.995,
            "keys_kept_same_clicks": 0.987,
            "untouched": 2_500,
            "pair_f1": 0.985,
        },
    }


def robustness_results() -> dict[str, dict[str, Any]]:
    """Killed runs, engines, long logs and bad rows."""
    return {
        "killed_m": {
            "behaviour": 900,
            "queries": 800,
            "kills": 20,
            "last_whole_stage": {"nothing": 15, "admit": 5},
            "tables": 30,
            "rows": 12_000,
            "unequal_tables": [],
            "figures_equal": True,
        },
        "engines_m": {
            "rows": 50_000,
            "spark": {"spark": "4.0.5", "master": "local-cluster[2,1,1024]", "worker_processes": 2},
            "tables": 35,
            "rows_compared": 80_000,
            "rows_from_the_engine": {"click_rates/edges": 9_000},
            "unequal_tables": [],
        },
        "log_scale_m": {
            "queries": 500,
            "documents": 2_000,
            "memory_limit": "500MB",
            "runs": [
                {
                    "rows": 1_000_000,
                    "dropped_by_admit": 10_000,
                    "dropped_by_click_rates": 90_000,
                    "edges": 7_000,
                    "rows_per_second": {"admit": 400_000, "click_rates": 2_000_000},
                    "peak_gib": 0.625,
                }
            ],
        },
        "bad_rows_m": {
            "good_rows": {"behaviour": 1_000_000},
            "bad_rows": {"behaviour": 10_000, "queries": 6},
            "kinds": 23,
            "cpu_seconds": {"good": [20.0, 21.0], "mixed": [20.5, 22.0]},
            "seconds_mixed_over_good": 1.025,
            "every_bad_row_found_for_its_reason": True,
            "good_rows_equal": True,
        },
    }


def bars_results() -> dict[str, dict[str, Any]]:
    """The table of all bars."""
    return {
        "governance_bars_m": {
            "rows": [
                bar("one", 0.98123, ">= 0.96", True, oracle=0.99, file=None),
                bar("two", 12_345.6, "> 13000", False, file="cleaning_m.json"),
                bar("three", 0.5, None, None, file=None),
            ],
            "missing": {"loop": "no demo"},
            "generators": {"cleaning": {"width": 64, "cosine_within": 0.45}},
        },
    }


def write_results(folder: Path) -> None:
    for name, metrics in (quality_results() | whole_run_results() | robustness_results() | bars_results()).items():
        (folder / f"{name}_202611.json").write_text(json.dumps({**FACTS, **metrics}))


def test_numbers_of_the_result_files_are_shown(tmp_path: Path) -> None:
    write_results(tmp_path)
    found = governance.blocks(tmp_path)
    assert "| **this stage** | 0.50 / 0.25 / **0.333** | 7 |" in found["governance-organising"]
    assert "| uniform, 0.200 | **0.980** | 0.990 | - | - | 0.190 to 0.210 | 0.010 |" in found["governance-cleaning"]
    assert "| 5,000 | 2GB | 3.0 | 2.0 | 1.50 | 0.50 | 0.25 |" in found["governance-relational"]
    assert "| uniform, 0.000 | - | - | - | - | refused |" in found["governance-cleaning"]
    assert "| cleanlab batched | 0.700 | 12,345 | 1.50 |" in found["governance-cleanlab"]
    assert "| 1,000 | 6 | 28 | 9 | 1.000 | 1.000 | 3.2 | 0.50 |" in found["governance-near-duplicates"]
    assert "| 0.800 | second | 0.9700 | 0.9000 | 0.8730 | 0.9200 | 0.8800 | **0.8990** |" in found["governance-loop"]
    assert "| 1,200 | 27 | 200 | 20 | **0.100** | **0.995** of 2,500 | 0.987 |" in found["governance-incremental"]
    assert "| 900 | 800 | 20 | none 15, admit 5 | 30 with 12,000 rows | 0 | equal |" in found["governance-killed"]
    assert (
        "| 50,000 | 4.0.5, local-cluster[2,1,1024] | 2 | 35 with 80,000 rows | click_rates/edges 9,000 | none |"
        in (found["governance-engines"])
    )
    assert (
        "| behaviour 1,000,000 | 10,006 | 23 | 20.0 / 21.0 | 20.5 / 22.0 | **1.025** | all, with"
        in found["governance-bad-rows"]
    )
    assert "| 1,000,000 | 10,000 | 90,000 | 7,000 | 400,000 | 2,000,000 | **0.62** |" in found["governance-log-scale"]
    targets = found["governance-targets"].splitlines()
    assert "| one | 0.9812 F1 | >= 0.96 | yes | 0.99 | - |" in targets
    assert "| two | 12,346 F1 | > 13000 | **no** | - | - |" in targets
    assert "| three | 0.5 F1 | - | no target | - | - |" in targets
    assert "- two: `python -m benchmarks.two`, commit abc, a processor, reused from `cleaning_m.json`" in targets
    assert "- Not measured: loop (no demo)" in targets
    assert "- synthetic data of cleaning: width 64, cosine within 0.45" in targets
    assert all("a processor" in block for block in found.values())


@pytest.mark.parametrize("missing", ["organising_m", "cleaning_m", "cleaning_other_m", "near_duplicates_m"])
def test_a_missing_file_stops_the_rendering_and_names_the_command(tmp_path: Path, missing: str) -> None:
    write_results(tmp_path)
    (tmp_path / f"{missing}_202611.json").unlink()
    with pytest.raises(ValueError, match=r"no result file\. Run python -m benchmarks\."):
        governance.blocks(tmp_path)


def test_a_missing_optional_result_is_marked_as_not_measured(tmp_path: Path) -> None:
    write_results(tmp_path)
    (tmp_path / "killed_m_202611.json").unlink()
    found = governance.blocks(tmp_path)
    assert found["governance-killed"] == "Not measured yet: `python -m benchmarks.governance.killed --data runs/small`."
    assert "0.899" in found["governance-loop"]


def test_a_recorded_command_has_no_absolute_path(tmp_path: Path) -> None:
    found = result_file.write_result(
        "x", {"f1": 1.0}, tmp_path / "deep" / "r.json", ["--catalogue", "/secret/place/c.parquet"]
    )
    assert found["command"] == "python -m benchmarks.x --catalogue c.parquet"
    assert json.loads((tmp_path / "deep" / "r.json").read_text()) == found
    assert processes.peak_gib() > 0
