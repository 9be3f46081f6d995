"""Comparison of adapters with tuned layers."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks.training.adapters import METRICS, RECIPES, commands, main, parameters, share_views, summary, targets_of
from retrieval.__main__ import build_parser
from train.command import read_options
from train.recipes.registry import recipe_by_name


def run(first: float) -> dict[str, Any]:
    return dict.fromkeys(METRICS, first)


def test_the_difference_is_the_mean_over_pairs_of_the_same_seed() -> None:
    found = summary({"emoji_tuned": {0: run(0.5), 1: run(0.4)}, "emoji_lora": {0: run(0.47), 1: run(0.41)}})
    assert found["difference"]["recall_at_1"] == pytest.approx(-0.01)
    assert found["mean"]["emoji_lora"]["recall_at_10"] == pytest.approx(0.44)
    assert found["seeds"] == [0, 1]


def test_the_commands_are_accepted_by_the_command_lines() -> None:
    steps = list(commands(Path("demo"), Path("out"), "emoji_lora", seed=1).values())
    options = read_options(steps[0][2:])
    assert options is not None
    assert options.recipe in RECIPES
    assert options.features == Path("out/features-1")
    for words in steps[1:]:
        assert words[1:3] == ["-m", "retrieval"]
        build_parser().parse_args(words[3:])


def test_every_seed_finds_the_views_of_seed_0(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.training.adapters.read_samples", lambda _: SimpleNamespace(table=None))
    monkeypatch.setattr("benchmarks.training.adapters.build_model", lambda *_, **__: (None, None))
    monkeypatch.setattr("benchmarks.training.adapters.cache_keys", lambda found: (f"images-{found.seed}", ""))
    share_views(tmp_path, tmp_path / "features-2", seed=2)
    assert not (tmp_path / "features-2").exists()
    (tmp_path / "features" / "images-0").mkdir(parents=True)
    for _ in range(2):
        share_views(tmp_path, tmp_path / "features-2", seed=2)
    assert (tmp_path / "features-2" / "images-2").resolve() == tmp_path / "features" / "images-0"


def test_both_recipes_adapt_the_text_encoder_and_one_of_them_by_adapters() -> None:
    tuned, adapters = (recipe_by_name(name) for name in RECIPES)
    assert (tuned.text.tune_layers, tuned.text.lora.rank, tuned.image.lora.rank) == (True, 0, 0)
    assert adapters.text.lora.rank > 0
    assert adapters.image.lora.rank > 0


def test_counted_parameters_are_those_that_training_opens() -> None:
    tuned, adapters = (parameters(name) for name in RECIPES)
    layers, width, rank = 6, 384, recipe_by_name("emoji_lora").text.lora.rank
    assert adapters["text_encoder"]["trained"] == layers * 2 * 2 * width * rank
    assert tuned["text_encoder"]["trained"] == layers * 2 * (width + 1) * width
    assert tuned["image_head"] == adapters["image_head"] > 0
    for found in (tuned, adapters):
        both = found["both_encoders"]
        assert both["trained"] == found["image_encoder"]["trained"] + found["text_encoder"]["trained"]
        assert found["share"] == pytest.approx(both["trained"] / both["all"], abs=1e-4)
    assert adapters["share"] < 0.05 < tuned["share"]
    assert (tuned["ranks"], adapters["ranks"]["text"]) == ({"image": 0, "text": 0}, rank)


def test_a_target_is_met_up_to_its_limit() -> None:
    met = targets_of({"recall_at_1": -0.02}, 0.0499)
    assert all(target["met"] for target in met.values())
    assert not any(target["met"] for target in targets_of({"recall_at_1": -0.0201}, 0.05).values())


def test_a_folder_without_a_demo_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--demo", str(tmp_path)]) == 2
    assert "holds no governed data: run python -m examples.demo first" in capsys.readouterr().err
