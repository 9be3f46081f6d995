"""Benchmark of bad rows: bad rows are found, lost good rows are noticed."""

from pathlib import Path

import pyarrow as pa
import pytest

from benchmarks.governance import bad_rows


def test_every_planted_row_is_found_for_its_reason_and_every_good_one_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bad_rows, "QUERIES", 30)
    monkeypatch.setattr(bad_rows, "DRAWN_DOCUMENTS", 20)
    found = bad_rows.slowdown(300, every=20, repeats=1, seed=0)
    assert found["every_bad_row_found_for_its_reason"]
    assert found["good_rows_equal"]
    assert found["bad_rows"] == {"behaviour": 15, "queries": 6, "catalogue": 15 + bad_rows.LONG_TEXTS}
    monkeypatch.setattr(bad_rows, "kept_tables", lambda result: {"n": pa.table({"rows": [id(result)]})})
    assert not bad_rows.slowdown(300, every=20, repeats=1, seed=0)["good_rows_equal"]


def test_bad_rows_lie_among_the_good_ones_which_keep_their_order() -> None:
    sound = pa.table({"id": [f"g{i}" for i in range(50)]})
    both, at = bad_rows.mixed(sound, [{"id": "bad"}] * 7, seed=3)
    assert both.take(pa.array(at)).column("id").to_pylist() == sound.column("id").to_pylist()
    assert both.column("id").to_pylist()[-1] != "bad"
    assert both.column("id").to_pylist().count("bad") == 7


def test_unusable_tables_are_named_and_a_truncated_file_loses_only_its_own_rows() -> None:
    found = bad_rows.refused(300, seed=0)
    assert "column 'doc_id' is missing" in str(found["missing column"])
    assert "column 'clicks' has type bool" in str(found["wrong type"])
    assert "has no rows" in str(found["no rows"])
    folder = bad_rows.one_bad_file(300, seed=0)
    assert folder["lost"] == ["3.parquet"]
    assert folder["rows_kept"] == folder["rows_of_the_others"] == 270


def test_too_few_rows_are_an_error(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert bad_rows.main(["--rows", "10", "--json", str(tmp_path / "r.json")]) == 2
    assert "error: --rows 10: at least" in capsys.readouterr().err
