"""Every encoder type: training, publishing, loading, LoRA, bfloat16, compilation."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModel, AutoModelForImageClassification, AutoProcessor, SwinConfig, ViTModel

from modeling_oclear import (
    OclearConfig,
    OclearForCategoryClassification,
    OclearImageProcessor,
    OclearModel,
    OclearProcessor,
    OclearQueryModel,
    OclearQueryProcessor,
    check_folder,
    publish,
)
from modeling_oclear.packaged_weights import load_minilm
from tests.support.small_oclear import TEXT_CONFIGS, VISION_CONFIGS, drawing, small_batch, small_config, small_processor
from tests.support.weights import assert_equal_weights

PAIRS = [(vision, text) for vision in VISION_CONFIGS for text in TEXT_CONFIGS]
# Run in a process without our package: query and document embeddings from a folder, with the code of the folder.
STRANGER = """
import json, sys
sys.modules["modeling_oclear"] = None
import torch
from transformers import AutoImageProcessor, AutoModel, AutoModelForImageClassification, AutoProcessor
batch = torch.load(sys.argv[1])
answers = {}
for folder in sys.argv[3:]:
    code = {"trust_remote_code": True}
    model = AutoModel.from_pretrained(folder, **code).eval()
    query = AutoModel.from_pretrained(folder, subfolder="query", **code).eval()
    classifier = AutoModelForImageClassification.from_pretrained(folder, **code).eval()
    processor = AutoProcessor.from_pretrained(folder, **code)
    pixels = processor(images=[batch["image"], None], text=[None, "a red ball"])
    query_processor = AutoProcessor.from_pretrained(folder, subfolder="query", **code)
    assert torch.equal(query_processor(images=batch["image"])["pixel_values"], pixels["pixel_values"][:1])
    images = AutoImageProcessor.from_pretrained(folder, **code)
    assert torch.equal(images(batch["image"])["pixel_values"], pixels["pixel_values"][:1])
    assert type(model).__module__.startswith("transformers_modules.")
    with torch.no_grad():
        answers[folder] = {
            "document": model.get_document_embeds(**batch["inputs"]).embeds,
            "query": model.get_query_embeds(batch["inputs"]["pixel_values"]),
            "small_query": query(batch["inputs"]["pixel_values"]).query_embeds,
            "logits": classifier(batch["inputs"]["pixel_values"]).logits,
            "pixels": pixels["pixel_values"],
            "tokens": pixels["input_ids"],
        }
torch.save(answers, sys.argv[2])
"""


def train_three_steps(model: OclearForCategoryClassification) -> list[float]:
    optimiser = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=2e-3)
    batch, labels = small_batch(), torch.tensor([0, 1, 2, 3, 4])
    losses = []
    for _ in range(3):
        loss = model(**batch, side="document", labels=labels).loss + model(batch["pixel_values"], labels=labels).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return losses


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Every pair trained for three steps and published: (losses, model, processor) by folder."""
    home = tmp_path_factory.mktemp("published")
    found: dict[str, Any] = {}
    for vision, text in PAIRS:
        torch.manual_seed(0)
        fields: dict[str, Any] = {
            "head_scale": 8.0,
            "num_classes": 11,
            "vision_feature_stage": 1 if text == "bert" else None,
        }
        model = OclearForCategoryClassification(small_config(vision, text, **fields))
        losses = train_three_steps(model)
        unused = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
        processor = small_processor(home)
        folder = publish(model.eval(), processor, home / f"{vision}_{text}")
        found[str(folder)] = (losses, model, processor, unused)
    return found


def test_every_encoder_pair_learns_in_three_steps_and_uses_every_parameter(published: dict[str, Any]) -> None:
    for folder, (losses, _, _, unused) in published.items():
        assert losses[2] < losses[1] < losses[0], folder
        assert unused == [], folder


