"""Category keys and the category map, by hand and against the definition."""

import numpy as np
import pytest

from data_governance.grouping import category_keys


def test_keys_are_kept_and_the_map_lists_what_became_of_old_ones() -> None:
    old = {"k1": ["a", "b"], "k2": ["c", "d", "e", "f"], "k3": ["g"], "k4": ["h", "i"], "k5": ["j"]}
    new = {0: ["a", "b", "new"], 1: ["c", "d", "e"], 2: ["f"], 3: ["h", "i", "j"], 4: ["x"]}
    key_of = category_keys.keys(new, old)
    assert [key_of[c] for c in (0, 1, 3)] == ["k1", "k2", "k4"]
    split, fresh = key_of[2], key_of[4]
    assert set(category_keys.events(key_of, new, old)) == {
        ("k1", "kept", "k1"),
        ("k2", "kept", "k2"),
        ("k4", "kept", "k4"),
        ("k2", "split", split),
        ("k3", "retired", None),
        ("k5", "merged", "k4"),
        (None, "new", fresh),
    }
    assert fresh == category_keys.fresh_key(["x"])


def test_a_part_that_leaves_one_category_and_joins_another_is_split_and_merged() -> None:
    old = {"k1": ["a", "b", "c"], "k2": ["d", "e"]}
    new = {0: ["a", "b"], 1: ["c", "d", "e"]}
    key_of = category_keys.keys(new, old)
    assert key_of == {0: "k1", 1: "k2"}
    assert category_keys.events(key_of, new, old) == [
        ("k1", "kept", "k1"),
        ("k1", "merged", "k2"),
        ("k1", "split", "k2"),
        ("k2", "kept", "k2"),
    ]


def test_a_remainder_too_small_for_the_old_key_is_renamed() -> None:
    old, new = {"k1": ["a", "b", "c", "d"]}, {0: ["a", "x", "y", "z"]}
    key_of = category_keys.keys(new, old)
    assert category_keys.events(key_of, new, old) == [("k1", "renamed", key_of[0])]
    assert key_of[0] == category_keys.fresh_key(["a"])


def test_a_pair_with_one_document_exchanged_keeps_its_key_and_only_one_half_inherits_it() -> None:
    old = {"k1": ["a", "b"], "k2": ["c", "d"]}
    key_of = category_keys.keys({0: ["a", "new"], 1: ["c", "d", "b"]}, old)
    assert key_of == {0: "k1", 1: "k2"}
    parted = category_keys.keys({0: ["a", "x"], 1: ["b", "y"]}, {"k1": ["a", "b"]})
    assert sorted(parted.values()) == sorted({"k1", category_keys.fresh_key(["b", "y"])})


def grouping(rng: np.random.Generator, documents: list[str]) -> dict[int, list[str]]:
    label = rng.integers(0, max(len(documents) // 3, 1), len(documents))
    return {
        int(c): [d for d, own in zip(documents, label, strict=True) if own == c]
        for c in rng.permutation(label.max() + 1)
    }


@pytest.mark.parametrize("seed", range(60))
def test_in_random_runs_no_key_and_no_move_is_lost(seed: int) -> None:
    rng = np.random.default_rng(seed)
    documents = [f"d{i:02d}" for i in range(int(rng.integers(1, 40)))]
    before = {c: d for c, d in grouping(rng, documents).items() if d}
    old = {f"old{c}": d for c, d in before.items()}
    left = [d for d in documents if rng.random() < 0.8] + [f"n{i}" for i in range(int(rng.integers(1, 6)))]
    if seed % 3 == 0:  # a run that changes little
        new = {c + 7: [d for d in docs if d in left] for c, docs in before.items()} | {99: ["n0"]}
    else:
        new = grouping(rng, left)
    new = {c: d for c, d in new.items() if d}
    key_of = category_keys.keys(new, old)
    found = category_keys.events(key_of, new, old)

    assert len(set(key_of.values())) == len(new) == len(key_of)
    assert len(set(found)) == len(found)
    assert {o for o, _, _ in found if o} == set(old)
    assert {n for _, _, n in found if n} == set(key_of.values())
    moves = {(o, key_of[c]) for o in old for c in new if set(old[o]) & set(new[c])}
    assert {(o, n) for o, _, n in found if o and n} == moves
    for o, kind, n in found:
        heirs, parents = sum(a == o for a, _ in moves), sum(b == n for _, b in moves)
        if kind == "kept":
            assert o == n
        elif kind == "split":
            assert o != n
            assert heirs > 1
        elif kind == "merged":
            assert o != n
            assert parents > 1
        elif kind == "renamed":
            assert heirs == parents == 1
        else:
            assert (kind, o is None, n is None) in (("retired", False, True), ("new", True, False))
            assert heirs == 0 if kind == "retired" else parents == 0
    for c, key in key_of.items():
        if key in old:
            assert 2 * len(set(old[key]) & set(new[c])) >= min(len(old[key]), len(new[c]))
        else:
            assert key not in old


def test_the_same_categories_under_other_numbers_and_orders_keep_every_key() -> None:
    rng = np.random.default_rng(0)
    first = {c: [f"d{10 * c + i}" for i in range(1 + c % 4)] for c in range(20)}
    key_of = category_keys.keys(first, {})
    old = {key_of[c]: docs for c, docs in first.items()}
    again = {int(n): list(rng.permutation(first[c])) for c, n in enumerate(rng.permutation(20) + 50)}
    kept = category_keys.keys(again, old)
    assert {kept[n]: set(again[n]) for n in again} == {key: set(docs) for key, docs in old.items()}
    assert {kind for _, kind, _ in category_keys.events(kept, again, old)} == {"kept"}
