"""What the class weights cost beside the encoder: steps of the encoder alone, of the head alone, and of both.

    python -m benchmarks.training.throughput --device cuda --json result.json       one GPU, the sizes of the docs
    python -m benchmarks.training.throughput --image-size 32 --layers 2 --width 64 --classes 5000 --batch-size 16

The encoder is a vision transformer of random weights (ViT-B/16 by default), trained whole; the head draws a share of
the classes anew each step; both is the optimiser step of training itself. Pixels are random, and no image is decoded.
The peak of the device's memory stands beside what the planner says.
"""

import functools
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from transformers import ViTConfig, ViTModel

from benchmarks.governance import outcome
from modeling_oclear import OclearModel
from modeling_oclear.partial_softmax_oclear import sample_classes
from train.class_weights.shard import ClassShard, ShardSettings
from train.encoders.pair import EncoderPair
from train.encoders.parameter_groups import parameter_groups
from train.image_stage.step import ImageSide, _global_loss, optimiser_step
from train.inputs.sampler import StepSampler
from train.parallel.topology import use_huge_pages
from train.planner.plan import GPUS, Run, memory
from train.planner.plan_encoder import measure
from train.recipes.emoji import tiny
from train.recipes.recipe import Recipe

PICTURES = 64


def vision(said: Any) -> ViTModel:
    """The encoder with random weights."""
    config = ViTConfig(
        hidden_size=said.width,
        num_hidden_layers=said.layers,
        num_attention_heads=max(1, said.width // 64),
        intermediate_size=4 * said.width,
        image_size=said.image_size,
        patch_size=16,
    )
    return ViTModel(config, add_pooling_layer=False)


def recipe_of(said: Any) -> Recipe:
    """What a step of it is."""
    half = said.batch_size // 2
    return tiny().with_changes(
        {
            "name": "throughput",
            "text.encoder": None,
            "model.dtype": "float32",
            "model.image_size": said.image_size,
            "model.frozen_stages": 0,
            "model.hidden_size": said.hidden_size,
            "image.queries_per_step": half,
            "image.documents_per_step": said.batch_size - half,
            "image.query_views": 0,
            "image.document_views": 0,
            "head.sample_rate": said.sample_rate,
            "head.optimizer": "rowwise_adagrad",
            "model.vision_feature_stage": None,
            "model.mixed_precision": said.mixed_precision,
            "image.steps": 10_000,
        }
    )


def image_side(said: Any, accelerator: Accelerator) -> ImageSide:
    """Encoders, class weights and random pixels as training has them."""
    recipe, rng = recipe_of(said), np.random.default_rng(said.seed)
    torch.manual_seed(said.seed)
    model = OclearModel.from_encoders(vision(said), hidden_size=said.hidden_size, num_attention_heads=1)
    encoders = EncoderPair.for_training(model, frozen_stages=0, mixed_precision=recipe.model.mixed_precision)
    encoders = encoders.to(accelerator.device).eval()
    optimizer = torch.optim.AdamW(parameter_groups(encoders, recipe))
    encoders, optimizer = accelerator.prepare(encoders, optimizer)
    shard = ClassShard(
        said.classes,
        said.hidden_size,
        ShardSettings(dtype=torch.float32, weight_decay=0.02, optimizer=recipe.head.optimizer, seed=said.seed),
        device=accelerator.device,
    )
    shard.weight.normal_(std=said.hidden_size**-0.5)
    pixels = rng.normal(size=(PICTURES, 1, 3, said.image_size, said.image_size)).astype(np.float16)
    rows = (np.arange(PICTURES), rng.integers(0, said.classes, PICTURES), np.ones(PICTURES))
    sampler = StepSampler(rows, rows, query_views=0, document_views=0, balance=1.0)
    return ImageSide(accelerator, encoders, optimizer, shard, sampler, pixels, pixels, recipe, said.seed)


def encoder_step(side: ImageSide, step: int) -> None:
    """Forward, backward and update of the encoders alone, on a loss that costs nothing."""
    recipe, like = side.recipe, side.shard.like
    count = recipe.image.queries_per_step, recipe.image.documents_per_step
    pixels = [torch.from_numpy(side.query_inputs[np.arange(n) % PICTURES, 0]).to(like) for n in count]
    ones = [like.new_ones(n, recipe.model.hidden_size) for n in count]
    side.accelerator.backward(sum(part.sum() for part in side.encoders(*pixels, *ones)))
    side.optimizer.step()
    side.optimizer.zero_grad()


def head_step(side: ImageSide, step: int) -> None:
    """Draw, gather, loss, backward and update of the class weights alone, on random embeddings."""
    recipe, like = side.recipe, side.shard.like
    count = recipe.image.queries_per_step + recipe.image.documents_per_step
    labels_B = torch.from_numpy(np.random.default_rng([side.seed, step]).integers(0, side.shard.num_classes, count))
    drawn = sample_classes(
        side.shard.num_classes,
        positives=labels_B.unique(),
        rate=recipe.head.sample_rate,
        seed=side.seed,
        step=step,
        class_range=(side.shard.start, side.shard.end),
    )
    gathered = side.shard.gather(drawn.class_ids, drawn.log_correction)
    embeds_BD = torch.nn.functional.normalize(
        torch.randn(count, recipe.model.hidden_size).to(like), dim=1
    ).requires_grad_()
    _global_loss(embeds_BD, labels_B.to(like.device), gathered, recipe).backward()
    side.shard.update(gathered, learning_rate=1e-3, max_grad_norm=None)


def seconds(work: Callable[[int], Any], *, steps: int, device: torch.device) -> float:
    """Median seconds of a step, after two that warm up."""
    found = []
    for step in range(steps + 2):
        begun = time.perf_counter()
        work(step)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        found.append(time.perf_counter() - begun)
    return statistics.median(found[2:])


def measured(said: Any) -> dict[str, Any]:
    """All three, and memory where the device counts it."""
    accelerator = Accelerator(cpu=said.device == "cpu")
    side, device = image_side(said, accelerator), accelerator.device
    works = {"encoder": encoder_step, "head": head_step, "both": optimiser_step}
    found = {
        name: seconds(functools.partial(work, side), steps=said.steps, device=device) for name, work in works.items()
    }
    pixels = torch.zeros(2, 3, said.image_size, said.image_size)
    cost = measure(vision(said), {"pixel_values": pixels})
    run = Run(
        classes=said.classes,
        hidden_size=said.hidden_size,
        vision=cost,
        text=None,
        gpus=1,
        gpu=GPUS["h200"],
        batch_size=said.batch_size,
        sample_rate=said.sample_rate,
        head_dtype="float32",
    )
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "sizes": {name: getattr(said, name) for name in ("batch_size", "hidden_size", "classes", "sample_rate")},
        "seconds_a_step": {name: round(value, 5) for name, value in found.items()},
        "samples_a_second": {name: round(said.batch_size / value, 1) for name, value in found.items()},
        "head_adds": round(found["both"] / found["encoder"] - 1, 4),
        "peak_bytes": torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None,
        "planned_bytes": round(sum(line.value for line in memory(run))),
    }


def main(words: list[str] | None = None) -> int:
    use_huge_pages()
    example = "python -m benchmarks.training.throughput --device cuda --json result.json"
    line = outcome.parser("throughput", str(__doc__), example=example)
    line.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    for name, value in (("batch-size", 256), ("hidden-size", 512), ("classes", 1_000_000), ("image-size", 224)):
        line.add_argument(f"--{name}", type=int, default=value)
    for name, value in (("layers", 12), ("width", 768), ("steps", 20)):
        line.add_argument(f"--{name}", type=int, default=value)
    line.add_argument("--sample-rate", type=float, default=0.1)
    line.add_argument("--mixed-precision", choices=("no", "bf16"), default="bf16")
    said = line.parse_args(words)
    if said.device == "cuda" and not torch.cuda.is_available():
        print("error: --device cuda, but torch finds no GPU here; use --device cpu with small sizes", file=sys.stderr)
        return 2
    path: Path | None = said.json
    outcome.write("throughput", measured(said), path, words)
    return 0


if __name__ == "__main__":
    sys.exit(main())
