"""The planner's bytes equal those of real tensors, and mistakes end in one line."""

import dataclasses
import json
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import BertConfig, BertModel, ViTConfig, ViTModel
from transformers.initialization import no_init_weights

from train.class_weights.row_optimizers import ROW_OPTIMIZERS
from train.class_weights.shard import ClassShard, ShardSettings
from train.encoders.ema import WeightAverage
from train.encoders.lora import ATTENTION
from train.encoders.recompute import recompute_blocks
from train.planner.plan import GPUS, Run, floor, largest_batch, main, memory, optimizer_bytes, plan, traffic
from train.planner.plan_encoder import EncoderCost, measure, vision_cost

SMALL_VIT = ViTConfig(
    hidden_size=20, num_hidden_layers=3, num_attention_heads=2, intermediate_size=37, image_size=24, patch_size=8
)
SMALL_BERT = BertConfig(hidden_size=20, num_hidden_layers=2, num_attention_heads=2, intermediate_size=31, vocab_size=50)
COST = EncoderCost(parameters=1000, largest_unit=300, activations=7000, block_inputs=900, flops=10**6)


def small_run(**changes: Any) -> Run:
    settings: dict[str, Any] = {"classes": 1000, "hidden_size": 8, "gpus": 4, "batch_size": 16, **changes}
    return Run(vision=COST, text=None, gpu=GPUS["l4"], **settings)


def value(run: Run, name: str) -> float:
    return next(line.value for line in plan(run) if line.name == name)


@pytest.mark.parametrize(("model_class", "config"), [(ViTModel, SMALL_VIT), (BertModel, SMALL_BERT)])
def test_counted_activations_equal_those_of_a_real_forward_pass(model_class: Any, config: Any) -> None:
    def inputs() -> dict[str, torch.Tensor]:
        if model_class is ViTModel:
            return {"pixel_values": torch.zeros(3, 3, 24, 24)}
        return {"input_ids": torch.zeros(3, 11, dtype=torch.int64)}

    real = measure(model_class(config).train(), inputs())
    with FakeTensorMode(), no_init_weights():
        fake = measure(model_class(config).train(), inputs())
    assert fake.parameters == real.parameters == sum(p.numel() for p in model_class(config).parameters())
    assert fake.activations == pytest.approx(real.activations, rel=0.02)
    assert fake.block_inputs == pytest.approx(real.block_inputs, rel=0.02)
    assert 0 < fake.block_inputs < fake.activations
    assert fake.largest_unit < fake.parameters


@pytest.mark.parametrize("name", sorted(ROW_OPTIMIZERS))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_class_bytes_equal_those_of_a_real_shard(name: str, dtype: torch.dtype) -> None:
    settings = ShardSettings(dtype=dtype, weight_decay=0.02, optimizer=name)
    shard = ClassShard(250, 8, settings, device=torch.device("cpu"))
    held = {key: tensor.numel() * tensor.element_size() for key, tensor in shard.state().items() if tensor.ndim}
    run = small_run(optimizer=name, head_dtype=str(dtype).removeprefix("torch."))
    assert value(run, "class weights") == held.pop("weight")
    rows = {key: held[key] for key in held if len(shard.state()[key]) == 250}
    assert value(run, "class optimiser state") == pytest.approx(sum(rows.values()), rel=1e-6)


def test_encoder_bytes_equal_those_of_a_real_step() -> None:
    model = ViTModel(SMALL_VIT)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.zeros(2, 3, 24, 24)).last_hidden_state.sum().backward()
    optimizer.step()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    moments = [t for state in optimizer.state.values() for t in state.values() if t.ndim]
    held = sum(4 * t.numel() for t in [*model.parameters(), *gradients, *moments])
    cost = measure(ViTModel(SMALL_VIT), {"pixel_values": torch.zeros(2, 3, 24, 24)})
    run = dataclasses.replace(small_run(gpus=1), vision=cost)
    planned = sum(line.value for line in memory(run) if line.name.startswith("encoder"))
    assert planned == pytest.approx(held, rel=0.1)


