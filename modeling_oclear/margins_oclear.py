"""Margins (CosFace, ArcFace, combined) and settings of the category softmax.

Every margin phi is continuously differentiable and decreases over the whole range of angles, 0 to pi. cos(t + m)
itself rises again beyond t = pi - m, which would reward the worst samples for getting worse; hence the continuations.
"""

import math
from dataclasses import dataclass, field

import torch

__all__ = ["ArcFace", "CombinedMargin", "CosFace", "Margin", "SoftmaxForm", "margin_by_name"]


@dataclass(frozen=True)
class CosFace:
    """phi(cos) = cos - m (Wang et al., CosFace, 1801.09414)."""

    m: float = 0.2

    def __post_init__(self) -> None:
        if not 0 <= self.m <= 1:
            raise ValueError(f"the CosFace margin is {self.m}; it must be from 0 to 1, such as 0.2.")

    def phi(self, cos: torch.Tensor) -> torch.Tensor:
        """Cosines of positives, of any shape -> the same with their margin."""
        return cos - self.m


@dataclass(frozen=True)
class ArcFace:
    """phi = cos(t + m) for t <= pi - m, else -2 - cos(t + m); t = arccos(cos), m in radians.

    Deng et al., ArcFace, 1801.07698; the continuation is ours.
    """

    m: float = 0.3

    def __post_init__(self) -> None:
        if not 0 <= self.m < math.pi / 2:
            raise ValueError(f"the ArcFace margin is {self.m}; it must be from 0 to below pi / 2, such as 0.3.")

    def phi(self, cos: torch.Tensor) -> torch.Tensor:
        """Apply the margin to cosines of positives, of any shape."""
        # The slope of the root is infinite at cos = 1. Clamped at the rounding error of 1, the gradient there is 0.
        sin = (1 - cos * cos).clamp(min=torch.finfo(cos.dtype).eps).sqrt()
        shifted = cos * math.cos(self.m) - sin * math.sin(self.m)  # cos(t + m)
        return torch.where(cos >= -math.cos(self.m), shifted, -2 - shifted)


@dataclass(frozen=True)
class CombinedMargin:
    """phi = psi(m1 t + m2) - m3 with psi(a) = (-1)^k cos(a) - 2k, k = floor(a / pi): cos(a) up to pi, then continued.

    m1 is the factor of SphereFace (Liu et al., 1704.08063), which psi is taken from, m2 the angle of ArcFace and m3 the
    difference of CosFace. The combination is that of Deng et al., 1801.07698, section 2.
    """

    m1: float = 1.0
    m2: float = 0.3
    m3: float = 0.2

    def __post_init__(self) -> None:
        for name, value, least, most, such_as in (
            ("m1", self.m1, 1, 4, 1.0),
            ("m2", self.m2, 0, 1.57, 0.3),
            ("m3", self.m3, 0, 1, 0.2),
        ):
            if not least <= value <= most:
                raise ValueError(
                    f"{name} of the combined margin is {value}; it must be from {least} to {most}, such as {such_as}."
                )

    def phi(self, cos: torch.Tensor) -> torch.Tensor:
        """Apply the margin to cosines of positives, of any shape."""
        # The slope of arccos is infinite at both ends. Clamped at the rounding error of 1, the gradient there is 0.
        most = 1 - torch.finfo(cos.dtype).eps
        angle = self.m1 * torch.acos(cos.clamp(min=-most, max=most)) + self.m2
        turns = (angle.detach() / math.pi).floor()
        sign = 1 - 2 * (turns % 2)
        return sign * angle.cos() - 2 * turns - self.m3


Margin = CosFace | ArcFace | CombinedMargin


def margin_by_name(name: str, value: float | tuple[float, ...]) -> Margin:
    """Build a margin from its name and value: one number, or (m1, m2, m3) for "combined".

    Raises:
        ValueError: for a name other than cosface, arcface, combined, or a value that does not fit the name.
    """
    values = (float(value),) if isinstance(value, int | float) else tuple(float(part) for part in value)
    kinds: dict[str, tuple[type[CosFace] | type[ArcFace] | type[CombinedMargin], int]] = {
        "cosface": (CosFace, 1),
        "arcface": (ArcFace, 1),
        "combined": (CombinedMargin, 3),
    }
    if name not in kinds:
        raise ValueError(f"no margin is called {name!r}; choose one of {', '.join(kinds)}.")
    kind, count = kinds[name]
    if len(values) != count:
        raise ValueError(f"margin {name!r} takes {count} number(s), but {value} was given.")
    return kind(*values)


@dataclass(frozen=True)
class SoftmaxForm:
    """Settings of the softmax over categories; a setting at its default has no effect and no cost.

    Attributes:
        margin, scale: the logit of a positive is scale * phi(cos), that of a negative scale * cos.
        label_smoothing: e. The target is 1 - e on the positive, plus e spread evenly over the sampled classes of the
            positive's leaf, itself included; over all sampled classes where the leaf is unknown.
        sub_centres: K rows per class; the cosine of a class is the largest of its K (Deng et al., Sub-center ArcFace,
            ECCV 2020).
        conflict_delta, conflict_tau: a negative is masked for a sample when its cosine is above the sample's best
            positive cosine by more than delta, or above tau: it is likely the same item under another label. None =
            off. After the inter-class filtering of Partial FC (An et al., 2203.15565).
        chunk_size: classes whose logits are computed at once; None = as many as fit the cache.
        logit_bytes: exponentials are kept for the backward pass up to this size, else they are computed again.
    """

    margin: Margin = field(default_factory=CosFace)
    scale: float = 32.0
    label_smoothing: float = 0.0
    sub_centres: int = 1
    conflict_delta: float | None = None
    conflict_tau: float | None = None
    chunk_size: int | None = None
    logit_bytes: int = 256 * 2**20

    def __post_init__(self) -> None:
        if not 0 < self.scale < math.inf:
            raise ValueError(f"scale is {self.scale}; it must be a positive number, such as 32.")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(
                f"label_smoothing is {self.label_smoothing}; it must be at least 0 (off) and below 1, such as 0.1."
            )
        if self.sub_centres < 1:
            raise ValueError(f"sub_centres is {self.sub_centres}; it must be at least 1 (one row per class).")
        if self.conflict_delta is not None and not self.conflict_delta >= 0:
            raise ValueError(f"conflict_delta is {self.conflict_delta}; it must be at least 0, or None (off).")
        if self.conflict_tau is not None and not -1 <= self.conflict_tau <= 1:
            raise ValueError(f"conflict_tau is {self.conflict_tau}; it is a cosine: -1 to 1, or None (off).")
        if self.chunk_size is not None and self.chunk_size < 1:
            raise ValueError(f"chunk_size is {self.chunk_size}; it must be at least 1, or None.")
        if self.logit_bytes < 0:
            raise ValueError(f"logit_bytes is {self.logit_bytes}; it must be at least 0 (nothing is kept).")
