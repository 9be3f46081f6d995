"""Every near-duplicate pair within the radius is found, large groups counted."""

import numpy as np
import pytest

from benchmarks.governance import near_duplicates
from data_governance.stages import dedupe


def close_pairs(hashes: np.ndarray, radius: int) -> list[list[int]]:
    bits = hashes.view(np.uint64)
    count = np.bitwise_count(bits[:, None] ^ bits[None, :])
    return [[int(i), int(j)] for i, j in np.argwhere(np.triu(count <= radius, k=1))]


@pytest.mark.parametrize("radius", [0, 1, 3, 6, 9])
def test_hash_pairs_are_all_pairs_within_the_radius(radius: int) -> None:
    rng = np.random.default_rng(0)
    base = rng.integers(0, 2**64, 90, dtype=np.uint64)
    flips = [int(sum(1 << int(b) for b in rng.choice(64, n, replace=False))) for n in (0, 1, 2, 3, 4, 6, 7, 9, 12) * 10]
    hashes = np.concatenate([base, base ^ np.array(flips, dtype=np.uint64), base[:5], base[:5]]).view(np.int64)
    found, crowded = dedupe.hash_pairs(hashes, radius=radius, most=100)
    assert found.tolist() == close_pairs(hashes, radius)
    assert len(found) >= 10
    assert crowded == 0


@pytest.mark.parametrize("rows", [100, 10**5, 10**6, 10**8])
def test_blocks_cover_every_pattern_of_flipped_bits(rows: int) -> None:
    masks = dedupe.block_masks(rows, 6)
    rng = np.random.default_rng(1)
    flips = np.array([sum(1 << int(b) for b in rng.choice(64, 6, replace=False)) for _ in range(500)], dtype=np.uint64)
    untouched = np.array([(flips & mask) == 0 for mask in masks])
    assert untouched.any(axis=0).all()
    assert len(masks) == {100: 7, 10**5: 28, 10**6: 28, 10**8: 84}[rows]


def test_many_blocks_find_the_pairs_of_a_full_comparison(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dedupe, "block_masks", lambda rows, radius: MASKS_OF_A_MILLION)
    hashes, planted = near_duplicates.planted(1_500, 6, seed=3)
    found, _ = dedupe.hash_pairs(hashes, radius=6, most=100)
    assert found.tolist() == near_duplicates.all_against_all(hashes.view(np.uint64), 6).tolist()
    assert {tuple(pair) for pair in planted.tolist()} <= {tuple(pair) for pair in found.tolist()}


MASKS_OF_A_MILLION = dedupe.block_masks(10**6, 6)


def test_large_groups_are_counted_not_compared() -> None:
    found, crowded = dedupe.hash_pairs(np.zeros(5, dtype=np.int64), radius=3, most=3)
    assert found.shape == (0, 2)
    assert crowded == 1
    found, crowded = dedupe.hash_pairs(np.arange(64, dtype=np.int64), radius=1, most=3)
    assert crowded > 0


def test_fewer_than_two_hashes_have_no_pairs_and_a_large_radius_is_rejected() -> None:
    for count in (0, 1):
        assert dedupe.hash_pairs(np.zeros(count, dtype=np.int64), radius=6, most=3)[0].shape == (0, 2)
    with pytest.raises(ValueError, match="radius = 17"):
        dedupe.hash_pairs(np.zeros(2, dtype=np.int64), radius=17, most=3)


def test_scores_of_drawings_equal_a_case_worked_by_hand() -> None:
    owner, kind = np.array([0, 0, 0, 1, 1]), np.array(["original", "crop", "jpeg", "original", "crop"])
    scores = near_duplicates.drawing_scores(np.array([[0, 1], [1, 2], [2, 3]]), owner, kind)
    # two of three pairs are of one drawing; one of two crops is beside its original, no jpeg is
    assert scores == {"precision": 0.6667, "pairs": 3, "recall_crop": 0.5, "recall_jpeg": 0.0}
