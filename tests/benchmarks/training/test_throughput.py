"""The throughput benchmark runs at a tiny size and refuses a missing GPU."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.training.throughput import main
from tests.support.commands import reset_accelerator
from train.class_weights.shard import ClassShard, ShardSettings

SMALL = ["--image-size", "32", "--layers", "1", "--width", "16", "--hidden-size", "12", "--classes", "300"]


def result(path: Path, *words: str) -> dict[str, Any]:
    """What the command writes for a batch of 9."""
    assert main([*SMALL, "--batch-size", "9", *words, "--json", str(path)]) == 0
    reset_accelerator()
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def test_encoder_head_and_both_are_timed_beside_the_plan(tmp_path: Path) -> None:
    found = result(tmp_path / "found.json", "--steps", "2")
    assert set(found["seconds_a_step"]) == {"encoder", "head", "both"}
    assert min(found["seconds_a_step"].values()) > 0
    assert found["samples_a_second"]["both"] == pytest.approx(9 / found["seconds_a_step"]["both"], rel=0.05)


def test_more_classes_add_their_rows_their_state_and_the_sampled_tenth_to_the_planned_bytes(tmp_path: Path) -> None:
    few, many = (result(tmp_path / f"{count}.json", "--steps", "1", "--classes", count) for count in ("300", "3000"))
    settings = ShardSettings(dtype=torch.float32, weight_decay=0.02, optimizer="rowwise_adagrad")
    rows = [ClassShard(count, 12, settings, device=torch.device("cpu")).state() for count in (300, 3000)]
    held = [sum(tensor.numel() * tensor.element_size() for tensor in state.values()) for state in rows]
    sampled = 2 * 4 * 270 * 12 + 4 * 270 * 9  # weights and gradient of a tenth of 2,700 rows, logits of 9 samples
    assert many["planned_bytes"] - few["planned_bytes"] == held[1] - held[0] + sampled


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_gpu_that_is_not_there_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--device", "cuda"]) == 2
    assert "torch finds no GPU here" in capsys.readouterr().err
