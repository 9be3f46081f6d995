"""Checkpoints are whole or passed over, of this run or refused, and a resumed run is the uninterrupted one."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from made_run import small_recipe, train_small

from train.checkpoint import newest_checkpoint


def steps_of(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def test_resumed_equals_uninterrupted_bit_for_bit(tmp_path: Path) -> None:
    recipe = small_recipe(sample_rate=0.3)
    whole = train_small(recipe, tmp_path / "whole")
    train_small(recipe, tmp_path / "cut", max_steps=7)
    resumed = train_small(recipe, tmp_path / "cut", resume=True)
    assert torch.equal(resumed.class_weights, whole.class_weights)
    assert all(torch.equal(resumed.weights[name], value) for name, value in whole.weights.items())

    def lines(name: str) -> list[dict[str, float]]:
        found = [json.loads(line) for line in (tmp_path / name / "train.jsonl").read_text().splitlines()]
        return [{key: line[key] for key in ("step", "loss", "grad_norm", "head_grad_norm")} for line in found]

    assert lines("cut") == lines("whole")


def test_an_image_side_is_taken_over_where_only_the_text_differs(tmp_path: Path) -> None:
    whole = train_small(small_recipe(), tmp_path / "whole")
    other = small_recipe(name="no_text", max_text_tokens=5)
    taken = train_small(other, tmp_path / "taken", trained=tmp_path / "whole")
    again = train_small(other, tmp_path / "again")
    for found in (taken, again):
        assert torch.equal(found.class_weights, whole.class_weights)
        assert all(torch.equal(found.weights[name], value) for name, value in whole.weights.items())
    assert taken.steps == whole.steps
    with pytest.raises(ValueError, match="margin_value: 0.4 here, 0.2 there"):
        train_small(small_recipe(margin_value=0.4), tmp_path / "a", trained=tmp_path / "whole")
    with pytest.raises(ValueError, match="did 12 of 6 steps"):
        train_small(other, tmp_path / "b", trained=tmp_path / "whole", max_steps=6)
    with pytest.raises(ValueError, match="holds no whole checkpoint"):
        train_small(other, tmp_path / "c", trained=tmp_path / "nowhere")


def test_checkpoints_come_every_n_steps_and_at_the_end_and_the_newest_two_stay(tmp_path: Path) -> None:
    train_small(small_recipe(), tmp_path)
    assert steps_of(tmp_path) == ["step-00000010", "step-00000012"]


def test_a_torn_checkpoint_is_passed_over(tmp_path: Path) -> None:
    train_small(small_recipe(), tmp_path)
    folder = tmp_path / "checkpoints"
    newest = folder / "step-00000012"
    assert newest_checkpoint(folder) == newest
    for name in (".step-00000020.partial", "step-00000030"):
        shutil.copytree(newest, folder / name)
    tensors = next((folder / "step-00000030").glob("*.distcp"))
    tensors.write_bytes(tensors.read_bytes()[:-1])
    assert newest_checkpoint(folder) == newest
    (newest / "state.json").write_text("{")
    assert newest_checkpoint(folder) == folder / "step-00000010"
    assert newest_checkpoint(tmp_path / "nowhere") is None


def test_a_checkpoint_of_another_run_is_refused_with_the_difference(tmp_path: Path) -> None:
    recipe = small_recipe(steps=3)
    train_small(recipe, tmp_path)
    with pytest.raises(ValueError, match="recipe differs .steps: 4 here, 3 there.*another --out"):
        train_small(small_recipe(steps=4), tmp_path, resume=True)
    with pytest.raises(ValueError, match=r"seed differs .5, 0."):
        train_small(recipe, tmp_path, resume=True, seed=5)
    state = tmp_path / "checkpoints" / "step-00000003" / "state.json"
    content = json.loads(state.read_text())
    content["categories"]["fingerprint"] = "other"
    state.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="categories differs .fingerprint: 'made' here, 'other' there"):
        train_small(recipe, tmp_path, resume=True)


def test_resume_without_a_checkpoint_starts_from_the_beginning(tmp_path: Path) -> None:
    assert train_small(small_recipe(steps=2), tmp_path, resume=True).steps == 2
