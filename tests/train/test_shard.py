"""Class weights: ranges, the row optimiser against torch's own AdamW, rows never touched."""

import pytest
import torch

from train.shard import ClassShard, class_range

CPU = torch.device("cpu")


def shard(classes: int = 7, width: int = 5, decay: float = 0.1) -> ClassShard:
    made = ClassShard(classes, width, dtype=torch.float64, weight_decay=decay, device=CPU)
    made.weight.copy_(torch.randn(classes, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    return made


@pytest.mark.parametrize(("classes", "parts"), [(10, 1), (10, 3), (7, 2), (2, 5)])
def test_ranges_cover_every_class_once_like_a_dtensor(classes: int, parts: int) -> None:
    ranges = [class_range(classes, part=part, parts=parts) for part in range(parts)]
    assert [c for start, end in ranges for c in range(start, end)] == list(range(classes))
    chunks = [len(chunk) for chunk in torch.arange(classes).chunk(parts)]
    assert [end - start for start, end in ranges if end > start] == chunks


def step(rows: ClassShard, ids: torch.Tensor, gradient: torch.Tensor, **options: float | None) -> float:
    gathered = rows.gather(ids, torch.zeros(len(ids)))
    gathered.weight_SD.grad = gradient
    return rows.update(gathered, learning_rate=options.get("learning_rate") or 0.01, max_grad_norm=options.get("most"))


def test_with_every_row_touched_the_row_optimiser_is_adamw() -> None:
    rows = shard()
    dense = torch.nn.Parameter(rows.weight.clone())
    twin = torch.optim.AdamW([dense], lr=0.01, weight_decay=0.1)
    generator = torch.Generator().manual_seed(1)
    for number in range(30):
        gradient = torch.randn(7, 5, generator=generator, dtype=torch.float64)
        dense.grad = gradient.clone()
        twin.param_groups[0]["lr"] = 0.01 / (1 + number)
        twin.step()
        step(rows, torch.arange(7), gradient, learning_rate=0.01 / (1 + number))
        torch.testing.assert_close(rows.weight, dense.detach(), rtol=0, atol=1e-14)


def test_a_row_moves_as_adamw_that_saw_only_its_own_updates() -> None:
    rows = shard()
    lone = torch.nn.Parameter(rows.weight[3:4].clone())
    twin = torch.optim.AdamW([lone], lr=0.01, weight_decay=0.1)
    generator = torch.Generator().manual_seed(2)
    for number in range(12):
        ids = torch.tensor([1, 3, 6]) if number % 3 == 0 else torch.tensor([0, 1])
        gradient = torch.randn(len(ids), 5, generator=generator, dtype=torch.float64)
        step(rows, ids, gradient)
        if number % 3 == 0:
            lone.grad = gradient[1:2].clone()
            twin.step()
    torch.testing.assert_close(rows.weight[3:4], lone.detach(), rtol=0, atol=1e-14)


def test_rows_never_touched_stay_bit_identical() -> None:
    rows = shard()
    before = {name: value.clone() for name, value in rows.state().items()}
    step(rows, torch.tensor([2, 4]), torch.ones(2, 5, dtype=torch.float64))
    for name, value in rows.state().items():
        assert torch.equal(value[[0, 1, 3, 5, 6]], before[name][[0, 1, 3, 5, 6]])
        assert not torch.equal(value[[2, 4]], before[name][[2, 4]])


def test_clipping_scales_the_gradient_and_reports_the_norm_before() -> None:
    clipped, scaled = shard(), shard()
    gradient = torch.full((2, 5), 2.0, dtype=torch.float64)
    norm = step(clipped, torch.tensor([0, 1]), gradient, most=1.0)
    step(scaled, torch.tensor([0, 1]), gradient / norm)
    assert norm == pytest.approx(40**0.5)
    torch.testing.assert_close(clipped.exp_avg_sq, scaled.exp_avg_sq, rtol=1e-12, atol=0)


def test_half_precision_weights_and_foreign_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="use float32 or float64"):
        ClassShard(3, 2, dtype=torch.bfloat16, weight_decay=0.0, device=CPU)
    with pytest.raises(ValueError, match=r"weight is \(7, 5\), this rank needs \(3, 5\)"):
        shard(classes=3).load_state(shard().state())
