"""Heads whose steps are timed: ours, baselines and a lower bound.

| name | classes of a step | rows that the update changes |
|---|---|---|
| ours | keyed sample | the sampled rows |
| dense_update | the same sample | every row: momentum and decay, as in common sampled heads |
| dense_parameter | the same sample | every row: rows of a parameter through autograd, torch.optim.SGD |
| full_softmax | all | every row (torch.optim.SGD) |
| pytorch_metric_learning | all | every row (CosFaceLoss of that library, torch.optim.SGD) |
| floor | as many rows | nothing is learned: gather, three matrix products, scatter |

PartialFC (An et al., CVPR 2022) and its copies need CUDA and a process group, so the sampled baselines are written
here. `dense_parameter` is their method in plain torch, where the gradient of the gathered rows is as large as the
table. `dense_update` avoids that gradient and keeps what the method cannot avoid, the update of every row: weight and
momentum pass through the cache once, at a bandwidth that is compared with a plain copy. Both use our sampler.

Letters: B batch, S sampled classes, C classes, D width.
"""

import math
import time
from typing import Any, Protocol

import psutil
import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.head.step import DTYPES, HeadSize, make_shard, sample, sampled_loss, start_rows
from train.class_weights.shard import GatheredRows

# Bytes of one tensor that the dense update processes at once: they fit a core's cache, or fill one kernel launch.
PART_BYTES = {"cpu": 2**18, "cuda": 2**24}


class Head(Protocol):
    """A head that can be timed.

    Attributes:
        moves_bytes: least number of bytes that one update reads and writes; 0 where it is not known beforehand.
    """

    moves_bytes: int

    def forward(self, embeds_BD: Tensor, labels_B: Tensor, step: int) -> Tensor:
        """Sample, gather and compute the loss."""

    def backward(self, loss: Tensor) -> None:
        """Compute gradients of embeddings and rows."""

    def update(self) -> None:
        """Update the rows."""


class Ours:
    """Class-sharded head of this project."""

    moves_bytes = 0
    gathered: GatheredRows

    def __init__(self, size: HeadSize) -> None:
        self.size, self.shard = size, make_shard(size)
        start_rows(self.shard)

    def forward(self, embeds_BD: Tensor, labels_B: Tensor, step: int) -> Tensor:
        sampled = sample(self.size, labels_B, step=step)
        self.gathered = self.shard.gather(sampled.class_ids, sampled.log_correction)
        return sampled_loss(embeds_BD, labels_B, self.gathered, self.size.form)

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def update(self) -> None:
        self.shard.update(self.gathered, learning_rate=self.size.learning_rate, max_grad_norm=None)


