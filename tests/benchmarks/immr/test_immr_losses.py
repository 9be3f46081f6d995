"""Losses of the baselines against loops that follow their papers."""

import math

import pytest
import torch
from torch.nn import functional

from benchmarks.immr.baselines.losses import (
    BatchLabels,
    Classifying,
    Contrastive,
    Triplet,
    cosface,
    infonce,
    siglip,
    supcon,
)


def unit(*shape: int, seed: int) -> torch.Tensor:
    return functional.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double(), dim=-1)


QUERY, DOCUMENT = unit(5, 7, seed=1), unit(5, 7, seed=2)
LABELS = torch.tensor([0, 1, 0, 2, 1])
BATCH = BatchLabels(LABELS, LABELS, LABELS[:, None] == LABELS[None])


def softmax_of(row: list[float], place: int, kept: list[int]) -> float:
    return math.exp(row[place]) / sum(math.exp(row[j]) for j in kept)


def test_infonce_masks_other_positives_in_the_denominator() -> None:
    logits = (9 * QUERY @ DOCUMENT.T).tolist()
    expected = 0.0
    for i in range(5):
        kept = [j for j in range(5) if j == i or LABELS[j] != LABELS[i]]
        expected -= math.log(softmax_of(logits[i], i, kept)) / 5
    assert float(infonce(torch.tensor(logits, dtype=torch.double), BATCH.positive_BB)) == pytest.approx(expected)


def test_supcon_is_the_mean_over_positives_of_the_log_softmax_over_all() -> None:
    logits = (9 * QUERY @ DOCUMENT.T).tolist()
    expected = 0.0
    for i in range(5):
        positives = [j for j in range(5) if LABELS[j] == LABELS[i]]
        expected -= sum(math.log(softmax_of(logits[i], p, list(range(5)))) for p in positives) / len(positives) / 5
    assert float(supcon(torch.tensor(logits, dtype=torch.double), BATCH.positive_BB)) == pytest.approx(expected)


def test_siglip_sums_a_sigmoid_over_every_pair() -> None:
    logits = (9 * QUERY @ DOCUMENT.T - 3).tolist()
    expected = 0.0
    for i in range(5):
        for j in range(5):
            sign = 1 if LABELS[i] == LABELS[j] else -1
            expected += math.log1p(math.exp(-sign * logits[i][j])) / 5
    assert float(siglip(torch.tensor(logits, dtype=torch.double), BATCH.positive_BB)) == pytest.approx(expected)


def test_cosface_subtracts_the_margin_from_the_right_class_over_all_classes() -> None:
    weight = unit(3, 7, seed=3)
    expected = 0.0
    for i in range(5):
        cos = [float(QUERY[i] @ weight[n]) for n in range(3)]
        logits = [32 * (c - (0.2 if n == LABELS[i] else 0.0)) for n, c in enumerate(cos)]
        expected -= math.log(softmax_of(logits, int(LABELS[i]), [0, 1, 2])) / 5
    assert float(cosface(QUERY @ weight.T, LABELS, margin=0.2, scale=32.0)) == pytest.approx(expected)


def test_contrastive_losses_are_symmetric_and_learn_their_temperature() -> None:
    for kind, form in (("infonce", infonce), ("supcon", supcon)):
        loss = Contrastive(kind, temperature=0.1).double()
        found = loss(QUERY, DOCUMENT, BATCH)
        logits = 10 * QUERY @ DOCUMENT.T
        expected = (form(logits, BATCH.positive_BB) + form(logits.T, BATCH.positive_BB)) / 2
        assert found.item() == pytest.approx(float(expected), rel=1e-6)
        found.backward()
        assert loss.logit_scale.grad is not None
        assert float(loss.logit_scale.grad) != 0


def test_siglip_starts_with_the_bias_of_its_paper_and_learns_it() -> None:
    loss = Contrastive("siglip", temperature=0.1).double()
    found = loss(QUERY, DOCUMENT, BATCH)
    assert found.item() == pytest.approx(float(siglip(10 * QUERY @ DOCUMENT.T - 10, BATCH.positive_BB)), rel=1e-6)
    found.backward()
    assert loss.bias is not None
    assert loss.bias.grad is not None
    assert float(loss.bias.grad) != 0


