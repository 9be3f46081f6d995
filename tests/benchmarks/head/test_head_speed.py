"""Timed heads do the same work, and the reported times are the measured ones."""

import argparse
import dataclasses
import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.head import heads, speed, trial
from benchmarks.head.step import HeadSize

TINY = HeadSize(classes=300, hidden_size=13, rate=0.2, batch_size=7)


def parts(**changed: Any) -> dict[str, Any]:
    return {
        "step_s": [3.0, 1.0, 2.0],
        "forward_s": [1.0],
        "backward_s": [1.0],
        "update_s": [0.5],
        "peak_gib": 1.5,
        **changed,
    }


def test_ours_with_momentum_follows_the_dense_update_and_agrees_with_the_full_softmax() -> None:
    found = speed.check_equal_losses(["dense_update", "dense_parameter", "full_softmax"])
    assert set(found) == {"dense_update", "dense_parameter", "full_softmax"}
    assert max(found.values()) < 1e-4


@pytest.mark.skipif(
    importlib.util.find_spec("pytorch_metric_learning") is None, reason="needs the optional extra bench"
)
def test_ours_agrees_with_pytorch_metric_learning() -> None:
    assert speed.check_equal_losses(["pytorch_metric_learning"])["pytorch_metric_learning"] < 1e-4


def test_heads_that_disagree_stop_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heads, "margin_loss", lambda *args, **kwargs: torch.ones((), requires_grad=True) * 0)
    with pytest.raises(ValueError, match="ours and full_softmax differ"):
        speed.check_equal_losses(["full_softmax"])


def test_the_dense_update_equals_sgd_with_momentum_and_decay_on_every_row() -> None:
    size = dataclasses.replace(TINY, weight_decay=0.01)
    dense = heads.DenseUpdate(size)
    weight, momentum = dense.weight_CD.double(), torch.zeros(300, 13, dtype=torch.float64)
    for step in range(3):
        dense.backward(dense.forward(*trial.random_batch(size, step), step))
        gradient = torch.zeros_like(weight)
        gradient[dense.class_ids_S] = dense.rows_SD.grad.double()  # type: ignore[union-attr]
        dense.update()
        momentum = 0.9 * momentum + gradient
        weight = (1 - size.learning_rate * 0.01) * weight - size.learning_rate * momentum
    assert (dense.weight_CD.double() - weight).abs().max() < 1e-6


@pytest.mark.parametrize("name", ["ours", "dense_update", "dense_parameter", "floor", "full_softmax"])
def test_a_trial_reports_the_seconds_of_every_step_and_the_peak(name: str) -> None:
    found = trial.trial(name, TINY, steps=3)
    for part in speed.PARTS:
        assert len(found[part]) == 3
    assert found["step_s"][0] >= found["update_s"][0] > 0
    assert found["peak_gib"] > 0
    assert ("moves_bytes" in found) == (name in ("dense_update", "dense_parameter"))


def test_a_head_that_does_not_fit_is_left_out_with_the_reason() -> None:
    with pytest.raises(ValueError, match="GiB are free: choose fewer classes"):
        heads.FullSoftmax(dataclasses.replace(TINY, classes=10**10))


def test_a_row_has_medians_over_all_rounds() -> None:
    row = speed.row_of("ours", TINY, [parts(), parts(step_s=[9.0, 9.0], peak_gib=2.0)])
    assert row["step_s"] == 3.0
    assert row["peak_gib"] == 2.0
    assert row["optimizer"] == "momentum"
    assert speed.row_of("full_softmax", TINY, [parts()])["rate"] == 1.0
    left_out = speed.row_of("full_softmax", TINY, [{"left_out": "too large"}])
    assert left_out["left_out"] == "too large"
    assert "step_s" not in left_out


def test_a_dense_update_far_below_the_bandwidth_of_a_copy_is_refused() -> None:
    slow = parts(moves_bytes=2**30, copy_bandwidth=8 * 2**30)
    with pytest.raises(ValueError, match="25% of a copy's bandwidth"):
        speed.row_of("dense_update", TINY, [slow])
    assert (
        speed.row_of("dense_update", TINY, [parts(moves_bytes=2**30, copy_bandwidth=3 * 2**30)])["bandwidth_share"]
        > 0.6
    )


def test_growth_compares_the_most_classes_with_the_fewest() -> None:
    rows = [
        {"head": "ours", "optimizer": "sgd", "classes": classes, "step_s": step_s}
        for classes, step_s in ((10, 2.0), (100, 2.2), (50, 9.0))
    ]
    assert speed.growth(rows) == [{"head": "ours", "optimizer": "sgd", "from": 10, "to": 100, "step_ratio": 1.1}]


def test_fixed_rows_sample_the_same_number_at_any_number_of_classes() -> None:
    args = argparse.Namespace(
        classes=[1000, 5000], optimizer=["sgd"], fixed_rows=200, rate=0.5, hidden_size=8, batch_size=4, dtype="fp32"
    )
    args.device, args.seed = "cpu", 0
    assert [size.rate * size.classes for size in speed.sizes_of(args)] == [200, 200]


def test_the_command_times_each_head_in_its_own_process_and_writes_the_result(tmp_path: Path) -> None:
    words = ["--classes", "300", "--hidden-size", "8", "--rate", "0.1", "--batch-size", "4", "--steps", "2"]
    words += ["--threads", "1", "--heads", "ours", "--json", str(tmp_path / "speed.json")]
    assert speed.main(words) == 0
    found = json.loads((tmp_path / "speed.json").read_text())
    assert [row["head"] for row in found["rows"]] == ["ours"]
    assert found["rows"][0]["steps"] == 2
    assert found["command"].startswith("python -m benchmarks.head --classes 300")


def test_impossible_sizes_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert speed.main(["--steps", "0"]) == 2
    assert "must be at least 1" in capsys.readouterr().err
