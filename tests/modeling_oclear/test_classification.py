"""The classification model: loss, sampling, config, publishing."""

from pathlib import Path
from typing import Any

import pytest
import torch

from modeling_oclear import OclearForCategoryClassification, OclearModel, partial_softmax_loss, sample_classes
from modeling_oclear.margins_oclear import CombinedMargin, SoftmaxForm
from modeling_oclear.proxy_anchor_oclear import anchor_loss, anchor_sums
from modeling_oclear.softmax_inputs_oclear import ClassRange
from tests.support.small_oclear import small_batch, small_config
from tests.support.weights import assert_equal_weights


def small_classifier(**fields: Any) -> OclearForCategoryClassification:
    torch.manual_seed(0)
    return OclearForCategoryClassification(small_config(num_classes=11, **fields)).eval()


LABELS = torch.tensor([0, 1, 1, 10, 4])


def test_logits_are_scaled_cosines_with_the_prototypes() -> None:
    model = small_classifier(head_scale=8.0)
    pixels = small_batch()["pixel_values"]
    with torch.no_grad():
        output = model(pixels)
        cosines = model.oclear.get_query_embeds(pixels) @ torch.nn.functional.normalize(model.head.weight, dim=1).T
    torch.testing.assert_close(output.logits, 8 * cosines)
    assert output.loss is None


def test_image_with_the_embedding_of_a_prototype_gets_its_category() -> None:
    model = small_classifier()
    batch = small_batch()
    with torch.no_grad():
        model.head.weight[3] = 5 * model.oclear.get_document_embeds(**batch)["embeds"][4]
        assert model(**batch, side="document").logits.argmax(dim=1)[4] == 3


@pytest.mark.parametrize("margin", ["cosface", "arcface"])
def test_loss_is_the_partial_softmax_of_the_config(margin: str) -> None:
    model = small_classifier(head_margin_type=margin, head_margin=0.3, head_scale=8.0)
    pixels, weights = small_batch()["pixel_values"], torch.tensor([1.0, 2, 0, 1, 1])
    output = model(pixels, labels=LABELS, weights=weights)
    expected = partial_softmax_loss(output.embeds, LABELS, model.head.weight, form=model.form, weights_B=weights)
    assert type(model.form.margin).__name__.lower() == margin
    assert model.form.scale == 8
    assert torch.equal(output.loss, expected)


@pytest.mark.parametrize("rate", [1.0, 0.4])
def test_proxy_anchor_head_computes_that_loss(rate: float) -> None:
    model = small_classifier(head_loss="proxy_anchor", head_margin=0.1, head_scale=16.0, head_sample_rate=rate).train()
    model.oclear.eval()
    pixels = small_batch()["pixel_values"]
    output = model(pixels, labels=LABELS)
    drawn = torch.arange(11)
    correction = torch.zeros(11)
    if rate < 1:
        sampled = sample_classes(11, positives=LABELS, rate=rate, seed=0, step=0)
        drawn, correction = sampled.class_ids, sampled.log_correction
    classes = ClassRange(model.head.weight[drawn], drawn, correction)
    expected = anchor_loss(anchor_sums(output.embeds, LABELS, classes, scale=16.0, margin=0.1))
    torch.testing.assert_close(output.loss, expected)
    with pytest.raises(ValueError, match="weights were given with head_loss 'proxy_anchor'"):
        model(pixels, labels=LABELS, weights=torch.ones(5))


def test_sample_rate_below_one_draws_other_classes_each_step() -> None:
    model = small_classifier(head_sample_rate=0.2).train()
    model.oclear.requires_grad_(False)
    pixels = small_batch()["pixel_values"]
    touched = []
    for step in range(2):
        model.zero_grad()
        output = model(pixels, labels=LABELS)
        assert output.logits is None
        output.loss.backward()
        touched.append(torch.nonzero(model.head.weight.grad.abs().sum(dim=1)).flatten().tolist())
        expected = sample_classes(11, positives=LABELS, rate=0.2, seed=0, step=step)
        assert touched[-1] == expected.class_ids.tolist()
    assert len(touched[0]) == 4 + 3
    assert model.eval()(pixels, labels=LABELS).logits.shape == (5, 11)


def test_every_setting_of_the_softmax_is_saved_in_the_config(tmp_path: Path) -> None:
    model = small_classifier(
        head_margin_type="combined", head_margin=[1.2, 0.2, 0.1], head_scale=8.0, head_label_smoothing=0.1,
        head_sub_centres=3, head_conflict_delta=0.5, head_conflict_tau=0.9,
    )  # fmt: skip
    assert model.head.weight.shape == (33, model.config.hidden_size)
    assert model.form == SoftmaxForm(
        margin=CombinedMargin(1.2, 0.2, 0.1), scale=8.0, label_smoothing=0.1, sub_centres=3, conflict_delta=0.5,
        conflict_tau=0.9,
    )  # fmt: skip
    labels = torch.tensor([[0, 1], [1, -1], [10, 4], [3, -1], [4, 5]])
    output = model(small_batch()["pixel_values"], labels=labels)
    assert torch.equal(output.loss, partial_softmax_loss(output.embeds, labels, model.head.weight, form=model.form))
    assert output.logits.shape == (5, 11)
    model.save_pretrained(tmp_path)
    again = OclearForCategoryClassification.from_pretrained(tmp_path).eval()
    assert again.form == model.form
    assert torch.equal(again.head.weight, model.head.weight)


def test_all_labels_of_a_sample_are_among_the_sampled_classes() -> None:
    model = small_classifier(head_sample_rate=0.1).train()
    labels = torch.tensor([[0, 1], [1, -1], [10, 4], [3, -1], [4, 5]])
    loss = model(small_batch()["pixel_values"], labels=labels).loss
    sampled = sample_classes(11, positives=labels[labels >= 0], rate=0.1, seed=0, step=0)
    assert torch.isfinite(loss)
    assert len(sampled.class_ids) == 6 + 2


def test_base_model_loads_a_folder_with_prototypes(tmp_path: Path) -> None:
    model = small_classifier()
    model.save_pretrained(tmp_path)
    pixels = small_batch()["pixel_values"]
    base = OclearModel.from_pretrained(tmp_path).eval()
    again = OclearForCategoryClassification.from_pretrained(tmp_path).eval()
    assert_equal_weights(base, model.oclear)
    torch.testing.assert_close(base.get_query_embeds(pixels), model.oclear.get_query_embeds(pixels))
    assert torch.equal(again.head.weight, model.head.weight)


def test_invalid_argument_is_rejected_with_its_value() -> None:
    model = small_classifier()
    batch = small_batch()
    with pytest.raises(ValueError, match="label 11 is not a class: labels run from 0 to 10"):
        model(batch["pixel_values"], labels=torch.tensor([0, 1, 2, 3, 11]))
    with pytest.raises(ValueError, match="side is 'image'"):
        model(batch["pixel_values"], side="image")
    with pytest.raises(ValueError, match="a query is an image"):
        model(batch["pixel_values"], input_ids=batch["input_ids"])
    with pytest.raises(ValueError, match="num_classes is 0"):
        OclearForCategoryClassification(small_config())
