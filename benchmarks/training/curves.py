"""Compare training curves of all process layouts and of a resumed run.

Each layout is a run of the user's command for 50 steps on one synthetic data set; its curve is `train.jsonl`. FSDP2 and
hybrid sharding run on CPU ranks through tests/support/fsdp2_gloo.py, which runs train/run.py unchanged.

| setting | allowed difference to one process |
|---|---|
| float32 | three times the gap between one-process runs that sum the batch in another order |
| float64, every class and a tenth of them | the same, or 1e-10 of the largest value where that is more |
| resumed after 23 steps | none: bit-equal |
"""

import argparse
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from PIL import Image

from benchmarks import result_file
from benchmarks.processes import ROOT
from train.recipes.registry import recipe_by_name

STEPS, CUT = 50, 23
CATEGORIES, QUERIES, DOCUMENTS, SIDE = 40, 4, 3, 32
FLOOR_FLOAT64, TIMES_REORDERED = 1e-10, 3.0
METRICS = ("loss", "grad_norm", "head_grad_norm")
# One process, with the batch summed in another order.
REORDERED = ("accumulate_2", "accumulate_4")
SETTINGS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "float64": (
        {"model.dtype": "float64"},
        ("one", *REORDERED, "resumed", "torchrun_2", "accelerate_2", "fsdp2_2", "hybrid_2x2"),
    ),
    "float64_rate_0.1": (
        {"model.dtype": "float64", "head.sample_rate": 0.1},
        ("one", *REORDERED, "resumed", "torchrun_2", "fsdp2_2"),
    ),
    "float32": ({"model.dtype": "float32"}, ("one", *REORDERED, "torchrun_2", "accelerate_2", "fsdp2_2", "hybrid_2x2")),
}
FSDP2 = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT",
}
HYBRID = {
    **FSDP2,
    "ACCELERATE_USE_PARALLELISM_CONFIG": "true",
    "PARALLELISM_CONFIG_DP_REPLICATE_SIZE": "2",
    "PARALLELISM_CONFIG_DP_SHARD_SIZE": "2",
}
Curve = dict[str, list[float]]


def write_governed(folder: Path) -> None:
    """Write a governed folder of CATEGORIES categories, each with QUERIES + DOCUMENTS noisy coloured squares."""
    rows: list[dict[str, Any]] = []
    for number in range(QUERIES + DOCUMENTS):
        side = "query" if number < QUERIES else "document"
        for category in range(CATEGORIES):
            picture = {"bytes": _png(category, number), "path": None}
            name = f"{side}{number}-{category}"
            row = {"sample_id": name, "side": side, "image": picture, "text": "", "category_id": category}
            rows.append({**row, "weight": 1.0 + number / 4, "split": "train"})
    (folder / "samples").mkdir(parents=True)
    table = datasets.Dataset.from_list(rows).cast_column("image", datasets.Image(decode=False))
    table.to_parquet(folder / "samples" / "part-00000.parquet")
    keys = {"category_id": list(range(CATEGORIES)), "category_key": [f"key{number}" for number in range(CATEGORIES)]}
    datasets.Dataset.from_dict({**keys, "leaf": ["made"] * CATEGORIES}).to_parquet(folder / "categories.parquet")


def _png(category: int, number: int) -> bytes:
    noise = np.random.default_rng([category, number]).integers(0, 60, (SIDE, SIDE, 3))
    colour = np.random.default_rng(category).integers(0, 195, 3)
    buffer = io.BytesIO()
    Image.fromarray((noise + colour).astype(np.uint8)).save(buffer, format="PNG")
    return buffer.getvalue()


def launch(layout: str) -> tuple[list[str], dict[str, str]]:
    """Words of the command before the arguments of train/run.py, and environment variables, of one layout.

    Raises:
        ValueError: for an unknown layout.
    """
    script = str(ROOT / "train" / "run.py")
    sharded = str(ROOT / "tests" / "support" / "fsdp2_gloo.py")
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node"]
    config = str(ROOT / "train" / "launch" / "cpu_two_processes.yaml")
    accelerate = ["-m", "accelerate.commands.accelerate_cli", "launch", "--config_file", config]
    layouts: dict[str, tuple[list[str], dict[str, str]]] = {
        **{name: ([script], {}) for name in ("one", "resumed", *REORDERED)},
        "torchrun_2": ([*torchrun, "2", script], {}),
        "accelerate_2": ([*accelerate, script], {}),
        "fsdp2_2": ([*torchrun, "2", sharded], FSDP2),
        "hybrid_2x2": ([*torchrun, "4", sharded], HYBRID),
    }
    if layout not in layouts:
        raise ValueError(f"no layout is called {layout!r}; known: {', '.join(layouts)}")
    return layouts[layout]


