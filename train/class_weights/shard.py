"""Class weights of one rank: a contiguous range of classes with its row optimiser.

Class weights are model-parallel: each rank owns different rows, so they can go neither into DDP nor into FSDP. Their
gradient is complete on their rank (see collectives.py), and it is clipped separately from that of the encoders.

Letters: R classes of a rank, S classes of a step, K rows per class (sub-centres), D width, W = K x D.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from train.class_weights.rounding import column_factors, round_to_bfloat16, row_keys
from train.class_weights.row_optimizers import row_optimizer
from train.class_weights.storage import ClassStorage
from train.parallel.collectives import rank, sum_over_ranks, world_size

DTYPES = (torch.float32, torch.float64, torch.bfloat16)
# Elements that are updated at once: few enough to stay in the cache of a core, or to leave room on an accelerator.
ELEMENTS_AT_ONCE, ELEMENTS_ON_DEVICE = 2**18, 2**28
# Classes that share one stream of random numbers for their initial rows.
CLASSES_PER_BLOCK = 8192


def class_range(num_classes: int, *, part: int, parts: int) -> tuple[int, int]:
    """(start, end) of the classes of one rank: ceil(N / parts) each, the last ones fewer or none.

    This is the layout of DTensor's Shard(0), so that torch.distributed.checkpoint can move a shard to any number of
    ranks.
    """
    rows = -(-num_classes // parts)
    return min(part * rows, num_classes), min((part + 1) * rows, num_classes)


@dataclass(frozen=True)
class ShardSettings:
    """Type and optimiser of class weights; equal on every rank.

    Attributes:
        dtype: of the stored rows. bfloat16 is rounded stochastically, computed in fp32, its optimiser state fp32.
        weight_decay, momentum: of the optimiser; momentum is read by "momentum" alone.
        optimizer: a key of `ROW_OPTIMIZERS`.
        sub_centres: K, rows per class.
        seed: key of the initial rows and of the rounding.
    """

    dtype: torch.dtype
    weight_decay: float
    optimizer: str = "adamw"
    momentum: float = 0.9
    sub_centres: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ValueError(f"class weights in {self.dtype} are not supported; use float32, float64 or bfloat16")


@dataclass(frozen=True)
class GatheredRows:
    """Rows of S local classes that a step scores; `ClassShard.update` overwrites them.

    Attributes:
        weight_SD: (S * K, D) fp32 or fp64 leaf with gradient, brought up to date, not normalised; row k of the s-th
            class is row s * K + k.
        class_ids_S: (S,) global class ids, ascending. log_correction_S: (S,) logQ term of each.
    """

    weight_SD: Tensor
    class_ids_S: Tensor
    log_correction_S: Tensor


class ClassShard:
    """Weights (R, W) of the classes start..end and the state of their row optimiser.

    Args:
        num_classes: N over all ranks. hidden_size: D.
        device: of the arithmetic. storage: of the rows; None = on `device`.
    """

    def __init__(
        self,
        num_classes: int,
        hidden_size: int,
        settings: ShardSettings,
        *,
        device: torch.device,
        storage: ClassStorage | None = None,
    ) -> None:
        sub_centres = settings.sub_centres
        if num_classes < 1 or hidden_size < 1 or sub_centres < 1:
            raise ValueError(
                f"{num_classes} classes of {sub_centres} rows of width {hidden_size}: each must be at least 1"
            )
        self.num_classes, self.hidden_size, self.sub_centres = num_classes, hidden_size, sub_centres
        self.device, self.seed = device, settings.seed
        self.dtype = torch.float64 if settings.dtype == torch.float64 else torch.float32
        self.start, self.end = class_range(num_classes, part=rank(), parts=world_size())
        rows, width = self.end - self.start, sub_centres * hidden_size
        self.storage = ClassStorage(device=device) if storage is None else storage
        zeros = self.storage.zeros
        self.weight = zeros("weight", (rows, width), settings.dtype)
        self.optimizer = row_optimizer(settings.optimizer)(
            zeros,
            rows,
            width,
            dtype=self.dtype,
            weight_decay=settings.weight_decay,
            momentum=settings.momentum,
        )
        self._factors = column_factors(width, device=device)

    @property
    def steps(self) -> int:
        """Updates so far."""
        return self.optimizer.history.steps

    @property
    def like(self) -> Tensor:
        """An empty tensor of the dtype and device of the arithmetic."""
        return torch.empty(0, dtype=self.dtype, device=self.device)

    def gather(self, class_ids: Tensor, log_correction: Tensor) -> GatheredRows:
        """Rows of sampled classes of this rank after the last update.

        Args:
            class_ids: (S,) ascending global ids, all within start..end. log_correction: (S,).
        """
        assert not len(class_ids) or (self.start <= int(class_ids[0]) and int(class_ids[-1]) < self.end)
        rows_SW = self._read(class_ids.to(self.weight.device) - self.start)
        leaf = rows_SW.view(-1, self.hidden_size).requires_grad_()
        return GatheredRows(leaf, class_ids.to(self.device), log_correction.to(leaf))

    def _read(self, places_S: Tensor) -> Tensor:
        """(S, W) copy of rows, up to date, in the dtype and on the device of the arithmetic."""
        self.storage.will_read(places_S)
        rows_SW = self.weight.index_select(0, places_S).to(device=self.device, dtype=self.dtype)
        for part in self._parts(len(places_S)):
            self.optimizer.catch_up(places_S[part], rows_SW[part])
        return rows_SW

    def _parts(self, rows: int) -> list[slice]:
        """Slices of few enough rows to be moved at once."""
        elements = ELEMENTS_AT_ONCE if self.device.type == "cpu" else ELEMENTS_ON_DEVICE
        at_once = max(1, elements // self.weight.shape[1])
        return [slice(first, min(first + at_once, rows)) for first in range(0, rows, at_once)]

    @torch.no_grad()
    def update(self, gathered: GatheredRows, *, learning_rate: float, max_grad_norm: float | None) -> float:
        """Clip the gradient by its norm over all ranks, then update the gathered rows; return the norm before clipping.

        The gathered copy and its gradient are overwritten, so that no third tensor of their size is needed.

        Raises:
            ValueError: an invalid learning rate, or a gradient that is not finite; nothing has changed then.
        """
        self.optimizer.history.check_rate(learning_rate)
        places_S = gathered.class_ids_S.to(self.weight.device) - self.start
        weight_SW = gathered.weight_SD.detach().view(len(places_S), -1) if len(places_S) else self.weight[:0]
        gradient = gathered.weight_SD.grad
        gradient_SW = torch.zeros_like(weight_SW) if gradient is None else gradient.contiguous().view(weight_SW.shape)
        norm = math.sqrt(float(sum_over_ranks(torch.linalg.vector_norm(gradient_SW, dim=1).double().square().sum())))
        if not math.isfinite(norm):
            raise ValueError(
                f"the gradient norm of the class weights is {norm}; lower prototype_learning_rate or scale"
            )
        scale = max_grad_norm / norm if max_grad_norm is not None and norm > max_grad_norm else None
        for part in self._parts(len(places_S)):
            moved_SW, gradient_part = weight_SW[part], gradient_SW[part]
            if scale is not None:
                gradient_part.mul_(scale)
            self.optimizer.step(places_S[part], moved_SW, gradient_part, learning_rate=learning_rate)
            self._write(places_S[part], moved_SW, step=2 * (self.steps + 1))
        self.optimizer.history.add(learning_rate)
        return norm

    def _write(self, places_S: Tensor, rows_SW: Tensor, *, step: int) -> None:
        """Store rows; bfloat16 ones are rounded with noise keyed by `step` and overwrite `rows_SW`."""
        if self.weight.dtype == torch.bfloat16:
            keys_S = row_keys(places_S.to(rows_SW.device) + self.start, seed=self.seed, step=step)
            rows_SW = round_to_bfloat16(rows_SW, keys_S, self._factors)
        self.weight.index_copy_(0, places_S, rows_SW.to(self.weight.device, self.weight.dtype))

    @torch.no_grad()
    def flush(self) -> None:
        """Bring every stored row up to date, to the state that a dense optimiser would have left.

        It changes the course of training by rounding, so saving does not flush, and `rows_of` reads without it.
        """
        for part in self._parts(len(self.weight)):
            places_S = torch.arange(part.start, part.stop, device=self.weight.device)
            if "last_step" not in self.optimizer.tensors:
                return
            rows_SW = self._read(places_S)
            self._write(places_S, rows_SW, step=2 * self.steps + 1)
            self.optimizer.settle(places_S)

    @torch.no_grad()
    def rows_of(self, class_ids: Tensor) -> Tensor:
        """(S, W) copy of the rows of classes of this rank, up to date, in any order."""
        return self._read(class_ids.to(self.weight.device) - self.start)

    def prototypes(self, class_ids: Tensor) -> Tensor:
        """(S, D) fp32 unit rows of classes of this rank: the mean direction where a class has sub-centres."""
        rows_SKD = self.rows_of(class_ids).float().view(len(class_ids), self.sub_centres, self.hidden_size)
        if self.sub_centres > 1:
            rows_SKD = functional.normalize(rows_SKD, dim=2)
        return functional.normalize(rows_SKD.mean(dim=1), dim=1)

    @torch.no_grad()
    def put_rows(self, class_ids: Tensor, rows_SW: Tensor) -> None:
        """Store initial rows of classes of this rank; their optimiser state does not change."""
        rows_SW = rows_SW.to(device=self.device, dtype=self.dtype, copy=True).contiguous()
        self._write(class_ids.to(self.weight.device) - self.start, rows_SW, step=2 * self.steps + 1)

    @torch.no_grad()
    def start_random(self) -> None:
        """Draw every row from a normal distribution of deviation 1 / sqrt(D), keyed by seed and class."""
        for low in range(self.start, self.end, CLASSES_PER_BLOCK):
            ids = torch.arange(low, min(low + CLASSES_PER_BLOCK, self.end))
            self.put_rows(ids, self.random_rows(ids))

    def random_rows(self, class_ids: Tensor) -> Tensor:
        """(S, W) fp32 rows of ascending classes as in `start_random`; draws complete blocks, so any layout is equal."""
        ids = class_ids.cpu().numpy()
        found = np.empty((len(ids), self.weight.shape[1]), np.float32)
        for block in np.unique(ids // CLASSES_PER_BLOCK):
            first = int(block) * CLASSES_PER_BLOCK
            rows = min(CLASSES_PER_BLOCK, self.num_classes - first)
            stream = np.random.Generator(np.random.Philox(key=np.array([self.seed, block], np.uint64)))
            values = stream.standard_normal((rows, found.shape[1]), dtype=np.float32)
            inside = slice(*np.searchsorted(ids, (first, first + rows)))
            found[inside] = values[ids[inside] - first] * np.float32(self.hidden_size**-0.5)
        return torch.from_numpy(found)

    def state(self) -> dict[str, Tensor]:
        """Tensors of this rank by name; the first axis of each is this rank's classes."""
        return {"weight": self.weight, **self.optimizer.tensors}

    def history(self) -> dict[str, Tensor]:
        """State of the optimiser's `RateHistory`; equal on every rank."""
        return self.optimizer.history.state()

    def load_history(self, history: dict[str, Tensor]) -> None:
        """Restore the result of `history`."""
        self.optimizer.history.load_state(history)

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Copy tensors of the shapes of `state`; all are checked before the first one changes.

        Raises:
            ValueError: a tensor is missing or of another shape.
        """
        for name, tensor in self.state().items():
            if name not in state or state[name].shape != tensor.shape:
                found = tuple(state[name].shape) if name in state else "missing"
                raise ValueError(f"class weights: {name} is {found}, this rank needs {tuple(tensor.shape)}")
        for name, tensor in self.state().items():
            tensor.copy_(state[name])

    def check_rows(self) -> None:
        """Assert that this rank holds the rows of its range and no others."""
        expected = class_range(self.num_classes, part=rank(), parts=world_size())
        assert (self.start, self.end) == expected
        assert len(self.weight) == self.end - self.start
