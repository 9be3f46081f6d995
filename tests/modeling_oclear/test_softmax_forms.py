"""Settings of the partial softmax against a reference loop."""

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from modeling_oclear.partial_softmax_oclear import (
    ArcFace,
    ClassRange,
    ClassScalars,
    CombinedMargin,
    CosFace,
    Leaves,
    SoftmaxForm,
    best_positive,
    class_logits,
    class_scalars,
    loss_from_scalars,
    margin_by_name,
    merge_scalars,
    partial_softmax_loss,
    positive_cosines,
    reduce_scalars,
    sample_classes,
)
from tests.support.naive_softmax import CLASSES, WIDTH, naive_loss, random_case

SEVERAL = torch.tensor([[3, 12, -1], [-1, 3, -1], [36, 0, 1], [0, -1, -1], [12, 36, -1]])
LEAF_OF_CLASS = torch.arange(CLASSES) % 5 - 1
FORMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "smoothing": {"label_smoothing": 0.2},
    "sub_centres": {"sub_centres": 3},
    "delta": {"conflict_delta": 0.1},
    "tau": {"conflict_tau": 0.3},
    "arcface": {"margin": ArcFace(0.4)},
    "all": {
        "margin": CombinedMargin(1.2, 0.3, 0.1), "label_smoothing": 0.1, "sub_centres": 2,
        "conflict_delta": 0.4, "conflict_tau": 0.6,
    },
}  # fmt: skip
EACH_FORM = pytest.mark.parametrize("fields", FORMS.values(), ids=FORMS.keys())


def small_form(**fields: Any) -> SoftmaxForm:
    return SoftmaxForm(**{"margin": CosFace(0.2), "scale": 16.0, **fields})


def gradients(loss: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss, inputs)


@EACH_FORM
@pytest.mark.parametrize("rate", [1.0, 0.4])
@pytest.mark.parametrize("labels", [None, SEVERAL], ids=["one", "several"])
@pytest.mark.parametrize("chunk_size", [None, 4])
def test_each_form_equals_the_reference_loop_in_value_and_gradient(
    fields: dict[str, Any], rate: float, labels: Tensor | None, chunk_size: int | None
) -> None:
    form = small_form(chunk_size=chunk_size, **fields)
    embeds, one, rows, weights = random_case(sub_centres=form.sub_centres)
    labels = one if labels is None else labels
    sampled = sample_classes(CLASSES, positives=labels[labels >= 0], rate=rate, seed=0, step=0)
    leaf_N = LEAF_OF_CLASS if form.label_smoothing else None
    loss = partial_softmax_loss(embeds, labels, rows, form=form, sampled=sampled, weights_B=weights, leaf_N=leaf_N)
    expected = naive_loss(
        embeds, labels, rows, form, class_ids=sampled.class_ids.tolist(), correction=sampled.log_correction.tolist(),
        weights=weights, leaves=None if leaf_N is None else leaf_N.tolist(),
    )  # fmt: skip
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-10)
    for mine, theirs in zip(gradients(loss, embeds, rows), gradients(expected, embeds, rows), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-10)


@EACH_FORM
def test_stored_and_recomputed_exponentials_are_bit_equal_and_chunk_sizes_agree(fields: dict[str, Any]) -> None:
    results = []
    for changes in ({}, {"logit_bytes": 0}, {"chunk_size": 5}, {"chunk_size": 5, "logit_bytes": 0}):
        form = small_form(**{**fields, **changes})
        embeds, _, rows, weights = random_case(sub_centres=form.sub_centres)
        loss = partial_softmax_loss(embeds, SEVERAL, rows, form=form, weights_B=weights)
        results.append((loss.detach(), *gradients(loss, embeds, rows)))
    for one, other in ((0, 1), (2, 3)):
        assert all(torch.equal(a, b) for a, b in zip(results[one], results[other], strict=True))
    for mine, theirs in zip(results[0], results[2], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-12)