def run(work: Path, setting: str, layout: str, *, limit: float) -> Curve:
    """Curve of one layout; a finished run in `work` is reused.

    Raises:
        RuntimeError: when the command fails.
    """
    changes, _ = SETTINGS[setting]
    parts = int(layout.rpartition("_")[2]) if layout in REORDERED else 1
    recipe = recipe_by_name("tiny").with_changes(
        {
            "text.encoder": None,
            "model.image_size": SIDE,
            "image.steps": STEPS,
            "image.queries_per_step": 8,
            "image.documents_per_step": 8,
            "image.gradient_accumulation": parts,
            **changes,
        }
    )
    out, file = work / f"{setting}-{layout}", work / f"{setting}-{layout}.json"
    if not is_finished(out):
        shutil.rmtree(out, ignore_errors=True)
        file.write_text(json.dumps(recipe.to_json()))
        words = ["--data", work / "governed", "--out", out, "--recipe", file, "--features", work / "features"]
        turns = [["--max-steps", str(CUT)], ["--resume"]] if layout == "resumed" else [[]]
        for turn in turns:
            _call(layout, [*map(str, words), *turn], limit=limit)
    lines = [json.loads(line) for line in (out / "train.jsonl").read_text().splitlines()]
    return {name: [line[name] for line in lines] for name in METRICS}


def is_finished(out: Path) -> bool:
    """Whether a run has all of its steps: one that stopped after its first call also has a training.json."""
    steps = out / "train.jsonl"
    return (out / "training.json").is_file() and steps.read_bytes().count(b"\n") == STEPS


def _call(layout: str, words: list[str], *, limit: float) -> None:
    before, variables = launch(layout)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OCLEAR_THREADS": "1", "HF_HUB_OFFLINE": "1", **variables}
    command = [sys.executable, *before, *words]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=limit, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"the layout {layout} failed: {done.stderr[-2000:]}")


def gap(one: Curve, other: Curve) -> dict[str, float]:
    """Largest difference of each metric over all steps.

    Raises:
        ValueError: for curves of different lengths.
    """
    if any(len(one[name]) != len(other[name]) for name in METRICS):
        raise ValueError(f"curves of {len(one['loss'])} and {len(other['loss'])} steps cannot be compared")
    return {name: float(np.abs(np.subtract(one[name], other[name])).max()) for name in METRICS}


def compare(curves: Mapping[str, Curve], *, double: bool) -> dict[str, Any]:
    """Gap of every layout to one process, limit of each metric, and layouts that exceed it."""
    gaps = {name: gap(curve, curves["one"]) for name, curve in curves.items() if name != "one"}
    floors = {name: FLOOR_FLOAT64 * float(np.abs(curves["one"][name]).max()) if double else 0.0 for name in METRICS}
    limits = {
        name: max(floors[name], *(TIMES_REORDERED * gaps[other][name] for other in REORDERED)) for name in METRICS
    }
    beyond = [
        layout
        for layout, found in gaps.items()
        if any(found[name] > (0.0 if layout == "resumed" else limits[name]) for name in METRICS)
    ]
    return {"gaps": gaps, "limits": limits, "beyond": beyond}


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.training.curves", description=str(__doc__).split("\n", 1)[0]
    )
    parser.add_argument("--json", type=Path, help="result file to write (default: only the screen)")
    parser.add_argument("--work", type=Path, help="folder of the runs; finished ones are reused")
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--minutes", type=float, default=10.0, help="minutes after which a run counts as hung")
    options = parser.parse_args(words)
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(options.work or temporary)
        if not (work / "governed" / "categories.parquet").is_file():
            write_governed(work / "governed")
        found = {}
        for setting in options.settings:
            layouts = SETTINGS[setting][1]
            curves = {layout: run(work, setting, layout, limit=60 * options.minutes) for layout in layouts}
            found[setting] = {**compare(curves, double="64" in setting), "curves": curves}
    result_file.write_result(
        "training.curves", {"simulated": True, "steps": STEPS, "settings": found}, options.json, words
    )
    return int(any(result["beyond"] for result in found.values()))


if __name__ == "__main__":
    sys.exit(main())