@pytest.mark.slow
def test_published_folder_gives_equal_outputs_without_our_package(published: dict[str, Any], tmp_path: Path) -> None:
    torch.save({"inputs": small_batch(), "image": drawing()}, tmp_path / "batch.pt")
    script = STRANGER.replace("torch.load(sys.argv[1])", "torch.load(sys.argv[1], weights_only=False)")
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"}
    result = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "batch.pt"), str(tmp_path / "answers.pt"), *published],
        cwd=tmp_path, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    answers = torch.load(tmp_path / "answers.pt")
    batch = small_batch()
    for folder, (_, model, processor, _) in published.items():
        inputs = processor(images=[drawing(), None], text=[None, "a red ball"])
        with torch.no_grad():
            query = model.oclear.get_query_embeds(batch["pixel_values"])
            expected = {
                "document": model.oclear.get_document_embeds(**batch).embeds,
                "query": query,
                "small_query": query,
                "logits": model(batch["pixel_values"]).logits,
                "pixels": inputs["pixel_values"],
                "tokens": inputs["input_ids"],
            }
        for name, value in expected.items():
            torch.testing.assert_close(answers[folder][name], value, rtol=0, atol=1e-6, msg=f"{folder} {name}")


def test_published_folder_has_safetensors_code_and_a_small_query_model(published: dict[str, Any]) -> None:
    for folder in map(Path, published):
        suffixes = {path.suffix for path in folder.rglob("*") if path.is_file()}
        assert suffixes == {".json", ".safetensors", ".py"}
        with safe_open(folder / "query" / "model.safetensors", "pt") as weights:
            names = list(weights.keys())
        assert {name.split(".")[0] for name in names} == {"vision_model", "image_head"}
        assert not [name for name in names if "document" in name]
        entries = json.loads((folder / "config.json").read_text())["auto_map"]
        assert set(entries) == {
            "AutoConfig", "AutoModel", "AutoModelForImageClassification", "AutoProcessor", "AutoImageProcessor",
        }  # fmt: skip
        assert check_folder(folder) == folder
        assert check_folder(folder / "query") == folder / "query"


def test_published_folder_has_no_source_paths_of_its_encoders(tmp_path: Path) -> None:
    vision, (text, tokenizer) = ViTModel(VISION_CONFIGS["vit"]), load_minilm()
    text.config._name_or_path = vision.config._name_or_path = str(tmp_path)
    model = OclearModel.from_encoders(vision, text, hidden_size=28)
    folder = publish(model, OclearProcessor(OclearImageProcessor(size=37), tokenizer), tmp_path / "hub")
    for path in folder.rglob("*config.json"):
        assert str(tmp_path) not in path.read_text(), path
        assert "site-packages" not in path.read_text(), path
        assert "name_or_path" not in path.read_text(), path


def test_installed_package_loads_the_folder_with_its_own_classes(published: dict[str, Any]) -> None:
    folder, (_, model, _, _) = next(iter(published.items()))
    batch = small_batch()
    loaded = AutoModel.from_pretrained(folder).eval()
    assert type(loaded) is OclearModel
    assert type(AutoModel.from_pretrained(folder, subfolder="query")) is OclearQueryModel
    assert type(AutoProcessor.from_pretrained(folder)) is OclearProcessor
    classifier = AutoModelForImageClassification.from_pretrained(folder).eval()
    # Weights come back bit for bit. Their place in memory does not, and a BLAS may pick its kernel by that.
    assert_equal_weights(classifier, model)
    assert_equal_weights(loaded, model.oclear)
    with torch.no_grad():
        torch.testing.assert_close(classifier(batch["pixel_values"]).logits, model(batch["pixel_values"]).logits)
        torch.testing.assert_close(
            loaded.get_document_embeds(**batch)["embeds"], model.oclear.get_document_embeds(**batch)["embeds"]
        )


def test_publishing_again_replaces_the_old_weights_and_keeps_other_files(tmp_path: Path) -> None:
    processor = small_processor(tmp_path)
    folder = publish(OclearModel(small_config()), processor, tmp_path / "hub")
    (folder / "README.md").write_text("kept")
    (folder / "old_oclear.py").write_text("gone")
    (folder / "model-00002-of-00002.safetensors").write_text("gone")
    model = OclearModel(small_config()).eval()
    publish(model, processor, folder)
    assert (folder / "README.md").read_text() == "kept"
    assert not (folder / "old_oclear.py").exists()
    assert len(list(folder.glob("model*.safetensors"))) == 1
    loaded = AutoModel.from_pretrained(folder).eval()
    pixels = small_batch()["pixel_values"]
    assert_equal_weights(loaded, model)
    torch.testing.assert_close(loaded.get_query_embeds(pixels), model.get_query_embeds(pixels))


