"""The optional second round of the demo: governance with the trained model."""

import sys
from pathlib import Path

import pytest

from examples import demo


def steps(monkeypatch: pytest.MonkeyPatch, *words: str) -> tuple[list[demo.Step], list[demo.Step]]:
    monkeypatch.setattr(sys, "argv", ["demo", "--out", "runs/x", *words])
    args = demo.parse_arguments()
    return demo.data_steps(args), demo.second_round_steps(args)


def test_second_round_is_optional_and_differs_from_the_first_by_its_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    assert steps(monkeypatch)[1] == []
    first, second = steps(monkeypatch, "--second-round")
    assert [step.name for step in (*first, *second)] == [
        "emoji",
        "govern",
        "score",
        "second round",
        "score second round",
    ]
    out = Path("runs/x")
    encoder = ["--encoder", str(out / "hub")]
    expected = [word if word != str(out / "governed") else str(out / "second_round") for word in first[1].command]
    assert second[0].command == expected + encoder
    assert second[0].result == out / "second_round" / "ledger.json"
    assert second[1].result == out / "second_round.json"
    assert str(out / "second_round") in second[1].command
    earlier = steps(monkeypatch, "--second-round", "--share", "runs/y")[1][0].command
    assert str(Path("runs/y") / "data" / "queries.parquet") in earlier
    assert earlier[-2:] == encoder
