"""Row optimisers against dense reference implementations: those of torch, or a loop over all rows."""

import math

import pytest
import torch

from tests.train.class_weights.test_shard import CPU, shard, step
from train.class_weights.row_optimizers import BETAS, EPSILON, RateHistory
from train.class_weights.shard import ClassShard, ShardSettings

CLASSES, WIDTH, STEPS = 7, 5, 60
TWINS = ["sgd", "momentum", "adagrad", "rowwise_adagrad"]


def rate(number: int) -> float:
    """Warm-up, then a cosine: nothing about it is constant."""
    return 0.05 * min(1, (number + 1) / 5) * (1.1 + math.cos(number / 9))


def touched(number: int) -> torch.Tensor:
    """Few rows a step; row 6 never, row 5 twice, long apart."""
    if number in (1, 57):
        return torch.tensor([2, 5])
    return torch.tensor([[0, 3], [1, 2], [3, 4], [0, 4]][number % 4 if number < 30 else 2])


def gradients(rows: torch.Tensor, number: int) -> torch.Tensor:
    """A gradient that depends on the weights as they are read: stale rows would show."""
    noise = torch.randn(rows.shape, generator=torch.Generator().manual_seed(number), dtype=rows.dtype)
    return noise + 3 * rows


class DenseReference:
    """The method applied to every row in every step, with decoupled decay."""

    def __init__(self, name: str, weight: torch.Tensor, *, decay: float) -> None:
        self.name, self.weight, self.decay = name, weight.clone(), decay
        self.moved, self.square = torch.zeros_like(weight), torch.zeros_like(weight)

    def step(self, ids: torch.Tensor, gradient: torch.Tensor, learning_rate: float) -> None:
        dense = torch.zeros_like(self.weight)
        dense[ids] = gradient
        if self.name == "momentum":
            self.moved = 0.9 * self.moved + dense
            dense = self.moved
        elif self.name != "sgd":
            square = dense**2 if self.name == "adagrad" else (dense**2).mean(dim=1, keepdim=True)
            self.square = self.square + square
            dense = dense / (self.square.sqrt() + 1e-10)
        self.weight = self.weight * (1 - learning_rate * self.decay) - learning_rate * dense


@pytest.mark.parametrize("decay", [0.0, 0.3])
@pytest.mark.parametrize("name", TWINS)
def test_row_optimiser_equals_its_dense_reference(name: str, decay: float) -> None:
    rows = shard(CLASSES, WIDTH, decay, optimizer=name)
    twin = DenseReference(name, rows.weight, decay=decay)
    for number in range(STEPS):
        ids = touched(number)
        gathered = rows.gather(ids, torch.zeros(len(ids)))
        torch.testing.assert_close(gathered.weight_SD.detach(), twin.weight[ids], rtol=0, atol=1e-12)
        gathered.weight_SD.grad = gradients(gathered.weight_SD.detach(), number)
        twin.step(ids, gathered.weight_SD.grad.clone(), rate(number))
        rows.update(gathered, learning_rate=rate(number), max_grad_norm=None)
        if number == 40:
            rows.flush()
    before = {key: value.clone() for key, value in rows.state().items()}
    torch.testing.assert_close(rows.rows_of(torch.arange(CLASSES)), twin.weight, rtol=0, atol=1e-12)
    assert all(torch.equal(value, before[key]) for key, value in rows.state().items())
    rows.flush()
    torch.testing.assert_close(rows.weight, twin.weight, rtol=0, atol=1e-12)
    if name == "momentum":
        torch.testing.assert_close(rows.optimizer.tensors["momentum"], twin.moved, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["sgd", "momentum", "adagrad"])
def test_row_optimiser_without_decay_equals_torch(name: str) -> None:
    rows = shard(CLASSES, WIDTH, 0.0, optimizer=name)
    dense = torch.nn.Parameter(rows.weight.clone())
    made: dict[str, torch.optim.Optimizer] = {
        "sgd": torch.optim.SGD([dense], lr=1.0),
        "momentum": torch.optim.SGD([dense], lr=1.0, momentum=0.9),
        "adagrad": torch.optim.Adagrad([dense], lr=1.0),
    }
    for number in range(STEPS):
        ids = touched(number)
        gradient = gradients(torch.zeros(len(ids), WIDTH, dtype=torch.float64), number)
        dense.grad = torch.zeros_like(dense)
        dense.grad[ids] = gradient
        made[name].param_groups[0]["lr"] = rate(number)
        made[name].step()
        step(rows, ids, gradient, learning_rate=rate(number))
    rows.flush()
    torch.testing.assert_close(rows.weight, dense.detach(), rtol=0, atol=1e-12)