class DenseUpdate:
    """Sampled rows of a dense table; momentum and decay on all rows: b = mu b + g, w = (1 - lr d) w - lr b."""

    def __init__(self, size: HeadSize) -> None:
        self.size = size
        self.weight_CD = random_rows(size)
        self.momentum_CD = torch.zeros_like(self.weight_CD)
        self.moves_bytes = 4 * self.weight_CD.numel() * self.weight_CD.element_size()

    def forward(self, embeds_BD: Tensor, labels_B: Tensor, step: int) -> Tensor:
        sampled = sample(self.size, labels_B, step=step)
        self.class_ids_S = sampled.class_ids.to(self.weight_CD.device)
        correction_S = sampled.log_correction.to(self.weight_CD)
        self.rows_SD = self.weight_CD.index_select(0, self.class_ids_S).requires_grad_()
        place_B = torch.searchsorted(self.class_ids_S, labels_B)
        return margin_loss(embeds_BD, self.rows_SD, place_B, size=self.size, correction_S=correction_S)

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    @torch.no_grad()
    def update(self) -> None:
        size = self.size
        assert self.rows_SD.grad is not None
        # b = mu (b + g / mu): the gradient is added to the sampled rows first, so that the table is read only once.
        self.momentum_CD.index_add_(0, self.class_ids_S, self.rows_SD.grad, alpha=1 / size.momentum)
        of_row = self.weight_CD.shape[1] * self.weight_CD.element_size()
        rows = max(1, PART_BYTES[self.weight_CD.device.type] * torch.get_num_threads() // of_row)
        for weight_ND, momentum_ND in zip(self.weight_CD.split(rows), self.momentum_CD.split(rows), strict=True):
            momentum_ND.mul_(size.momentum)
            weight_ND.mul_(1 - size.learning_rate * size.weight_decay).sub_(momentum_ND, alpha=size.learning_rate)


class DenseParameter:
    """Sampled rows of a parameter: autograd writes a gradient of every row, torch's fused SGD updates every row."""

    def __init__(self, size: HeadSize) -> None:
        needs_memory(size, tables=3, logits=0)
        self.size = size
        self.weight_CD = torch.nn.Parameter(random_rows(size))
        self.optimizer = sgd(size, self.weight_CD)
        # Weight, momentum and gradient are read, weight and momentum written.
        self.moves_bytes = 5 * self.weight_CD.numel() * self.weight_CD.element_size()

    def forward(self, embeds_BD: Tensor, labels_B: Tensor, step: int) -> Tensor:
        self.optimizer.zero_grad()
        sampled = sample(self.size, labels_B, step=step)
        class_ids_S = sampled.class_ids.to(self.weight_CD.device)
        place_B = torch.searchsorted(class_ids_S, labels_B)
        correction_S = sampled.log_correction.to(self.weight_CD)
        rows_SD = self.weight_CD.index_select(0, class_ids_S)
        return margin_loss(embeds_BD, rows_SD, place_B, size=self.size, correction_S=correction_S)

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def update(self) -> None:
        self.optimizer.step()


class FullSoftmax:
    """Cross entropy over every class with torch alone; SGD with momentum, fused where torch has it."""

    moves_bytes = 0

    def __init__(self, size: HeadSize) -> None:
        needs_memory(size, tables=5, logits=4)
        self.size = size
        self.weight_CD = torch.nn.Parameter(random_rows(size))
        self.optimizer = sgd(size, self.weight_CD)

    def forward(self, embeds_BD: Tensor, labels_B: Tensor, step: int) -> Tensor:
        self.optimizer.zero_grad()
        return margin_loss(embeds_BD, self.weight_CD, labels_B, size=self.size)

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def update(self) -> None:
        self.optimizer.step()


class PytorchMetricLearning:
    """CosFaceLoss of pytorch-metric-learning (extra `bench`), with the same SGD."""

    moves_bytes = 0

    def __init__(self, size: HeadSize) -> None:
        needs_memory(size, tables=6, logits=7)
        try:
            from pytorch_metric_learning.losses import CosFaceLoss
        except ImportError as error:
            raise ValueError(
                "pytorch_metric_learning is not installed: pip install pytorch-metric-learning, or leave it out of "
                "--heads"
            ) from error
        self.head: Any = CosFaceLoss(size.classes, size.hidden_size, margin=size.margin, scale=size.scale)
        self.head.to(size.device)
        self.head.W.data.copy_(random_rows(size).T)
        self.optimizer = sgd(size, self.head.W)

    def forward(self, embeds_BD: Tensor, labels_B: Tensor, step: int) -> Tensor:
        self.optimizer.zero_grad()
        loss: Tensor = self.head(embeds_BD, labels_B)
        return loss

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def update(self) -> None:
        self.optimizer.step()


class Floor:
    """Lower bound of a sampled head: read S rows, three products with the batch, write S rows."""

    moves_bytes = 0

    def __init__(self, size: HeadSize) -> None:
        self.weight_CD = random_rows(size).to(DTYPES[size.dtype])
        self.count = min(size.classes, math.ceil(size.rate * size.classes) + size.batch_size)
        self.generator = torch.Generator().manual_seed(size.seed)

    def forward(self, embeds_BD: Tensor, labels_B: Tensor, step: int) -> Tensor:
        classes = len(self.weight_CD)
        ids_S = torch.linspace(0, classes - 1, self.count, dtype=torch.float64).long()
        self.ids_S = ((ids_S + step * 7919) % classes).to(self.weight_CD.device)
        self.embeds_BD = embeds_BD.detach()
        self.rows_SD = self.weight_CD.index_select(0, self.ids_S).to(embeds_BD.dtype)
        self.logit_SB = self.rows_SD @ self.embeds_BD.T
        return self.logit_SB[:1].sum()

    def backward(self, loss: Tensor) -> None:
        self.of_embeds_BD = self.logit_SB.T @ self.rows_SD
        self.of_rows_SD = self.logit_SB @ self.embeds_BD

    def update(self) -> None:
        self.weight_CD.index_copy_(0, self.ids_S, self.rows_SD.to(self.weight_CD.dtype))


HEADS: dict[str, type[Ours | DenseUpdate | DenseParameter | FullSoftmax | PytorchMetricLearning | Floor]] = {
    "ours": Ours,
    "dense_update": DenseUpdate,
    "dense_parameter": DenseParameter,
    "floor": Floor,
    "full_softmax": FullSoftmax,
    "pytorch_metric_learning": PytorchMetricLearning,
}


def random_rows(size: HeadSize) -> Tensor:
    """(C, D) normal fp32 rows of about unit length."""
    generator = torch.Generator(device=size.device).manual_seed(size.seed)
    rows_CD = torch.empty(size.classes, size.hidden_size, device=size.device)
    return rows_CD.normal_(std=size.hidden_size**-0.5, generator=generator)


def sgd(size: HeadSize, weight: torch.nn.Parameter) -> torch.optim.SGD:
    """torch's SGD of a dense parameter."""
    return torch.optim.SGD(
        [weight], lr=size.learning_rate, momentum=size.momentum, weight_decay=size.weight_decay, fused=True
    )


def margin_loss(
    embeds_BD: Tensor, rows_SD: Tensor, place_B: Tensor, *, size: HeadSize, correction_S: Tensor | None = None
) -> Tensor:
    """CosFace with torch's cross entropy; `place_B` is the position of each label among the rows."""
    logit_BS = size.scale * (embeds_BD @ functional.normalize(rows_SD, dim=1).T)
    if correction_S is not None:
        logit_BS = logit_BS + correction_S
    # Classes of the batch have correction 0, so only the margin is subtracted from their logits.
    margin_B1 = logit_BS.new_full((len(place_B), 1), -size.scale * size.margin)
    moved_BS = logit_BS.scatter_add(1, place_B[:, None], margin_B1)
    return functional.cross_entropy(moved_BS, place_B)


def needs_memory(size: HeadSize, *, tables: int, logits: int) -> None:
    """Check that a head fits into memory before it is allocated.

    Args:
        tables, logits: fp32 tensors of (C, D) and of (B, C) that are alive at once.

    Raises:
        ValueError: when it needs more than four fifths of the free memory.
    """
    needed = 4 * size.classes * (tables * size.hidden_size + logits * size.batch_size)
    free = torch.cuda.mem_get_info()[0] if size.device == "cuda" else psutil.virtual_memory().available
    if needed > 0.8 * free:
        raise ValueError(
            f"{size.classes:,} classes need about {needed / 2**30:.0f} GiB, {free / 2**30:.0f} GiB are free: choose "
            "fewer classes or leave this head out"
        )


def copy_bandwidth(device: str) -> float:
    """Bytes a second, read and written, of a plain copy of 256 MiB; best of five."""
    source = torch.ones(2**26, device=device)
    target = torch.empty_like(source)
    seconds = []
    for _ in range(6):
        start = time.perf_counter()
        target.copy_(source)
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return 2 * source.numel() * source.element_size() / min(seconds[1:])
