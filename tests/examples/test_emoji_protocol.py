"""Splits, twins, held-out drawings and simulated clicks of the emoji data."""

import functools
from collections import Counter

import pytest

from examples.emoji.behaviour import POSITIONS, Event, confusable, event_drawings, simulate
from examples.emoji.drawings import Drawing
from examples.emoji.keys import keyed_generator, opaque_id
from examples.emoji.protocol import held_out_drawings, split_categories, twin_groups
from examples.emoji.vocabulary import Category

STYLES = ("fluent-3d", "noto", "twemoji", "openmoji")
NOISE = 0.2
EVENTS = 12_000


def made_categories(count: int) -> list[Category]:
    return [Category(f"k{n:04d}", f"label {n}", n // 200, n // 20, f"leaf-{n // 20}") for n in range(count)]


def made_drawings(categories: list[Category]) -> dict[str, dict[str, Drawing]]:
    return {style: {one.key: Drawing(b"", f"{style} {one.key}") for one in categories} for style in STYLES}


def test_three_test_splits_are_disjoint_and_have_the_expected_sizes() -> None:
    categories = made_categories(1000)
    alone = {one.key: one.key for one in categories}
    splits = [split_categories(categories, alone, split=number) for number in (0, 1, 2)]
    for found in splits:
        assert Counter(found.values()) == {"train": 700, "validation": 100, "test": 200}
    tests = [{key for key, name in found.items() if name == "test"} for found in splits]
    assert len(set.union(*tests)) == 600


def test_split_is_stratified_by_subgroup() -> None:
    categories = made_categories(1000)
    found = split_categories(categories, {one.key: one.key for one in categories}, split=1)
    tested = Counter(one.leaf for one in categories if found[one.key] == "test")
    assert set(tested.values()) == {4}, "20 categories a subgroup: 4 of each are tested"


def test_unknown_split_is_rejected() -> None:
    with pytest.raises(ValueError, match="split is 3"):
        split_categories([], {}, split=3)


def test_twins_are_found_across_styles_and_transitively() -> None:
    categories = made_categories(5)
    drawings = made_drawings(categories)
    # 0 = 1 in noto, 1 = 3 in openmoji; the same picture in two styles of two categories makes no twins
    drawings["noto"]["k0001"] = drawings["noto"]["k0000"]
    drawings["openmoji"]["k0003"] = drawings["openmoji"]["k0001"]
    drawings["twemoji"]["k0004"] = drawings["noto"]["k0002"]
    found = twin_groups([one.key for one in categories], drawings)
    assert found == {"k0000": "k0000", "k0001": "k0000", "k0002": "k0002", "k0003": "k0000", "k0004": "k0004"}


def test_twins_are_in_the_same_split() -> None:
    categories = made_categories(400)
    twins = {one.key: f"k{int(one.key[1:]) // 8 * 8:04d}" for one in categories}
    found = split_categories(categories, twins, split=0)
    assert all(found[key] == found[twin] for key, twin in twins.items())


def test_one_drawing_of_a_fifth_of_the_categories_is_held_out() -> None:
    categories = made_categories(100)
    drawings = made_drawings(categories)
    for one in categories[:40]:
        del drawings["noto"][one.key]
    held = held_out_drawings(categories, drawings, seed=0)
    keys = [key for _, key in held]
    assert len(held) == len(set(keys)) == 12
    assert not set(keys) & {one.key for one in categories[:40]}
    assert {style for style, _ in held} == {"fluent-3d", "noto"}
    assert held != held_out_drawings(categories, drawings, seed=1)


def test_wrong_click_is_in_the_same_or_the_nearest_subgroup() -> None:
    categories = [
        Category("a", "a", 0, 0, "zero"),
        Category("b", "b", 0, 0, "zero"),
        Category("c", "c", 0, 2, "two"),
        Category("d", "d", 1, 3, "three"),
        Category("e", "e", 2, 9, "nine"),
    ]
    found = confusable(categories)
    assert found["a"] == ["b"]
    assert found["c"] == ["a", "b"], "the nearest subgroup of its own group, not the nearer one of the next group"
    assert found["e"] == ["d"]
    with pytest.raises(ValueError, match="second training category"):
        confusable(categories[:1])


@functools.cache
def big_log(noise: float = NOISE, seed: int = 0) -> tuple[list[tuple[str, str]], list[Event]]:
    categories = made_categories(1300)
    documents = {one.key: [f"{one.key}/twemoji", f"{one.key}/openmoji"] for one in categories}
    drawn = [(style, one.key) for one in categories for style in STYLES[:2]]
    chosen = event_drawings(drawn, events=EVENTS, seed=seed)
    return drawn, simulate(chosen, documents, confusable(categories), noise=noise, seed=seed)


def test_every_drawing_has_an_event_and_popularity_is_skewed() -> None:
    drawn, events = big_log()
    assert {(one.style, one.category) for one in events} == set(drawn)
    most = Counter(one.category for one in events).most_common(1)[0][1]
    # Zipf(1.1) over 1300 ranks gives the first 1 / sum(r ** -1.1) of the free events, besides its own two drawings
    share = 1 / sum(rank**-1.1 for rank in range(1, 1301))
    assert most == pytest.approx((EVENTS - len(drawn)) * share + 2, rel=0.1)


def test_too_few_events_are_rejected() -> None:
    with pytest.raises(ValueError, match="--events is 1, but 2 query drawings"):
        event_drawings([("noto", "a"), ("noto", "b")], events=1, seed=0)


def test_noise_click_counts_and_positions_match_the_settings() -> None:
    _, events = big_log()
    clicks = [(event, row) for event in events for row in event.clicked]
    total = sum(row.clicks for _, row in clicks)
    wrong = sum(row.clicks for _, row in clicks if not row.right) / total
    assert abs(wrong - NOISE) < 4 * (NOISE * (1 - NOISE) / total) ** 0.5
    counts = Counter(sum(row.clicks for row in event.clicked) for event in events)
    for number, share in ((1, 0.80), (2, 0.15), (3, 0.05)):
        assert abs(counts[number] / EVENTS - share) < 4 * (share * (1 - share) / EVENTS) ** 0.5
    places = Counter(row.position for _, row in clicks if row.right)
    assert set(places) == set(range(1, POSITIONS + 1))
    assert places[1] > 1.2 * places[POSITIONS], "right documents at the top are clicked more often"
    assert all(event.impressions >= max(row.clicks for row in event.clicked) for event in events)


def test_wrong_click_is_in_the_same_subgroup_and_rows_are_unique() -> None:
    _, events = big_log()
    for event in events:
        assert len({row.doc_id for row in event.clicked}) == len(event.clicked)
        assert len({row.position for row in event.clicked}) == len(event.clicked)
        for row in event.clicked:
            clicked = row.doc_id.split("/")[0]
            assert row.right == (clicked == event.category)
            assert int(clicked[1:]) // 20 == int(event.category[1:]) // 20


def test_majority_vote_per_query_does_not_remove_the_noise() -> None:
    _, events = big_log()
    right = 0
    for event in events:
        votes: Counter[str] = Counter()
        for row in event.clicked:
            votes[row.doc_id.split("/")[0]] += row.clicks
        right += votes.most_common(1)[0][0] == event.category
    assert 0.7 < right / EVENTS < 0.85


def test_without_noise_no_click_is_wrong_and_noise_out_of_range_is_rejected() -> None:
    _, events = big_log(noise=0.0)
    assert all(row.right for event in events for row in event.clicked)
    with pytest.raises(ValueError, match=r"--noise is 1\.5"):
        big_log(noise=1.5)


def test_ids_do_not_sort_by_number_and_depend_on_seed_and_kind() -> None:
    ids = [opaque_id(0, "query", "event", number) for number in range(500)]
    assert len(set(ids)) == 500
    rises = sum(first < second for first, second in zip(ids, ids[1:], strict=False))
    assert 200 < rises < 300
    assert len({opaque_id(0, "query", 1), opaque_id(1, "query", 1), opaque_id(0, "document", 1)}) == 3


def test_generator_depends_on_seed_and_names_only() -> None:
    assert keyed_generator(3, "a", 1).random() == keyed_generator(3, "a", 1).random()
    assert keyed_generator(3, "a", 1).random() != keyed_generator(3, "a", 2).random()