@pytest.mark.parametrize(("rank", "average"), [(0, True), (3, False), (3, True)])
def test_bytes_of_adapters_and_averages_equal_those_of_a_real_step(rank: int, average: bool) -> None:
    from peft import LoraConfig, LoraModel

    model = ViTModel(SMALL_VIT)
    if rank:
        layers = [name for name, _ in model.named_modules() if name.rpartition(".")[2] in ATTENTION]
        LoraModel(model, LoraConfig(r=rank, target_modules=layers), "default")
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    averages = WeightAverage(model, decay=0.9).state() if average else {}
    model(torch.zeros(2, 3, 24, 24)).last_hidden_state.sum().backward()
    optimizer.step()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    moments = [t for state in optimizer.state.values() for t in state.values() if t.ndim]
    held = sum(4 * t.numel() for t in [*model.parameters(), *gradients, *moments, *averages.values()])
    cost = measure(ViTModel(SMALL_VIT), {"pixel_values": torch.zeros(2, 3, 24, 24)})
    run = dataclasses.replace(small_run(gpus=1, lora_rank=rank, average=average), vision=cost)
    planned = sum(line.value for line in memory(run) if line.name.startswith("encoder"))
    assert planned == pytest.approx(held, rel=0.1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_recomputed_blocks_keep_the_planned_bytes(dtype: torch.dtype) -> None:
    model: Any = ViTModel(SMALL_VIT).eval()
    model = model.to(dtype)
    planned = measure(model, {"pixel_values": torch.zeros(4, 3, 24, 24, dtype=dtype)})
    recompute_blocks(model)
    kept: dict[int, int] = {}
    alive = []
    weights = {p.untyped_storage()._cdata for p in model.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        alive.append(tensor)
        if tensor.untyped_storage()._cdata not in weights:
            kept[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(torch.zeros(4, 3, 24, 24, dtype=dtype))
    # Beside the inputs of the blocks one block's own are kept while it is computed again.
    assert sum(kept.values()) / 4 <= planned.block_inputs < planned.activations


def test_sums_are_sums_and_one_gpu_sends_nothing() -> None:
    run = small_run()
    held = memory(run)
    assert [line.value for line in plan(run) if line.name == "in all"][0] == sum(line.value for line in held)
    assert sum(line.value for line in traffic(small_run(gpus=1))) == 0
    assert floor(run)[-1].value > max(line.value for line in floor(run)[:-1])


def test_traffic_worked_by_hand() -> None:
    found = [line.value for line in traffic(small_run())]
    assert found == [4 * 1000 * 0.75, 4 * 1000 * 0.75, 8 * 64 * 8 * 0.75, 24 * 64 * 0.75]


def test_the_largest_batch_fits_and_one_more_does_not() -> None:
    tight = dataclasses.replace(GPUS["l4"], memory_gib=0.01)
    run = dataclasses.replace(small_run(), gpu=tight)
    most = int(largest_batch(run).value)
    assert most > 0

    def held(rows: int) -> float:
        return sum(line.value for line in memory(dataclasses.replace(run, batch_size=rows)))

    assert held(most) <= 0.92 * 0.01 * 2**30 < held(most + 1)
    assert largest_batch(dataclasses.replace(run, gpu=dataclasses.replace(tight, memory_gib=1e-6))).value == 0


def test_checkpointing_saves_memory_and_costs_time() -> None:
    plain, saving = small_run(), small_run(checkpointing=True)
    assert value(saving, "activations") < value(plain, "activations")
    assert value(saving, "encoders") == pytest.approx(value(plain, "encoders") * 4 / 3)


def test_momentum_needs_one_more_row() -> None:
    assert optimizer_bytes("momentum", 64) == 64 * 4 + 4
    assert optimizer_bytes("rowwise_adagrad", 64) == 8
    assert optimizer_bytes("rowwise_adagrad", 64, weight_decay=0.0) == 4


def test_the_command_prints_formulas_or_json(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--classes", "1e6", "--hidden-size", "64", "--vision", "efficientnet-lite0", "--gpus", "2"]
    assert main(words) == 0
    assert "ceil(N / G) x D x 2" in capsys.readouterr().out
    assert main([*words, "--json"]) == 0
    lines = json.loads(capsys.readouterr().out)
    assert {"group", "name", "value", "unit", "formula"} == set(lines[0])
    weights = next(line["value"] for line in lines if line["name"] == "class weights")
    assert weights == 500_000 * 64 * 2


def test_mistakes_end_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--classes", "1e6", "--sample-rate", "0"]) == 2
    assert "--sample-rate is 0.0" in capsys.readouterr().err
    assert main(["--classes", "1e6", "--vision", "efficientnet-lite0", "--lora-rank", "4"]) == 2
    assert "--lora-rank is 4; give 0 or more, and 0 for an encoder without" in capsys.readouterr().err
    with pytest.raises(ValueError, match="no encoder is called 'nowhere/nothing'.*vit-b16"):
        vision_cost("nowhere/nothing")
