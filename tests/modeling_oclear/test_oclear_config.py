"""Configuration: JSON round trips, and rejection of invalid values."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import BertConfig

from modeling_oclear import OclearConfig, OclearQueryConfig
from tests.support.small_oclear import small_config

UNWANTED = (
    "datasets",
    "accelerate",
    "peft",
    "evaluate",
    "faiss",
    "duckdb",
    "sklearn",
    "ibis",
    "pyarrow",
    "torchvision",
)


def test_save_and_load_gives_an_equal_model(tmp_path: Path) -> None:
    config = small_config("dinov2", "xlm_roberta", vision_feature_stage=1, text_strength=0.4, num_classes=7)
    config.save_pretrained(tmp_path)
    again = OclearConfig.from_pretrained(tmp_path)
    assert again.to_dict() == config.to_dict()
    assert again.to_dict()["vision_config"]["model_type"] == "dinov2"


def test_config_file_stays_small_with_a_million_categories(tmp_path: Path) -> None:
    small_config(num_classes=1_000_000).save_pretrained(tmp_path)
    content = (tmp_path / "config.json").read_text()
    assert len(content) < 4000
    assert "id2label" not in json.loads(content)


def test_unused_encoder_parts_are_switched_off() -> None:
    assert small_config("siglip").to_dict()["vision_config"]["vision_use_head"] is False
    assert small_config("dinov2").to_dict()["vision_config"]["use_mask_token"] is False


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"hiden_size": 64}, "has no field hiden_size; its own fields are .*hidden_size"),
        ({"num_labels": 5}, "has no field num_labels"),
        ({"hidden_size": 0}, "hidden_size is 0; it must be at least 1"),
        ({"hidden_size": "256"}, "expected int, got str"),
        ({"hidden_size": 30, "num_attention_heads": 4, "text_config": {}}, "not a multiple of num_attention_heads 4"),
        ({"text_strength": -0.1}, "text_strength is -0.1"),
        ({"text_strength": float("nan")}, "text_strength is nan"),
        ({"embed_dropout": 1.0}, "embed_dropout is 1.0"),
        ({"memory_sharpness": -1.0}, "memory_sharpness is -1.0"),
        ({"num_classes": -1}, "num_classes is -1"),
        ({"head_scale": 0}, "head_scale is 0"),
        ({"head_margin": 1.5}, "head_margin is 1.5"),
        ({"head_margin_type": "combined"}, "head_margin is 0.2 with head_margin_type 'combined'"),
        ({"head_margin": [1.0, 0.2, 0.1]}, "with head_margin_type 'cosface'; give one number"),
        ({"head_sub_centres": 0}, "head_sub_centres is 0"),
        ({"head_margin_type": "sphereface"}, "expected one of"),
        ({"head_sample_rate": 0.0}, "head_sample_rate is 0.0"),
        ({"vision_feature_stage": -1}, "vision_feature_stage is -1"),
        ({"vision_config": {"model_type": "no_such_encoder"}}, "no_such_encoder"),
        ({"vision_config": "vit"}, "vision_config"),
    ],
)
def test_invalid_argument_is_rejected_with_its_value(change: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        OclearConfig(**change)


def test_query_config_rejects_a_text_encoder() -> None:
    with pytest.raises(ValueError, match="reads images only"):
        OclearQueryConfig(text_config=BertConfig())


def test_importing_the_package_does_not_import_torch_or_transformers() -> None:
    command = f"import modeling_oclear, sys; print([name for name in {UNWANTED} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_all_public_names_and_no_others_can_be_imported() -> None:
    import modeling_oclear

    for name in modeling_oclear.__all__:
        assert getattr(modeling_oclear, name).__name__ == name
    assert set(modeling_oclear.__all__) <= set(dir(modeling_oclear))
    with pytest.raises(AttributeError, match="no attribute 'Oclear'"):
        _ = modeling_oclear.Oclear
