"""Hard classes: nearest prototypes or classes of the same leaf, equal for any number of ranks."""

from typing import Any

import faiss
import numpy as np
import pytest
import torch

from tests.train.class_weights.test_shard import shard
from train.class_weights.hard_classes import LeafClasses, NearestClasses
from train.class_weights.nearest_index import NearestIndex, cells_for, nearest_cells
from train.class_weights.shard import ClassShard

EVERY = 1000


def nearest(rows: ClassShard, **options: Any) -> NearestClasses:
    settings = {"per_positive": 3, "refresh_every": EVERY, "also_every": EVERY, "seed": 0, **options}
    return NearestClasses(rows, **settings)


def by_hand(rows: ClassShard, positives: torch.Tensor, count: int) -> list[int]:
    unit = torch.nn.functional.normalize(rows.weight.float(), dim=1)
    score = unit[positives] @ unit.T
    score[torch.arange(len(positives)), positives] = -2
    found = set(score.topk(count, dim=1).indices.flatten().tolist()) - set(positives.tolist())
    return sorted(found)


def test_search_in_few_classes_is_exact() -> None:
    rows = shard(40, 6)
    positives = torch.tensor([3, 17, 30])
    found = nearest(rows).find(positives, step=0)
    assert found.class_ids.tolist() == by_hand(rows, positives, 3)
    assert found.draws is None


def test_index_is_rebuilt_every_few_steps_and_at_every_checkpoint() -> None:
    rows = shard(40, 6)
    positives = torch.tensor([3])
    hard = nearest(rows, refresh_every=4, also_every=6)
    before = hard.find(positives, step=1).class_ids.tolist()
    farthest = int((rows.weight @ rows.weight[3]).argmin())
    rows.weight[farthest] = 2 * rows.weight[3]
    assert [hard.find(positives, step=step).class_ids.tolist() for step in (2, 3)] == [before, before]
    for step in (4, 6):
        rows.weight[farthest] *= -1
        found = hard.find(positives, step=step).class_ids.tolist()
        assert (farthest in found) == (step == 6)


def test_approximate_index_finds_planted_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("train.class_weights.hard_classes.EXACT_BELOW", 10)
    faiss.omp_set_num_threads(1)
    rows = shard(3000, 16)
    stream = np.random.default_rng(0)
    planted = torch.from_numpy(stream.choice(3000, (20, 3), replace=False))
    for first, *others in planted.tolist():
        for other in others:
            noise = torch.from_numpy(stream.normal(size=16)) * 0.05
            rows.weight[other] = rows.weight[first] + noise
    hard = nearest(rows, per_positive=2)
    found = set(hard.find(planted[:, 0].sort().values, step=0).class_ids.tolist())
    assert isinstance(hard.index, NearestIndex)
    assert len(found & set(planted[:, 1:].flatten().tolist())) >= 38


@pytest.mark.parametrize("width", [7, 16, 66])
def test_approximate_index_that_probes_every_cell_equals_exact_search(
    monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    monkeypatch.setattr("train.class_weights.hard_classes.EXACT_BELOW", 10)
    monkeypatch.setattr("train.class_weights.nearest_index.PROBES", 10**6)
    monkeypatch.setattr("train.class_weights.nearest_index.CANDIDATES", 101)
    monkeypatch.setattr(
        "train.class_weights.nearest_index.NUMBERS_AT_ONCE", 100 * width
    )  # several blocks, the last one short
    faiss.omp_set_num_threads(1)
    rows = shard(303, width)
    positives = torch.tensor([0, 17, 302])
    hard = nearest(rows, per_positive=2)
    assert hard.find(positives, step=0).class_ids.tolist() == by_hand(rows, positives, 2)
    rows.weight[5] = 2 * rows.weight[17]  # the row has moved since: candidates are ranked by what it is now
    assert 5 in hard.find(positives, step=1).class_ids.tolist()


def test_row_is_in_the_nearest_cell_of_its_nearest_coarse_centre() -> None:
    generator = torch.Generator().manual_seed(0)
    row_ND, fine_ABD = torch.randn(50, 6, generator=generator), torch.randn(4, 3, 6, generator=generator)
    coarse_AD = fine_ABD.mean(dim=1)
    cells = nearest_cells(row_ND, coarse_AD, fine_ABD)
    for row_D, cell in zip(row_ND, cells.tolist(), strict=True):
        by_coarse = [float(row_D @ centre_D) for centre_D in coarse_AD]
        coarse = by_coarse.index(max(by_coarse))
        by_fine = [float(row_D @ centre_D) for centre_D in fine_ABD[coarse]]
        assert cell == 3 * coarse + by_fine.index(max(by_fine))
    assert cells_for(10_000_000) == (64, 64)
    assert cells_for(2) == (2, 2)


@pytest.mark.parametrize("exact_below", [10, 20_000])
def test_merged_results_of_two_ranks_equal_those_of_one(monkeypatch: pytest.MonkeyPatch, exact_below: int) -> None:
    monkeypatch.setattr("train.class_weights.hard_classes.EXACT_BELOW", exact_below)
    faiss.omp_set_num_threads(1)
    whole = shard(301, 8)
    positives = torch.tensor([2, 150, 151, 300])
    one = nearest(whole)
    expected = one.find(positives, step=0).class_ids
    assert one.index is not None
    template = one._partition() if exact_below == 10 else None
    parts = []
    for part in range(2):
        monkeypatch.setattr("train.class_weights.shard.rank", lambda part=part: part)
        monkeypatch.setattr("train.class_weights.shard.world_size", lambda: 2)
        mine = nearest(shard(301, 8))
        monkeypatch.undo()
        monkeypatch.setattr("train.class_weights.hard_classes.EXACT_BELOW", exact_below)
        if template is not None:
            shared = faiss.deserialize_index(faiss.serialize_index(template))
            monkeypatch.setattr(mine, "_partition", lambda shared=shared: shared)
        parts.append(mine._build().search(one._prototypes_of(positives), 4))
    gathered = torch.from_numpy(np.stack([np.concatenate([s.astype(float), i.astype(float)], 1) for s, i in parts]))
    monkeypatch.setattr("train.class_weights.hard_classes.world_size", lambda: 2)
    monkeypatch.setattr("train.class_weights.hard_classes.gather_rows", lambda local, counts: gathered.flatten(0, 1))
    assert torch.equal(one.find(positives, step=1).class_ids, expected)


def test_classes_of_the_same_leaf_are_drawn_and_none_for_unknown_leaves() -> None:
    hard = LeafClasses(["cup", "", "hat", "cup", "", "hat", "cup"], per_positive=2)
    found = hard.find(torch.tensor([0, 1]), step=0)
    assert found.class_ids.tolist() == [0, 3, 6]
    assert found.draws == 4
    assert hard.find(torch.tensor([1]), step=0).class_ids.tolist() == []
    assert hard.find(torch.tensor([0, 2]), step=0).class_ids.tolist() == [0, 2, 3, 5, 6]
    with pytest.raises(ValueError, match="no class has a leaf"):
        LeafClasses(["", ""], per_positive=1)