@EACH_FORM
@pytest.mark.parametrize("shards", [2, 3])
def test_each_form_over_several_class_ranges_equals_one_process(fields: dict[str, Any], shards: int) -> None:
    form = small_form(**fields)
    k = form.sub_centres
    embeds, _, rows, weights = random_case(sub_centres=k)
    own, parts = SEVERAL[SEVERAL >= 0], []
    sampled = sample_classes(CLASSES, positives=own, rate=0.5, seed=3, step=1)
    settings: dict[str, Any] = {"form": form, "weights_B": weights}
    whole = partial_softmax_loss(embeds, SEVERAL, rows, sampled=sampled, leaf_N=LEAF_OF_CLASS, **settings)
    ranges = [(CLASSES * part // shards, CLASSES * (part + 1) // shards) for part in range(shards)]
    ranges.insert(1, (ranges[0][1], ranges[0][1]))  # a rank without classes
    held = [
        sample_classes(CLASSES, positives=own, rate=0.5, seed=3, step=1, class_range=(first, end))
        for first, end in ranges
    ]
    local = [rows.unflatten(0, (CLASSES, k))[mine.class_ids].flatten(0, 1) for mine in held]
    cosines = [
        positive_cosines(embeds, SEVERAL, mine_rows, mine.class_ids, form=form)
        for mine_rows, mine in zip(local, held, strict=True)
    ]
    best_B = best_positive(torch.stack(cosines).sum(dim=0), SEVERAL)
    for mine_rows, mine in zip(local, held, strict=True):
        leaves = Leaves(LEAF_OF_CLASS[mine.class_ids], torch.where(SEVERAL < 0, -1, LEAF_OF_CLASS[SEVERAL]))
        parts.append(
            class_scalars(
                embeds, SEVERAL, ClassRange(mine_rows, mine.class_ids, mine.log_correction), form=form,
                best_positive_B=best_B, leaves=leaves,
            )
        )  # fmt: skip
    assert parts[1].sum_exp.eq(0).all()
    assert parts[1].max.eq(-math.inf).all()
    merged = loss_from_scalars(merge_scalars(parts), SEVERAL, **settings)
    torch.testing.assert_close(merged, whole, rtol=0, atol=1e-12)
    for mine_gradient, expected in zip(gradients(merged, embeds, rows), gradients(whole, embeds, rows), strict=True):
        torch.testing.assert_close(mine_gradient, expected, rtol=0, atol=1e-12)


def test_reduce_scalars_equals_merge_scalars() -> None:
    form = small_form(label_smoothing=0.1)
    embeds, labels, rows, _ = random_case()
    ids, zeros = torch.arange(CLASSES), torch.zeros(CLASSES)
    cut = [
        class_scalars(embeds, labels, ClassRange(rows[part], ids[part], zeros[part]), form=form)
        for part in (slice(0, 9), slice(9, CLASSES))
    ]
    other = cut[1]

    def both(first: ClassScalars) -> ClassScalars:
        max_B = torch.maximum(first.max, other.max)
        moved = other.sum_exp * (other.max - max_B).exp()
        assert other.leaf_sum is not None
        assert other.leaf_count is not None
        added = torch.cat([moved[:, None], other.positive, other.leaf_sum, other.leaf_count], dim=1)
        return reduce_scalars(first, max_of=lambda _: max_B, sum_of=lambda part: part + added)

    for mine, theirs in zip(both(cut[0]), merge_scalars(cut), strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_without_margin_and_sampling_the_loss_equals_torch_cross_entropy(smoothing: float) -> None:
    embeds, labels, rows, _ = random_case()
    form = small_form(margin=CosFace(0.0), label_smoothing=smoothing)
    loss = partial_softmax_loss(embeds, labels, rows, form=form)
    logits = class_logits(embeds, rows, scale=form.scale)
    expected = torch.nn.functional.cross_entropy(logits, labels, label_smoothing=smoothing)
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-12)
    for mine, theirs in zip(gradients(loss, embeds, rows), gradients(expected, embeds, rows), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-12)


def test_disabled_or_never_reached_settings_change_no_bit() -> None:
    embeds, labels, rows, weights = random_case(dtype=torch.float32)

    def result(given: Tensor = labels, **fields: Any) -> tuple[Tensor, ...]:
        form = small_form(**fields)
        leaf_N = LEAF_OF_CLASS if "conflict_delta" in fields else None
        loss = partial_softmax_loss(embeds, given, rows, form=form, weights_B=weights, leaf_N=leaf_N)
        return loss.detach(), *gradients(loss, embeds, rows)

    plain = result()
    for other in (
        result(label_smoothing=0.0, sub_centres=1, conflict_delta=None, conflict_tau=None),
        result(conflict_delta=2.5),
        result(labels[:, None]),
    ):
        assert all(torch.equal(a, b) for a, b in zip(plain, other, strict=True))


def test_equal_sub_centres_count_once() -> None:
    embeds, labels, rows, _ = random_case()
    twice = rows.repeat_interleave(2, dim=0)
    loss = partial_softmax_loss(embeds, labels, twice, form=small_form(sub_centres=2))
    expected = partial_softmax_loss(embeds, labels, rows, form=small_form())
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(
        class_logits(embeds, twice, scale=16, sub_centres=2), class_logits(embeds, rows, scale=16)
    )


def test_filter_that_removes_every_negative_gives_loss_zero_and_no_gradient() -> None:
    embeds, labels, rows, _ = random_case()
    loss = partial_softmax_loss(embeds, labels, rows, form=small_form(conflict_tau=-1.0))
    assert loss.item() == 0
    assert all(gradient.eq(0).all() for gradient in gradients(loss, embeds, rows))


def test_underflowing_logits_and_a_shard_of_one_class_are_exact() -> None:
    # Cosines 1 and -1 at scale 3000: exp(-6000) is 0 in any precision; the positive alone remains.
    embeds, rows = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 0.0], [-2.0, 0.0]]).requires_grad_()
    loss = partial_softmax_loss(embeds, torch.tensor([0]), rows, form=small_form(margin=CosFace(0), scale=3000))
    assert loss.item() == 0
    assert partial_softmax_loss(embeds, torch.tensor([1]), rows, form=small_form(margin=CosFace(0), scale=3000)) == 6000


