"""Partial softmax against a reference loop: unsharded, sharded, chunked, sampled."""

import math

import pytest
import torch

from modeling_oclear.partial_softmax_oclear import (
    ArcFace,
    ClassRange,
    CombinedMargin,
    CosFace,
    Margin,
    SoftmaxForm,
    class_logits,
    class_scalars,
    loss_from_scalars,
    merge_scalars,
    partial_softmax_loss,
    sample_classes,
)
from tests.support.naive_softmax import CLASSES, naive_loss, random_case

MARGINS: list[Margin] = [
    CosFace(0.2), ArcFace(0.4), CombinedMargin(1.5, 0.3, 0.1), CombinedMargin(3, 0.1, 0), CosFace(0.0), ArcFace(0.0),
]  # fmt: skip


def plain(margin: Margin | None = None, scale: float = 16.0, chunk_size: int | None = None) -> SoftmaxForm:
    return SoftmaxForm(margin=margin or CosFace(), scale=scale, chunk_size=chunk_size)


@pytest.mark.parametrize("margin", MARGINS, ids=str)
@pytest.mark.parametrize("rate", [1.0, 0.3])
@pytest.mark.parametrize("chunk_size", [None, 4, 1])
def test_value_and_gradients_equal_the_reference_loop(margin: Margin, rate: float, chunk_size: int | None) -> None:
    embeds, labels, prototypes, weights = random_case()
    sampled = sample_classes(CLASSES, positives=labels, rate=rate, seed=0, step=0)
    loss = partial_softmax_loss(
        embeds, labels, prototypes, form=plain(margin, chunk_size=chunk_size), sampled=sampled, weights_B=weights
    )
    expected = naive_loss(
        embeds, labels, prototypes, plain(margin), class_ids=sampled.class_ids.tolist(),
        correction=sampled.log_correction.tolist(), weights=weights,
    )  # fmt: skip
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-10)
    for mine, theirs in zip(
        torch.autograd.grad(loss, (embeds, prototypes)),
        torch.autograd.grad(expected, (embeds, prototypes)),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-10)


@pytest.mark.parametrize("margin", MARGINS[:3], ids=str)
@pytest.mark.parametrize("shards", [2, 3])
def test_class_ranges_of_several_ranks_equal_one_process(margin: Margin, shards: int) -> None:
    embeds, labels, prototypes, weights = random_case()
    sampled = sample_classes(CLASSES, positives=labels, rate=0.4, seed=3, step=1)
    whole = partial_softmax_loss(embeds, labels, prototypes, form=plain(margin), sampled=sampled, weights_B=weights)
    parts = []
    for shard in range(shards):
        first, end = CLASSES * shard // shards, CLASSES * (shard + 1) // shards
        mine = sample_classes(CLASSES, positives=labels, rate=0.4, seed=3, step=1, class_range=(first, end))
        rows = prototypes[first:end][mine.class_ids - first]
        parts.append(
            class_scalars(embeds, labels, ClassRange(rows, mine.class_ids, mine.log_correction), form=plain(margin))
        )
    merged = loss_from_scalars(merge_scalars(parts), labels, form=plain(margin), weights_B=weights)
    torch.testing.assert_close(merged, whole, rtol=0, atol=1e-12)
    for mine_gradient, expected in zip(
        torch.autograd.grad(merged, (embeds, prototypes)), torch.autograd.grad(whole, (embeds, prototypes)), strict=True
    ):
        torch.testing.assert_close(mine_gradient, expected, rtol=0, atol=1e-12)


def test_rank_without_classes_adds_nothing_and_has_a_gradient() -> None:
    embeds, labels, prototypes, _ = random_case()
    empty = class_scalars(
        embeds, labels, ClassRange(prototypes[:0], torch.empty(0, dtype=torch.int64), torch.empty(0)), form=plain()
    )
    everything = ClassRange(prototypes, torch.arange(CLASSES), torch.zeros(CLASSES))
    full = class_scalars(embeds, labels, everything, form=plain())
    merged = merge_scalars([empty, full])
    assert torch.equal(merged.max, full.max)
    assert torch.equal(merged.sum_exp, full.sum_exp)
    assert empty.sum_exp.requires_grad
    (gradient,) = torch.autograd.grad(merge_scalars([empty, full]).sum_exp.sum(), prototypes)
    assert torch.isfinite(gradient).all()


