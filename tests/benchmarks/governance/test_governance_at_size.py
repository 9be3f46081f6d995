"""Benchmarks of two rounds, of incremental runs and of kills, by hand."""

import json
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.governance import incremental, killed, loop
from data_governance.inputs.tables import feature_column


def write_data(folder: Path) -> None:
    """Queries q0 to q9 on days 1 to 10, each clicking document d(its number // 2); q9 also d0, and q2 d8."""
    asked = [*range(10), 9, 2]
    clicked = [number // 2 for number in range(10)] + [0, 8]
    columns = {
        "query_id": [f"q{number}" for number in asked],
        "doc_id": [f"d{number}" for number in clicked],
        "at": [datetime(2025, 1, 1 + number) for number in asked],
    }
    pq.write_table(pa.table(columns), folder / "behaviour.parquet")
    pq.write_table(pa.table({"query_id": [f"q{number}" for number in range(10)]}), folder / "queries.parquet")
    pq.write_table(pa.table({"doc_id": [f"d{number}" for number in range(10)]}), folder / "train_catalogue.parquet")


def test_the_latest_queries_and_drawn_documents_are_new_and_their_documents_are_touched(tmp_path: Path) -> None:
    write_data(tmp_path)
    part = tmp_path / "part"
    part.mkdir()
    found = incremental.split_tables(tmp_path, part, share=0.1, seed=0)
    fresh = np.random.default_rng(0).choice([f"d{number}" for number in range(10)], 1, replace=False)[0]
    behaviour = pq.read_table(part / "behaviour.parquet")
    assert "q9" not in behaviour["query_id"].to_pylist()
    assert fresh not in behaviour["doc_id"].to_pylist()
    assert fresh not in pq.read_table(part / "train_catalogue.parquet")["doc_id"].to_pylist()
    assert pq.read_table(part / "queries.parquet")["query_id"].to_pylist() == sorted(
        set(behaviour["query_id"].to_pylist())
    )
    old = {f"d{number}" for number in range(10)} - {fresh}
    # q9 is new and clicks d4 and d0; d8 is new, and q2, which clicks it, clicked d1 as well.
    assert fresh == "d8"
    assert set(found["same_clicks"]) == old - {"d4", "d0"}
    assert set(found["untouched"]) == old - {"d4", "d0", "d1"}
    with pytest.raises(ValueError, match=r"--share 0\.0: it must leave new and old rows among 10 queries"):
        incremental.split_tables(tmp_path, part, share=0.0, seed=0)


def test_kept_keys_are_counted_over_untouched_documents_and_pairs_against_a_full_run() -> None:
    earlier = {"a": "k", "b": "k", "c": "l", "d": "l"}
    again = {"a": "k", "b": "k", "c": "l", "d": "m", "new": "m"}
    full = {"a": "x", "b": "x", "c": "y", "d": "y", "new": "z"}
    made = {"untouched": ["a", "c"], "same_clicks": ["a", "c", "d"]}
    found = incremental.compared(earlier, full, again, made)
    # pairs: full ab, cd; again ab, d-new: precision 1/2, recall 1/2
    assert found == {"untouched": 2, "keys_kept": 1.0, "keys_kept_same_clicks": 0.6667, "pair_f1": 0.5}


def test_tables_compare_equal_in_any_row_order_and_unequal_after_a_small_change(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).random((4, 3), dtype=np.float32)
    for name, order, change in (("one", [0, 1, 2, 3], 0.0), ("two", [2, 0, 3, 1], 0.0), ("three", [0, 1, 2, 3], 1e-3)):
        values = (rows + np.float32(change) * np.eye(4, 3, dtype=np.float32))[order]
        table = pa.table({"id": [str(i) for i in order], "vector": feature_column(values)})
        (tmp_path / name / "samples").mkdir(parents=True)
        pq.write_table(table.slice(0, 1), tmp_path / name / "samples" / "00000.parquet")
        pq.write_table(table.slice(1), tmp_path / name / "samples" / "00001.parquet")
    one, two, three = (killed.tables(tmp_path / name) for name in ("one", "two", "three"))
    assert one == two
    assert len(one["samples"]) == 4
    assert one != three


def test_a_run_is_killed_after_its_time_and_a_run_that_ends_before_is_recognised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        killed, "governance_command", lambda data, out: [sys.executable, "-c", f"import time; time.sleep({data})"]
    )
    stage = tmp_path / "stages" / "admit"
    stage.mkdir(parents=True)
    (stage / "stage.json").write_text("{}")
    assert killed.killed(Path("60"), tmp_path, 0.3) == "admit"
    assert killed.killed(Path("60"), tmp_path / "other", 0.05) == "nothing"
    assert killed.killed(Path("0"), tmp_path, 60.0) is None


def test_the_loop_reuses_data_and_model_of_the_demo_only_at_the_demos_share_of_wrong_clicks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[str] = []

    def recorded(result: Path, *words: Any) -> None:
        called.append(" ".join(str(word) for word in words))
        result.parent.mkdir(parents=True, exist_ok=True)
        if result.name.startswith(("first", "second")):
            result.write_text(json.dumps(dict.fromkeys(loop.SHOWN, 0.5)))

    monkeypatch.setattr(loop, "run_unless_done", recorded)
    demo, out = tmp_path / "demo", tmp_path / "out"
    (demo / "data").mkdir(parents=True)
    (demo / "data" / "emoji.json").write_text(json.dumps({"settings": {"noise": 0.2}}))
    (demo / "recipe.json").write_text(json.dumps({"name": "emoji"}))
    found = loop.loop(0.2, out, demo)
    assert found["second"]["category_pair_f1"] == 0.5
    assert f"--encoder {demo / 'hub'}" in called[4]
    assert not any(str(out / "data20") in words for words in called)
    called.clear()
    (demo / "recipe.json").write_text(json.dumps({"name": "emoji_single"}))
    loop.loop(0.2, out, demo)
    assert f"--data {demo / 'governed'} --out {out / 'trained20'}" in called[3]
    assert f"--encoder {out / 'trained20' / 'hub'}" in called[4]
    called.clear()
    loop.loop(0.4, out, demo)
    assert f"--data {out / 'governed40'} --out {out / 'trained40'}" in called[3]
    assert f"--encoder {out / 'trained40' / 'hub'}" in called[4]
    assert not any(str(demo) in words for words in called)
