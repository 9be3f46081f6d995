"""Checkpoint folders: complete and incomplete, newest and best, and pruning."""

import json
import logging
import shutil
from pathlib import Path

import pytest
from accelerate import Accelerator

from tests.support.synthetic_run import small_recipe, train_small
from train.checkpoints.folder import (
    best_checkpoint,
    checkpoint_to_resume,
    clear_partial,
    incomplete_reason,
    newest_checkpoint,
    publish_checkpoint,
)
from train.context import RunContext
from train.publish.run_folder import open_run
from train.recipes.recipe import Recipe


def written(folder: Path, step: int, *, figure: float | None = None, keep: int = 2) -> Path:
    partial = folder / f".step-{step:08d}.partial"
    clear_partial(partial)
    (partial / "rows.distcp").write_bytes(b"0123456789")
    publish_checkpoint(partial, folder / f"step-{step:08d}", {"step": step, "figure": figure}, keep=keep)
    return folder / f"step-{step:08d}"


def steps_in(folder: Path) -> list[int]:
    return sorted(int(path.name.split("-")[1]) for path in folder.iterdir())


def test_newest_and_best_checkpoints_are_kept(tmp_path: Path) -> None:
    for step, figure in ((1, None), (2, 0.5), (3, 0.7), (4, 0.7), (5, None), (6, 0.6)):
        written(tmp_path, step, figure=figure)
    assert steps_in(tmp_path) == [3, 5, 6]
    assert best_checkpoint(tmp_path) == tmp_path / "step-00000003"
    written(tmp_path, 7, figure=0.8, keep=1)
    assert steps_in(tmp_path) == [7]


def test_no_best_checkpoint_without_a_metric(tmp_path: Path) -> None:
    written(tmp_path, 1)
    assert best_checkpoint(tmp_path) is None
    assert best_checkpoint(tmp_path / "nowhere") is None


def test_incomplete_checkpoints_do_not_count_as_kept(tmp_path: Path) -> None:
    (written(tmp_path, 9) / "rows.distcp").unlink()
    for step in (1, 2, 3):
        written(tmp_path, step)
    assert steps_in(tmp_path) == [2, 3, 9]
    assert newest_checkpoint(tmp_path) == tmp_path / "step-00000003"


def test_rewriting_a_step_replaces_it_and_removes_leftovers(tmp_path: Path) -> None:
    old = written(tmp_path, 4)
    (old / "rows.distcp").write_bytes(b"")
    shutil.copytree(old, tmp_path / ".step-00000002.removed")
    assert incomplete_reason(written(tmp_path, 4)) is None
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000004"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`checkpoints` of a small run: steps 10 and 12."""
    folder = tmp_path_factory.mktemp("trained")
    train_small(small_recipe(), folder)
    return folder / "checkpoints"


def files_of(checkpoint: Path) -> list[str]:
    return sorted(str(path.relative_to(checkpoint)) for path in checkpoint.rglob("*") if path.is_file())


@pytest.mark.parametrize("how", ["missing", "cut"])
def test_any_missing_or_truncated_file_makes_a_checkpoint_incomplete(trained: Path, tmp_path: Path, how: str) -> None:
    names = files_of(trained / "step-00000012")
    assert len(names) >= 4
    for name in names:
        folder = tmp_path / name.replace("/", "_")
        shutil.copytree(trained, folder)
        file = folder / "step-00000012" / name
        if how == "missing":
            file.unlink()
        else:
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
        reason = incomplete_reason(folder / "step-00000012")
        assert reason is not None
        assert reason.startswith(name)
        assert newest_checkpoint(folder) == folder / "step-00000010"


def test_resume_reports_skipped_checkpoints(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(trained, tmp_path / "checkpoints")
    lost = next((tmp_path / "checkpoints" / "step-00000012").glob("*.distcp"))
    lost.unlink()
    with caplog.at_level(logging.INFO):
        train_small(small_recipe(), tmp_path, resume=True)
    output = caplog.text + capsys.readouterr().out
    assert f"checkpoint step-00000012 is skipped: {lost.name} is missing" in output
    assert "resumed from step-00000010: 10 steps done" in output


def test_folder_with_only_incomplete_checkpoints_is_rejected(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path / "checkpoints")
    for path in (tmp_path / "checkpoints").iterdir():
        (path / ".metadata").unlink()
    with pytest.raises(
        ValueError, match=r"no complete checkpoint .step-00000012: .metadata is missing; step-00000010: "
    ):
        train_small(small_recipe(), tmp_path, resume=True)
    assert checkpoint_to_resume(tmp_path / "nowhere") is None


def test_missing_fields_of_an_older_version_have_current_defaults(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path / "checkpoints")
    for path in (tmp_path / "checkpoints").iterdir():
        state = json.loads((path / "state.json").read_text())
        del state["model"], state["recipe"]["runtime"]["checkpoint_minutes"], state["recipe"]["head"]["sub_centres"]
        (path / "state.json").write_text(json.dumps(state))
    assert train_small(small_recipe(), tmp_path, resume=True).steps == 12
    with pytest.raises(ValueError, match="recipe differs .head.sub_centres: 2 here, 1 there"):
        train_small(small_recipe({"head.sub_centres": 2}), tmp_path, resume=True)


def resumed_context(folder: Path, recipe: Recipe, *, seed: int) -> RunContext:
    """A run that continues in `folder`."""
    return RunContext(
        recipe=recipe,
        accelerator=Accelerator(cpu=True),
        data=folder,
        folder=folder,
        features=folder,
        seed=seed,
        resume=True,
    )


def test_another_recipe_or_seed_is_refused_before_anything_is_written(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path / "checkpoints")
    for recipe, seed, said in (
        (small_recipe({"head.sub_centres": 2}), 0, "recipe differs .head.sub_centres: 2 here, 1 there"),
        (small_recipe(), 1, r"seed differs .1, 0.; resume with the seed it was started with"),
    ):
        with pytest.raises(ValueError, match=said):
            open_run(resumed_context(tmp_path, recipe, seed=seed))
        assert [path.name for path in tmp_path.iterdir()] == ["checkpoints"]
    open_run(resumed_context(tmp_path, small_recipe({"runtime.checkpoint_minutes": 5.0}), seed=0))
    assert (tmp_path / "recipe.json").is_file()
