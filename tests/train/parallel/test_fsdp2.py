"""FSDP2 and hybrid sharding equal one process, and any layout resumes the checkpoints of any other."""

import json
import shutil
from pathlib import Path

import datasets
import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser
from accelerate.utils import DistributedType

from tests.support.commands import FSDP2, FSDP2_TRAIN, ROOT, TRAIN, on_ranks, python_output
from tests.support.curves import assert_same_run, reordered_recipe
from tests.support.synthetic_governed import CATEGORIES, rows, write_categories, write_governed, write_samples
from tests.train.recipes.test_catalogue_recipes import dinov2
from train.recipes.registry import recipe_by_name

HYBRID = {
    "ACCELERATE_USE_PARALLELISM_CONFIG": "true",
    "PARALLELISM_CONFIG_DP_REPLICATE_SIZE": "2",
    "PARALLELISM_CONFIG_DP_SHARD_SIZE": "2",
}


def sharded(ranks: int, *words: object, **variables: str) -> str:
    """train/run.py on `ranks` gloo processes with FSDP2."""
    return python_output(*on_ranks(ranks, FSDP2_TRAIN, *words), **FSDP2, **variables)


def one_process(*words: object) -> str:
    return python_output(TRAIN, *words)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`governed`, and `alone`: a finished run of one process."""
    base = tmp_path_factory.mktemp("fsdp2")
    write_governed(base / "governed")
    one_process(*words_for(base, "alone"))
    return base


def words_for(base: Path, out: str) -> list[object]:
    words: list[object] = ["--data", base / "governed", "--out", base / out, "--recipe", "tiny"]
    return [*words, "--features", base / "features"]


def test_two_fsdp2_ranks_equal_one_process_and_their_checkpoint_is_continued_by_one(
    folder: Path, reordered_tiny: Path
) -> None:
    said = sharded(2, *words_for(folder, "fsdp2"))
    assert "topology: 2 process(es), gloo, FSDP" in said
    for rank in (0, 1):
        assert f"rank {rank} holds 3530 of 7060 encoder parameters in 8 units" in said
        assert f"rank {rank} holds classes {5 * rank} to {5 * rank + 5} (5 of 10 rows)" in said
    assert_same_run(folder / "fsdp2", folder / "alone", reordered=[reordered_tiny])

    shutil.rmtree(folder / "fsdp2" / "checkpoints" / "step-00000050")
    shutil.rmtree(folder / "fsdp2" / "hub")
    assert "resumed from step-00000040" in one_process(*words_for(folder, "fsdp2"), "--resume")
    assert_same_run(folder / "fsdp2", folder / "alone", reordered=[reordered_tiny])


@pytest.mark.distributed
def test_two_times_two_hybrid_ranks_equal_one_process(folder: Path, reordered_tiny: Path) -> None:
    said = sharded(4, *words_for(folder, "hybrid"), **HYBRID)
    for rank, (start, end) in enumerate(((0, 3), (3, 6), (6, 9), (9, 10))):
        assert f"rank {rank} holds 3530 of 7060 encoder parameters in 8 units" in said
        assert f"rank {rank} holds classes {start} to {end}" in said
    assert_same_run(folder / "hybrid", folder / "alone", reordered=[reordered_tiny])


@pytest.mark.slow
def test_each_transformer_layer_is_an_fsdp_unit_and_training_equals_one_process(folder: Path) -> None:
    torch.manual_seed(0)
    dinov2(folder / "dinov2")
    recipe = recipe_by_name("tiny").with_changes(
        {
            "model.vision": str(folder / "dinov2"),
            "text.encoder": None,
            "model.image_size": 28,
            "model.frozen_stages": 0,
            "model.vision_feature_stage": None,
            "image.steps": 8,
            "runtime.activation_checkpointing": True,
            "image.gradient_accumulation": 2,
            # A random transformer magnifies rounding by more than 100 in a step of 5e-4.
            "image.encoder_learning_rate": 1e-5,
        }
    )
    recipes = {"alone": recipe, "twice": reordered_recipe(recipe), "four_times": reordered_recipe(recipe, times=4)}
    for name, other in recipes.items():
        (folder / f"dinov2_{name}.json").write_text(json.dumps(other.to_json()))
        one_process(*words_for(folder, f"dinov2_{name}"), "--recipe", folder / f"dinov2_{name}.json")
    said = sharded(2, *words_for(folder, "dinov2_fsdp2"), "--recipe", folder / "dinov2_alone.json")
    assert "encoder parameters in 4 units" in said, "embeddings, two layers, the rest"
    reordered = [folder / "dinov2_twice", folder / "dinov2_four_times"]
    # Without AVX the gap leaps from 1e-15 to 1e-10 in one step, in one of these runs a step later than in the other:
    # the floor is where a leap lands. A wrong sum is 1e-6 away from the first step on.
    assert_same_run(folder / "dinov2_fsdp2", folder / "dinov2_alone", reordered=reordered, floor=1e-10)


def governed_anew(folder: Path, story: list[tuple[str | None, str, str | None]]) -> None:
    """The made data with key1 renamed, key2 dropped from training and a map that tells what became of the keys."""
    again = [{**row, "split": "validation" if row["category_id"] == 2 else row["split"]} for row in rows()]
    write_samples(folder, again)
    write_categories(folder, ["renamed" if number == 1 else f"key{number}" for number in range(CATEGORIES)])
    names = ("old_key", "event", "new_key")
    table = {name: [line[place] for line in story] for place, name in enumerate(names)}
    datasets.Dataset.from_dict(table).to_parquet(folder / "category_map.parquet")


@pytest.mark.distributed
def test_sharded_ranks_resume_with_changed_categories_like_one_process(folder: Path) -> None:
    kept: list[tuple[str | None, str, str | None]] = [
        (f"key{number}", "kept", f"key{number}") for number in range(CATEGORIES) if number != 1
    ]
    one_process(*words_for(folder, "before"), "--max-steps", 20)
    shutil.copytree(folder / "before", folder / "before_fsdp2")
    words = {
        out: ["--data", folder / "anew", *words_for(folder, out)[2:], "--resume"] for out in ("before", "before_fsdp2")
    }
    governed_anew(folder / "anew", [*kept, ("key1", "renamed", "renamed")])
    for said in (one_process(*words["before"]), sharded(2, *words["before_fsdp2"])):
        assert "categories changed: 9 kept, 0 merged, 0 started, 1 retired" in said
        assert "resumed from step-00000020" in said
    # No reordered run beside: rounding of the tiny recipe stays at 1e-15, a thousandth of the floor.
    assert_same_run(folder / "before_fsdp2", folder / "before", reordered=[])


def test_hybrid_launch_file_requests_hybrid_sharding() -> None:
    path = ROOT / "train" / "launch" / "hsdp.yaml"
    settings = load_config_from_file(str(path))
    assert settings.distributed_type == DistributedType.FSDP
    sizes = settings.parallelism_config
    assert (
        sizes["parallelism_config_dp_replicate_size"] * sizes["parallelism_config_dp_shard_size"]
        == settings.num_processes
    )
    known = vars(launch_command_parser().parse_args(["x.py"]))
    assert set(sizes) <= set(known)
    assert set(settings.fsdp_config) <= set(known)