def test_incomplete_folder_is_rejected_with_the_missing_file(tmp_path: Path) -> None:
    processor = small_processor(tmp_path)
    folder = publish(OclearModel(small_config()), processor, tmp_path / "hub")
    for name in ("fusion_oclear.py", "model.safetensors", "processor_config.json", "config.json"):
        content = (folder / name).read_bytes()
        (folder / name).unlink()
        with pytest.raises(ValueError, match=rf"{name} is missing.*publish"):
            check_folder(folder)
        (folder / name).write_bytes(content)
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        check_folder(folder)
    (folder / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match="'bert', not an OCLEAR model"):
        check_folder(folder)
    with pytest.raises(ValueError, match="is not a folder"):
        check_folder(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="is a file"):
        publish(OclearModel(small_config()), processor, folder / "config.json")


# peft 0.21 still asks by the old name.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning")
@pytest.mark.parametrize(("vision", "text"), PAIRS)
def test_lora_trains_saves_and_merges_on_every_pair(vision: str, text: str, tmp_path: Path) -> None:
    from peft import LoraConfig, PeftModel, get_peft_model

    torch.manual_seed(0)
    base = OclearModel(small_config(vision, text)).eval()
    start = {name: value.clone() for name, value in base.state_dict().items()}
    lora = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj", "v_proj", "query", "value", "pwconv1"]))
    adapted = [name for name, p in lora.named_parameters() if p.requires_grad]
    assert any("vision_model" in name for name in adapted) or vision == "efficientnet_lite"
    assert any("text_model" in name for name in adapted)
    batch = small_batch()
    optimiser = torch.optim.SGD([p for p in lora.parameters() if p.requires_grad], lr=1.0)
    for _ in range(3):
        optimiser.zero_grad()
        (-lora(**batch).document_embeds[:, 0]).sum().backward()
        optimiser.step()
    with torch.no_grad():
        expected = lora(**batch).document_embeds
    lora.save_pretrained(str(tmp_path))
    fresh = OclearModel(small_config(vision, text)).eval()
    fresh.load_state_dict(start)
    with torch.no_grad():
        before = fresh(**batch).document_embeds
        again = PeftModel.from_pretrained(fresh, tmp_path).eval()
        assert (before - expected).abs().max() > 1e-5
        torch.testing.assert_close(again(**batch).document_embeds, expected)
        torch.testing.assert_close(again.merge_and_unload()(**batch).document_embeds, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("vision", list(VISION_CONFIGS))
def test_bfloat16_model_is_close_and_returns_unit_rows_in_float32(vision: str) -> None:
    torch.manual_seed(0)
    model = OclearModel(small_config(vision)).eval()
    batch = small_batch()
    with torch.no_grad():
        exact = model(**batch, query_pixel_values=batch["pixel_values"])
        rough = model.to(torch.bfloat16)(**batch, query_pixel_values=batch["pixel_values"])
    for name in ("query_embeds", "document_embeds"):
        assert rough[name].dtype == torch.float32
        torch.testing.assert_close(rough[name].norm(dim=1), torch.ones(5))
        assert (rough[name] * exact[name]).sum(dim=1).min() > 0.9


@pytest.mark.parametrize("vision", ["vit", "convnext", "efficientnet_lite"])
def test_gradient_checkpointing_does_not_change_gradients(vision: str) -> None:
    torch.manual_seed(0)
    model = OclearModel(small_config(vision, "xlm_roberta")).train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    gradients = []
    for checkpointed in (False, True):
        if checkpointed:
            model.activation_checkpointing_enable()
        model.zero_grad()
        model(**small_batch()).document_embeds[:, 0].sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert len(gradients[0]) == len(gradients[1])
    for plain, other in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, other)


def test_patches_come_from_the_stage_of_the_config() -> None:
    pixels = small_batch()["pixel_values"]
    for vision, stage, shape in (
        ("efficientnet_lite", 2, (5, 100, 7)),
        ("convnext", 2, (5, 16, 9)),
        ("convnext", 0, (5, 81, 7)),
        ("vit", 1, (5, 25, 33)),
        ("siglip", None, (5, 25, 33)),
    ):
        cells, pooled, grid = OclearModel(small_config(vision, vision_feature_stage=stage)).encode_image(pixels)
        assert cells.shape == shape, vision
        assert grid[0] * grid[1] == shape[1]
        assert len(pooled) == 5
    with pytest.raises(ValueError, match="vision_feature_stage is 4, but the encoder's hidden_states end at index 3"):
        OclearModel(small_config("efficientnet_lite", vision_feature_stage=4))


