"""Class weights of one rank: a contiguous range of classes, a row optimiser, clipping of its own.

Why apart from the encoders: class weights are model-parallel. Each rank owns other rows, so they can neither go into
DDP nor into FSDP; their gradient is already whole on their rank (see collectives.py); and only the rows that a step
scored may cost anything.

In: sampled classes and gradients of their rows. Out: updated rows. Next: checkpoint.py saves, export.py publishes.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from train.collectives import rank, sum_over_ranks, world_size

BETAS = (0.9, 0.999)
EPSILON = 1e-8


def class_range(num_classes: int, *, part: int, parts: int) -> tuple[int, int]:
    """(start, end) of the classes of one rank: ceil(N / parts) each, the last ones fewer or none.

    This is the layout of DTensor's Shard(0), so that torch.distributed.checkpoint can move a shard to any number of
    ranks.
    """
    rows = -(-num_classes // parts)
    return min(part * rows, num_classes), min((part + 1) * rows, num_classes)


@dataclass(frozen=True)
class GatheredRows:
    """S local rows that a step scores.

    Attributes:
        weight_SD: (S, D) leaf with gradient, as stored (not normalised).
        class_ids_S: (S,) global class ids, ascending. log_correction_S: (S,) logQ term of each.
    """

    weight_SD: Tensor
    class_ids_S: Tensor
    log_correction_S: Tensor


class ClassShard:
    """Weights (R, D) of the classes start..end, with AdamW state per row.

    The optimiser is AdamW (Loshchilov and Hutter, ICLR 2019) on touched rows: decay, moments and bias correction of a
    row move only when a step scored the row, and the bias correction counts the row's own updates. Dense AdamW
    would also decay every other row and let its old momentum push it on. At sample rate 1 every row is touched in
    every step and the two are the same.

    Args:
        num_classes: N over all ranks. hidden_size: D.
        dtype: float32 or float64; lower precision is refused, since updates would round away.
    """

    def __init__(
        self, num_classes: int, hidden_size: int, *, dtype: torch.dtype, weight_decay: float, device: torch.device
    ) -> None:
        if dtype not in (torch.float32, torch.float64):
            raise ValueError(f"class weights in {dtype} are not supported; use float32 or float64")
        self.num_classes, self.weight_decay = num_classes, weight_decay
        self.start, self.end = class_range(num_classes, part=rank(), parts=world_size())
        rows = self.end - self.start
        self.weight = torch.zeros(rows, hidden_size, dtype=dtype, device=device)
        self.exp_avg = torch.zeros_like(self.weight)
        self.exp_avg_sq = torch.zeros_like(self.weight)
        self.row_steps = torch.zeros(rows, dtype=torch.int64, device=device)

    def gather(self, class_ids: Tensor, log_correction: Tensor) -> GatheredRows:
        """The rows of sampled classes of this rank.

        Args:
            class_ids: (S,) ascending global ids, all within start..end. log_correction: (S,).
        """
        ids = class_ids.to(self.weight.device)
        assert not len(ids) or (self.start <= int(ids[0]) and int(ids[-1]) < self.end)
        rows = self.weight.index_select(0, ids - self.start).requires_grad_()
        return GatheredRows(weight_SD=rows, class_ids_S=ids, log_correction_S=log_correction.to(self.weight))

    def update(self, gathered: GatheredRows, *, learning_rate: float, max_grad_norm: float | None) -> float:
        """Clip the gradient by its norm over all ranks, then move the gathered rows; returns the norm before."""
        gradient = gathered.weight_SD.grad
        if gradient is None:
            gradient = torch.zeros_like(gathered.weight_SD)
        norm = math.sqrt(float(sum_over_ranks(gradient.double().square().sum())))
        if max_grad_norm is not None and norm > max_grad_norm:
            gradient = gradient * (max_grad_norm / norm)
        if len(gradient):
            self._adamw(gathered.class_ids_S - self.start, gradient, learning_rate=learning_rate)
        return norm

    def _adamw(self, rows: Tensor, gradient: Tensor, *, learning_rate: float) -> None:
        first, second = BETAS
        steps = self.row_steps[rows] + 1
        mean = torch.lerp(self.exp_avg[rows], gradient, 1 - first)
        square = self.exp_avg_sq[rows].mul_(second).addcmul_(gradient, gradient, value=1 - second)
        count = steps.to(self.weight.dtype)[:, None]
        step_size = learning_rate / (1 - first**count)
        denominator = square.sqrt().div_((1 - second**count).sqrt()).add_(EPSILON)
        weight = self.weight[rows].mul_(1 - learning_rate * self.weight_decay)
        self.weight[rows] = weight.sub_(step_size * mean / denominator)
        self.exp_avg[rows], self.exp_avg_sq[rows], self.row_steps[rows] = mean, square, steps

    def state(self) -> dict[str, Tensor]:
        """The tensors of this rank, by name; the first axis of each is this rank's classes."""
        return {
            "weight": self.weight,
            "exp_avg": self.exp_avg,
            "exp_avg_sq": self.exp_avg_sq,
            "row_steps": self.row_steps,
        }

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take over tensors of the shapes that `state` gives.

        Raises:
            ValueError: a tensor is missing or of another shape.
        """
        for name, tensor in self.state().items():
            if name not in state or state[name].shape != tensor.shape:
                found = tuple(state[name].shape) if name in state else "missing"
                raise ValueError(f"class weights: {name} is {found}, this rank needs {tuple(tensor.shape)}")
            tensor.copy_(state[name])

    def check_rows(self) -> None:
        """The rows held are those of the range, no more: asserted at start, through the user's own command."""
        expected = class_range(self.num_classes, part=rank(), parts=world_size())
        assert (self.start, self.end) == expected
        assert len(self.weight) == self.end - self.start
