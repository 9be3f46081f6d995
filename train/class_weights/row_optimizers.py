"""Optimisers of class weights that update only the rows of a step.

A step scores a small share of the classes. An optimiser that visits all of them costs more than the rest of the step
and grows with the number of classes; these cost what the scored rows cost, in time and in memory traffic.

| name | state per class | compared with the dense optimiser |
|---|---|---|
| sgd | - (decay: 4 bytes) | equal |
| momentum | D fp32, 4 bytes | equal |
| adagrad | D fp32 (decay: 4 bytes) | equal; without decay it is torch.optim.Adagrad |
| rowwise_adagrad | 1 fp32 (decay: 4 bytes) | equal; one sum per class, of the mean squared gradient |
| adamw | 2 D fp32, 8 bytes | differs: decay, moments and bias correction move only when a step scores the class |
| rowwise_adam | D + 1 fp32, 8 bytes | differs likewise; one second moment per class, of the mean squared gradient |

"Equal" means: after `ClassShard.flush()`, or for a row as `ClassShard.gather` returns it, the result is that of the
optimiser applied to all rows, with a zero gradient for classes that were not scored (see `RateHistory`). Decay is
decoupled everywhere: w = (1 - lr d) w, then the step. Row-wise sums as in TorchRec's fused embedding optimisers.

Letters: R rows (classes) of a rank, S rows of a step, W width of a row.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

BETAS = (0.9, 0.999)
EPSILON = 1e-8
ADAGRAD_EPSILON = 1e-10
NEGLIGIBLE = 1e-20  # a momentum factor mu ** age below this adds nothing to a sum in double precision
Allocate = Callable[[str, tuple[int, ...], torch.dtype], Tensor]


class RateHistory:
    """Closed-form effect of the steps that a row missed, from the learning rates alone; 16 bytes a step.

    SGD, momentum and Adagrad move EVERY row in every step, by decay and by old momentum. Doing so costs as much as a
    dense update; leaving it out is another method. Here a row is brought up to date when it is next read. With
    decoupled decay d, momentum mu and learning rates lr_t, a row of weight w and momentum b that was last moved in step
    t and then missed steps t+1 .. n is

        for s in t+1 .. n:  b = mu * b;  w = (1 - lr_s * d) * w - lr_s * b

        = A(t, n) * (w - pull[t] * b),  mu ** (n - t) * b
        A(t, n) = prod_{s = t+1 .. n} (1 - lr_s d)        pull[t] = sum_{s = t+1 .. n} lr_s mu ** (s - t) / A(t, s)

    in fp64. Each step adds one term to `pull` of the ages whose mu ** age still counts, and one entry to the running
    sum of log(1 - lr d). Ours; the loop above is the reference implementation of the tests. Momentum is that of
    torch.optim.SGD without dampening.

    Args:
        momentum: mu, from 0 to below 1. weight_decay: decoupled, at least 0.
    """

    def __init__(self, *, momentum: float, weight_decay: float) -> None:
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum is {momentum}; it must be from 0 to below 1, such as 0.9")
        if not 0 <= weight_decay < math.inf:
            raise ValueError(f"weight_decay is {weight_decay}; it must be at least 0, such as 0.02")
        self.momentum, self.weight_decay = momentum, weight_decay
        self.steps = 0
        self._log_decay = torch.zeros(1, dtype=torch.float64)
        self._pull = torch.zeros(1, dtype=torch.float64)
        longest = 0 if momentum == 0 else math.ceil(math.log(NEGLIGIBLE) / math.log(momentum))
        self._powers = torch.tensor(momentum, dtype=torch.float64) ** torch.arange(1, longest + 1)

    def check_rate(self, learning_rate: float) -> None:
        """Check the learning rate of a step.

        Raises:
            ValueError: it is negative or not finite, or so high that decay changes the sign of weights.
        """
        if not 0 <= learning_rate < math.inf:
            raise ValueError(f"the learning rate of class weights is {learning_rate}; it must be finite, at least 0")
        if learning_rate * self.weight_decay >= 1:
            raise ValueError(
                f"learning rate {learning_rate} times weight decay {self.weight_decay} is at least 1, which leaves "
                "nothing of a weight; lower one of them"
            )

    def add(self, learning_rate: float) -> None:
        """Record the learning rate of the step that has just been taken; see `check_rate`."""
        self.check_rate(learning_rate)
        now = self.steps + 1
        if now == len(self._log_decay):
            longer = torch.zeros(max(64, len(self._log_decay)), dtype=torch.float64)
            self._log_decay, self._pull = (torch.cat([old, longer]) for old in (self._log_decay, self._pull))
        self._log_decay[now] = self._log_decay[now - 1] + math.log1p(-learning_rate * self.weight_decay)
        self._pull[now] = 0.0
        first = max(0, now - len(self._powers))
        if first < now:
            lost = (self._log_decay[first:now] - self._log_decay[now]).exp()
            self._pull[first:now] += learning_rate * self._powers[: now - first].flip(0) * lost
        self.steps = now

    def decay(self, last_S: Tensor) -> Tensor:
        """(S,) float64 A(t, now) of rows last moved in step t (0 = never)."""
        return (self._log_decay[self.steps] - self._log_decay[last_S.cpu()]).exp().to(last_S.device)

    def pull(self, last_S: Tensor) -> Tensor:
        """(S,) float64 pull[t]."""
        return self._pull[last_S.cpu()].to(last_S.device)

    def momentum_left(self, last_S: Tensor) -> Tensor:
        """(S,) float64 mu ** (now - t)."""
        base = torch.tensor(self.momentum, dtype=torch.float64, device=last_S.device)
        return base ** (self.steps - last_S)

    def state(self) -> dict[str, Tensor]:
        """The sums, (steps + 1,) each; equal on every rank."""
        end = self.steps + 1
        return {"log_decay": self._log_decay[:end].clone(), "pull": self._pull[:end].clone()}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Restore the result of `state`, of any number of steps."""
        self._log_decay, self._pull = state["log_decay"].clone(), state["pull"].clone()
        self.steps = len(self._log_decay) - 1


