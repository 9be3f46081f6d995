"""The command line is small and stays as it is."""

from pathlib import Path

import pytest

from train.command import argument_parser, read_options
from train.recipes.registry import RECIPES


def test_the_flags_are_frozen() -> None:
    flags = {flag for action in argument_parser()._actions for flag in action.option_strings}
    assert flags == {
        "-h", "--help", "--data", "--out", "--recipe", "--seed", "--max-steps", "--resume", "--features", "--tracker",
        "--image-side", "--list-recipes",
    }  # fmt: skip


def test_help_has_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        read_options(["--help"])
    assert "accelerate launch train/run.py --data governed --out runs/demo" in capsys.readouterr().out


def test_recipes_are_listed_with_what_they_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert read_options(["--list-recipes"]) is None
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["auto", *RECIPES]
    assert all(len(line.split()) > 4 for line in lines)


def test_features_lie_in_the_run_unless_they_are_shared() -> None:
    options = read_options(["--data", "d", "--out", "o"])
    assert options is not None
    assert options.features == Path("o") / "features"
    shared = read_options(["--data", "d", "--out", "o", "--features", "f"])
    assert shared is not None
    assert shared.features == Path("f")


def test_a_shortened_flag_is_not_guessed() -> None:
    with pytest.raises(SystemExit):
        read_options(["--dat", "d", "--out", "o"])
