"""Reference implementation of the partial softmax, one sample and class at a time."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from modeling_oclear.partial_softmax_oclear import ArcFace, CosFace, Margin, SoftmaxForm

CLASSES, WIDTH = 37, 7


def phi(margin: Margin, cos: Tensor) -> Tensor:
    """The definition of the margin, computed from the angle."""
    if isinstance(margin, CosFace):
        return cos - margin.m
    angle = torch.acos(cos)
    if isinstance(margin, ArcFace):
        return torch.cos(angle + margin.m) if angle <= math.pi - margin.m else -2 - torch.cos(angle + margin.m)
    shifted = margin.m1 * angle + margin.m2
    turns = int(shifted.item() / math.pi)
    return (-1) ** turns * torch.cos(shifted) - 2 * turns - margin.m3


def cosines(embed_D: Tensor, rows_RD: Tensor, sub_centres: int) -> Tensor:
    """(N,) largest cosine of an embedding with the K rows of each class."""
    cos_R = (rows_RD / rows_RD.square().sum(dim=1, keepdim=True).sqrt()) @ embed_D
    return cos_R.view(-1, sub_centres).max(dim=1).values


def naive_loss(
    embeds: Tensor, labels: Tensor, rows_RD: Tensor, form: SoftmaxForm, *, class_ids: Sequence[int],
    correction: Sequence[float], weights: Tensor, leaves: Sequence[int] | None = None,
) -> Tensor:  # fmt: skip
    """Loss as defined at the top of partial_softmax_oclear.py and in `SoftmaxForm`."""
    total = embeds.new_zeros(())
    for embed, positives, weight in zip(embeds, labels.view(len(labels), -1).tolist(), weights, strict=True):
        own = [label for label in positives if label >= 0]
        cos_N = cosines(embed, rows_RD, form.sub_centres)
        cos, plain = list(cos_N), cos_N.tolist()
        best = max(plain[label] for label in own)
        ceiling = math.inf if form.conflict_delta is None else best + form.conflict_delta
        ceiling = min(ceiling, math.inf if form.conflict_tau is None else form.conflict_tau)
        negatives = {
            j: form.scale * cos[j] + shift
            for j, shift in zip(class_ids, correction, strict=True)
            if j not in own and plain[j] <= ceiling
        }
        mean = embeds.new_zeros(())
        for label in own:
            logits = {**negatives, label: form.scale * phi(form.margin, cos[label])}
            denominator = torch.stack(list(logits.values())).exp().sum().log()
            leaf = -1 if leaves is None else leaves[label]
            alike = [j for j in logits if j == label or leaves is None or leaf < 0 or leaves[j] == leaf]
            target = {j: form.label_smoothing / len(alike) for j in alike}
            target[label] += 1 - form.label_smoothing
            mean = mean + sum((share * (denominator - logits[j]) for j, share in target.items()), embeds.new_zeros(()))
        total = total + weight * mean / len(own)
    return total / weights.sum()


def random_case(
    rows: int = 5, *, dtype: torch.dtype = torch.float64, sub_centres: int = 1
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Random embeddings, labels, prototypes and weights; row 0 is nearly opposite to its class."""
    generator = torch.Generator().manual_seed(rows)
    prototypes = 3 * torch.randn(CLASSES * sub_centres, WIDTH, dtype=torch.float64, generator=generator)
    embeds = torch.randn(rows, WIDTH, dtype=torch.float64, generator=generator)
    labels = torch.tensor([3, 3, 36, 0, 12])[:rows]
    opposite = prototypes[3 * sub_centres : 4 * sub_centres].sum(dim=0)
    embeds[0] = -opposite / opposite.norm() + 0.05 * embeds[0]
    embeds = torch.nn.functional.normalize(embeds, dim=1)
    weights = torch.rand(rows, dtype=torch.float64, generator=generator) + 0.1
    return embeds.to(dtype).requires_grad_(), labels, prototypes.to(dtype).requires_grad_(), weights.to(dtype)