class RowOptimizer(ABC):
    """Base class: the step in which each row was last moved, and bringing rows up to date.

    Args:
        allocate: (name, shape, dtype) -> zeros, such as `ClassStorage.zeros`. rows, width: R, W.
        dtype: of the state, float32 or float64. weight_decay: decoupled. momentum: read by "momentum" alone.
        All row numbers are positions in this rank's range, on the device of the state.
    """

    moves_unscored = True  # whether the method moves rows that a step does not score
    uses_momentum = False

    def __init__(
        self,
        allocate: Allocate,
        rows: int,
        width: int,
        *,
        dtype: torch.dtype,
        weight_decay: float,
        momentum: float = 0.9,
    ) -> None:
        if self.uses_momentum and not 0 < momentum < 1:
            raise ValueError(f"momentum is {momentum}; it must be above 0 and below 1; the optimiser sgd has none")
        self.weight_decay = weight_decay
        self.history = RateHistory(momentum=momentum if self.uses_momentum else 0.0, weight_decay=weight_decay)
        self.tensors: dict[str, Tensor] = {}
        if self.moves_unscored and (weight_decay > 0 or self.uses_momentum):
            self.tensors["last_step"] = allocate("last_step", (rows,), torch.int32)
        self._allocate(allocate, rows, width, dtype)

    def _allocate(  # noqa: B027 - SGD has no state
        self, allocate: Allocate, rows: int, width: int, dtype: torch.dtype
    ) -> None:
        """Add the state of the method to `tensors`."""

    def catch_up(self, rows_S: Tensor, weight_SW: Tensor) -> None:
        """Bring copies of rows up to date, in place; nothing stored changes."""
        if "last_step" not in self.tensors or not len(rows_S):
            return
        last_S = self._part("last_step", rows_S, weight_SW).long()
        if self.uses_momentum:
            pull_S = self.history.pull(last_S).to(weight_SW.dtype)
            weight_SW.addcmul_(self._part("momentum", rows_S, weight_SW), pull_S[:, None], value=-1)
        if self.weight_decay > 0:
            weight_SW.mul_(self.history.decay(last_S).to(weight_SW)[:, None])

    def settle(self, rows_S: Tensor) -> None:
        """Record that the stored weights of these rows are up to date, their momentum too."""
        if "last_step" not in self.tensors:
            return
        if self.uses_momentum:
            left_S = self.history.momentum_left(self.tensors["last_step"][rows_S].long())
            moved = self.tensors["momentum"][rows_S]
            self.tensors["momentum"][rows_S] = moved.mul_(left_S.to(moved.dtype)[:, None])
        self.tensors["last_step"][rows_S] = self.history.steps

    def step(self, rows_S: Tensor, weight_SW: Tensor, gradient_SW: Tensor, *, learning_rate: float) -> None:
        """Move rows that are up to date, in place; call `history.add` after the last of a step.

        Args:
            rows_S: positions of the rows in this rank's range.
            weight_SW, gradient_SW: contiguous; both are overwritten.
        """
        if self.weight_decay > 0:
            weight_SW.mul_(1 - learning_rate * self.weight_decay)
        self._move(rows_S, weight_SW, gradient_SW, learning_rate)
        if "last_step" in self.tensors:
            self.tensors["last_step"][rows_S] = self.history.steps + 1

    @abstractmethod
    def _move(self, rows_S: Tensor, weight_SW: Tensor, gradient_SW: Tensor, learning_rate: float) -> None:
        """Update weights by their gradient, and the state of the method."""

    def _part(self, name: str, rows_S: Tensor, like: Tensor) -> Tensor:
        """Copy of the state of some rows, on the device of the arithmetic."""
        tensor = self.tensors[name]
        return tensor.index_select(0, rows_S).to(like.device)

    def _put(self, name: str, rows_S: Tensor, value: Tensor) -> None:
        tensor = self.tensors[name]
        tensor.index_copy_(0, rows_S, value.to(tensor.device))


