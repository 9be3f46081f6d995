"""ProxyAnchor over class ranges, chunks and samples against the published loss."""

import math

import numpy as np
import pytest
import torch
from pytorch_metric_learning.losses import ProxyAnchorLoss
from torch import Tensor
from torch.nn import functional

from modeling_oclear.class_sampling_oclear import sample_classes
from modeling_oclear.proxy_anchor_oclear import AnchorSums, anchor_loss, anchor_sums
from modeling_oclear.softmax_inputs_oclear import ClassRange

CLASSES, WIDTH, SCALE, MARGIN = 11, 5, 8.0, 0.15
LABELS = torch.tensor([3, 0, 3, 10, 7, 7, 7])


def random_case() -> tuple[Tensor, Tensor]:
    """Unit embeddings and prototypes of lengths other than 1."""
    generator = torch.Generator().manual_seed(1)
    embeds = torch.randn(len(LABELS), WIDTH, dtype=torch.float64, generator=generator)
    rows = torch.randn(CLASSES, WIDTH, dtype=torch.float64, generator=generator)
    return functional.normalize(embeds, dim=1).requires_grad_(), rows.requires_grad_()


def reference(embeds: Tensor, rows: Tensor, weights: dict[int, float]) -> Tensor:
    """The equation, term by term, over the classes of `weights`."""
    pull, push, total = [], embeds.new_zeros(()), 0.0
    for p, weight in weights.items():
        cos = [embeds[b] @ rows[p] / rows[p].norm() for b in range(len(LABELS))]
        own = [torch.exp(-SCALE * (cos[b] - MARGIN)) for b in range(len(LABELS)) if LABELS[b] == p]
        other = [torch.exp(SCALE * (cos[b] + MARGIN)) for b in range(len(LABELS)) if LABELS[b] != p]
        if own:
            pull.append(torch.log(1 + torch.stack(own).sum()))
        push = push + weight * torch.log(1 + torch.stack(other).sum())
        total += weight
    return torch.stack(pull).mean() + push / total


def loss_over_all_classes(embeds: Tensor, rows: Tensor, *, chunk: int | None = None) -> Tensor:
    ids = torch.arange(CLASSES)
    none = torch.zeros(CLASSES, dtype=torch.float64)
    return anchor_loss(
        anchor_sums(embeds, LABELS, ClassRange(rows, ids, none), scale=SCALE, margin=MARGIN, chunk=chunk)
    )


def with_gradients(loss: Tensor, embeds: Tensor, rows: Tensor) -> list[Tensor]:
    return [loss.detach(), *torch.autograd.grad(loss, (embeds, rows))]


@pytest.mark.parametrize("chunk", [None, 1, 4, CLASSES])
def test_any_chunk_size_gives_the_loss_and_gradient_of_the_equation(chunk: int | None) -> None:
    embeds, rows = random_case()
    truth = with_gradients(reference(embeds, rows, dict.fromkeys(range(CLASSES), 1.0)), embeds, rows)
    for found, wanted in zip(
        with_gradients(loss_over_all_classes(embeds, rows, chunk=chunk), embeds, rows), truth, strict=True
    ):
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)


def test_loss_over_all_classes_equals_pytorch_metric_learning() -> None:
    embeds, rows = random_case()
    theirs = ProxyAnchorLoss(CLASSES, WIDTH, margin=MARGIN, alpha=SCALE).double()
    with torch.no_grad():
        theirs.proxies.copy_(rows)
    torch.testing.assert_close(loss_over_all_classes(embeds, rows), theirs(embeds, LABELS), rtol=1e-6, atol=1e-7)


