"""Which checkpoint is whole, which is the best, which stay, and what a torn one lacks: questions about files."""

import json
import shutil
from pathlib import Path

import pytest
from accelerate import Accelerator

from tests.support.synthetic_run import small_recipe, train_small
from train.checkpoints.folder import (
    best_checkpoint,
    checkpoint_to_resume,
    clear,
    newest_checkpoint,
    put_in_place,
    torn_by,
)
from train.context import RunContext
from train.publish.run_folder import open_run
from train.recipes.recipe import Recipe


def written(folder: Path, step: int, *, figure: float | None = None, keep: int = 2) -> Path:
    partial = folder / f".step-{step:08d}.partial"
    clear(partial)
    (partial / "rows.distcp").write_bytes(b"0123456789")
    put_in_place(partial, folder / f"step-{step:08d}", {"step": step, "figure": figure}, keep=keep)
    return folder / f"step-{step:08d}"


def steps_in(folder: Path) -> list[int]:
    return sorted(int(path.name.split("-")[1]) for path in folder.iterdir())


def test_the_newest_stay_and_the_best_beside_them(tmp_path: Path) -> None:
    for step, figure in ((1, None), (2, 0.5), (3, 0.7), (4, 0.7), (5, None), (6, 0.6)):
        written(tmp_path, step, figure=figure)
    assert steps_in(tmp_path) == [3, 5, 6]
    assert best_checkpoint(tmp_path) == tmp_path / "step-00000003"
    written(tmp_path, 7, figure=0.8, keep=1)
    assert steps_in(tmp_path) == [7]


def test_without_a_figure_there_is_no_best(tmp_path: Path) -> None:
    written(tmp_path, 1)
    assert best_checkpoint(tmp_path) is None
    assert best_checkpoint(tmp_path / "nowhere") is None


def test_a_torn_one_does_not_count_among_those_that_stay(tmp_path: Path) -> None:
    (written(tmp_path, 9) / "rows.distcp").unlink()
    for step in (1, 2, 3):
        written(tmp_path, step)
    assert steps_in(tmp_path) == [2, 3, 9]
    assert newest_checkpoint(tmp_path) == tmp_path / "step-00000003"


def test_writing_the_same_step_again_replaces_it_and_leftovers_of_killed_calls_go(tmp_path: Path) -> None:
    old = written(tmp_path, 4)
    (old / "rows.distcp").write_bytes(b"")
    shutil.copytree(old, tmp_path / ".step-00000002.removed")
    assert torn_by(written(tmp_path, 4)) is None
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
def test_every_file_in_turn_missing_or_cut_makes_it_torn_by_name(trained: Path, tmp_path: Path, how: str) -> None:
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
        said = torn_by(folder / "step-00000012")
        assert said is not None
        assert said.startswith(name)
        assert newest_checkpoint(folder) == folder / "step-00000010"


def test_resuming_says_what_it_passes_over(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(trained, tmp_path / "checkpoints")
    lost = next((tmp_path / "checkpoints" / "step-00000012").glob("*.distcp"))
    lost.unlink()
    train_small(small_recipe(), tmp_path, resume=True)
    said = capsys.readouterr().out
    assert f"checkpoint step-00000012 is passed over: {lost.name} is missing" in said
    assert "resumed from step-00000010: 10 steps done" in said


def test_a_folder_with_torn_ones_alone_is_refused_naming_the_files(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path / "checkpoints")
    for path in (tmp_path / "checkpoints").iterdir():
        (path / ".metadata").unlink()
    with pytest.raises(ValueError, match=r"no whole checkpoint .step-00000012: .metadata is missing; step-00000010: "):
        train_small(small_recipe(), tmp_path, resume=True)
    assert checkpoint_to_resume(tmp_path / "nowhere") is None


def test_a_state_of_an_older_version_counts_as_todays_defaults(trained: Path, tmp_path: Path) -> None:
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
        recipe=recipe, accelerator=Accelerator(cpu=True), folder=folder, features=folder, seed=seed, resume=True
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