def test_nan_sum_is_not_taken_for_a_row_without_negatives() -> None:
    scalars = ClassScalars(torch.zeros(1), torch.tensor([math.nan]), torch.full((1, 1), 0.5))
    assert torch.isnan(loss_from_scalars(scalars, torch.tensor([0]), form=small_form()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_embeddings_under_autocast_are_scored_in_float32(dtype: torch.dtype) -> None:
    embeds, labels, rows, _ = random_case(dtype=torch.float32)
    half = embeds.detach().to(dtype).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = partial_softmax_loss(half, labels, rows, form=small_form())
        loss.backward()
    expected = partial_softmax_loss(half.detach().float(), labels, rows.detach(), form=small_form())
    assert torch.equal(loss, expected)
    assert half.grad is not None
    assert half.grad.dtype == dtype
    assert rows.grad is not None
    assert rows.grad.dtype == torch.float32


def test_gradient_of_one_input_alone_equals_its_gradient_with_both() -> None:
    embeds, labels, rows, _ = random_case()
    both = gradients(partial_softmax_loss(embeds, labels, rows, form=small_form()), embeds, rows)
    (alone,) = gradients(partial_softmax_loss(embeds, labels, rows.detach(), form=small_form()), embeds)
    assert torch.equal(alone, both[0])
    (alone,) = gradients(partial_softmax_loss(embeds.detach(), labels, rows, form=small_form()), rows)
    assert torch.equal(alone, both[1])
    with torch.no_grad():
        assert not partial_softmax_loss(embeds, labels, rows, form=small_form()).requires_grad


@pytest.mark.parametrize(
    "margin", [CosFace(0.3), ArcFace(0.5), CombinedMargin(1.35, 0.5, 0.2), CombinedMargin(4, 0, 0)], ids=str
)
def test_margins_decrease_from_zero_to_pi_without_a_jump_in_value_or_slope(margin: Any) -> None:
    angle = torch.linspace(0.01, math.pi - 0.01, 4001, dtype=torch.float64, requires_grad=True)
    value = margin.phi(angle.cos())
    (slope,) = torch.autograd.grad(value.sum(), angle)
    assert torch.all(value[1:] < value[:-1])
    assert torch.all(slope < 1e-9)
    assert (slope[1:] - slope[:-1]).abs().max() < 2e-2
    assert torch.all(value <= angle.cos() + 1e-12)
    ends = torch.tensor([1.0, -1.0], requires_grad=True)
    (at_ends,) = torch.autograd.grad(margin.phi(ends).sum(), ends)
    assert torch.isfinite(at_ends).all()


def test_combined_margin_has_the_others_as_special_cases() -> None:
    cos = torch.linspace(-0.999, 0.999, 101, dtype=torch.float64)
    torch.testing.assert_close(CombinedMargin(1, 0.4, 0).phi(cos), ArcFace(0.4).phi(cos), rtol=0, atol=1e-12)
    torch.testing.assert_close(CombinedMargin(1, 0, 0.2).phi(cos), CosFace(0.2).phi(cos), rtol=0, atol=1e-12)
    assert margin_by_name("combined", (1.0, 0.4, 0.1)) == CombinedMargin(1.0, 0.4, 0.1)
    assert margin_by_name("arcface", 0.4) == ArcFace(0.4)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"scale": 0.0}, "scale is 0.0"),
        ({"chunk_size": 0}, "chunk_size is 0"),
        ({"label_smoothing": 1.0}, "label_smoothing is 1.0"),
        ({"sub_centres": 0}, "sub_centres is 0"),
        ({"conflict_delta": -0.1}, "conflict_delta is -0.1"),
        ({"conflict_tau": math.nan}, "conflict_tau is nan"),
        ({"logit_bytes": -1}, "logit_bytes is -1"),
    ],
)
def test_settings_out_of_range_are_rejected(fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        SoftmaxForm(**fields)


def test_margin_value_that_does_not_fit_its_name_is_rejected() -> None:
    with pytest.raises(ValueError, match="m1 of the combined margin is 0.5"):
        CombinedMargin(0.5, 0, 0)
    with pytest.raises(ValueError, match="no margin is called 'triplet'"):
        margin_by_name("triplet", 0.2)
    with pytest.raises(ValueError, match=r"'combined' takes 3 number\(s\), but 0.2"):
        margin_by_name("combined", 0.2)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"labels": torch.tensor([[0, 0], [1, 2]])}, r"labels \[0, 0\] of row 0 name a class twice"),
        ({"labels": torch.tensor([[0, 1], [-1, -1]])}, r"of row 1 hold no class"),
        ({"labels": torch.tensor([[0, -2], [1, -1]])}, r"row 0 hold a number below -1"),
        ({"labels": torch.zeros(2, 1, 1, dtype=torch.int64)}, "one int64 label per row"),
        ({"class_ids_S": torch.tensor([0, 2, 2])}, "class id 2 follows 2: sort"),
        ({"class_ids_S": torch.arange(4)}, "3 prototypes, 4 class ids and 3 corrections"),
        ({"form": SoftmaxForm(sub_centres=2)}, "3 prototypes, 3 class ids"),
        ({"form": SoftmaxForm(conflict_delta=0.1)}, "no best_positive_B was given"),
    ],
)
def test_class_scalars_rejects_an_invalid_argument_with_its_value(change: dict[str, Any], reason: str) -> None:
    inputs: dict[str, Any] = {
        "labels": torch.tensor([0, 2]), "class_ids_S": torch.arange(3), "form": SoftmaxForm(), **change,
    }  # fmt: skip
    classes = ClassRange(torch.ones(3, WIDTH), inputs["class_ids_S"], torch.zeros(3))
    with pytest.raises(ValueError, match=reason):
        class_scalars(torch.zeros(2, WIDTH), inputs["labels"], classes, form=inputs["form"])


def test_leaves_and_prototypes_that_do_not_fit_the_classes_are_rejected() -> None:
    embeds, labels, rows, _ = random_case()
    with pytest.raises(ValueError, match=r"leaf_N has shape \(3,\)"):
        partial_softmax_loss(embeds, labels, rows, form=small_form(label_smoothing=0.1), leaf_N=torch.zeros(3))
    with pytest.raises(ValueError, match="37 prototypes are not a multiple of the 2 sub-centres"):
        partial_softmax_loss(embeds, labels, rows, form=dataclasses.replace(small_form(), sub_centres=2))
