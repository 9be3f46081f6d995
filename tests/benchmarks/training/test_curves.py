"""Comparison of training curves, and the committed curves are within the limits."""

import json
from pathlib import Path

import pytest

from benchmarks.processes import ROOT
from benchmarks.training.curves import METRICS, SETTINGS, STEPS, Curve, compare, is_finished, launch
from benchmarks.training.curves import main as curves

RESULTS = sorted((Path(ROOT) / "benchmarks" / "results").glob("curves_*.json"))


def curve(offset: float) -> Curve:
    return {name: [1.0, 2.0 + offset] for name in METRICS}


def test_in_double_precision_a_layout_may_differ_by_rounding_alone_and_a_resumed_run_not_at_all() -> None:
    reordered = {"one": curve(0), "accumulate_2": curve(1e-15), "accumulate_4": curve(0)}
    others = {"torchrun_2": curve(1.9e-10), "fsdp2_2": curve(-2.1e-10), "resumed": curve(1e-15)}
    found = compare({**reordered, **others}, double=True)
    assert found["limits"]["loss"] == pytest.approx(2e-10), "1e-10 of the largest value"
    assert found["beyond"] == ["fsdp2_2", "resumed"]
    assert found["gaps"]["fsdp2_2"]["loss"] == pytest.approx(2.1e-10, rel=1e-5)


def test_in_double_precision_the_limit_grows_with_the_gap_of_another_order() -> None:
    reordered = {"one": curve(0), "accumulate_2": curve(1e-8), "accumulate_4": curve(-2e-8)}
    found = compare({**reordered, "torchrun_2": curve(5.9e-8), "fsdp2_2": curve(6.1e-8)}, double=True)
    assert found["beyond"] == ["fsdp2_2"]


def test_every_layout_starts_a_program_that_is_there() -> None:
    for _, layouts in SETTINGS.values():
        for layout in layouts:
            assert all(Path(word).is_file() for word in launch(layout)[0] if word.endswith((".py", ".yaml")))


def test_in_single_precision_the_limit_is_three_times_the_gap_of_another_order() -> None:
    reordered = {"one": curve(0), "accumulate_2": curve(1e-5), "accumulate_4": curve(-2e-5)}
    found = compare({**reordered, "torchrun_2": curve(5.9e-5), "fsdp2_2": curve(6.1e-5)}, double=False)
    assert found["limits"]["loss"] == pytest.approx(6e-5)
    assert found["beyond"] == ["fsdp2_2"]


def test_curves_of_different_lengths_and_unknown_layouts_are_refused() -> None:
    with pytest.raises(ValueError, match="curves of 2 and 1 steps"):
        compare({"one": {name: [1.0] for name in METRICS}, "torchrun_2": curve(0)}, double=True)
    with pytest.raises(ValueError, match="no layout is called 'three'"):
        launch("three")


def test_a_run_that_stopped_after_its_first_call_is_run_again(tmp_path: Path) -> None:
    assert not is_finished(tmp_path)
    (tmp_path / "training.json").write_text("{}")
    for steps in (STEPS - 27, STEPS):
        (tmp_path / "train.jsonl").write_text("{}\n" * steps)
        assert is_finished(tmp_path) == (steps == STEPS)


def test_committed_curves_are_within_the_limits() -> None:
    for path in RESULTS:
        for setting, found in json.loads(path.read_text())["settings"].items():
            again = compare(found["curves"], double="64" in setting)
            assert again["beyond"] == [] == found["beyond"], path.name
            assert all(len(values) == STEPS for curve in found["curves"].values() for values in curve.values())


@pytest.mark.distributed
def test_every_layout_gives_the_curve_of_one_process(tmp_path: Path) -> None:
    assert curves(["--work", str(tmp_path), "--json", str(tmp_path / "curves.json")]) == 0
