"""Adapters, weight average, layer decay and recomputation together equal one process in any layout."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from modeling_oclear import OclearModel
from tests.support.synthetic_governed import write_governed
from train.recipes.registry import recipe_by_name

ROOT = Path(__file__).resolve().parents[3]
FSDP2 = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT",
}


def run(base: Path, out: str, *words: object, ranks: int = 1, fsdp: bool = False) -> str:
    """train/run.py alone, on plain data-parallel ranks, or on FSDP2 ranks."""
    script = ROOT / "tests" / "support" / "fsdp2_gloo.py" if fsdp else ROOT / "train" / "run.py"
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", ranks]
    named = ["--data", base / "governed", "--out", base / out, "--recipe", base / "all.json", "--seed", 3]
    command = [sys.executable, *(torchrun if ranks > 1 else []), script, *named, "--features", base / "features"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OCLEAR_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [str(word) for word in (*command, *words)],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        env={**environment, **(FSDP2 if fsdp else {})},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`governed`, the recipe `all.json`, and `alone`: a finished run of one process."""
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
    said = run(folder, "alone")
    assert "parameters of the image encoder are trained" in said
    return folder


def assert_same_run(ours: Path, theirs: Path) -> None:
    def curve(folder: Path, name: str) -> np.ndarray:
        return np.array([json.loads(line)[name] for line in (folder / "train.jsonl").read_text().splitlines()])

    for name in ("loss", "grad_norm", "head_grad_norm"):
        assert len(curve(ours, name)) == 12
        assert np.abs(curve(ours, name) - curve(theirs, name)).max() < 1e-8, name
    for file in ("hub/model.safetensors", "adapter/adapter_model.safetensors"):
        mine, other = (load_file(folder / file) for folder in (ours, theirs))
        assert mine.keys() == other.keys()
        assert max(float(np.abs(mine[name] - other[name]).max()) for name in other) < 1e-6


@pytest.mark.slow
def test_two_data_parallel_ranks_equal_one_process(base: Path) -> None:
    run(base, "ddp", ranks=2)
    assert_same_run(base / "ddp", base / "alone")


@pytest.mark.slow
def test_two_fsdp2_ranks_equal_one_process_which_resumes_their_checkpoint(base: Path) -> None:
    run(base, "fsdp2", ranks=2, fsdp=True)
    assert_same_run(base / "fsdp2", base / "alone")
    shutil.rmtree(base / "fsdp2" / "checkpoints" / "step-00000012")
    assert "resumed from step-00000010" in run(base, "fsdp2", "--resume")
    assert_same_run(base / "fsdp2", base / "alone")


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
