"""The run with many classes learns and notices changed unsampled rows."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.head import large
from benchmarks.head.step import HeadSize, make_shard

WORDS = ["--classes", "3000", "--hidden-size", "16", "--rate", "0.01", "--batch-size", "64", "--categories", "20"]
WORDS += ["--steps", "25", "--probed", "200", "--threads", "1"]
SIZE = HeadSize(classes=400, hidden_size=5, rate=0.05, batch_size=4, dtype="bf16", optimizer="rowwise_adagrad")
GOOD = {
    "loss_start": 10.0,
    "loss_end": 5.0,
    "never_drawn_moved": 0,
    "never_drawn_sha256": ["a", "a"],
    "never_drawn_rows": 3,
    "drawn_share_moved": 1.0,
}


@pytest.mark.parametrize(("storage", "dtype"), [("memory", "bf16"), ("disk", "fp32")])
def test_a_small_table_is_learned_and_unsampled_rows_keep_their_bits(tmp_path: Path, storage: str, dtype: str) -> None:
    path = tmp_path / "large.json"
    assert large.main([*WORDS, "--storage", storage, "--dtype", dtype, "--json", str(path)]) == 0
    found = json.loads(path.read_text())
    assert found["loss_end"] <= found["loss_start"] / 2
    assert 0 < found["never_drawn_rows"] < found["probed_rows"] <= 200
    assert found["never_drawn_sha256"][0] == found["never_drawn_sha256"][1]
    assert found["drawn_share_moved"] > 0.9
    assert found["failures"] == []


def test_memory_and_disk_give_the_same_numbers(tmp_path: Path) -> None:
    found = []
    for storage, folder in (("memory", ""), ("disk", str(tmp_path))):
        size = dataclasses.replace(SIZE, storage=storage, folder=folder, weight_decay=0.0)
        found.append(large.measure(size, categories=5, steps=3, probed=50))
    for key in ("loss_start", "loss_end", "never_drawn_sha256", "never_drawn_rows"):
        assert found[0][key] == found[1][key]


@pytest.mark.parametrize(
    ("changed", "what"),
    [
        ({"loss_end": 5.1}, "not to half"),
        ({"loss_end": float("nan")}, "not to half"),
        ({"never_drawn_sha256": ["a", "b"]}, "have changed"),
        ({"never_drawn_rows": 0}, "proves nothing"),
        ({"drawn_share_moved": None}, "proves nothing"),
    ],
)
def test_a_failed_check_is_reported(changed: dict[str, Any], what: str) -> None:
    assert large.failures(GOOD) == []
    assert what in large.failures(GOOD | changed)[0]


def test_a_change_of_an_unsampled_row_is_noticed() -> None:
    shard = make_shard(SIZE)
    shard.start_random()
    probes = large.Probes.pick(shard, 40, seed=0)
    first, second = probes.class_ids[:2].tolist()
    probes.record(torch.tensor([first]))
    shard.weight[first] += 1
    shard.weight[second] = -shard.weight[second]
    found = probes.verdict(shard)
    assert found["never_drawn_rows"] == len(probes.class_ids) - 1
    assert found["never_drawn_moved"] == 1
    assert found["drawn_share_moved"] == 1.0
    assert found["never_drawn_sha256"][0] != found["never_drawn_sha256"][1]


def test_categories_are_spread_evenly_over_all_classes() -> None:
    data = large.SpreadCategories.spread(4, 100, seed=0)
    assert data.class_ids.tolist() == [12, 37, 62, 87]
    feature_BF, labels_B = data.draw(9, key=3)
    assert feature_BF.shape == (9, large.FEATURES)
    assert set(labels_B.tolist()) <= {12, 37, 62, 87}


def test_more_categories_than_classes_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert large.main(["--classes", "10", "--categories", "11"]) == 2
    assert "11 categories among 10 classes" in capsys.readouterr().err
