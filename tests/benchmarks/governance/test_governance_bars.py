"""The suite of governance benchmarks: targets, reuse of results, statistics."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import result_file
from benchmarks.governance import noisy_labels, organising, suite, targets

FACTS = {"commit": "abc", "environment": {"cpu": "a processor"}, "threads": 1}
CLEANED = {"kind": "confusable", "noise": 0.1, "f1": 0.955, "bayes_f1": 0.99, "oracle_f1": 0.96}
SPEED = {"seconds": 2.0, "peak_gib": 0.5, "rows_per_second": 9_000}


def result(command: str, **metrics: Any) -> dict[str, Any]:
    return {"command": f"python -m benchmarks.{command}", **FACTS, **metrics}


def killed_file(path: Path, command: str, unequal: list[str]) -> None:
    found = result(command, kills=20, tables=30, unequal_tables=unequal, figures_equal=not unequal)
    path.write_text(json.dumps(found))


def test_a_target_is_the_stricter_of_distance_to_the_oracle_and_least_value() -> None:
    found = result("cleaning", rows=60_000, categories=6_000, settings=[{**CLEANED, **SPEED}])
    row = next(targets.cleaning(found))
    assert (row["bar"], row["ok"], row["oracle"], row["value"]) == (">= 0.96", False, 0.99, 0.955)
    easy = {**CLEANED, "kind": "uniform", "f1": 0.971}
    row = next(targets.cleaning({**found, "settings": [{**easy, **SPEED}]}))
    assert (row["bar"], row["ok"]) == (">= 0.97", True)
    large = {**found, "rows": 1_000_000, "settings": [{**CLEANED, **SPEED, "noise": 0.2}]}
    assert [row["ok"] for row in targets.cleaning(large)] == [True, True, True]


def test_cleanlab_is_beaten_only_where_none_of_its_modes_is_as_good() -> None:
    ours = {"f1": 0.9, "rows_per_second": 100, "peak_gib": 0.2, "cpu_seconds": 1.0}
    modes = {"cleanlab_a": {**ours, "f1": 0.5}, "cleanlab_b": {**ours, "rows_per_second": 50, "peak_gib": 0.3}}
    found = result("cleaning", rows=1, categories=1, comparison=[{"ours": ours, **modes}])
    rows = list(targets.cleanlab(found))
    assert [(row["rival"], row["ok"]) for row in rows] == [(0.9, False), (100, False), (0.2, False)]
    better = {"f1": 0.95, "rows_per_second": 101, "peak_gib": 0.1}
    found["comparison"][0]["ours"] = {**ours, **better}
    assert all(row["ok"] for row in targets.cleanlab(found))


def test_a_second_round_must_gain_in_every_metric() -> None:
    first = {"label_accuracy_before": 0.8, "label_accuracy_after": 0.97, "kept_share": 0.9, "category_pair_f1": 0.9}
    second = {**first, "kept_share": 0.93, "label_accuracy_after": 0.96}
    rows = list(targets.loop(result("x", settings=[{"noise": 0.2, "first": first, "second": second}])))
    assert [row["ok"] for row in rows] == [True, True, True, False, True, False, None]
    kept_and_right = round(100 * (0.93 * 0.96 - 0.9 * 0.97), 2)
    assert [row["value"] for row in rows[3:]] == [-1.0, 3.0, 0.0, kept_and_right]


def test_commands_are_the_same_whatever_the_folders_and_the_result_file() -> None:
    recorded = [
        "governance.near_duplicates",
        "--catalogue",
        "train_catalogue.parquet",
        "--json",
        "benchmarks/results/x.json",
        "--drawings",
        "600",
    ]
    mine = ["governance.near_duplicates", "--catalogue", "runs/demo/data/train_catalogue.parquet", "--drawings", "600"]
    assert suite.comparable(recorded) == suite.comparable(mine)
    assert suite.comparable([*mine, "--seed", "1"]) != suite.comparable(mine)


def test_a_finished_result_is_used_and_a_reused_one_names_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(suite, "generators", lambda seed: {})
    earlier, work, target = tmp_path / "before", tmp_path / "work", tmp_path / "r.json"
    earlier.mkdir()
    killed_file(earlier / "killed_m.json", "governance.killed --data runs/small --kills 20 --json x.json", [])
    words = ["--only", "killed", "--work", str(work), "--json", str(target)]
    assert suite.main([*words, "--taken-over", str(earlier)]) == 0
    rows = json.loads(target.read_text())["rows"]
    assert [row["from"]["file"] for row in rows] == ["killed_m.json"] * 2
    killed_file(work / "killed.json", "governance.killed --data runs/small --kills 20", ["samples"])
    assert suite.main([*words, "--taken-over", str(earlier)]) == 1
    rows = json.loads(target.read_text())["rows"]
    assert [(row["from"]["file"], row["ok"]) for row in rows] == [(None, False)] * 2
    assert "target = 0: missed" in capsys.readouterr().err


def test_a_missing_result_is_measured_by_its_own_command_and_a_failure_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(suite, "generators", lambda seed: {})
    called: list[list[str]] = []

    def run(words: list[str], **_: object) -> None:
        called.append(words[1:])
        metrics = {"share": 0.01, "incremental_cpu_seconds": 9.0, "cpu_share": 0.1, "pair_f1": 0.97, "keys_kept": 0.99}
        Path(words[-1]).write_text(json.dumps(result(" ".join(words[3:-2]), **metrics)))

    monkeypatch.setattr("subprocess.run", run)
    monkeypatch.setattr(result_file, "commit", lambda: "abc")
    demo = tmp_path / "demo"
    words = ["--only", "incremental", "--work", str(tmp_path / "work"), "--json", str(tmp_path / "r.json")]
    assert suite.main([*words, "--demo", str(demo)]) == 2
    assert "make demo" in json.loads((tmp_path / "r.json").read_text())["missing"]["incremental"]
    assert not called
    demo.mkdir()
    assert suite.main([*words, "--demo", str(demo)]) == 1
    assert called[0][:4] == ["-m", "benchmarks.governance.incremental", "--data", f"{demo}/data"]
    assert [row["ok"] for row in json.loads((tmp_path / "r.json").read_text())["rows"]] == [True, False, True]


def test_synthetic_data_have_the_documented_statistics() -> None:
    data = noisy_labels.noisy_labels(4_000, 400, kind="uniform", noise=0.1, seed=0)
    facts = noisy_labels.describe(data)
    assert facts["width"] == noisy_labels.WIDTH
    assert facts["cosine_within"] == pytest.approx(noisy_labels.RHO, abs=0.02)
    assert facts["cosine_to_nearest_other_centre"] > noisy_labels.KINSHIP - 0.05
    log = organising.synthetic_log(600, noise=0.2, seed=0)
    facts = organising.describe(log)
    assert facts["cosine_within"] == pytest.approx(organising.RHO, abs=0.05)
    assert facts["sizes_5_50_95"][0] >= 2
    assert facts["largest"] == int(np.bincount(log.truth).max())