def test_loss_of_one_sample_and_one_class_is_zero_for_any_margin() -> None:
    embeds = torch.tensor([[0.6, 0.8]])
    loss = partial_softmax_loss(embeds, torch.tensor([0]), torch.tensor([[2.0, 0.0]]), form=plain(ArcFace(0.5), 64))
    assert loss.item() == 0


def test_loss_equals_a_case_calculated_by_hand() -> None:
    # Orthogonal prototypes, embedding on the first: cosines 1 and 0. CosFace 0.2 at scale 2: log(1 + exp(0 - 1.6)).
    loss = partial_softmax_loss(
        torch.tensor([[1.0, 0.0]]), torch.tensor([0]), torch.tensor([[5.0, 0.0], [0.0, 0.1]]),
        form=plain(scale=2),
    )  # fmt: skip
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-1.6)), abs=1e-7)


def test_weight_zero_removes_a_sample_and_parts_with_total_weight_add_up() -> None:
    embeds, labels, prototypes, weights = random_case()
    only = torch.tensor([0.0, 1, 1, 0, 1])
    kept = partial_softmax_loss(embeds, labels, prototypes, weights_B=only, form=plain())
    rows = torch.tensor([1, 2, 4])
    expected = partial_softmax_loss(embeds[rows], labels[rows], prototypes, form=plain())
    torch.testing.assert_close(kept, expected)
    whole = partial_softmax_loss(embeds, labels, prototypes, weights_B=weights, form=plain())
    halves = torch.zeros((), dtype=torch.float64)
    for part in (slice(0, 2), slice(2, 5)):
        scalars = class_scalars(
            embeds[part],
            labels[part],
            ClassRange(prototypes, torch.arange(CLASSES), torch.zeros(CLASSES)),
            form=plain(),
        )
        halves = halves + loss_from_scalars(
            scalars, labels[part], form=plain(), weights_B=weights[part], total_weight=weights.sum()
        )
    torch.testing.assert_close(halves, whole)


def test_float32_is_as_accurate_as_the_reference_loop() -> None:
    embeds, labels, prototypes, weights = random_case()
    form, every = plain(ArcFace(0.4), 32), {"class_ids": list(range(CLASSES)), "correction": [0.0] * CLASSES}
    truth = naive_loss(embeds, labels, prototypes, form, weights=weights, **every)  # type: ignore[arg-type]
    small = [tensor.detach().float() for tensor in (embeds, prototypes, weights)]
    naive = naive_loss(small[0], labels, small[1], form, weights=small[2], **every)  # type: ignore[arg-type]
    fast = partial_softmax_loss(small[0], labels, small[1], form=form, weights_B=small[2])
    assert abs(fast.double() - truth) <= abs(naive.double() - truth) + 1e-5


def test_half_precision_prototypes_are_normalised_in_float32() -> None:
    embeds, labels, prototypes, _ = random_case(dtype=torch.float32)
    rounded = prototypes.detach().bfloat16()
    mixed = partial_softmax_loss(embeds, labels, rounded, form=plain())
    widened = partial_softmax_loss(embeds, labels, rounded.float(), form=plain())
    assert mixed.dtype == torch.float32
    assert torch.equal(mixed, widened)


def test_very_large_logits_neither_overflow_nor_underflow() -> None:
    embeds, labels, prototypes, _ = random_case(dtype=torch.float32)
    loss = partial_softmax_loss(embeds, labels, prototypes, form=plain(scale=3000))
    gradients = torch.autograd.grad(loss, (embeds, prototypes))
    assert torch.isfinite(loss)
    assert loss > 100
    assert all(torch.isfinite(gradient).all() for gradient in gradients)