def test_adamw_on_all_rows_equals_torch() -> None:
    rows = shard()
    dense = torch.nn.Parameter(rows.weight.clone())
    twin = torch.optim.AdamW([dense], lr=0.01, weight_decay=0.1)
    for number in range(30):
        dense.grad = gradients(rows.weight, number)
        twin.param_groups[0]["lr"] = rate(number)
        step(rows, torch.arange(7), dense.grad, learning_rate=rate(number))
        twin.step()
        torch.testing.assert_close(rows.weight, dense.detach(), rtol=0, atol=1e-14)


def test_adamw_row_depends_only_on_its_own_updates() -> None:
    rows = shard()
    lone = torch.nn.Parameter(rows.weight[3:4].clone())
    twin = torch.optim.AdamW([lone], lr=0.01, weight_decay=0.1)
    for number in range(12):
        ids = torch.tensor([1, 3, 6]) if number % 3 == 0 else torch.tensor([0, 1])
        gradient = gradients(torch.zeros(len(ids), WIDTH, dtype=torch.float64), number)
        step(rows, ids, gradient)
        if number % 3 == 0:
            lone.grad = gradient[1:2].clone()
            twin.step()
    torch.testing.assert_close(rows.weight[3:4], lone.detach(), rtol=0, atol=1e-14)


def test_rowwise_adam_equals_its_formula() -> None:
    rows = shard(optimizer="rowwise_adam")
    weight, mean, square = rows.weight[1].clone(), torch.zeros(WIDTH, dtype=torch.float64), 0.0
    count = 0
    for number in range(20):
        gradient = gradients(torch.zeros(2, WIDTH, dtype=torch.float64), number)
        ids = torch.tensor([1, 4]) if number % 2 else torch.tensor([0, 4])
        step(rows, ids, gradient, learning_rate=rate(number))
        if number % 2:
            count += 1
            mean = BETAS[0] * mean + (1 - BETAS[0]) * gradient[0]
            square = BETAS[1] * square + (1 - BETAS[1]) * float((gradient[0] ** 2).mean())
            unbiased = math.sqrt(square / (1 - BETAS[1] ** count)) + EPSILON
            weight = weight * (1 - rate(number) * 0.1) - rate(number) * mean / (1 - BETAS[0] ** count) / unbiased
    torch.testing.assert_close(rows.weight[1], weight, rtol=0, atol=1e-14)
    assert rows.optimizer.tensors["exp_avg_sq"].shape == (CLASSES,)


def test_rate_history_equals_the_loop_for_every_age_of_a_row() -> None:
    history = RateHistory(momentum=0.8, weight_decay=0.4)
    rates = [rate(number) for number in range(700)]
    for value in rates:
        history.add(value)
    last = torch.tensor([0, 1, 350, 690, 699, 700])
    for place, born in enumerate(last.tolist()):
        weight, moved = 1.5, 0.7
        for value in rates[born:]:
            moved *= 0.8
            weight = weight * (1 - 0.4 * value) - value * moved
        ours = history.decay(last)[place] * (1.5 - history.pull(last)[place] * 0.7)
        assert float(ours) == pytest.approx(weight, rel=1e-11, abs=1e-300)
        assert float(history.momentum_left(last)[place]) * 0.7 == pytest.approx(moved, rel=1e-11, abs=1e-300)


def test_only_optimisers_that_need_it_store_the_last_step_of_a_row() -> None:
    def held(name: str, decay: float) -> set[str]:
        settings = ShardSettings(dtype=torch.float32, weight_decay=decay, optimizer=name)
        return set(ClassShard(3, 2, settings, device=CPU).state())

    assert held("sgd", 0.0) == {"weight"}
    assert held("sgd", 0.1) == {"weight", "last_step"}
    assert held("rowwise_adagrad", 0.0) == {"weight", "square_sum"}
    assert held("momentum", 0.0) == {"weight", "momentum", "last_step"}
    assert held("adamw", 0.1) == {"weight", "exp_avg", "exp_avg_sq", "row_steps"}


def test_momentum_and_decay_out_of_range_are_rejected() -> None:
    with pytest.raises(ValueError, match=r"momentum is 1\.0; it must be above 0 and below 1"):
        shard(optimizer="momentum", momentum=1.0)
    with pytest.raises(ValueError, match="weight_decay is -1"):
        shard(decay=-1.0)
