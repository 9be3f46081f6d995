"""Class weights: ranges, initial rows, gathering, clipping, storage and rows that are not scored."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from train.class_weights.row_optimizers import ROW_OPTIMIZERS
from train.class_weights.shard import ClassShard, ShardSettings, class_range
from train.class_weights.storage import ClassStorage, page_runs

CPU = torch.device("cpu")


def shard(classes: int = 7, width: int = 5, decay: float = 0.1, **options: Any) -> ClassShard:
    """Shard with random rows; `options` are fields of `ShardSettings`, or `device` and `storage` of the shard."""
    places: dict[str, Any] = {
        "device": CPU,
        **{name: options.pop(name) for name in ("device", "storage") if name in options},
    }
    fields: dict[str, Any] = {"dtype": torch.float64, "weight_decay": decay, **options}
    rows = ClassShard(classes, width, ShardSettings(**fields), **places)
    rows.start_random()
    return rows


def step(rows: ClassShard, ids: torch.Tensor, gradient: torch.Tensor, **options: float | None) -> float:
    gathered = rows.gather(ids, torch.zeros(len(ids)))
    gathered.weight_SD.grad = gradient.clone()
    return rows.update(gathered, learning_rate=options.get("learning_rate") or 0.01, max_grad_norm=options.get("most"))


@pytest.mark.parametrize(("classes", "parts"), [(10, 1), (10, 3), (7, 2), (2, 5)])
def test_ranges_cover_every_class_once_like_a_dtensor(classes: int, parts: int) -> None:
    ranges = [class_range(classes, part=part, parts=parts) for part in range(parts)]
    assert [c for start, end in ranges for c in range(start, end)] == list(range(classes))
    chunks = [len(chunk) for chunk in torch.arange(classes).chunk(parts)]
    assert [end - start for start, end in ranges if end > start] == chunks


@pytest.mark.parametrize("optimizer", ROW_OPTIMIZERS)
def test_rows_that_are_never_scored_stay_bit_identical(optimizer: str) -> None:
    for dtype in (torch.float64, torch.bfloat16):
        rows = shard(optimizer=optimizer, dtype=dtype, decay=0.0)
        before = {name: value.clone() for name, value in rows.state().items()}
        for _ in range(3):
            step(rows, torch.tensor([2, 4]), torch.ones(2, 5, dtype=rows.dtype))
        for name, value in rows.state().items():
            assert torch.equal(value[[0, 1, 3, 5, 6]], before[name][[0, 1, 3, 5, 6]])
            assert not torch.equal(value[[2, 4]], before[name][[2, 4]])


@pytest.mark.parametrize("optimizer", ROW_OPTIMIZERS)
def test_clipping_scales_the_gradient_and_returns_the_norm_before(optimizer: str) -> None:
    clipped, scaled = shard(optimizer=optimizer), shard(optimizer=optimizer)
    gradient = torch.full((2, 5), 2.0, dtype=torch.float64)
    norm = step(clipped, torch.tensor([0, 1]), gradient, most=1.0)
    step(scaled, torch.tensor([0, 1]), gradient / norm)
    assert norm == pytest.approx(40**0.5)
    for name, value in clipped.state().items():
        torch.testing.assert_close(value, scaled.state()[name], rtol=1e-12, atol=0)


def test_row_without_gradient_decays_and_empty_step_only_counts() -> None:
    rows = shard(optimizer="sgd")
    start = rows.weight.clone()
    gathered = rows.gather(torch.tensor([1]), torch.zeros(1))
    assert rows.update(gathered, learning_rate=0.5, max_grad_norm=None) == 0
    torch.testing.assert_close(rows.weight[1], start[1] * 0.95, rtol=1e-14, atol=0)
    empty = torch.empty(0, dtype=torch.int64)
    rows.update(rows.gather(empty, torch.zeros(0)), learning_rate=0.5, max_grad_norm=1.0)
    assert rows.steps == 2
    rows.flush()
    torch.testing.assert_close(rows.weight, start * 0.95**2, rtol=1e-14, atol=0)


def test_sub_centres_of_a_class_are_gathered_in_order() -> None:
    rows = shard(sub_centres=3, width=4)
    gathered = rows.gather(torch.tensor([2, 5]), torch.zeros(2))
    assert gathered.weight_SD.shape == (6, 4)
    assert torch.equal(gathered.weight_SD[4], rows.weight[5, 4:8])
    gathered.weight_SD.grad = torch.zeros(6, 4, dtype=torch.float64)
    gathered.weight_SD.grad[4] = 1.0
    before = rows.weight.clone()
    rows.update(gathered, learning_rate=0.01, max_grad_norm=None)
    assert (rows.weight[5, 4:8] < before[5, 4:8]).all()
    torch.testing.assert_close(rows.weight[5, :4], before[5, :4] * 0.999, rtol=1e-14, atol=0)


def test_initial_rows_are_keyed_by_class_and_have_unit_length(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("train.class_weights.shard.CLASSES_PER_BLOCK", 8)
    whole = shard(21, 16)
    for part in range(3):
        monkeypatch.setattr("train.class_weights.shard.rank", lambda part=part: part)
        monkeypatch.setattr("train.class_weights.shard.world_size", lambda: 3)
        mine = shard(21, 16)
        assert torch.equal(mine.weight, whole.weight[mine.start : mine.end])
    assert whole.weight.norm(dim=1).mean() == pytest.approx(1, abs=0.1)
    assert len(whole.weight.unique()) == whole.weight.numel()
    monkeypatch.undo()
    assert not torch.equal(shard(21, 16, seed=1).weight, whole.weight)


@pytest.mark.parametrize("optimizer", ["momentum", "rowwise_adagrad", "adamw"])
def test_rows_on_disk_equal_rows_in_memory(tmp_path: Path, optimizer: str) -> None:
    places = [ClassStorage("memory"), ClassStorage("disk", folder=tmp_path / "rows", part=3), None]
    held = [shard(dtype=torch.bfloat16, optimizer=optimizer, storage=place) for place in places]
    generator = torch.Generator().manual_seed(0)
    for number in range(4):
        gradient = torch.randn(2, 5, generator=generator)
        for rows in held:
            step(rows, torch.tensor([number, 6]), gradient)
    for name, value in held[0].state().items():
        assert all(torch.equal(value, rows.state()[name]) for rows in held[1:])
    file = tmp_path / "rows" / "part-00003.weight.rows"
    assert file.stat().st_size == 7 * 5 * 2
    assert torch.equal(torch.from_file(str(file), size=35, dtype=torch.bfloat16).view(7, 5), held[0].weight)


def test_files_of_unwritten_rows_take_no_space(tmp_path: Path) -> None:
    place = ClassStorage("disk", folder=tmp_path)
    place.zeros("weight", (1_000_000, 16), torch.float32)[5] = 1.0
    file = tmp_path / "part-00000.weight.rows"
    assert file.stat().st_size == 64_000_000
    assert file.stat().st_blocks * 512 < 1_000_000
    assert place.zeros("empty", (0, 4), torch.float32).shape == (0, 4)
    assert float(place.zeros("weight", (2, 2), torch.float32).sum()) == 0  # an earlier run's file is not reused


def test_requested_pages_are_those_of_the_rows(tmp_path: Path) -> None:
    stream = np.random.default_rng(0)
    for row_bytes, page in ((8, 16), (24, 16), (4096, 4096), (10_000, 4096), (3, 4096)):
        places = np.sort(stream.choice(5000, 300, replace=False))
        runs = page_runs(places, row_bytes=row_bytes, page=page)
        asked = {number for first, last in runs.tolist() for number in range(first, last + 1)}
        needed = {byte // page for row in places.tolist() for byte in range(row * row_bytes, (row + 1) * row_bytes)}
        assert asked == needed
        assert (runs[1:, 0] > runs[:-1, 1] + 1).all()  # neighbours are asked for in one call
    place = ClassStorage("disk", folder=tmp_path)
    rows = place.zeros("weight", (5000, 3), torch.float32)
    rows[:] = torch.arange(5000)[:, None]
    place.will_read(torch.tensor([4999, 0, 2500]))
    assert rows[[4999, 0, 2500], 0].tolist() == [4999, 0, 2500]


def test_invalid_shards_and_steps_are_rejected() -> None:
    with pytest.raises(ValueError, match="use float32, float64 or bfloat16"):
        shard(dtype=torch.float16)
    with pytest.raises(ValueError, match="0 classes of 1 rows of width 5"):
        shard(classes=0)
    with pytest.raises(ValueError, match=r"weight is \(7, 5\), this rank needs \(3, 5\)"):
        shard(classes=3).load_state(shard().state())
    with pytest.raises(ValueError, match=r"exp_avg is missing"):
        shard().load_state(shard(optimizer="sgd").state())
    with pytest.raises(ValueError, match="choose one of sgd, momentum"):
        shard(optimizer="adam")
    with pytest.raises(ValueError, match="choose one of device, memory, disk"):
        ClassStorage("tape")
    with pytest.raises(ValueError, match="on disk need a folder"):
        ClassStorage("disk")
    rows = shard(optimizer="sgd")
    before = rows.weight.clone()
    for rate, said in ((float("nan"), "must be finite"), (-1.0, "must be finite"), (20.0, "leaves nothing")):
        with pytest.raises(ValueError, match=said):
            step(rows, torch.tensor([1]), torch.ones(1, 5, dtype=torch.float64), learning_rate=rate)
    with pytest.raises(ValueError, match="gradient norm of the class weights is nan"):
        step(rows, torch.tensor([1]), torch.full((1, 5), float("nan"), dtype=torch.float64))
    assert torch.equal(rows.weight, before)
    assert rows.steps == 0
