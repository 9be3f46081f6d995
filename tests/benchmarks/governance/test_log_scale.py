"""Benchmark of the length of the log: its synthetic log and its counts."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.governance import log_scale


def test_the_synthetic_log_has_its_share_of_bad_rows_of_every_kind() -> None:
    log = log_scale.part_of_log(2_000, np.random.default_rng(0))
    assert log.column("query_id").null_count == 4
    assert log.column("query_id").to_pylist().count("nobody") == 4
    assert log.column("doc_id").to_pylist().count("nothing") == 4
    assert sum(value < 0 for value in log.column("clicks").to_pylist()) == 4
    assert log.column("position").to_pylist().count(0.0) == 4


def test_every_row_of_the_log_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_scale, "ROWS_PER_FILE", 700)
    log_scale.write_tables(tmp_path / "data", 2_000, seed=0)
    assert len(list((tmp_path / "data" / "behaviour").iterdir())) == 3
    found = log_scale.measured(tmp_path / "data", memory="500MB")
    assert (found["rows"], found["dropped_by_admit"]) == (2_000, 7 + 7 + 6)
    assert 0 < found["dropped_by_click_rates"] < 1_980
    assert found["edges"] > 0
    assert set(found["rows_per_second"]) == {"admit", "click_rates"}


def test_too_short_a_log_is_an_error(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert log_scale.main(["--rows", "10", "--json", str(tmp_path / "r.json")]) == 2
    assert "error: --rows takes numbers of at least" in capsys.readouterr().err
