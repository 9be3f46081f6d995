"""Checkpoints: resumed runs equal uninterrupted ones; incomplete or foreign checkpoints are rejected."""

import itertools
import json
import shutil
import threading
import time
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.filesystem import FileSystemWriter

from tests.support import synthetic_run
from tests.support.synthetic_run import small_recipe, train_small
from train.checkpoints.folder import newest_checkpoint
from train.class_weights.hard_classes import NearestClasses
from train.image_stage.loop import ImageResult


def steps_of(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def test_resumed_equals_uninterrupted_bit_for_bit(tmp_path: Path) -> None:
    recipe = small_recipe({"head.sample_rate": 0.3})
    whole = train_small(recipe, tmp_path / "whole")
    train_small(recipe, tmp_path / "cut", max_steps=7)
    resumed = train_small(recipe, tmp_path / "cut", resume=True)
    assert torch.equal(resumed.class_weights, whole.class_weights)
    assert all(torch.equal(resumed.weights[name], value) for name, value in whole.weights.items())

    def lines(name: str) -> list[dict[str, float]]:
        found = [json.loads(line) for line in (tmp_path / name / "train.jsonl").read_text().splitlines()]
        return [{key: line[key] for key in ("step", "loss", "grad_norm", "head_grad_norm")} for line in found]

    assert lines("cut") == lines("whole")


def test_image_stage_is_reused_if_only_the_text_settings_differ(tmp_path: Path) -> None:
    whole = train_small(small_recipe(), tmp_path / "whole")
    other = small_recipe({"name": "no_text", "text.max_tokens": 5})
    taken = train_small(other, tmp_path / "taken", reused_run=tmp_path / "whole")
    again = train_small(other, tmp_path / "again")
    for found in (taken, again):
        assert torch.equal(found.class_weights, whole.class_weights)
        assert all(torch.equal(found.weights[name], value) for name, value in whole.weights.items())
    assert taken.steps == whole.steps
    with pytest.raises(ValueError, match="margin_value: 0.4 here, 0.2 there"):
        train_small(small_recipe({"head.loss.margin_value": 0.4}), tmp_path / "a", reused_run=tmp_path / "whole")
    with pytest.raises(ValueError, match="did 12 of 6 steps"):
        train_small(other, tmp_path / "b", reused_run=tmp_path / "whole", max_steps=6)
    with pytest.raises(ValueError, match="holds no complete checkpoint"):
        train_small(other, tmp_path / "c", reused_run=tmp_path / "nowhere")


def test_checkpoints_every_n_steps_and_at_the_end_of_which_two_are_kept(tmp_path: Path) -> None:
    train_small(small_recipe(), tmp_path)
    assert steps_of(tmp_path) == ["step-00000010", "step-00000012"]


def test_incomplete_checkpoint_is_skipped(tmp_path: Path) -> None:
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


def test_checkpoint_of_another_run_is_rejected_with_the_difference(tmp_path: Path) -> None:
    recipe = small_recipe({"image.steps": 3})
    train_small(recipe, tmp_path)
    with pytest.raises(ValueError, match="recipe differs .image.steps: 4 here, 3 there.*another --out"):
        train_small(small_recipe({"image.steps": 4}), tmp_path, resume=True)
    with pytest.raises(ValueError, match=r"seed differs .5, 0."):
        train_small(recipe, tmp_path, resume=True, seed=5)
    state = tmp_path / "checkpoints" / "step-00000003" / "state.json"
    content = json.loads(state.read_text())
    content["categories"]["fingerprint"] = "other"
    state.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="categories differs .fingerprint: 'made' here, 'other' there"):
        train_small(recipe, tmp_path, resume=True)


def test_resume_without_a_checkpoint_starts_from_the_beginning(tmp_path: Path) -> None:
    assert train_small(small_recipe({"image.steps": 2}), tmp_path, resume=True).steps == 2


def equal_runs(ours: ImageResult, theirs: ImageResult) -> bool:
    return torch.equal(ours.class_weights, theirs.class_weights) and all(
        torch.equal(ours.weights[name], value) for name, value in theirs.weights.items()
    )