class Sgd(RowOptimizer):
    """w -= lr g."""

    def _move(self, rows_S: Tensor, weight_SW: Tensor, gradient_SW: Tensor, learning_rate: float) -> None:
        weight_SW.sub_(gradient_SW, alpha=learning_rate)


class Momentum(RowOptimizer):
    """b = mu b + g, w -= lr b: torch.optim.SGD with momentum, no dampening."""

    uses_momentum = True

    def _allocate(self, allocate: Allocate, rows: int, width: int, dtype: torch.dtype) -> None:
        self.tensors["momentum"] = allocate("momentum", (rows, width), dtype)

    def _move(self, rows_S: Tensor, weight_SW: Tensor, gradient_SW: Tensor, learning_rate: float) -> None:
        last_S = self._part("last_step", rows_S, weight_SW).long()
        left_S = self.history.momentum_left(last_S) * self.history.momentum
        moved_SW = self._part("momentum", rows_S, weight_SW)
        moved_SW.mul_(left_S.to(weight_SW)[:, None]).add_(gradient_SW)
        weight_SW.sub_(moved_SW, alpha=learning_rate)
        self._put("momentum", rows_S, moved_SW)


class Adagrad(RowOptimizer):
    """G += g * g, w -= lr g / (sqrt(G) + 1e-10), element by element (Duchi, Hazan and Singer, JMLR 2011)."""

    def _allocate(self, allocate: Allocate, rows: int, width: int, dtype: torch.dtype) -> None:
        self.tensors["square_sum"] = allocate("square_sum", (rows, width), dtype)

    def _move(self, rows_S: Tensor, weight_SW: Tensor, gradient_SW: Tensor, learning_rate: float) -> None:
        sum_SW = self._part("square_sum", rows_S, weight_SW).addcmul_(gradient_SW, gradient_SW)
        self._put("square_sum", rows_S, sum_SW)
        weight_SW.addcdiv_(gradient_SW, sum_SW.sqrt_().add_(ADAGRAD_EPSILON), value=-learning_rate)


