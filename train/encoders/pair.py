"""Image encoder pair that is trained data-parallel: backbone tail and image head.

This module goes through `accelerator.prepare` (DDP or FSDP2). Class weights are not part of it (shard.py), nor is the
text stage, whose parameters would be unused here.

Letters: B batch, H width of the backbone, D width of the embedding.
"""

import contextlib
from collections.abc import Iterator
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

ROWS_PER_CHUNK = 256
STATISTICS_ROWS = 4096
LEAST_DEVIATION = 0.05  # of the mean deviation: a channel that hardly varies must not dominate


class KeyedDropout(nn.Module):
    """Dropout whose factors are set by the caller; the identity while `scale` is None.

    It replaces the image head's dropout in training: factors keyed by position in the step (`dropout_scale`) are equal
    for any number of ranks and micro-steps, those of torch's global generator are not.
    """

    scale: Tensor | None = None

    def forward(self, rows_BD: Tensor) -> Tensor:
        """(B, D) -> (B, D)."""
        return rows_BD if self.scale is None else rows_BD * self.scale


class EncoderPair(nn.Module):
    """Embeds queries and documents with one backbone.

    Args:
        model: an `OclearModel`; its modules are shared, not copied, and not changed. Training needs `for_training`.
        frozen_stages: as in the recipe: None reads pooled features, a number hidden maps after that many stages; 0
            reads pixel values and trains the backbone whole, also one that cannot be cut.
        mixed_precision: "bf16" runs `forward`, the training pass, under autocast; it returns rows in at least float32.
            `pooled` and `embed`, which statistics and the published folder depend on, never run under autocast.

    Raises:
        ValueError: the backbone cannot be cut after `frozen_stages`.
    """

    def __init__(self, model: Any, *, frozen_stages: int | None, mixed_precision: str = "no") -> None:
        super().__init__()
        self.frozen_stages = frozen_stages
        self.mixed_precision = mixed_precision
        self.image_head = model.image_head
        self.vision = None if frozen_stages is None else model.vision_model
        self.encode_image = None if frozen_stages is None else model.encode_image
        self._no_split_modules = sharded_units(self.vision)  # accelerate asks the module that it prepares
        if self.vision is not None:
            _check_frozen_stages(self.vision, frozen_stages or 0)

    @classmethod
    def for_training(cls, model: Any, *, frozen_stages: int | None, mixed_precision: str = "no") -> Self:
        """Pair whose `forward` can be trained. It CHANGES the model: see below.

        The dropout of the model's image head is replaced by `KeyedDropout`, and the parameters of the stem and of the
        first `frozen_stages` stages no longer require gradients.
        """
        pair = cls(model, frozen_stages=frozen_stages, mixed_precision=mixed_precision)
        pair.image_head.dropout = KeyedDropout()
        vision: Any = pair.vision
        if frozen_stages:
            for module in (vision.stem, *vision.stages[:frozen_stages]):
                module.requires_grad_(False)
        return pair

    def pooled(self, inputs: Tensor) -> Tensor:
        """Inputs of one kind -> (B, H) pooled features of the backbone."""
        if self.vision is None:
            return inputs
        if self.frozen_stages:
            pooled: Tensor = self.vision.forward_tail(inputs, self.frozen_stages).pooler_output
            return pooled
        assert self.encode_image is not None
        return self.encode_image(inputs)[1]

    def forward(
        self, query_inputs: Tensor, document_inputs: Tensor, query_dropout: Tensor, document_dropout: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Embed both sides; only for a pair of `for_training`.

        Query and document run through ONE call, so that every rank runs both in every step.

        Args:
            query_inputs, document_inputs: (Bq, ...), (Bd, ...) of the same kind.
            query_dropout, document_dropout: (Bq, D), (Bd, D) factors on the projected embedding.

        Returns:
            (Bq, D) and (Bd, D) unit rows.
        """
        assert isinstance(self.image_head.dropout, KeyedDropout), "built by EncoderPair.for_training"
        with self._arithmetic(query_inputs.device.type):
            pooled_BH = self.pooled(torch.cat([query_inputs, document_inputs]))
            query_BH, document_BH = pooled_BH.split([len(query_inputs), len(document_inputs)])
            embeds = []
            for side, rows_BH, scale in (
                ("query", query_BH, query_dropout),
                ("document", document_BH, document_dropout),
            ):
                self.image_head.dropout.scale = scale
                embeds.append(self.image_head(rows_BH, side=side))
            self.image_head.dropout.scale = None
        return embeds[0], embeds[1]

    def _arithmetic(self, device: str) -> Any:
        # Not autocast(enabled=False): it would disable the autocast of a caller.
        return torch.autocast(device, torch.bfloat16) if self.mixed_precision == "bf16" else contextlib.nullcontext()

    def embed(self, inputs: Tensor, *, side: str) -> Tensor:
        """(B, ...) -> (B, D) unit rows, without dropout."""
        embeds: Tensor = self.image_head(self.pooled(inputs), side=side)
        return embeds


def sharded_units(vision: nn.Module | None) -> list[str]:
    """Classes of the backbone's blocks, whose weights FSDP gathers one block at a time.

    transformers lists them for every backbone; accelerate fails for a class that the backbone does not contain.
    """
    named = set(getattr(vision, "_no_split_modules", None) or ())
    return sorted(named & {type(module).__name__ for module in vision.modules()}) if vision is not None else []


def _check_frozen_stages(vision: nn.Module, frozen_stages: int) -> None:
    if not frozen_stages:
        return
    if not hasattr(vision, "forward_tail"):
        raise ValueError(
            f"frozen_stages is {frozen_stages}, but {type(vision).__name__} cannot be cut into stages; "
            "use None (whole backbone frozen) or 0 (whole backbone trained)"
        )
    stages: Any = vision.stages
    if frozen_stages > len(stages):
        raise ValueError(f"frozen_stages is {frozen_stages}, but the backbone has {len(stages)}; use at most that many")


def rows_of(inputs: Any, rows: np.ndarray, views: np.ndarray, *, like: Tensor) -> Tensor:
    """(B, ...) selected views of (N, V, ...) cached inputs, on the device and in the dtype of `like`."""
    picked = torch.as_tensor(np.ascontiguousarray(inputs[rows, views]))
    return picked.to(device=like.device, dtype=like.dtype)


def embed_rows(
    encoders: EncoderPair, inputs: Any, rows: np.ndarray, *, side: str
) -> Iterator[tuple[np.ndarray, Tensor]]:
    """Embed the clean view of `rows` in chunks: (rows of the chunk, (B, D) unit rows), without gradient."""
    like = next(encoders.image_head.parameters())
    for start in range(0, len(rows), ROWS_PER_CHUNK):
        part = rows[start : start + ROWS_PER_CHUNK]
        with torch.no_grad():
            yield part, encoders.embed(rows_of(inputs, part, np.zeros_like(part), like=like), side=side)


def start_image_head(
    encoders: EncoderPair,
    *,
    inputs: dict[str, Any],
    rows: dict[str, np.ndarray],
    projection: str,
) -> None:
    """Initialise the frozen standardisation of each side and the shared projection.

    Standardisation: mean and deviation of the clean training rows of that side under the initial weights; they never
    change, so that no row depends on its batch. "pca": the leading principal directions of the standardised features
    of both sides, which preserve the neighbours of the frozen features; a random projection to fewer dimensions does
    not.

    Args:
        inputs, rows: by side: cached inputs, and the training rows among them.
        projection: "pca", "orthogonal" (as the model is built) or "identity".

    Raises:
        ValueError: the widths do not allow the projection.
    """
    head = encoders.image_head
    standardised = []
    for side, other in (("query", "document"), ("document", "query")):
        known = side if len(rows[side]) else other  # without a query its side is taken to look like documents
        pooled = _pooled_sample(encoders, inputs[known], rows[known])
        mean, deviation = pooled.mean(0), pooled.std(0, correction=0)
        deviation = deviation.clamp_min(LEAST_DEVIATION * float(deviation.mean()) + torch.finfo(torch.float32).tiny)
        getattr(head, f"{side}_mean").copy_(mean)
        getattr(head, f"{side}_std").copy_(deviation)
        standardised.append((pooled - mean) / deviation)
    weight = head.projection.weight
    width_out, width_in = weight.shape
    if projection == "identity" and width_out != width_in:
        raise ValueError(
            f"projection 'identity' needs hidden_size equal to the features' width {width_in}, not {width_out}"
        )
    if projection == "pca" and width_out > width_in:
        raise ValueError(
            f"projection 'pca' cannot widen {width_in} features to hidden_size {width_out}; use 'orthogonal'"
        )
    with torch.no_grad():
        if projection == "identity":
            weight.copy_(torch.eye(width_in))
        elif projection == "pca":
            weight.copy_(_leading_directions(torch.cat(standardised), width_out))


def _pooled_sample(encoders: EncoderPair, inputs: Any, rows: np.ndarray) -> Tensor:
    """Pooled features (float64) of at most STATISTICS_ROWS evenly spaced rows."""
    count = min(len(rows), STATISTICS_ROWS)
    chosen = rows[np.arange(count) * len(rows) // count]
    like = next(encoders.image_head.parameters())
    parts = []
    for start in range(0, count, ROWS_PER_CHUNK):
        part = chosen[start : start + ROWS_PER_CHUNK]
        with torch.no_grad():
            parts.append(encoders.pooled(rows_of(inputs, part, np.zeros_like(part), like=like)).double())
    return torch.cat(parts)


def _leading_directions(features_NH: Tensor, count: int) -> Tensor:
    """(count, H) eigenvectors of the largest eigenvalues; the largest entry of each is made positive."""
    _, vectors = torch.linalg.eigh(features_NH.T @ features_NH / len(features_NH))
    rows = vectors.flip(1)[:, :count].T
    largest = rows.abs().argmax(1, keepdim=True)
    return rows * rows.gather(1, largest).sign()
