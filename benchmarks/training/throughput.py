"""Measure what the class weights add to the time of a training step.

    python -m benchmarks.training.throughput --device cuda --json result.json       one GPU, the sizes of the docs
    python -m benchmarks.training.throughput --image-size 32 --layers 2 --width 64 --classes 5000 --batch-size 16

Measured are encoder alone, head alone and both. The encoder is a vision transformer with random weights (default
ViT-B/16), trained completely. The head samples a share of the classes in each step. "Both" is the optimiser step of
training. Pixels are random; no image is decoded. The peak of the device's memory is reported with the planner's
estimate.
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

from benchmarks import result_file
from modeling_oclear import OclearModel
from modeling_oclear.partial_softmax_oclear import sample_classes
from train.class_weights.shard import ClassShard, ShardSettings
from train.encoders.pair import EncoderPair
from train.encoders.parameter_groups import parameter_groups
from train.image_stage.step import ImageStage, _global_loss, optimiser_step
from train.inputs.sampler import StepSampler
from train.parallel.topology import use_huge_pages
from train.planner.plan import GPUS, Run, memory
from train.planner.plan_encoder import measure
from train.recipes.emoji import tiny
from train.recipes.recipe import Recipe

IMAGES = 64


def vision(options: Any) -> ViTModel:
    """Image encoder with random weights."""
    config = ViTConfig(
        hidden_size=options.width,
        num_hidden_layers=options.layers,
        num_attention_heads=max(1, options.width // 64),
        intermediate_size=4 * options.width,
        image_size=options.image_size,
        patch_size=16,
    )
    return ViTModel(config, add_pooling_layer=False)


def recipe_of(options: Any) -> Recipe:
    """Recipe of the measured step."""
    half = options.batch_size // 2
    return tiny().with_changes(
        {
            "name": "throughput",
            "text.encoder": None,
            "model.dtype": "float32",
            "model.image_size": options.image_size,
            "model.frozen_stages": 0,
            "model.hidden_size": options.hidden_size,
            "image.queries_per_step": half,
            "image.documents_per_step": options.batch_size - half,
            "image.query_views": 0,
            "image.document_views": 0,
            "head.sample_rate": options.sample_rate,
            "head.optimizer": "rowwise_adagrad",
            "model.vision_feature_stage": None,
            "model.mixed_precision": options.mixed_precision,
            "image.steps": 10_000,
        }
    )


def image_side(options: Any, accelerator: Accelerator) -> ImageStage:
    """Encoders, class weights and random pixels as the image stage has them."""
    recipe, rng = recipe_of(options), np.random.default_rng(options.seed)
    torch.manual_seed(options.seed)
    model = OclearModel.from_encoders(vision(options), hidden_size=options.hidden_size, num_attention_heads=1)
    encoders = EncoderPair.for_training(model, frozen_stages=0, mixed_precision=recipe.model.mixed_precision)
    encoders = encoders.to(accelerator.device).eval()
    optimizer = torch.optim.AdamW(parameter_groups(encoders, recipe))
    encoders, optimizer = accelerator.prepare(encoders, optimizer)
    shard = ClassShard(
        options.classes,
        options.hidden_size,
        ShardSettings(dtype=torch.float32, weight_decay=0.02, optimizer=recipe.head.optimizer, seed=options.seed),
        device=accelerator.device,
    )
    shard.weight.normal_(std=options.hidden_size**-0.5)
    pixels = rng.normal(size=(IMAGES, 1, 3, options.image_size, options.image_size)).astype(np.float16)
    rows = (np.arange(IMAGES), rng.integers(0, options.classes, IMAGES), np.ones(IMAGES))
    sampler = StepSampler(rows, rows, query_views=0, document_views=0, balance=1.0)
    return ImageStage(accelerator, encoders, optimizer, shard, sampler, pixels, pixels, recipe, options.seed)


def encoder_step(side: ImageStage, step: int) -> None:
    """Forward, backward and update of the encoders alone, with a trivial loss."""
    recipe, like = side.recipe, side.shard.like
    count = recipe.image.queries_per_step, recipe.image.documents_per_step
    pixels = [torch.from_numpy(side.query_inputs[np.arange(n) % IMAGES, 0]).to(like) for n in count]
    ones = [like.new_ones(n, recipe.model.hidden_size) for n in count]
    side.accelerator.backward(sum(part.sum() for part in side.encoders(*pixels, *ones)))
    side.optimizer.step()
    side.optimizer.zero_grad()


def head_step(side: ImageStage, step: int) -> None:
    """Sample, gather, loss, backward and update of the class weights alone, on random embeddings."""
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
    """Median seconds of a step, after two warm-up steps."""
    found = []
    for step in range(steps + 2):
        begun = time.perf_counter()
        work(step)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        found.append(time.perf_counter() - begun)
    return statistics.median(found[2:])


def measured(options: Any) -> dict[str, Any]:
    """Measure all three, and memory on a GPU."""
    accelerator = Accelerator(cpu=options.device == "cpu")
    side, device = image_side(options, accelerator), accelerator.device
    works = {"encoder": encoder_step, "head": head_step, "both": optimiser_step}
    found = {
        name: seconds(functools.partial(work, side), steps=options.steps, device=device) for name, work in works.items()
    }
    pixels = torch.zeros(2, 3, options.image_size, options.image_size)
    cost = measure(vision(options), {"pixel_values": pixels})
    run = Run(
        classes=options.classes,
        hidden_size=options.hidden_size,
        vision=cost,
        text=None,
        gpus=1,
        gpu=GPUS["h200"],
        batch_size=options.batch_size,
        sample_rate=options.sample_rate,
        head_dtype="float32",
    )
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "sizes": {name: getattr(options, name) for name in ("batch_size", "hidden_size", "classes", "sample_rate")},
        "seconds_a_step": {name: round(value, 5) for name, value in found.items()},
        "samples_a_second": {name: round(options.batch_size / value, 1) for name, value in found.items()},
        "head_adds": round(found["both"] / found["encoder"] - 1, 4),
        "peak_bytes": torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None,
        "planned_bytes": round(sum(line.value for line in memory(run))),
    }


def main(words: list[str] | None = None) -> int:
    use_huge_pages()
    example = "python -m benchmarks.training.throughput --device cuda --json result.json"
    parser = result_file.command_parser("training.throughput", str(__doc__), example=example)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    for name, value in (("batch-size", 256), ("hidden-size", 512), ("classes", 1_000_000), ("image-size", 224)):
        parser.add_argument(f"--{name}", type=int, default=value)
    for name, value in (("layers", 12), ("width", 768), ("steps", 20)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--sample-rate", type=float, default=0.1)
    parser.add_argument("--mixed-precision", choices=("no", "bf16"), default="bf16")
    options = parser.parse_args(words)
    if options.device == "cuda" and not torch.cuda.is_available():
        print("error: --device cuda, but torch finds no GPU here; use --device cpu with small sizes", file=sys.stderr)
        return 2
    path: Path | None = options.json
    result_file.write_result("training.throughput", measured(options), path, words)
    return 0


if __name__ == "__main__":
    sys.exit(main())