def test_class_token_is_pooled_and_not_among_the_patches() -> None:
    torch.manual_seed(0)
    pixels = small_batch()["pixel_values"]
    model = OclearModel(small_config("vit")).eval()
    with torch.no_grad():
        last = model.vision_model(pixels).last_hidden_state
        cells, pooled, _ = model.encode_image(pixels)
        assert torch.equal(pooled, last[:, 0])
        assert torch.equal(cells, last[:, 1:])
        siglip = OclearModel(small_config("siglip")).eval()
        cells, pooled, _ = siglip.encode_image(pixels)
        torch.testing.assert_close(pooled, cells.mean(dim=1))


def test_images_of_another_size_than_the_position_table_are_accepted() -> None:
    for vision in ("vit", "siglip", "dinov2"):
        cells, _, grid = OclearModel(small_config(vision)).eval().encode_image(torch.zeros(1, 3, 58, 44))
        assert grid == (8, 6)
        assert cells.shape[1] == 48


def test_from_encoders_copies_weights_without_poolers() -> None:
    vision = ViTModel(VISION_CONFIGS["vit"]).eval()
    model = OclearModel.from_encoders(vision, hidden_size=27, num_attention_heads=3)
    assert model.text_model is None
    pixels = small_batch()["pixel_values"]
    with torch.no_grad():
        torch.testing.assert_close(model.eval().encode_image(pixels)[1], vision(pixels).last_hidden_state[:, 0])
    assert not [name for name in model.state_dict() if "pooler" in name]


def test_unsupported_encoders_are_rejected() -> None:
    swin = SwinConfig(embed_dim=8, depths=[1, 1], num_heads=[1, 2], image_size=32, patch_size=4, window_size=4)
    model = OclearModel(OclearConfig(vision_config=swin.to_dict(), hidden_size=12, num_attention_heads=3)).eval()
    with pytest.raises(ValueError, match="merges patches is not supported"):
        model.get_query_embeds(torch.zeros(1, 3, 32, 32))


def test_compiled_model_is_one_graph_for_any_batch_size() -> None:
    torch.manual_seed(0)
    model = OclearModel(small_config()).eval()
    # The graph alone is at stake here; generating code for it would take a minute.
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for rows in (5, 4):
        batch = {name: value[:rows] for name, value in small_batch().items()}
        with torch.no_grad():
            torch.testing.assert_close(compiled(**batch).document_embeds, model(**batch).document_embeds)


def test_text_row_without_tokens_gives_no_nan() -> None:
    for text in TEXT_CONFIGS:
        model = OclearModel(small_config("efficientnet_lite", text)).eval()
        tokens, mask = model.encode_text(torch.full((2, 4), 7), torch.tensor([[0] * 4, [1] * 4]))
        assert torch.isfinite(tokens).all()
        assert mask.tolist() == [[False] * 4, [True] * 4]


def test_text_longer_than_the_position_table_is_rejected() -> None:
    for text, longest in (("bert", 31), ("xlm_roberta", 29)):
        model = OclearModel(small_config("efficientnet_lite", text)).eval()
        model.encode_text(torch.full((1, longest), 7), torch.ones(1, longest))
        with pytest.raises(ValueError, match=f"at most {longest} tokens. Lower max_length"):
            model.encode_text(torch.full((1, longest + 1), 7), torch.ones(1, longest + 1))


def test_publishing_with_the_tokenizer_of_another_encoder_is_rejected(tmp_path: Path) -> None:
    model = OclearModel(small_config())
    processor = small_processor(tmp_path)
    with pytest.raises(ValueError, match="its processor has no tokenizer"):
        publish(model, OclearQueryProcessor(processor.image_processor), tmp_path / "hub")
    processor.max_length = 32
    with pytest.raises(ValueError, match="max_length of the processor is 32, but the text encoder reads at most 31"):
        publish(model, processor, tmp_path / "hub")
    processor.tokenizer.add_tokens([f"word{number}" for number in range(20)])
    with pytest.raises(ValueError, match="the tokenizer has 33 tokens, the text encoder 29"):
        publish(model, processor, tmp_path / "hub")
    assert not (tmp_path / "hub").exists()


def test_pixel_values_of_another_shape_are_rejected() -> None:
    for vision in VISION_CONFIGS:
        model = OclearModel(small_config(vision))
        for shape in ((3, 37, 37), (1, 4, 37, 37), (0, 3, 37, 37)):
            with pytest.raises(ValueError, match="as the processor returns it"):
                model.get_query_embeds(torch.zeros(shape))