def test_ranges_of_sampled_classes_add_up_to_the_weighted_loss() -> None:
    embeds, rows = random_case()
    parts: list[AnchorSums] = []
    weights: dict[int, float] = {}
    for ends in ((0, 4), (4, 4), (4, 5), (5, CLASSES)):
        drawn = sample_classes(CLASSES, positives=LABELS, rate=0.3, seed=2, step=1, class_range=ends)
        mine = rows[drawn.class_ids]
        weights |= dict(zip(drawn.class_ids.tolist(), drawn.log_correction.exp().tolist(), strict=True))
        parts.append(
            anchor_sums(
                embeds, LABELS, ClassRange(mine, drawn.class_ids, drawn.log_correction), scale=SCALE, margin=MARGIN
            )
        )
    assert 4 < len(weights) < CLASSES
    assert max(weights.values()) > 1
    total = AnchorSums(*(torch.stack(column).sum() for column in zip(*parts, strict=True)))
    truth = with_gradients(reference(embeds, rows, dict(sorted(weights.items()))), embeds, rows)
    for found, wanted in zip(with_gradients(anchor_loss(total), embeds, rows), truth, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)


def test_weighted_push_of_sampled_classes_is_unbiased() -> None:
    embeds, rows = random_case()
    everything = anchor_sums(
        embeds, LABELS, ClassRange(rows, torch.arange(CLASSES), torch.zeros(CLASSES)), scale=SCALE, margin=MARGIN
    )
    found = []
    for step in range(400):
        drawn = sample_classes(CLASSES, positives=LABELS, rate=0.3, seed=0, step=step)
        classes = ClassRange(rows[drawn.class_ids], drawn.class_ids, drawn.log_correction)
        some = anchor_sums(embeds, LABELS, classes, scale=SCALE, margin=MARGIN)
        assert float(some.weight) == pytest.approx(CLASSES)
        found.append(float(some.push.detach()))
    error = float(np.std(found)) / math.sqrt(len(found))
    assert float(np.mean(found)) == pytest.approx(float(everything.push.detach()), abs=4 * error)


def test_loss_of_very_far_and_very_near_samples_is_finite() -> None:
    embeds = functional.normalize(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), dim=1)
    rows = torch.tensor([[5.0, 0.0], [-5.0, 0.0]], requires_grad=True)
    ids, none = torch.arange(2), torch.zeros(2)
    good, bad = (
        anchor_loss(anchor_sums(embeds, torch.tensor(labels), ClassRange(rows, ids, none), scale=400.0, margin=0.1))
        for labels in ([0, 1], [1, 0])
    )
    assert float(good.detach()) == 0
    assert float(bad.detach()) == pytest.approx(2 * 400 * 1.1)
    assert bool(torch.isfinite(torch.autograd.grad(bad, rows)[0]).all())


def test_invalid_labels_and_prototypes_are_rejected() -> None:
    embeds, rows = random_case()
    ids, none = torch.arange(CLASSES), torch.zeros(CLASSES)
    several = torch.stack([LABELS, torch.full_like(LABELS, -1)], dim=1)
    with pytest.raises(ValueError, match="takes one label per row"):
        anchor_sums(embeds, several, ClassRange(rows, ids, none), scale=SCALE, margin=MARGIN)
    with pytest.raises(ValueError, match="the prototype of class 2 has length 0.0"):
        anchor_sums(embeds, LABELS, ClassRange(rows * (ids != 2)[:, None], ids, none), scale=SCALE, margin=MARGIN)
    elsewhere = anchor_sums(embeds, LABELS, ClassRange(rows[1:3], ids[1:3], none[1:3]), scale=SCALE, margin=MARGIN)
    with pytest.raises(ValueError, match="no class of the batch is among the sampled classes"):
        anchor_loss(elsewhere)


def test_range_without_classes_has_a_gradient_of_zero() -> None:
    embeds, rows = random_case()
    none = torch.zeros(0, dtype=torch.float64)
    sums = anchor_sums(embeds, LABELS, ClassRange(rows[:0], torch.arange(0), none), scale=SCALE, margin=MARGIN)
    assert float(sums.weight) == float(sums.classes) == 0
    of_embeds, of_rows = torch.autograd.grad(torch.stack(sums).sum(), (embeds, rows))
    assert not bool(of_embeds.any() or of_rows.any())
