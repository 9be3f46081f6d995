"""LoRA adapters on both encoders, with peft and the Trainer of transformers."""

from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from transformers import Trainer, TrainingArguments

from modeling_oclear import OclearForCategoryClassification
from tests.support.small_oclear import small_config

# peft 0.21 reads this attribute of transformers 5.23 under its old name.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
TARGETS = r".*\.(vision_model|text_model)\..*\.(q_proj|v_proj|query|value)"
HEADS = ("head.", "oclear.image_head.")  # peft goes by the end of a name: "head" is both


def documents(rows: int = 24) -> datasets.Dataset:
    """Pictures whose colour and texts whose first word say the category."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(rows) % 3
    pixels = 0.3 * torch.randn(rows, 3, 37, 37, generator=generator)
    pixels[torch.arange(rows), labels] += 1.5
    tokens = torch.randint(8, 20, (rows, 5), generator=generator)
    tokens[:, 1] = labels + 3
    table = {"pixel_values": pixels.numpy(), "input_ids": tokens.numpy(), "labels": labels.numpy()}
    return datasets.Dataset.from_dict(table).with_format("torch")


class DocumentTrainer(Trainer):
    """Trainer whose samples are documents."""

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        output = model(**inputs, side="document")
        return (output.loss, output) if return_outputs else output.loss


def test_adapters_on_both_encoders_train_with_trainer_reload_and_merge(tmp_path: Path) -> None:
    from peft import LoraConfig, PeftModel, get_peft_model

    def base_model() -> Any:
        torch.manual_seed(0)
        return OclearForCategoryClassification(small_config("vit", num_classes=3, head_scale=8.0)).eval()

    start = base_model()
    model = get_peft_model(
        base_model(), LoraConfig(r=1, lora_alpha=2, target_modules=TARGETS, modules_to_save=["head"])
    )
    names = [name for name, value in model.named_parameters() if value.requires_grad]
    for encoder in ("vision_model", "text_model"):
        assert [name for name in names if encoder in name]
    assert all(".lora_" in name or "head.modules_to_save." in name for name in names)
    data = documents()
    arguments = TrainingArguments(
        output_dir=str(tmp_path), per_device_train_batch_size=12, max_steps=16, learning_rate=0.03, logging_steps=4,
        lr_scheduler_type="constant", report_to="none", use_cpu=True, seed=0, disable_tqdm=True,
    )  # fmt: skip
    trainer = DocumentTrainer(model=model, args=arguments, train_dataset=data)
    trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    assert losses[-1] < 0.8 * losses[0]
    learned = model.state_dict()
    for encoder in ("vision_model", "text_model"):
        grown = [name for name in learned if encoder in name and ".lora_B." in name]
        assert any(bool(learned[name].any()) for name in grown), encoder
    for name, value in start.state_dict().items():
        layer, _, last = name.rpartition(".")
        inside = [f"base_model.model.{name}", f"base_model.model.{layer}.base_layer.{last}"]
        if not name.startswith(HEADS):
            assert any(key in learned and torch.equal(learned[key], value) for key in inside), name

    model.save_pretrained(str(tmp_path / "adapter"))
    loaded = PeftModel.from_pretrained(base_model(), tmp_path / "adapter").eval()
    with torch.no_grad():
        given = {name: data[name][:] for name in ("pixel_values", "input_ids")}
        expected = model.eval()(**given, side="document").logits
        torch.testing.assert_close(loaded(**given, side="document").logits, expected)
        merged = loaded.merge_and_unload()
        torch.testing.assert_close(merged(**given, side="document").logits, expected, rtol=1e-4, atol=1e-4)
    assert type(merged) is OclearForCategoryClassification
