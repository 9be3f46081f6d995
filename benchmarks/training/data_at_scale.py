"""Measure whether the memory of training grows with the number of samples.

Drawings of 8 x 8 pixels in Parquet shards, so that the data path is measured and not the images: read columns, draw
samples by weight, find row groups, decode images in workers, take steps. Each size runs in a new process, whose peak
memory includes all libraries.

    python -m benchmarks.training.data_at_scale --rows 10000 1000000
"""

import io
import json
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from benchmarks import processes, result_file

CATEGORIES, DRAWINGS, SIDE = 1_000, 256, 8
ROWS_PER_SHARD, ROWS_PER_GROUP = 50_000, 256
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def drawings(seed: int) -> list[bytes]:
    """PNG files of random pixels."""
    rng = np.random.default_rng(seed)
    found = []
    for pixels in rng.integers(0, 256, (DRAWINGS, SIDE, SIDE, 3), dtype=np.uint8):
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, format="PNG")
        found.append(buffer.getvalue())
    return found


def write_governed(folder: Path, rows: int, *, seed: int) -> int:
    """Write a governed folder of so many samples, half of them queries; return the bytes of its shards."""
    (folder / "samples").mkdir(parents=True)
    pictures = pa.array([{"bytes": data, "path": None} for data in drawings(seed)], IMAGE)
    rng = np.random.default_rng(seed)
    for first in range(0, rows, ROWS_PER_SHARD):
        place = np.arange(first, min(first + ROWS_PER_SHARD, rows))
        category = place % CATEGORIES
        table = {
            "sample_id": pa.array([f"s{row}" for row in place.tolist()]),
            "side": pa.array(np.where(place < rows // 2, "query", "document")),
            "image": pictures.take(pa.array(rng.integers(0, DRAWINGS, len(place)))),
            "text": pa.array([""] * len(place)),
            "category_id": pa.array(category),
            "weight": pa.array(rng.uniform(0.5, 2.0, len(place))),
            "split": pa.array(np.where(category % 10 == 0, "validation", "train")),
        }
        name = folder / "samples" / f"{first:012d}.parquet"
        # Without a dictionary every image takes its full size on disk, as real images do: only a few differ here.
        pq.write_table(pa.table(table), name, row_group_size=ROWS_PER_GROUP, use_dictionary=["side", "split"])
    keys = pa.table(
        {"category_id": range(CATEGORIES), "category_key": [f"key{number}" for number in range(CATEGORIES)]}
    )
    pq.write_table(keys, folder / "categories.parquet")
    return sum(path.stat().st_size for path in (folder / "samples").iterdir())


def streamed_recipe(steps: int) -> Any:
    """Recipe of so many steps on streamed images of `SIDE` pixels, without text."""
    from train.recipes.emoji import tiny

    return tiny().with_changes(
        {
            "name": "data_at_scale",
            "text.encoder": None,
            "model.image_size": SIDE,
            "model.dtype": "float32",
            "runtime.feature_storage": "stream",
            "head.start_rows": 1,
            "image.queries_per_step": 128,
            "image.documents_per_step": 128,
            "image.steps": steps,
            "image.warmup_steps": 0,
            "image.checkpoint_every": steps,
        }
    )


def measured(folder: Path, *, steps: int, seed: int) -> dict[str, Any]:
    """Train on a governed folder with streamed inputs; return peak memory and CPU seconds.

    CPU seconds depend little on other work on the machine.
    """
    from accelerate import Accelerator

    from train.context import RunContext
    from train.encoders.backbones import build_model
    from train.image_stage.loop import train_image_stage
    from train.inputs.feature_keys import FeatureExtraction
    from train.inputs.feature_stream import stream_features
    from train.inputs.samples import read_samples

    recipe = streamed_recipe(steps)
    begun = time.process_time()
    samples = read_samples(folder)
    read = time.process_time() - begun
    model, processor = build_model(recipe, seed=seed)
    cache = stream_features(FeatureExtraction(model, processor, samples.table, recipe=recipe, seed=seed), folder)
    begun = time.process_time()
    context = RunContext(
        recipe=recipe, accelerator=Accelerator(cpu=True), data=folder, folder=folder / "run", features=folder, seed=seed
    )
    image = train_image_stage(context, model, cache, samples)
    trained = time.process_time() - begun
    cache.query_inputs.decoder.close()
    workers = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "samples": len(samples.table),
        "categories": len(samples.classes),
        "row_groups": len(samples.table.groups),
        "steps": image.steps,
        "samples_per_step": recipe.image.queries_per_step + recipe.image.documents_per_step,
        "cpu_seconds_to_read": round(read, 2),
        "cpu_seconds_to_train": round(trained, 2),
        "worker_cpu_seconds": round(workers.ru_utime + workers.ru_stime, 2),
        "peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
        "worker_peak_mib": round(workers.ru_maxrss / 1024, 1),
    }


def one_size(rows: int, *, steps: int, seed: int, home: Path) -> dict[str, Any]:
    """Write the samples and measure in a new process."""
    folder = home / str(rows)
    size = write_governed(folder, rows, seed=seed)
    (folder / "run").mkdir()
    words = ["--measure", str(folder), "--steps", str(steps), "--seed", str(seed)]
    return {**processes.run_module("training.data_at_scale", words), "shard_mib": round(size / 2**20, 1)}


def main(words: list[str] | None = None) -> int:
    """Run the command line; 2 after a mistake of the caller."""
    example = "python -m benchmarks.training.data_at_scale --rows 10000 1000000 --json result.json"
    parser = result_file.command_parser("training.data_at_scale", str(__doc__), example=example)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 1_000_000], help="numbers of samples")
    parser.add_argument("--steps", type=int, default=20, help="optimiser steps of each run")
    parser.add_argument("--measure", type=Path, help="train on this folder in this process and print the result")
    options = parser.parse_args(words)
    if min(options.rows) < 2 * CATEGORIES or options.steps < 1:
        print(f"error: --rows takes numbers of at least {2 * CATEGORIES}, --steps of at least 1", file=sys.stderr)
        return 2
    if options.measure is not None:
        print(json.dumps(measured(options.measure, steps=options.steps, seed=options.seed)))
        return 0
    try:
        with tempfile.TemporaryDirectory() as home:
            runs = [one_size(rows, steps=options.steps, seed=options.seed, home=Path(home)) for rows in options.rows]
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    growth = max(run["peak_mib"] for run in runs) / runs[0]["peak_mib"] - 1
    result_file.write_result(
        "training.data_at_scale", {"runs": runs, "growth_of_peak": round(growth, 4)}, options.json, words
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