class RowwiseAdagrad(RowOptimizer):
    """G += mean(g * g) over the class's row, w -= lr g / (sqrt(G) + 1e-10)."""

    def _allocate(self, allocate: Allocate, rows: int, width: int, dtype: torch.dtype) -> None:
        self.tensors["square_sum"] = allocate("square_sum", (rows,), dtype)

    def _move(self, rows_S: Tensor, weight_SW: Tensor, gradient_SW: Tensor, learning_rate: float) -> None:
        sum_S = self._part("square_sum", rows_S, weight_SW).add_(_mean_square(gradient_SW))
        self._put("square_sum", rows_S, sum_S)
        weight_SW.addcmul_(gradient_SW, (-learning_rate / sum_S.sqrt_().add_(ADAGRAD_EPSILON))[:, None])


class AdamW(RowOptimizer):
    """AdamW (Loshchilov and Hutter, ICLR 2019) on scored rows.

    Decay, moments and bias correction follow a row's own steps. Dense AdamW would also decay every other row and let
    its old momentum push it on. At sample rate 1 every row is scored in every step and the two are the same.
    """

    moves_unscored = False

    def _allocate(self, allocate: Allocate, rows: int, width: int, dtype: torch.dtype) -> None:
        self.tensors["exp_avg"] = allocate("exp_avg", (rows, width), dtype)
        self.tensors["exp_avg_sq"] = allocate("exp_avg_sq", self._square_shape(rows, width), dtype)
        self.tensors["row_steps"] = allocate("row_steps", (rows,), torch.int64)

    def _square_shape(self, rows: int, width: int) -> tuple[int, ...]:
        return (rows, width)

    def _average_square(self, square_SW: Tensor, gradient_SW: Tensor) -> None:
        """Move the running mean of the squared gradient, in place."""
        square_SW.mul_(BETAS[1]).addcmul_(gradient_SW, gradient_SW, value=1 - BETAS[1])

    def _move(self, rows_S: Tensor, weight_SW: Tensor, gradient_SW: Tensor, learning_rate: float) -> None:
        first, second = BETAS
        steps_S = self._part("row_steps", rows_S, weight_SW).add_(1)
        mean_SW = self._part("exp_avg", rows_S, weight_SW).lerp_(gradient_SW, 1 - first)
        square = self._part("exp_avg_sq", rows_S, weight_SW)
        self._average_square(square, gradient_SW)
        for name, value in (("row_steps", steps_S), ("exp_avg", mean_SW), ("exp_avg_sq", square)):
            self._put(name, rows_S, value)
        count_S1 = steps_S.to(weight_SW.dtype)[:, None]
        step_size_S1 = learning_rate / (1 - first**count_S1)
        square_SX = square if square.ndim == 2 else square[:, None]
        denominator = square_SX.sqrt_().div_((1 - second**count_S1).sqrt()).add_(EPSILON)
        weight_SW.sub_(mean_SW.mul_(step_size_S1).div_(denominator))


class RowwiseAdam(AdamW):
    """AdamW with one second moment per class, of the mean squared gradient: half the memory."""

    def _square_shape(self, rows: int, width: int) -> tuple[int, ...]:
        return (rows,)

    def _average_square(self, square_SW: Tensor, gradient_SW: Tensor) -> None:
        square_SW.mul_(BETAS[1]).add_(_mean_square(gradient_SW), alpha=1 - BETAS[1])


def _mean_square(gradient_SW: Tensor) -> Tensor:
    """(S,) mean of g * g."""
    return torch.linalg.vector_norm(gradient_SW, dim=1).square_().div_(gradient_SW.shape[1])


ROW_OPTIMIZERS: dict[str, type[RowOptimizer]] = {
    "sgd": Sgd,
    "momentum": Momentum,
    "adagrad": Adagrad,
    "rowwise_adagrad": RowwiseAdagrad,
    "adamw": AdamW,
    "rowwise_adam": RowwiseAdam,
}


def row_optimizer(name: str) -> type[RowOptimizer]:
    """The optimiser called `name`.

    Raises:
        ValueError: no such optimiser.
    """
    if name not in ROW_OPTIMIZERS:
        raise ValueError(f"no row optimiser is called {name!r}; choose one of {', '.join(ROW_OPTIMIZERS)}")
    return ROW_OPTIMIZERS[name]