def test_gradient_is_orthogonal_to_each_prototype() -> None:
    embeds, labels, prototypes, _ = random_case()
    loss = partial_softmax_loss(embeds, labels, prototypes, form=plain())
    (gradient,) = torch.autograd.grad(loss, prototypes)
    assert gradient.abs().max() > 1e-3
    assert (gradient * prototypes).sum(dim=1).abs().max() < 1e-12


def test_arcface_decreases_from_zero_to_pi_without_a_jump_in_value_or_slope() -> None:
    margin = ArcFace(0.5)
    angle = torch.linspace(0.01, math.pi - 0.01, 4001, dtype=torch.float64, requires_grad=True)
    value = margin.phi(angle.cos())
    (slope,) = torch.autograd.grad(value.sum(), angle)
    assert torch.all(value[1:] < value[:-1])
    assert torch.all(slope < 1e-9)
    assert (slope[1:] - slope[:-1]).abs().max() < 2e-3
    ends = torch.tensor([1.0, -1.0], requires_grad=True)
    (at_ends,) = torch.autograd.grad(margin.phi(ends).sum(), ends)
    assert torch.isfinite(at_ends).all()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"labels": torch.tensor([0, 37])}, "label 37 is not a class: labels run from 0 to 36"),
        ({"labels": torch.tensor([-1, 0])}, "label -1 is not a class"),
        ({"labels": torch.tensor([0.0, 1.0])}, "one int64 label per row"),
        ({"labels": torch.tensor([0])}, "one int64 label per row"),
        ({"embeds_BD": torch.tensor([[0.0] * 7, [math.nan] * 7])}, "row 1 of the embeddings is not finite"),
        ({"embeds_BD": torch.zeros(2, 7, dtype=torch.float64)}, "embeddings are torch.float64, but prototypes"),
        ({"embeds_BD": torch.zeros(2, 6)}, "6 wide, but prototypes 7"),
        ({"weight_ND": torch.zeros(37, 7, dtype=torch.int64)}, "rows of floats are needed"),
        ({"weights_B": torch.tensor([1.0, -1.0])}, "at least 0"),
        ({"weights_B": torch.tensor([1.0, math.nan])}, "at least 0"),
        ({"weights_B": torch.tensor([0.0, 0.0])}, "sum to 0"),
        ({"weights_B": torch.tensor([1.0])}, "one each"),
        ({"weight_ND": torch.cat([torch.ones(36, 7), torch.zeros(1, 7)])}, "prototype of class 36 has length 0.0"),
        ({"weight_ND": torch.full((37, 7), math.inf)}, "prototype of class 0 has length inf"),
        (
            {"sampled": sample_classes(37, positives=torch.tensor([5]), rate=0.01, seed=0, step=0)},
            "not among the sampled",
        ),
    ],
)
def test_invalid_argument_is_rejected_with_its_value(change: dict[str, object], reason: str) -> None:
    inputs: dict[str, object] = {
        "embeds_BD": torch.zeros(2, 7), "labels": torch.tensor([0, 36]), "weight_ND": torch.ones(37, 7),
        "form": plain(), **change,
    }  # fmt: skip
    with pytest.raises(ValueError, match=reason):
        partial_softmax_loss(**inputs)  # type: ignore[arg-type]


def test_margins_out_of_range_are_rejected() -> None:
    with pytest.raises(ValueError, match="CosFace margin is -0.1"):
        CosFace(-0.1)
    with pytest.raises(ValueError, match="ArcFace margin is 1.6"):
        ArcFace(1.6)


def test_logits_are_scaled_cosines() -> None:
    logits = class_logits(torch.tensor([[1.0, 0.0]]), torch.tensor([[3.0, 0.0], [0.0, 9.0], [-2.0, 0.0]]), scale=5)
    torch.testing.assert_close(logits, torch.tensor([[5.0, 0.0, -5.0]]))
