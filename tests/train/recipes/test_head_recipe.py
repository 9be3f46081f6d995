"""What a recipe says about the class weights reaches training: optimiser, type, place, hard classes, export."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support.synthetic_run import TRAINED, small_recipe, train_small
from train.class_weights.prototypes import PrototypeFolder
from train.class_weights.row_optimizers import ROW_OPTIMIZERS
from train.recipes.recipe import HEAD_OPTIMIZERS


def losses(folder: Path) -> np.ndarray:
    return np.array([json.loads(line)["loss"] for line in (folder / "train.jsonl").read_text().splitlines()])


def test_the_recipe_names_the_optimisers_that_there_are() -> None:
    assert set(HEAD_OPTIMIZERS) == set(ROW_OPTIMIZERS)


def test_every_optimiser_learns_another_way_and_resumes_bit_equal(tmp_path: Path) -> None:
    seen = set()
    for name in HEAD_OPTIMIZERS:
        recipe = small_recipe(
            {
                "head.optimizer": name,
                "head.learning_rate": 0.02,
                "head.sample_rate": 0.4,
                "head.hard_classes": "nearest",
            }
        )
        whole = train_small(recipe, tmp_path / name, max_steps=8)
        train_small(recipe, tmp_path / f"{name}-cut", max_steps=5)
        resumed = train_small(recipe, tmp_path / f"{name}-cut", max_steps=8, resume=True)
        assert torch.equal(resumed.class_weights, whole.class_weights), name
        seen.add(float(whole.class_weights.sum()))
    assert len(seen) == len(HEAD_OPTIMIZERS)


def test_rows_on_disk_give_the_numbers_of_rows_in_memory_and_may_change_place(tmp_path: Path) -> None:
    kept = train_small(small_recipe(), tmp_path / "memory")
    disk = small_recipe({"runtime.head_storage": "disk", "runtime.head_storage_folder": str(tmp_path / "rows")})
    moved = train_small(disk, tmp_path / "disk", max_steps=5)
    assert sorted(path.name for path in (tmp_path / "rows").iterdir()) == [
        f"part-00000.{name}.rows" for name in ("exp_avg", "exp_avg_sq", "row_steps", "weight")
    ]
    moved = train_small(small_recipe({"runtime.head_storage": "memory"}), tmp_path / "disk", resume=True)
    assert torch.equal(moved.class_weights, kept.class_weights)


def test_bfloat16_rows_stay_near_full_precision(tmp_path: Path) -> None:
    full = train_small(small_recipe({"model.dtype": "float32", "image.steps": 30}), tmp_path / "full")
    half = train_small(
        small_recipe({"model.dtype": "float32", "head.dtype": "bfloat16", "image.steps": 30}), tmp_path / "half"
    )
    assert not torch.equal(full.class_weights, half.class_weights)
    assert np.abs(losses(tmp_path / "half") - losses(tmp_path / "full")).max() < 0.05
    assert losses(tmp_path / "half")[-5:].mean() < losses(tmp_path / "half")[:5].mean()
    with pytest.raises(ValueError, match="float64 goes with float64 alone"):
        small_recipe({"head.dtype": "bfloat16"})


def test_hard_classes_take_part_and_none_is_the_plain_run(tmp_path: Path) -> None:
    runs = {
        kind: train_small(
            small_recipe(
                {
                    "head.sample_rate": 0.2,
                    "head.hard_classes": kind,
                    "image.queries_per_step": 1,
                    "image.documents_per_step": 1,
                    "head.hard_per_positive": 1,
                }
            ),
            tmp_path / kind,
        ).class_weights
        for kind in ("none", "nearest", "leaf")
    }
    assert not torch.equal(runs["none"], runs["nearest"])
    assert not torch.equal(runs["none"], runs["leaf"])


def test_prototypes_are_published_with_the_keys_of_the_trained_categories(tmp_path: Path) -> None:
    result = train_small(small_recipe({"runtime.publish_prototypes": True, "head.sub_centres": 2}), tmp_path)
    opened = PrototypeFolder.open(tmp_path / "prototypes")
    torch.testing.assert_close(next(opened.blocks())[1], result.class_weights.float())
    found = opened.categories(set(range(len(TRAINED))))
    assert [found[number]["category_key"] for number in range(len(TRAINED))] == [f"key{number}" for number in TRAINED]
    assert found[1] == {"class": 1, "category_id": 1, "category_key": "key1", "leaf": "leaf1", "samples": 7}
