"""The command `oclear`: it lists its subcommands, starts at once, and runs the existing modules."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

import oclear
from oclear.command import COMMANDS, main

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "transformers", "numpy", "datasets", "pyarrow", "duckdb", "faiss", "PIL")


@pytest.fixture(autouse=True)
def fresh_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other tests import the modules that a subcommand runs; runpy warns when one is loaded already."""
    for command in COMMANDS.values():
        for name in (command.module, f"{command.module}.__main__"):
            if name == "train.run" or name.endswith(".__main__"):
                monkeypatch.delitem(sys.modules, name, raising=False)


def run_python(*words: str, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_help_lists_every_subcommand_with_one_line_and_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    for name, command in COMMANDS.items():
        assert f"  {name} " in text
        assert command.text in text
        assert command.example.startswith(f"oclear {name} ")
        assert command.example in text
    assert "accelerate launch" in text


def test_the_promised_subcommands_exist() -> None:
    promised = {"govern", "train", "index", "search", "evaluate", "push", "check", "explain", "report", "demo"}
    assert promised <= set(COMMANDS)


def test_help_and_import_load_no_heavy_library() -> None:
    source = (
        "import sys, oclear, oclear.command; oclear.command.main(['--help']); "
        f"print([name for name in {HEAVY} if name in sys.modules], file=sys.stderr)"
    )
    start = time.perf_counter()
    done = run_python("-c", source)
    assert done.returncode == 0, done.stderr
    assert done.stderr.strip() == "[]"
    assert time.perf_counter() - start < 10  # 0.2 s on an idle core; a loaded machine is slower


def test_every_subcommand_names_an_existing_module() -> None:
    for name, command in COMMANDS.items():
        path = ROOT / command.module.replace(".", "/")
        assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file(), name


def test_an_unknown_subcommand_is_refused_with_the_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serch"]) == 2
    assert "'serch' is not a command. Choose one of check, govern" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["govern", "explain", "index", "search", "evaluate"])
def test_subcommands_pass_their_flags_to_the_module(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--help"]) == 0
    assert COMMANDS[name].words[0] in capsys.readouterr().out


@pytest.mark.parametrize("name", ["check", "govern", "index", "push", "plan"])
def test_help_names_the_command_that_was_typed(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--help"]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"usage: oclear {name} ")
    assert "python -m" not in said


def test_help_of_train_names_the_launcher_and_loads_no_torch() -> None:
    source = "import sys; from oclear.command import main; main(['train', '--help']); print('torch' in sys.modules)"
    done = run_python("-c", source)
    assert done.returncode == 0, done.stderr
    assert "--resume" in done.stdout
    assert "accelerate launch" in done.stdout
    assert done.stdout.endswith("False\n")


def test_the_exit_status_is_that_of_the_module(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["govern"]) == 2
    assert "run needs --behaviour" in capsys.readouterr().err


def test_arguments_of_the_caller_are_restored() -> None:
    before = list(sys.argv)
    main(["govern"])
    assert sys.argv == before


def test_demo_without_a_checkout_names_the_checkout(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("oclear.command.importlib.util.find_spec", lambda name: None)
    assert main(["demo"]) == 2
    said = capsys.readouterr().err
    assert "checkout" in said
    assert "`make demo`" in said


def test_a_missing_library_names_the_extra(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ModuleNotFoundError("No module named 'duckdb'", name="duckdb")

    monkeypatch.setattr("oclear.command.runpy.run_module", fail)
    assert main(["govern"]) == 2
    assert "pip install 'oclear[govern]'" in capsys.readouterr().err


def test_public_names_are_complete_and_load_at_first_use() -> None:
    for name in oclear.__all__:
        assert getattr(oclear, name) is not None
    assert set(oclear._SOURCES) | {"__version__"} == set(oclear.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        oclear.nothing  # noqa: B018
