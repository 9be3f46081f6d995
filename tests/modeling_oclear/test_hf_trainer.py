"""The classification model with the Trainer of transformers."""

from pathlib import Path
from typing import Any

import datasets
import torch
from transformers import Trainer, TrainingArguments

from modeling_oclear import OclearForCategoryClassification
from tests.support.small_oclear import small_config


def coloured_squares(rows: int = 48) -> datasets.Dataset:
    """Pictures whose colour is their category, with noise."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(rows) % 3
    pixels = 0.3 * torch.randn(rows, 3, 37, 37, generator=generator)
    pixels[torch.arange(rows), labels] += 1.5
    table = {"pixel_values": pixels.numpy(), "labels": labels.numpy()}
    return datasets.Dataset.from_dict(table).with_format("torch")


def arguments(folder: Path, **changes: Any) -> TrainingArguments:
    settings: dict[str, Any] = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 12,
        "max_steps": 24,
        "learning_rate": 0.02,
        "lr_scheduler_type": "constant",
        "logging_steps": 4,
        "save_steps": 12,
        "report_to": "none",
        "use_cpu": True,
        "seed": 0,
        "disable_tqdm": True,
    }
    return TrainingArguments(**{**settings, **changes})


def small_classifier() -> OclearForCategoryClassification:
    torch.manual_seed(0)
    return OclearForCategoryClassification(small_config(text=None, num_classes=3, head_scale=8.0))


def test_trainer_reduces_the_loss_saves_and_resumes(tmp_path: Path) -> None:
    data = coloured_squares()
    model, resumed = small_classifier(), small_classifier()
    trainer = Trainer(model=model, args=arguments(tmp_path / "run"), train_dataset=data)
    trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    assert losses[-1] < 0.5 * losses[0]

    again = Trainer(model=resumed, args=arguments(tmp_path / "run"), train_dataset=data)
    again.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-12"))
    ours, theirs = resumed.state_dict(), model.state_dict()
    assert max(float((ours[name] - theirs[name]).abs().max()) for name in theirs) < 1e-6

    trainer.save_model(str(tmp_path / "saved"))
    loaded = OclearForCategoryClassification.from_pretrained(tmp_path / "saved")
    with torch.no_grad():
        logits = loaded.eval()(data["pixel_values"][:]).logits
    assert (logits.argmax(dim=1) == data["labels"][:]).float().mean() > 0.9
