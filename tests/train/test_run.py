"""Training through the user's own command: whole path, two ranks, resume, and what it refuses."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel

from modeling_oclear import OclearForCategoryClassification
from tests.support.commands import TRAIN, reset_accelerator, run_python
from tests.support.curves import FIGURES, assert_same_run, read_curve
from tests.support.synthetic_governed import CATEGORIES, write_governed
from train.context import RunContext
from train.parallel.topology import start_topology
from train.pipeline import Parts, train
from train.recipes.registry import recipe_by_name
from train.run import main

ROOT = Path(__file__).parents[2]


def launch(*words: object, config: str = "one_process") -> subprocess.CompletedProcess[str]:
    """`accelerate launch --config_file train/launch/CONFIG.yaml train/run.py WORDS`."""
    file = ROOT / "train" / "launch" / f"{config}.yaml"
    return launch_bare("--config_file", file, ROOT / "train" / "run.py", *words)


def launch_bare(*words: object) -> subprocess.CompletedProcess[str]:
    return run_python("-m", "accelerate.commands.accelerate_cli", "launch", *words)


@pytest.fixture(scope="module")
def governed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_governed(tmp_path_factory.mktemp("data") / "governed")


@pytest.fixture(scope="module")
def alone(governed: Path) -> Path:
    """A finished run of one process."""
    out = governed.parent / "alone"
    done = launch("--data", governed, "--out", out, "--recipe", "tiny", "--features", governed.parent / "features")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "topology: 1 process(es), no process group, NO, device cpu, 1 thread(s) each" in done.stdout
    return out


def test_a_run_leaves_everything_that_the_next_stages_read(alone: Path) -> None:
    names = {path.name for path in alone.iterdir()}
    files = {"train.jsonl", "environment.json", "recipe.json", "training.json", "calls.json"}
    assert names == {"hub", "checkpoints", ".lock", *files}
    hub = alone / "hub"
    assert not [path for path in hub.rglob("*") if path.suffix in (".bin", ".pt", ".pth", ".pkl", ".distcp")]
    model = AutoModel.from_pretrained(hub)
    embeds = model.get_query_embeds(torch.zeros(2, 3, 37, 37))
    assert embeds.shape == (2, 20)
    queries = load_file(hub / "calibration.safetensors")["query_embeds"]
    assert queries.shape == (32, 20)
    assert queries.dtype == torch.float16
    torch.testing.assert_close(queries.float().norm(dim=1), torch.ones(32), atol=2e-3, rtol=0)
    lines = [json.loads(line) for line in (hub / "categories.jsonl").read_text().splitlines()]
    assert [line["category_id"] for line in lines] == list(range(CATEGORIES))
    head = OclearForCategoryClassification.from_pretrained(hub).head.weight
    torch.testing.assert_close(head.detach().norm(dim=1), torch.ones(CATEGORIES))


def test_what_a_run_writes_about_itself_names_no_machine(alone: Path) -> None:
    for name in ("environment.json", "recipe.json", "training.json"):
        text = (alone / name).read_text()
        assert str(alone.parent) not in text
        assert os.uname().nodename not in json.loads(text).values()
    training = json.loads((alone / "training.json").read_text())
    assert training["counts"]["trained_documents"] == 29
    assert set(training["seconds"]) == {"features", "image_side", "selection", "text_side", "export"}


def test_training_learns_the_made_categories(alone: Path) -> None:
    loss = read_curve(alone)["loss"]
    assert len(loss) == 50
    assert loss[-10:].mean() < 0.6 * loss[:5].mean()


def test_two_gloo_ranks_equal_one_process_to_rounding(alone: Path, governed: Path, reordered_tiny: Path) -> None:
    out = governed.parent / "two"
    words = ("--data", governed, "--out", out, "--recipe", "tiny", "--features", governed.parent / "features")
    done = launch(*words, config="cpu_two_processes")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "topology: 2 process(es), gloo" in done.stdout
    assert "rank 0 holds classes 0 to 5 (5 of 10 rows)" in done.stdout
    assert "rank 1 holds classes 5 to 10 (5 of 10 rows)" in done.stdout
    assert_same_run(out, alone, reordered=[reordered_tiny])


def test_a_run_killed_after_a_checkpoint_resumes_bit_equal(alone: Path, governed: Path) -> None:
    out = governed.parent / "killed"
    shutil.copytree(alone, out)
    shutil.rmtree(out / "checkpoints" / "step-00000050")
    shutil.rmtree(out / "hub")
    words = ("--data", governed, "--out", out, "--recipe", "tiny", "--features", governed.parent / "features")
    done = launch(*words, "--resume")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "resumed from step-00000040: 40 steps done" in done.stdout
    ours, theirs = (read_curve(run, ("step", *FIGURES)) for run in (out, alone))
    for name, values in theirs.items():
        assert (ours[name] == values).all(), name
    for name in ("model.safetensors", "calibration.safetensors"):
        assert (out / "hub" / name).read_bytes() == (alone / "hub" / name).read_bytes()


def test_a_launch_that_starts_fewer_processes_than_asked_for_stops(governed: Path) -> None:
    out = governed.parent / "fewer"
    words = ("--data", governed, "--out", out, "--recipe", "tiny", "--max-steps", 1)
    done = launch_bare("--cpu", "--num_processes", 2, ROOT / "train" / "run.py", *words)
    assert done.returncode != 0
    assert "error: 2 processes were asked for, but accelerate runs 1" in done.stderr
    assert not out.exists()


def test_fsdp_without_a_gpu_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    reset_accelerator()
    with pytest.raises(ValueError, match="FSDP was asked for, but accelerate gives NO on cpu"):
        start_topology(tracker="none", folder=tmp_path, seed=0)
    reset_accelerator()


def test_a_second_run_into_one_folder_is_refused(governed: Path, tmp_path: Path) -> None:
    out, second = tmp_path / "run", []

    def build(*_: object, **__: object) -> Any:
        second.append(run_python(TRAIN, "--data", governed, "--out", out, "--recipe", "tiny"))
        raise ValueError("the first run is still the only one")

    reset_accelerator()
    accelerator = start_topology(tracker="none", folder=out, seed=0)
    context = RunContext(
        recipe=recipe_by_name("tiny"), accelerator=accelerator, data=governed, folder=out, features=out / "features"
    )
    with pytest.raises(ValueError, match="the first run is still the only one"):
        train(context, parts=Parts(build_model=build))
    reset_accelerator()
    [done] = second
    assert done.returncode == 2
    assert f"error: --out {out}: another run uses this folder. Wait until it has ended, or" in done.stderr
    assert {path.name for path in out.iterdir()} == {".lock", "recipe.json", "environment.json"}


def refused(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: object) -> str:
    """Run the command in this process; what it says on its one error line."""
    monkeypatch.setattr(sys, "argv", ["run.py", *map(str, words)])
    assert main() == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(said) == 1
    return said[0]


def test_mistakes_end_in_one_line(
    tmp_path: Path, alone: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "make demo" in refused(capsys, monkeypatch)
    assert "no --out" in refused(capsys, monkeypatch, "--data", tmp_path)
    assert "--max-steps is 0" in refused(capsys, monkeypatch, "--data", "x", "--out", "y", "--max-steps", 0)
    assert "no recipe is called" in refused(capsys, monkeypatch, "--data", "x", "--out", "y", "--recipe", "z")
    nowhere = refused(capsys, monkeypatch, "--data", tmp_path / "nowhere", "--out", tmp_path / "out")
    assert "is not a folder" in nowhere
    again = refused(capsys, monkeypatch, "--data", alone.parent / "governed", "--out", alone, "--recipe", "tiny")
    assert "holds a run already" in again
    assert "--resume" in again
