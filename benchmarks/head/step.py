"""One training step of the class-sharded head, without an encoder.

Speed, memory and quality of the head are measured with the keyed sample, shard, chunked kernel and row optimiser of
`train/`; every benchmark of the head uses this file. Where an encoder is needed, it is a linear map.

Letters: B batch, S sampled classes, F observed features, D width.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from modeling_oclear.partial_softmax_oclear import (
    ClassRange,
    CosFace,
    SampledClasses,
    SoftmaxForm,
    best_positive,
    class_scalars,
    loss_from_scalars,
    positive_cosines,
    sample_classes,
)
from train.class_weights.shard import ClassShard, GatheredRows, ShardSettings
from train.class_weights.storage import ClassStorage

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class HeadSize:
    """Size and settings of a measured head.

    Attributes:
        rate: share of the classes sampled in each step besides the positives.
        dtype: of the stored rows, "fp32" or "bf16". optimizer: name of a row optimiser.
        margin, scale: CosFace. storage: "device", "memory" or "disk".
    """

    classes: int
    hidden_size: int
    rate: float
    batch_size: int
    dtype: str = "fp32"
    optimizer: str = "momentum"
    device: str = "cpu"
    seed: int = 0
    learning_rate: float = 0.1
    weight_decay: float = 1e-4
    momentum: float = 0.9
    margin: float = 0.2
    scale: float = 32.0
    storage: str = "device"
    folder: str = ""

    @property
    def form(self) -> SoftmaxForm:
        """Margin and scale of the softmax."""
        return SoftmaxForm(margin=CosFace(self.margin), scale=self.scale)


class LinearMap(torch.nn.Module):
    """Features (B, F) -> unit embeddings (B, D), with orthogonal initial weights keyed by `seed`."""

    def __init__(self, features: int, hidden_size: int, *, seed: int) -> None:
        super().__init__()
        start = torch.randn(max(features, hidden_size), min(features, hidden_size), generator=keyed(seed))
        start = torch.linalg.qr(start)[0]
        self.weight = torch.nn.Parameter((start.T if features > hidden_size else start).contiguous())

    def forward(self, feature_BF: Tensor) -> Tensor:
        return functional.normalize(feature_BF @ self.weight.T, dim=1)


def keyed(seed: int) -> torch.Generator:
    """New random generator for one use."""
    return torch.Generator().manual_seed(seed)


def make_shard(size: HeadSize) -> ClassShard:
    """Class weights of this size, not initialised yet.

    Raises:
        ValueError: for settings that the shard rejects.
    """
    device = torch.device(size.device)
    place = ClassStorage(kind=size.storage, device=device, folder=Path(size.folder) if size.folder else None)
    return ClassShard(
        size.classes,
        size.hidden_size,
        ShardSettings(
            dtype=DTYPES[size.dtype],
            weight_decay=size.weight_decay,
            optimizer=size.optimizer,
            momentum=size.momentum,
            seed=size.seed,
        ),
        device=device,
        storage=place,
    )


def start_rows(shard: ClassShard) -> None:
    """Initialise rows at random: keyed as in training, or on the accelerator, where the keyed start takes minutes."""
    if shard.weight.device.type == "cuda":
        generator = torch.Generator(shard.weight.device).manual_seed(shard.seed)
        shard.weight.normal_(std=shard.hidden_size**-0.5, generator=generator)
    else:
        shard.start_random()


def sample(size: HeadSize, labels_B: Tensor, *, step: int) -> SampledClasses:
    """Sample the classes of one step."""
    return sample_classes(size.classes, positives=labels_B, rate=size.rate, seed=size.seed, step=step)


def sampled_loss(embeds_BD: Tensor, labels_B: Tensor, gathered: GatheredRows, form: SoftmaxForm) -> Tensor:
    """Mean loss of a batch against the gathered rows, as one process computes it in training."""
    rows, class_ids = gathered.weight_SD, gathered.class_ids_S
    best_B = None
    if form.conflict_delta is not None:
        best_B = best_positive(positive_cosines(embeds_BD, labels_B, rows, class_ids, form=form), labels_B)
    classes = ClassRange(rows, class_ids, gathered.log_correction_S)
    scalars = class_scalars(embeds_BD, labels_B, classes, form=form, best_positive_B=best_B)
    return loss_from_scalars(scalars, labels_B, form=form)
