"""Compare low-rank adapters with tuning the same layers, on the demo.

    python -m benchmarks.training.adapters --demo runs/demo --out runs/adapters --json result.json

Both recipes train on the governed data of a finished demo. Each run is trained, published, indexed and evaluated by
the user's commands, on queries of unseen categories. What is finished in --out is reused. To save time, every seed
trains on the augmented views of seed 0, which the demo has cached: the seed decides initialisation, draws and composite
images.

Two targets: adapters train fewer than 5% of the parameters of both encoders, and lose at most 2 points of mean
recall_at_1. Parameters are counted as training opens them; the new image head, which both recipes train completely, is
counted apart.
"""

import json
import subprocess
import sys
from pathlib import Path
from statistics import mean
from typing import Any

from benchmarks import processes, result_file
from train.encoders.backbones import build_model
from train.encoders.lora import add_adapters, add_text_adapters, text_layers, trained_and_all
from train.encoders.pair import EncoderPair
from train.inputs.feature_keys import FeatureExtraction, cache_keys
from train.inputs.samples import read_samples
from train.recipes.registry import recipe_by_name

RECIPES = ("emoji_tuned", "emoji_lora")
METRICS = ("recall_at_1", "recall_at_10", "mrr_at_10")
# Targets: share of the parameters of both encoders; loss of recall_at_1, mean over seeds.
MOST_SHARE, MOST_LOSS = 0.05, 0.02


def commands(demo: Path, out: Path, recipe: str, *, seed: int) -> dict[Path, list[str]]:
    """Commands of one run in order: file that exists once it is done -> words of the command."""
    run, data = out / f"{recipe}-{seed}", demo / "data"
    train: list[object] = ["train/run.py", "--data", demo / "governed", "--out", run, "--recipe", recipe]
    train += ["--seed", seed, "--features", demo / "features" if seed == 0 else out / f"features-{seed}", "--resume"]
    catalogue: list[object] = ["--model", run / "hub", "--catalogue", data / "catalogue.parquet"]
    index: list[object] = ["-m", "retrieval", "index", *catalogue, "--out", run / "index"]
    evaluate: list[object] = ["-m", "retrieval", "evaluate", *catalogue, "--index", run / "index"]
    evaluate += ["--queries", data / "test_queries.parquet", "--qrels", data / "test_qrels.parquet"]
    evaluate += ["--merge", data / "merged.parquet", "--out", run / "metrics.json"]
    steps = {run / "training.json": train, run / "index" / "current.json": index, run / "metrics.json": evaluate}
    return {done: [sys.executable, *map(str, words)] for done, words in steps.items()}


def share_views(demo: Path, features: Path, *, seed: int) -> None:
    """Link the cached views of seed 0 under the name that another seed looks for."""
    recipe = recipe_by_name(RECIPES[0])
    model, processor = build_model(recipe, seed=seed)
    table = read_samples(demo / "governed").table
    cached, wanted = (
        cache_keys(FeatureExtraction(model, processor, table, recipe=recipe, seed=key))[0] for key in (0, seed)
    )
    if (demo / "features" / cached).is_dir() and not (features / wanted).exists():
        features.mkdir(parents=True, exist_ok=True)
        (features / wanted).symlink_to((demo / "features" / cached).resolve())


def metrics_of(run: Path) -> dict[str, Any]:
    """Metrics of a finished run, its text weight and text encoder."""
    metrics = json.loads((run / "metrics.json").read_text())
    text = json.loads((run / "training.json").read_text())["text"]
    return {name: metrics[name] for name in METRICS} | {"strength": text["strength"], "encoder": text.get("encoder")}


