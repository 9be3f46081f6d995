"""bf16 autocast and torch.compile: numerical differences and unchanged names and types."""

import importlib
import shutil
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.support.synthetic_run import small_cache, small_model, small_recipe, small_samples, train_small
from train.context import RunContext
from train.encoders.pair import EncoderPair
from train.image_stage.loop import train_image_stage

INPUTS = torch.randn(4, 5, 3, 3, generator=torch.Generator().manual_seed(0))
ONES = torch.ones(4, 6)


def embedded(precision: str) -> tuple[torch.Tensor, torch.dtype, EncoderPair]:
    """Query rows, the type of what a block hands on, and the encoders after a backward pass."""
    model = small_model(small_recipe())
    encoders = EncoderPair.for_training(model, frozen_stages=1, mixed_precision=precision).eval()
    seen: list[torch.dtype] = []
    conv: Any = model.vision_model.stages[1][0].project.conv
    conv.register_forward_hook(lambda _module, _inputs, output: seen.append(output.dtype))
    query, document = encoders(INPUTS, INPUTS, ONES, ONES)
    (query[:, 0].sum() + document[:, 0].sum()).backward()
    return query, seen[0], encoders


def test_bf16_is_used_only_inside_the_encoders() -> None:
    plain, plain_type, _ = embedded("no")
    rows, inner_type, encoders = embedded("bf16")
    assert (plain_type, inner_type) == (torch.float32, torch.bfloat16)
    assert rows.dtype == torch.float32
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(4))
    assert 0 < float((rows - plain).detach().abs().max()) < 0.03
    assert {value.grad.dtype for value in encoders.parameters() if value.grad is not None} == {torch.float32}
    assert torch.equal(
        encoders.embed(INPUTS, side="query"),
        EncoderPair(small_model(small_recipe()), frozen_stages=1).embed(INPUTS, side="query"),
    )


def test_bf16_run_learns_and_differs_from_float32(tmp_path: Path) -> None:
    plain = train_small(small_recipe({"model.dtype": "float32", "image.steps": 6}), tmp_path / "plain")
    rounded = train_small(
        small_recipe({"model.dtype": "float32", "image.steps": 6, "model.mixed_precision": "bf16"}), tmp_path / "bf16"
    )
    name = "vision.stages.1.0.expand.conv.weight"
    assert rounded.weights[name].dtype == torch.float32
    gap = float((rounded.weights[name] - plain.weights[name]).abs().max())
    assert 0 < gap < 6 * 5e-4 * 2  # AdamW moves a weight by at most about its rate in a step


def test_float64_and_contradicting_launch_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="mixed_precision is bf16 with dtype float64"):
        small_recipe({"model.mixed_precision": "bf16"})
    with pytest.raises(ValueError, match="mixed_precision is 'fp16'; choose one of no, bf16"):
        small_recipe({"model.mixed_precision": "fp16"})
    recipe = small_recipe({"model.dtype": "float32"})
    launched: Any = types.SimpleNamespace(mixed_precision="fp16")
    context = RunContext(recipe=recipe, accelerator=launched, data=tmp_path, folder=tmp_path, features=tmp_path)
    with pytest.raises(ValueError, match="launch asks for mixed precision fp16, the recipe for no"):
        train_image_stage(context, small_model(recipe), small_cache(), small_samples())


def test_compiled_backbone_with_recomputed_blocks_keeps_results_and_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Traced and differentiated as ever, but run by torch's own kernels: generating code for it takes minutes."""
    traced = nn.Module.compile

    def without_code(module: nn.Module) -> None:
        traced(module, backend="aot_eager")

    monkeypatch.setattr(nn.Module, "compile", without_code)
    plain = train_small(small_recipe({"image.steps": 3}), tmp_path / "plain")
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    recipe = small_recipe({"image.steps": 3, "runtime.compile": True, "runtime.activation_checkpointing": True})
    found = train_small(recipe, tmp_path / "compiled", max_steps=2)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    # A run goes on uncompiled: names and values in the checkpoint are those of the encoders themselves.
    found = train_small(small_recipe({"image.steps": 3}), tmp_path / "compiled", resume=True)
    assert found.weights.keys() == plain.weights.keys()
    for name, value in plain.weights.items():
        torch.testing.assert_close(found.weights[name], value, rtol=1e-9, atol=1e-9)


# torch 2.13's own compiler still defines a script module when it is imported.
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch generates C++ here, and there is no compiler for it")
def test_compiled_image_head_gives_the_same_results(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    cache = types.SimpleNamespace(query_inputs=rng.normal(size=(28, 2, 7)), document_inputs=rng.normal(size=(21, 2, 7)))
    plain = train_small(small_recipe({"image.steps": 3, "model.frozen_stages": None}), tmp_path / "plain", cache=cache)
    recipe = small_recipe({"image.steps": 3, "model.frozen_stages": None, "runtime.compile": True})
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    inductor: Any = importlib.import_module("torch._inductor.config")
    with inductor.patch(cpp_cache_precompile_headers=False):
        train_small(recipe, tmp_path / "compiled", max_steps=2, cache=cache)
        assert torch._dynamo.utils.counters["inductor"]
        found = train_small(recipe, tmp_path / "compiled", resume=True, cache=cache)
    for name, value in plain.weights.items():
        torch.testing.assert_close(found.weights[name], value, rtol=1e-5, atol=1e-5)