def test_background_checkpoint_has_the_weights_of_its_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []
    original = FileSystemWriter.write_data

    def late(self: FileSystemWriter, *given: Any) -> Any:
        written.append(threading.current_thread().name)
        time.sleep(0.2)  # steps are done meanwhile
        return original(self, *given)

    monkeypatch.setattr(FileSystemWriter, "write_data", late)
    whole = train_small(small_recipe(), tmp_path / "whole")
    found = train_small(
        small_recipe({"runtime.checkpoint_async": True, "runtime.checkpoint_keep": 9}), tmp_path / "async"
    )
    assert written[0] == "MainThread"
    assert written[-1] != "MainThread"
    assert equal_runs(found, whole)
    assert steps_of(tmp_path / "async") == ["step-00000005", "step-00000010", "step-00000012"]
    for name in ("step-00000010", "step-00000012"):
        shutil.rmtree(tmp_path / "async" / "checkpoints" / name)
    assert equal_runs(train_small(small_recipe(), tmp_path / "async", resume=True), whole)


def test_checkpoints_every_n_minutes_do_not_change_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count(step=20.0)
    with monkeypatch.context() as patched:
        patched.setattr("train.checkpoints.writer.time", types.SimpleNamespace(monotonic=lambda: next(clock)))
        recipe = small_recipe(
            {"image.checkpoint_every": 1000, "runtime.checkpoint_minutes": 1.5, "runtime.checkpoint_keep": 99}
        )
        found = train_small(recipe, tmp_path / "minutes")
    # Each question and each saving moves this clock by 20 s: the fifth question after a saving finds it 100 s old.
    assert steps_of(tmp_path / "minutes") == ["step-00000005", "step-00000010", "step-00000012"]
    assert equal_runs(found, train_small(small_recipe(), tmp_path / "steps"))
    assert train_small(small_recipe({"image.checkpoint_every": 1000}), tmp_path / "minutes", resume=True).steps == 12


def test_resume_between_two_indexes_of_hard_classes_is_bit_equal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[int] = []
    original = NearestClasses._build

    def counted(self: NearestClasses) -> Any:
        built.append(len(built))
        return original(self)

    monkeypatch.setattr(NearestClasses, "_build", counted)
    recipe = small_recipe(
        {
            "head.hard_classes": "nearest",
            "head.hard_per_positive": 1,
            "head.hard_refresh_every": 1000,
            "head.sample_rate": 0.2,
            "image.queries_per_step": 2,
            "image.documents_per_step": 2,
            "image.checkpoint_every": 1000,
            "runtime.checkpoint_minutes": 1e-9,
            "runtime.checkpoint_keep": 99,
        }
    )
    whole = train_small(recipe, tmp_path)
    assert len(built) == 12, "a resumed run builds an index at its first step: so must this one after each checkpoint"
    for step in range(8, 13):
        shutil.rmtree(tmp_path / "checkpoints" / f"step-{step:08d}")
    assert equal_runs(train_small(recipe, tmp_path, resume=True), whole)


def test_checkpoint_of_another_image_encoder_is_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train_small(small_recipe({"image.steps": 3}), tmp_path)
    other = synthetic_run.small_model(small_recipe({"image.steps": 3}))
    with torch.no_grad():
        next(other.vision_model.parameters()).add_(1e-3)
    monkeypatch.setattr(synthetic_run, "small_model", lambda recipe: other)
    with pytest.raises(ValueError, match=r"model differs .weights: '\w{16}' here, '\w{16}' there.; resume with the"):
        train_small(small_recipe({"image.steps": 3}), tmp_path, resume=True)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"runtime.checkpoint_minutes": 0.0}, "checkpoint_minutes is 0.0; it must be above 0, or null"),
        ({"runtime.checkpoint_keep": 0}, "checkpoint_keep is 0; it must be at least 1"),
        (
            {"runtime.checkpoint_async": True, "runtime.head_storage": "disk"},
            "checkpoint_async is true with head_storage disk",
        ),
        ({"runtime.checkpoint_async": "yes"}, "checkpoint_async is 'yes'; choose one of False, True"),
    ],
)
def test_invalid_checkpoint_settings_are_rejected(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        small_recipe(changes)