def parameters(name: str) -> dict[str, Any]:
    """Numbers of trained parameters of each encoder, of both and of the image head, and the adapters' ranks."""
    recipe = recipe_by_name(name)
    model, _ = build_model(recipe, seed=0)
    encoders = EncoderPair.for_training(model, frozen_stages=recipe.model.frozen_stages)
    if recipe.image.lora.rank:
        add_adapters(model.vision_model, recipe, seed=0)
    if recipe.text.lora.rank:
        add_text_adapters(model.text_model, recipe, seed=0)
    else:
        model.text_model.requires_grad_(False)
        for layer in text_layers(model.text_model):
            model.text_model.get_submodule(layer).requires_grad_(True)
    parts = {"image_encoder": model.vision_model, "text_encoder": model.text_model}
    found = {
        part: dict(zip(("trained", "all"), trained_and_all(module), strict=True)) for part, module in parts.items()
    }
    both = {what: sum(part[what] for part in found.values()) for what in ("trained", "all")}
    head, _ = trained_and_all(encoders.get_submodule("image_head"))
    ranks = {"image": recipe.image.lora.rank, "text": recipe.text.lora.rank}
    return {
        **found,
        "ranks": ranks,
        "both_encoders": both,
        "share": round(both["trained"] / both["all"], 4),
        "image_head": head,
    }


def targets_of(difference: dict[str, float], share: float) -> dict[str, Any]:
    """Value, limit and verdict of both targets.

    >>> targets_of({"recall_at_1": -0.03}, 0.01)["loss_of_recall_at_1"]
    {'value': 0.03, 'at_most': 0.02, 'met': False}
    """
    loss = -difference["recall_at_1"]
    return {
        "share_of_parameters": {"value": share, "below": MOST_SHARE, "met": share < MOST_SHARE},
        "loss_of_recall_at_1": {"value": loss, "at_most": MOST_LOSS, "met": loss <= MOST_LOSS},
    }


def summary(runs: dict[str, dict[int, dict[str, Any]]]) -> dict[str, Any]:
    """Means of every metric, and of the differences adapters minus tuned layers, paired by seed.

    >>> one = {"recall_at_1": 0.5, "recall_at_10": 0.8, "mrr_at_10": 0.6}
    >>> summary({"emoji_tuned": {0: one}, "emoji_lora": {0: {**one, "recall_at_1": 0.49}}})["difference"]["recall_at_1"]
    -0.01
    """
    means = {
        recipe: {name: round(mean(run[name] for run in by.values()), 4) for name in METRICS}
        for recipe, by in runs.items()
    }
    tuned, adapters = (runs[recipe] for recipe in RECIPES)
    difference = {name: round(mean(adapters[seed][name] - tuned[seed][name] for seed in tuned), 4) for name in METRICS}
    return {"seeds": list(tuned), "mean": means, "difference": difference, "by_seed": runs}


def main(words: list[str] | None = None) -> int:
    """Run the command line; 2 after a mistake of the caller or a failed run."""
    parser = result_file.command_parser(
        "training.adapters", str(__doc__), example="python -m benchmarks.training.adapters --demo runs/demo"
    )
    parser.add_argument("--demo", type=Path, default=Path("runs/demo"), help="a finished demo (default: runs/demo)")
    parser.add_argument("--out", type=Path, default=Path("runs/adapters"), help="folder of the runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args(words)
    if not (options.demo / "governed" / "categories.parquet").is_file():
        print(f"error: {options.demo} holds no governed data: run python -m examples.demo first", file=sys.stderr)
        return 2
    runs: dict[str, dict[int, dict[str, Any]]] = {recipe: {} for recipe in RECIPES}
    for seed in options.seeds:
        if seed:
            share_views(options.demo, options.out / f"features-{seed}", seed=seed)
        for recipe in RECIPES:
            for done, command in commands(options.demo, options.out, recipe, seed=seed).items():
                if not done.is_file() and subprocess.run(command, check=False, cwd=processes.ROOT).returncode:
                    print(f"error: {' '.join(command[1:])} failed", file=sys.stderr)
                    return 2
            runs[recipe][seed] = metrics_of(options.out / f"{recipe}-{seed}")
    counts = {recipe: parameters(recipe) for recipe in RECIPES}
    found = summary(runs)
    targets = targets_of(found["difference"], counts[RECIPES[1]]["share"])
    result_file.write_result("training.adapters", {**found, "parameters": counts, "bars": targets}, options.json, words)
    return 0


if __name__ == "__main__":
    sys.exit(main())
