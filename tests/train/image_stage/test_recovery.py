"""A run that diverges goes back to its best checkpoint at a lower rate, by itself."""

import json
from pathlib import Path

from tests.support.commands import reset_accelerator
from tests.support.synthetic_governed import write_governed
from train.command import read_options
from train.image_stage.recovery import RATE_CUT, read_recoveries
from train.pipeline import train
from train.recipes.emoji import tiny
from train.run import context_of

CAREFUL = {
    "image.steps": 12,
    "image.evaluate_every": 4,
    "image.early_stopping": 2,
    "image.export_best": True,
    "image.recover": 2,
    "text.encoder": None,
}


def run(folder: Path, *words: str, **changes: object) -> Path:
    """Run folder of `tiny` with evaluations and recovery."""
    out = folder / "run"
    if not words:
        recipe = tiny().with_changes({**CAREFUL, **{name.replace("__", "."): value for name, value in changes.items()}})
        (folder / "given.json").write_text(json.dumps(recipe.to_json()))
    data = folder / "data"
    if not data.exists():
        write_governed(data)
    given = ["--data", str(data), "--out", str(out), "--recipe", str(folder / "given.json"), *words]
    options = read_options(given)
    assert options is not None
    train(context_of(options))
    reset_accelerator()
    return out


def test_a_rate_a_thousandfold_too_high_ends_in_a_finished_run_at_a_lower_rate(tmp_path: Path) -> None:
    out = run(tmp_path, image__encoder_learning_rate=50.0, image__projection_learning_rate=200.0)
    events = read_recoveries(out)
    assert len(events) == 2, "as often as the recipe allows"
    assert all(event["back_to"] <= event["step"] and event["reason"] for event in events)
    assert (out / "hub" / "config.json").is_file()
    lines = [json.loads(line) for line in (out / "train.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(len(lines))), "the journal holds each step once"
    assert lines[0]["learning_rate"] <= 200.0 * RATE_CUT**2
    steps = [json.loads(line)["step"] for line in (out / "evaluation.jsonl").read_text().splitlines()]
    assert steps == sorted(set(steps))
    assert steps[0] == 0, "judged before the first step"


def test_a_run_that_learns_is_left_alone(tmp_path: Path) -> None:
    out = run(tmp_path, image__early_stopping=None)
    assert read_recoveries(out) == []
    lines = [json.loads(line) for line in (out / "train.jsonl").read_text().splitlines()]
    assert len(lines) == 12


def test_a_resumed_run_keeps_the_lowered_rate(tmp_path: Path) -> None:
    out = run(tmp_path, image__encoder_learning_rate=50.0, image__projection_learning_rate=200.0)
    events = read_recoveries(out)
    before = (out / "train.jsonl").read_text()
    run(tmp_path, "--resume")
    assert read_recoveries(out) == events
    assert (out / "train.jsonl").read_text() == before