def naive_triplets(anchors: torch.Tensor, others: torch.Tensor, *, margin: float, mining: str) -> float:
    """Mean over the triplets that are not 0, as pytorch-metric-learning averages."""
    losses = []
    for a in range(5):
        distance = [float((anchors[a] - others[j]).norm()) for j in range(5)]
        positives = [j for j in range(5) if LABELS[j] == LABELS[a]]
        negatives = [j for j in range(5) if LABELS[j] != LABELS[a]]
        if mining == "hard":
            pairs = [(max(positives, key=lambda j: distance[j]), min(negatives, key=lambda j: distance[j]))]
        else:
            gaps = [(p, n) for p in positives for n in negatives]
            pairs = [(p, n) for p, n in gaps if 0 < distance[n] - distance[p] <= margin]
        losses += [max(0.0, distance[p] - distance[n] + margin) for p, n in pairs]
    positive = [value for value in losses if value > 0]
    return sum(positive) / len(positive) if positive else 0.0


@pytest.mark.parametrize(("mining", "margin"), [("hard", 0.2), ("semihard", 0.3)])
def test_triplets_are_mined_across_the_two_sides(mining: str, margin: float) -> None:
    found = Triplet(margin=margin, mining=mining)(QUERY, DOCUMENT, BATCH)
    expected = sum(
        naive_triplets(one, other, margin=margin, mining=mining) / 2
        for one, other in ((QUERY, DOCUMENT), (DOCUMENT, QUERY))
    )
    assert expected > 0
    assert found.item() == pytest.approx(expected, rel=1e-5)


def test_a_batch_without_triplets_has_zero_loss_and_zero_gradient() -> None:
    rows = functional.normalize(torch.eye(5, 7), dim=1).requires_grad_()
    labels = torch.arange(5)
    loss = Triplet(margin=0.1, mining="semihard")(rows, rows.detach(), BatchLabels(labels, labels, torch.eye(5).bool()))
    loss.backward()
    assert loss.item() == 0
    assert rows.grad is not None
    assert not rows.grad.any()


def test_proxy_anchor_pulls_positives_and_pushes_negatives_of_every_proxy() -> None:
    proxies = unit(4, 7, seed=4)  # class 3 has no row in the batch
    found = Classifying("proxyanchor", proxies, margin=0.1).double()(QUERY, DOCUMENT, BATCH)
    rows, labels = torch.cat([QUERY, DOCUMENT]), torch.cat([LABELS, LABELS])
    pull = push = 0.0
    for n in range(4):
        cos = [(float(row @ proxies[n]), int(label)) for row, label in zip(rows, labels, strict=True)]
        near = [c for c, label in cos if label == n]
        pull += math.log1p(sum(math.exp(-32 * (c - 0.1)) for c in near)) if near else 0.0
        push += math.log1p(sum(math.exp(32 * (c + 0.1)) for c, label in cos if label != n))
    assert found.item() == pytest.approx(pull / 3 + push / 4, rel=1e-5)


def test_class_weights_have_the_initial_values_and_are_normalised() -> None:
    start = 5 * unit(3, 7, seed=3)
    found = Classifying("cosface", start, margin=0.2)(QUERY, DOCUMENT, BATCH)
    rows, labels = torch.cat([QUERY, DOCUMENT]), torch.cat([LABELS, LABELS])
    assert found.item() == pytest.approx(float(cosface(rows @ start.T / 5, labels, margin=0.2, scale=32.0)))


def test_invalid_hyperparameters_are_rejected() -> None:
    with pytest.raises(ValueError, match="temperature is 0"):
        Contrastive("infonce", temperature=0.0)
    with pytest.raises(ValueError, match="mining is 'easy'"):
        Triplet(margin=0.1, mining="easy")
