"""Adapters, weight average, layer decay and recomputation together equal one process in any layout."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.numpy import load_file

from modeling_oclear import OclearModel
from tests.support.commands import FSDP2, FSDP2_TRAIN, TRAIN, on_ranks, python_output
from tests.support.curves import assert_same_run, reordered_recipe
from tests.support.synthetic_governed import write_governed
from train.recipes.registry import recipe_by_name


def run(base: Path, out: str, *words: object, ranks: int = 1, fsdp: bool = False) -> str:
    """train/run.py alone, on plain data-parallel ranks, or on FSDP2 ranks."""
    named = ["--data", base / "governed", "--out", base / out, "--recipe", base / "all.json", "--seed", 3]
    command = [FSDP2_TRAIN if fsdp else TRAIN, *named, "--features", base / "features", *words]
    return python_output(*(on_ranks(ranks, *command) if ranks > 1 else command), **(FSDP2 if fsdp else {}))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`governed`, the recipe `all.json`, and finished runs of one process: `alone`, and `reordered` in two pieces."""
    folder = tmp_path_factory.mktemp("layouts")
    write_governed(folder / "governed")
    recipe = recipe_by_name("tiny").with_changes(
        {
            "text.encoder": None,
            "image.steps": 12,
            "image.checkpoint_every": 5,
            "image.lora.rank": 2,
            "image.ema_decay": 0.8,
            "image.layer_decay": 0.7,
            "runtime.activation_checkpointing": True,
            "image.encoder_learning_rate": 0.02,
        }
    )
    (folder / "all.json").write_text(json.dumps(recipe.to_json()))
    (folder / "reordered.json").write_text(json.dumps(reordered_recipe(recipe).to_json()))
    run(folder, "reordered", "--recipe", folder / "reordered.json")
    said = run(folder, "alone")
    assert "parameters of the image encoder are trained" in said
    return folder


def assert_run_of_one_process(base: Path, out: str) -> None:
    files = ("hub/model.safetensors", "adapter/adapter_model.safetensors")
    assert_same_run(base / out, base / "alone", reordered=[base / "reordered"], files=files)


@pytest.mark.slow
def test_two_data_parallel_ranks_equal_one_process(base: Path) -> None:
    run(base, "ddp", ranks=2)
    assert_run_of_one_process(base, "ddp")


@pytest.mark.distributed
def test_two_fsdp2_ranks_equal_one_process_which_resumes_their_checkpoint(base: Path) -> None:
    run(base, "fsdp2", ranks=2, fsdp=True)
    assert_run_of_one_process(base, "fsdp2")
    shutil.rmtree(base / "fsdp2" / "checkpoints" / "step-00000012")
    assert "resumed from step-00000010" in run(base, "fsdp2", "--resume")
    assert_run_of_one_process(base, "fsdp2")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_published_adapter_equals_hub_folder_without_backbone_weights(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from peft import AutoPeftModelForFeatureExtraction

    run_folder = base / "alone"
    held = load_file(run_folder / "adapter" / "adapter_model.safetensors")
    assert all(".lora_" in name for name in held if "vision_model" in name)
    hub = OclearModel.from_pretrained(run_folder / "hub").eval()
    monkeypatch.chdir(run_folder / "adapter")
    loaded = AutoPeftModelForFeatureExtraction.from_pretrained(".", trust_remote_code=True).eval()
    pixels = torch.randn(3, 3, 37, 37)
    with torch.no_grad():
        for side in ("query", "document"):
            ours, theirs = (model.embed_pooled(model.encode_image(pixels)[1], side=side) for model in (loaded, hub))
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
