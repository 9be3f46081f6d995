"""Commands recorded in result files still exist and still take the recorded flags."""

import argparse
import importlib
import json
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.governance import suite

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results"


class ParsedError(Exception):
    """Raised in place of the benchmark, once its command line was accepted."""


def recorded(value: Any) -> Iterator[str]:
    """Every `command` at any depth of a result."""
    for key, part in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else []:
        if key == "command":
            yield part
        else:
            yield from recorded(part)


def all_commands() -> list[str]:
    found: set[str] = set()
    for path in RESULTS.glob("*.json"):
        found |= set(recorded(json.loads(path.read_text(encoding="utf-8"))))
    return sorted(found)


def main_of(module: str) -> Any:
    found = importlib.import_module(module)
    return (importlib.import_module(f"{module}.__main__") if hasattr(found, "__path__") else found).main


@pytest.mark.parametrize("command", all_commands())
def test_a_recorded_command_is_accepted_today(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    python, flag, module, *words = shlex.split(command)
    assert (python, flag) == ("python", "-m")
    parse = argparse.ArgumentParser.parse_args

    def parse_and_stop(*args: Any, **kwargs: Any) -> None:
        parse(*args, **kwargs)
        raise ParsedError

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_and_stop)
    monkeypatch.setattr(sys, "argv", [module, *words])
    with pytest.raises(ParsedError):
        main_of(module)()


def test_a_result_of_every_governance_command_can_be_reused() -> None:
    demo = Path(suite.DEMO)
    missing = [name for name, one in suite.BENCHMARKS.items() if not suite.result_of(one.command(demo), RESULTS)]
    assert missing == []
