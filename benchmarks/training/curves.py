"""One computation in every layout: do 50 steps give the same curve on one process, two, four, sharded, cut and resumed?

Each layout is a run of the user's own command on one made data set, and its curve is `train.jsonl`. FSDP2 and hybrid
sharding run on CPU ranks through tests/support/fsdp2_gloo.py, which runs train/run.py unchanged.

| setting | must be |
|---|---|
| float32 | no further apart than three times the gap between one-process runs that sum the batch in another order |
| float64, every class and a tenth of them | the same, or 1e-10 of the largest value where that gap is smaller |
| resumed after 23 steps | bit-equal |
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

from benchmarks.governance import outcome
from train.recipes.registry import recipe_by_name

ROOT = Path(__file__).resolve().parents[2]
STEPS, CUT = 50, 23
CATEGORIES, QUERIES, DOCUMENTS, SIDE = 40, 4, 3, 32
FLOOR_FLOAT64, TIMES_REORDERED = 1e-10, 3.0
FIGURES = ("loss", "grad_norm", "head_grad_norm")
REORDERED = ("accumulate_2", "accumulate_4")  # one process, the batch summed in another order
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
    """A governed folder of CATEGORIES coloured squares, each with QUERIES + DOCUMENTS drawings."""
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
    """Words before those of train/run.py, and variables, of one layout.

    Raises:
        ValueError: no such layout.
    """
    script = str(ROOT / "train" / "run.py")
    sharded = str(ROOT / "tests" / "support" / "fsdp2_gloo.py")
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node"]
    config = str(ROOT / "train" / "launch" / "cpu_two_processes.yaml")
    accelerate = ["-m", "accelerate.commands.accelerate_cli", "launch", "--config_file", config]
    known: dict[str, tuple[list[str], dict[str, str]]] = {
        **{name: ([script], {}) for name in ("one", "resumed", *REORDERED)},
        "torchrun_2": ([*torchrun, "2", script], {}),
        "accelerate_2": ([*accelerate, script], {}),
        "fsdp2_2": ([*torchrun, "2", sharded], FSDP2),
        "hybrid_2x2": ([*torchrun, "4", sharded], HYBRID),
    }
    if layout not in known:
        raise ValueError(f"no layout is called {layout!r}; known: {', '.join(known)}")
    return known[layout]


def run(work: Path, setting: str, layout: str, *, limit: float) -> Curve:
    """The curve of one layout; a run that `work` holds already is not made again.

    Raises:
        RuntimeError: the command fails.
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
    return {name: [line[name] for line in lines] for name in FIGURES}


def is_finished(out: Path) -> bool:
    """Whether a run has come to its end: a resumed one that was cut after its first call has a record, too."""
    steps = out / "train.jsonl"
    return (out / "training.json").is_file() and steps.read_bytes().count(b"\n") == STEPS


def _call(layout: str, words: list[str], *, limit: float) -> None:
    before, variables = launch(layout)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OCLEAR_THREADS": "1", "HF_HUB_OFFLINE": "1", **variables}
    command = [sys.executable, *before, *words]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=limit, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"the layout {layout} failed: {done.stderr[-2000:]}")


def gap(ours: Curve, theirs: Curve) -> dict[str, float]:
    """Largest difference of each figure over all steps.

    Raises:
        ValueError: curves of different lengths.
    """
    if any(len(ours[name]) != len(theirs[name]) for name in FIGURES):
        raise ValueError(f"curves of {len(ours['loss'])} and {len(theirs['loss'])} steps cannot be compared")
    return {name: float(np.abs(np.subtract(ours[name], theirs[name])).max()) for name in FIGURES}


def judged(curves: Mapping[str, Curve], *, double: bool) -> dict[str, Any]:
    """Gap of every layout to one process, the limit of each figure, and the layouts that are beyond it."""
    gaps = {name: gap(curve, curves["one"]) for name, curve in curves.items() if name != "one"}
    floors = {name: FLOOR_FLOAT64 * float(np.abs(curves["one"][name]).max()) if double else 0.0 for name in FIGURES}
    limits = {
        name: max(floors[name], *(TIMES_REORDERED * gaps[other][name] for other in REORDERED)) for name in FIGURES
    }
    beyond = [
        layout
        for layout, found in gaps.items()
        if any(found[name] > (0.0 if layout == "resumed" else limits[name]) for name in FIGURES)
    ]
    return {"gaps": gaps, "limits": limits, "beyond": beyond}


def main(words: list[str] | None = None) -> int:
    line = argparse.ArgumentParser(
        prog="python -m benchmarks.training.curves", description=str(__doc__).split("\n", 1)[0]
    )
    line.add_argument("--json", type=Path, help="result file to write (default: only the screen)")
    line.add_argument("--work", type=Path, help="folder of the runs; what is finished there is not run again")
    line.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    line.add_argument("--minutes", type=float, default=10.0, help="after which a run counts as hung")
    arguments = line.parse_args(words)
    with tempfile.TemporaryDirectory() as made:
        work = Path(arguments.work or made)
        if not (work / "governed" / "categories.parquet").is_file():
            write_governed(work / "governed")
        found = {}
        for setting in arguments.settings:
            layouts = SETTINGS[setting][1]
            curves = {layout: run(work, setting, layout, limit=60 * arguments.minutes) for layout in layouts}
            found[setting] = {**judged(curves, double="64" in setting), "curves": curves}
    outcome.write("curves", {"simulated": True, "steps": STEPS, "settings": found}, arguments.json, words)
    return int(any(result["beyond"] for result in found.values()))


if __name__ == "__main__":
    sys.exit(main())
