"""docs/head.md shows the result files; without one it names the command."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.head import large, nearest, quality, speed
from benchmarks.head.step import HeadSize, make_shard
from benchmarks.render import head

MACHINE = {"cores": 2, "cpu": "a processor", "memory_gib": 24, "torch": "2.0"}
FROM = {"command": "python -m benchmarks.x", "environment": MACHINE, "threads": 2}


def row(name: str, step_s: float, **changed: Any) -> dict[str, Any]:
    size = {"classes": 1000, "hidden_size": 8, "rate": 0.1, "batch_size": 4, "dtype": "fp32", "optimizer": "momentum"}
    times = {"step_s": step_s, "forward_s": 0.1, "backward_s": 0.2, "update_s": step_s / 2, "peak_gib": 1.25}
    return {"head": name, **size, **times, **changed}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(head, "RESULTS", tmp_path)
    return tmp_path


def test_a_page_without_results_names_the_command_of_each(folder: Path) -> None:
    blocks = head.blocks()
    assert set(blocks) == {"speed", "fixed_rows", "nearest", "large", "card", "quality", "bias"}
    assert blocks.pop("card").startswith("| head, width 512")
    for block in blocks.values():
        assert block.startswith("Not measured yet. Run `python -m benchmarks.head")


@pytest.mark.parametrize(
    ("theme", "module"),
    [
        ("speed", speed),
        ("fixed_rows", speed),
        ("nearest", nearest),
        ("large", large),
        ("quality", quality),
    ],
)
def test_the_commands_of_the_page_are_accepted(theme: str, module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    words = head.COMMANDS[theme].split()
    assert words[:3] == ["python", "-m", module.__name__.removesuffix(".speed")]
    taken: list[Any] = []

    def keep(*args: Any, **kwargs: Any) -> dict[str, Any]:
        taken.append(args)
        return {}

    for name in ("measure", "write_result"):
        monkeypatch.setattr(module, name, keep)
    monkeypatch.setattr(large, "failures", lambda found: [])
    assert module.main(words[3:]) == 0
    assert len(taken) == 2


def test_the_bytes_of_a_class_equal_those_of_its_tensors() -> None:
    shards = {"ours, bf16, row-wise Adagrad": ("bf16", "rowwise_adagrad"), "ours, fp32, momentum": ("fp32", "momentum")}
    counted = {name: size for name, size, _ in head.bytes_per_class()}
    for name, (dtype, optimizer) in shards.items():
        size = HeadSize(classes=10, hidden_size=512, rate=1.0, batch_size=1, dtype=dtype, optimizer=optimizer)
        held = sum(tensor.numel() * tensor.element_size() for tensor in make_shard(size).state().values())
        assert held == 10 * counted[name]
    (command,) = [line for line in head.capacity().split("`") if line.startswith("python -m benchmarks.head.large")]
    assert "--device cuda" in command


def test_speed_is_shown_with_ratios_and_heads_that_were_left_out(folder: Path) -> None:
    rows = [
        row("ours", 0.1),
        row("dense_update", 0.45, bandwidth_share=0.8),
        row("full_softmax", 0, left_out="too large"),
        row("floor", 0.05),
    ]
    del rows[2]["step_s"]
    (folder / "head_speed_x.json").write_text(json.dumps(FROM | {"rows": rows}))
    block = head.blocks()["speed"]
    assert "| **ours** | momentum | 1,000 | 8 | 0.1 | 4 | fp32 | 0.1000 | 0.1000 | 0.2000 | 0.0500 | 1.25 |" in block
    assert "takes 4.5 times as long as ours with momentum (update alone 4.5 times)" in block
    assert 'divided by that of the lower bound: ours with momentum 2.00, "sampled, dense update" 9.0.' in block
    assert "left out: too large" in block
    assert "From `head_speed_x.json`, written by `python -m benchmarks.x` on 2 cores (a processor" in block


def test_hard_classes_are_shown_in_steps_of_the_head(folder: Path) -> None:
    figures = {"classes": 100, "build_s": 2.0, "find_s": 0.01, "recall": 0.75, "index_gib": 0.5, "step_s": 0.1}
    rows = [{"index": "ours", **figures}, {"index": "IVF,SQ8", **figures, "build_s": 9.0}]
    (folder / "head_nearest_x.json").write_text(json.dumps(FROM | {"rows": rows}))
    block = head.blocks()["nearest"]
    assert "| 100 | **ours** | 2.0 | 20 | 0.010 | 0.750 | 0.500 |" in block
    assert "| 100 | `IVF,SQ8` of FAISS | 9.0 | 90 |" in block


@pytest.mark.parametrize(("ratio", "verdict"), [(1.3, "1.3; met"), (1.31, "1.3; **not met**")])
def test_growth_is_compared_with_its_target(folder: Path, ratio: float, verdict: str) -> None:
    growth = [{"head": "ours", "optimizer": "sgd", "from": 10, "to": 100, "step_ratio": ratio}]
    result = FROM | {"rows": [row("ours", 0.1)], "growth": growth, "fixed_rows": 5}
    (folder / "head_fixed_rows_x.json").write_text(json.dumps(result))
    assert verdict in head.blocks()["fixed_rows"]


def test_a_failed_check_of_a_large_run_is_shown(folder: Path) -> None:
    run = FROM | {"classes": 100, "hidden_size": 8, "dtype": "bf16", "optimizer": "sgd", "storage": "disk", "steps": 9}
    run |= {"table_gib": 1.5, "start_s": 2.0, "step_s": 0.5, "rows_a_step": 7, "loss_start": 9.0, "loss_end": 8.0}
    run |= {"anonymous_gib": 0.5, "peak_gib": 2.5, "never_drawn_rows": 3, "never_drawn_moved": 1, "categories": 4}
    (folder / "head_large_x.json").write_text(json.dumps(run | {"failures": ["the loss stayed"]}))
    block = head.blocks()["large"]
    assert "FAILED: the loss stayed." in block
    header, line, cells = block.split("\n")[:3]
    assert header.count("|") == line.count("|") == cells.count("|")


def test_quality_has_a_table_for_each_share_of_wrong_labels_with_and_without_filter(folder: Path) -> None:
    kinds = [(0.0, 1.0, "full", False), (0.0, 1.0, "full", True), (0.4, 0.1, "uniform", False)]
    summary = [
        {"noise": noise, "rate": rate, "form": form, "filtered": filtered, "recall_at_1": 0.6 + 0.1 * filtered}
        | {"deviation": 0.01 if filtered else None, "rows_a_step": 1200, "seconds": 3.0, "seeds": [0]}
        | {"minus_full": None if noise else [0.1 * filtered, 0.002 if filtered else None]}
        for noise, rate, form, filtered in kinds
    ]
    settings = {"made": {"classes": 100, "unseen": 20}}
    bias_rows = [{"rate": 0.1, "log_q": log_q, "bias": -2.0 + log_q, "standard_error": 0.1} for log_q in (False, True)]
    result = FROM | {"summary": summary, "settings": settings, "queries": 40, "recall_at_1_before": 0.1}
    result |= {"full_softmax_in_range": False, "core_minutes": 3.0}
    result |= {"bias": {"full_loss": 5.0, "draws": 9, "rows": bias_rows}}
    (folder / "head_quality_x.json").write_text(json.dumps(result))
    blocks = head.blocks()
    assert "| 1 | every class | 1,200 | 0.600 (one seed) | +0.0 | 0.700 ±0.010 | +10.0 ±0.2 | 3 |" in blocks["quality"]
    assert "*40% wrong labels*" in blocks["quality"]
    assert "| 0.1 | uniform | 1,200 | 0.600 (one seed) | - | - | - | 3 |" in blocks["quality"]
    assert "OUTSIDE the planned range" in blocks["quality"]
    assert "| 0.1 | -2.0000 ±0.1000 | -1.0000 ±0.1000 |" in blocks["bias"]
