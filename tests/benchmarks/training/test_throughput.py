"""The throughput benchmark runs at a tiny size and refuses a missing GPU."""

import json
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState

from benchmarks.training.throughput import main

SMALL = ["--image-size", "32", "--layers", "1", "--width", "16", "--hidden-size", "12", "--classes", "300"]


def test_encoder_head_and_both_are_timed_beside_the_plan(tmp_path: Path) -> None:
    words = [*SMALL, "--batch-size", "9", "--steps", "2", "--json", str(tmp_path / "found.json")]
    assert main(words) == 0
    AcceleratorState._reset_state(reset_partial_state=True)
    found = json.loads((tmp_path / "found.json").read_text())
    assert set(found["seconds_a_step"]) == {"encoder", "head", "both"}
    assert min(found["seconds_a_step"].values()) > 0
    assert found["samples_a_second"]["both"] == pytest.approx(9 / found["seconds_a_step"]["both"], rel=0.05)
    assert found["planned_bytes"] > 4 * 300 * 12


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_gpu_that_is_not_there_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--device", "cuda"]) == 2
    assert "torch finds no GPU here" in capsys.readouterr().err
