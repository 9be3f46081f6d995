"""The plan of the demo: which steps there are, what remains, and how long it takes on this machine."""

import json
import sys
from pathlib import Path

import pytest

from examples import demo


def arguments(monkeypatch: pytest.MonkeyPatch, *words: str) -> object:
    monkeypatch.setattr(sys, "argv", ["demo", *words])
    return demo.parse_arguments()


def names(args: object) -> list[str]:
    return demo.read_plan(args).names  # type: ignore[arg-type]


def test_the_default_demo_trains_once_and_evaluates_no_baseline(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    args = arguments(monkeypatch, "--out", str(tmp_path))
    expected = ["emoji", "govern", "score", "train auto", "index index", "evaluation"]
    assert names(args) == [*expected, "governance page", "page", "cards"]


def test_the_full_demo_adds_baselines(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    args = arguments(monkeypatch, "--full", "--out", str(tmp_path), "--share", "runs/demo")
    assert [name for name in names(args) if name.startswith("train")] == [
        "train emoji",
        "train emoji_image_only",
        "train emoji_zero_shot",
    ]
    assert len(demo.evaluation_steps(args)) == 3 + len(demo.ALL_BASELINES)  # type: ignore[arg-type]


def test_every_step_has_a_usual_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for words in ([], ["--full"], ["--full", "--second-round"]):
        assert set(names(arguments(monkeypatch, "--out", str(tmp_path), *words))) <= set(demo.USUAL_SECONDS)


def test_baselines_without_full_are_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        arguments(monkeypatch, "--out", str(tmp_path), "--baselines", "text_only")
    assert "--baselines needs --full" in capsys.readouterr().err


@pytest.mark.parametrize("recipe", [{"name": "auto"}, {"model": {"name": "auto"}}])
def test_a_folder_of_another_recipe_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str], recipe: dict[str, object]
) -> None:
    (tmp_path / "recipe.json").write_text(json.dumps(recipe))
    arguments(monkeypatch, "--out", str(tmp_path))
    with pytest.raises(SystemExit):
        arguments(monkeypatch, "--full", "--out", str(tmp_path))
    assert "holds a model of the recipe auto, not emoji" in capsys.readouterr().err


def test_the_estimate_follows_the_speed_of_finished_steps(tmp_path: Path) -> None:
    plan = demo.Plan(["a", "b", "c"], {"a": 10.0, "b": 20.0, "c": 100.0}, {}, tmp_path / "timings.json")
    assert plan.estimate() == "3 steps remain, about 2 min, on an idle 2-core machine; the next takes about 10 s"
    plan.keep("a", 30.0)
    plan.finish("a")
    assert plan.speed() == 3.0
    assert plan.estimate() == "2 steps remain, about 6 min; the next takes about 60 s"
    plan.keep("b", 60.0)
    plan.finish("b")
    assert plan.estimate() == "1 step remains, about 5 min; the next takes about 5 min"
    assert json.loads((tmp_path / "timings.json").read_text()) == {"a": 30.0, "b": 60.0}


def test_steps_run_in_order_and_finished_ones_are_skipped(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def step(name: str) -> demo.Step:
        result = tmp_path / name
        return demo.Step(name, "data", result, demo.python("-c", f"open({str(result)!r}, 'w')"))

    (tmp_path / "a").touch()
    steps = [step("a"), step("b")]
    plan = demo.Plan(["b", "side"], {"b": 1.0, "side": 1.0}, {}, tmp_path / "timings.json")
    demo.run(steps, plan)
    demo.run_side_by_side([[step("c")], [step("d")]], "side", plan)
    assert plan.names == []
    assert set(plan.seconds) == {"b", "side"}
    lines = [line for line in capfd.readouterr().out.splitlines() if line.startswith(("--", "=="))]
    assert lines[0] == f"== a: found {tmp_path / 'a'}"
    assert lines[1].startswith("-- 2 steps remain")
    assert lines[2].startswith("== b: ")
    assert lines[3].startswith("-- 1 step remains")
