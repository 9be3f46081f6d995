"""Index of hard classes: synthetic prototypes, exact search, both indexes."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks.head import nearest
from benchmarks.head.step import HeadSize, make_shard
from train.class_weights.shard import ClassShard


@pytest.fixture
def rows() -> ClassShard:
    made = make_shard(HeadSize(classes=230, hidden_size=24, rate=0.1, batch_size=4))
    nearest.random_leaves(made)
    return made


def test_synthetic_prototypes_have_the_documented_cosine_within_a_leaf(rows: ClassShard) -> None:
    unit = torch.nn.functional.normalize(rows.weight, dim=1)
    inside = (unit[:50] @ unit[:50].T).flatten()
    across = (unit[:50] @ unit[50:100].T).flatten()
    assert float(inside.mean()) == pytest.approx(nearest.COSINE**2, abs=0.1)
    assert float(across.mean()) < 0.4


def test_exact_search_in_chunks_equals_one_search(rows: ClassShard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nearest, "ROWS_AT_ONCE", 7)
    query = rows.prototypes(torch.tensor([3, 229]))
    whole = (query @ rows.prototypes(torch.arange(230)).T).topk(nearest.NEIGHBOURS + 1, dim=1).indices
    assert nearest.exact(rows, query.numpy()).tolist() == whole.tolist()


def test_both_indexes_and_a_step_are_measured(tmp_path: Path) -> None:
    path = tmp_path / "nearest.json"
    words = ["--classes", "20000", "--hidden-size", "8", "--steps", "1", "--threads", "1", "--json", str(path)]
    assert nearest.main(words) == 0
    ours, usual = json.loads(path.read_text())["rows"]
    assert (ours["index"], usual["index"]) == ("ours", "IVF,SQ8")
    for row in (ours, usual):
        assert row["recall"] > 0.5
        assert min(row["build_s"], row["find_s"], row["step_s"]) > 0
    assert nearest.main(["--classes", "500"]) == 2
