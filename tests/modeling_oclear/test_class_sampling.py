"""Class sampling: counts, reproducibility, class ranges, uniformity, corrections."""

import math

import numpy as np
import pytest
import torch

from modeling_oclear.class_sampling_oclear import SampledClasses, random_subset, sample_classes

POSITIVES = torch.tensor([3, 3, 999_999, 0, 500_000])


@pytest.mark.parametrize(("num_classes", "rate"), [(1, 1.0), (5, 0.3), (1505, 0.1), (100_003, 0.01), (100_003, 0.7)])
def test_sample_has_every_positive_and_the_requested_number_of_others(num_classes: int, rate: float) -> None:
    positives = POSITIVES % num_classes
    sampled = sample_classes(num_classes, positives=positives, rate=rate, seed=1, step=2)
    distinct = len(set(positives.tolist()))
    draws = min(num_classes - distinct, math.ceil(rate * num_classes))
    assert len(sampled.class_ids) == distinct + draws
    assert torch.all(sampled.class_ids[1:] > sampled.class_ids[:-1])
    assert set(positives.tolist()) <= set(sampled.class_ids.tolist())
    assert sampled.class_ids[0] >= 0
    assert sampled.class_ids[-1] < num_classes


def test_correction_is_zero_on_positives_and_minus_log_probability_elsewhere() -> None:
    sampled = sample_classes(1000, positives=torch.tensor([7, 9]), rate=0.1, seed=0, step=0)
    is_positive = torch.isin(sampled.class_ids, torch.tensor([7, 9]))
    assert torch.all(sampled.log_correction[is_positive] == 0)
    torch.testing.assert_close(
        sampled.log_correction[~is_positive], torch.full((100,), math.log(998 / 100), dtype=torch.float64)
    )
    switched_off = sample_classes(1000, positives=torch.tensor([7, 9]), rate=0.1, seed=0, step=0, log_q=False)
    assert torch.equal(switched_off.class_ids, sampled.class_ids)
    assert torch.all(switched_off.log_correction == 0)


def test_rate_one_samples_every_class_without_correction() -> None:
    sampled = sample_classes(37, positives=torch.tensor([4]), rate=1, seed=0, step=0)
    assert torch.equal(sampled.class_ids, torch.arange(37))
    assert torch.all(sampled.log_correction == 0)


@pytest.mark.parametrize("shards", [2, 3, 7])
def test_ranges_of_any_number_of_ranks_give_the_same_sample(shards: int) -> None:
    whole = sample_classes(1_000_000, positives=POSITIVES, rate=0.001, seed=5, step=11)
    edges = [1_000_000 * shard // shards for shard in range(shards + 1)]
    parts = [
        sample_classes(1_000_000, positives=POSITIVES, rate=0.001, seed=5, step=11, class_range=edges[i : i + 2])  # type: ignore[arg-type]
        for i in range(shards)
    ]
    assert torch.equal(torch.cat([part.class_ids for part in parts]), whole.class_ids)
    assert torch.equal(torch.cat([part.log_correction for part in parts]), whole.log_correction)


def test_draw_depends_on_seed_and_step_only() -> None:
    def draw(seed: int, step: int) -> list[int]:
        return sample_classes(9999, positives=torch.tensor([1]), rate=0.05, seed=seed, step=step).class_ids.tolist()

    assert draw(1, 2) == draw(1, 2)
    assert draw(1, 2) != draw(1, 3)
    assert draw(1, 2) != draw(2, 1)


def test_every_other_class_is_drawn_equally_often() -> None:
    # 40,000 classes make four blocks; 600 draws of 400 give 6 +- 2.4 each. Chi-square over n cells: sigma sqrt(2n).
    counts = np.zeros(40_000)
    for step in range(600):
        counts[sample_classes(40_000, positives=torch.tensor([3, 39_998]), rate=0.01, seed=0, step=step).class_ids] += 1
    others = np.delete(counts, [3, 39_998])
    assert counts[3] == counts[39_998] == 600
    expected = 600 * 400 / 39_998
    chi_square = ((others - expected) ** 2 / (expected * (1 - 0.01))).sum()
    assert abs(chi_square - len(others)) < 5 * math.sqrt(2 * len(others))
    by_block = np.array([block.mean() for block in np.array_split(others, 8)])
    assert np.abs(by_block / expected - 1).max() < 0.02


@pytest.mark.parametrize(("population", "count"), [(1, 1), (10, 0), (10, 10), (10, 7), (1000, 499), (1000, 30)])
def test_random_subset_is_sorted_and_has_the_requested_size(population: int, count: int) -> None:
    places = random_subset(np.random.default_rng(0), population, count)
    assert len(places) == count
    assert np.all(places[1:] > places[:-1])
    assert not count or (places.min() >= 0 and places.max() < population)


@pytest.mark.parametrize(("population", "count"), [(70, 3), (20, 5), (20, 13)])
def test_every_element_and_every_pair_is_equally_likely(population: int, count: int) -> None:
    # The three ways of drawing; chance of a place n / N, of a pair n (n - 1) / (N (N - 1)), within 5 standard errors.
    rng, draws = np.random.default_rng(1), 4000
    is_in = np.zeros((draws, population))
    for draw in range(draws):
        is_in[draw, random_subset(rng, population, count)] = 1
    one, two = count / population, count * (count - 1) / (population * (population - 1))
    together = is_in.T @ is_in / draws
    assert np.abs(np.diag(together) - one).max() < 5 * math.sqrt(one / draws)
    assert np.abs(together[~np.eye(population, dtype=bool)] - two).max() < 5 * math.sqrt(two / draws)


HARD = torch.tensor([8, 999_999, 7, 7, 250_000, 500_001, 3])


def test_hard_classes_are_included_once_without_correction() -> None:
    sampled = sample_classes(1_000_000, positives=POSITIVES, rate=0.001, seed=0, step=0, hard=HARD)
    # Distinct positives 0, 3, 500000, 999999; hard beside them 7, 8, 250000, 500001.
    assert len(sampled.class_ids) == 4 + 4 + 1000
    certain = sampled.class_ids[sampled.log_correction == 0]
    assert certain.tolist() == [0, 3, 7, 8, 250_000, 500_000, 500_001, 999_999]
    drawn = sampled.log_correction[sampled.log_correction != 0]
    torch.testing.assert_close(drawn, torch.full((1000,), math.log((1_000_000 - 8) / 1000), dtype=torch.float64))
    assert torch.all(sampled.class_ids[1:] > sampled.class_ids[:-1])


def test_drawn_hard_classes_are_corrected_for_their_probability() -> None:
    hard = torch.arange(100, 140)
    sampled = sample_classes(1000, positives=torch.tensor([7, 105]), rate=0.05, seed=0, step=0, hard=hard, hard_draws=9)
    is_hard = (sampled.class_ids >= 100) & (sampled.class_ids < 140) & (sampled.class_ids != 105)
    assert int(is_hard.sum()) == 9
    torch.testing.assert_close(sampled.log_correction[is_hard], torch.full((9,), math.log(39 / 9), dtype=torch.float64))
    assert len(sampled.class_ids) == 2 + 9 + 50
    off = sample_classes(
        1000, positives=torch.tensor([7, 105]), rate=0.05, seed=0, step=0, hard=hard, hard_draws=9, log_q=False
    )
    assert torch.equal(off.class_ids, sampled.class_ids)
    assert torch.all(off.log_correction == 0)
    every = sample_classes(1000, positives=torch.tensor([7]), rate=1, seed=0, step=0, hard=hard, hard_draws=9)
    assert torch.equal(every.class_ids, torch.arange(1000))
    assert torch.all(every.log_correction == 0)


@pytest.mark.parametrize("shards", [2, 3])
def test_ranges_with_hard_classes_give_the_same_sample(shards: int) -> None:
    def draw(class_range: tuple[int, int] | None) -> SampledClasses:
        return sample_classes(
            1_000_000,
            positives=POSITIVES,
            rate=0.001,
            seed=5,
            step=11,
            hard=HARD,
            hard_draws=2,
            class_range=class_range,
        )

    edges = [1_000_000 * shard // shards for shard in range(shards + 1)]
    parts = [draw((edges[i], edges[i + 1])) for i in range(shards)]
    assert torch.equal(torch.cat([part.class_ids for part in parts]), draw(None).class_ids)
    assert torch.equal(torch.cat([part.log_correction for part in parts]), draw(None).log_correction)


@pytest.mark.parametrize("hard", [None, torch.arange(20, 30)], ids=["uniform", "mixture"])
def test_sum_over_negatives_is_unbiased(hard: torch.Tensor | None) -> None:
    # Exponentials of made logits, hard classes the largest; 20,000 draws, mean within 4 standard errors of the truth.
    worth = np.exp(np.random.default_rng(0).normal(size=60))
    worth[20:30] += 4
    positives = torch.tensor([1, 5, 22])
    sums = np.empty(20_000)
    for step in range(len(sums)):
        drawn = sample_classes(60, positives=positives, rate=0.1, seed=0, step=step, hard=hard, hard_draws=4)
        is_negative = drawn.class_ids.numpy() != 5
        shares = worth[drawn.class_ids.numpy()] * np.exp(drawn.log_correction.numpy())
        sums[step] = shares[is_negative].sum()
    error = sums.std() / math.sqrt(len(sums))
    assert error > 0
    assert abs(sums.mean() - (worth.sum() - worth[5])) < 4 * error


def test_largest_class_count_is_accepted_and_the_next_rejected() -> None:
    sampled = sample_classes(10**9 - 1, positives=torch.tensor([10**9 - 2]), rate=1e-7, seed=0, step=0)
    assert len(sampled.class_ids) == 1 + 100
    with pytest.raises(ValueError, match="num_classes is 1000000000; it must be at least 1 and below"):
        sample_classes(10**9, positives=torch.tensor([0]), rate=1e-7, seed=0, step=0)


def test_cost_of_a_small_draw_does_not_depend_on_the_class_count() -> None:
    import tracemalloc

    tracemalloc.start()
    sample_classes(900_000_000, positives=POSITIVES, rate=1e-6, seed=0, step=0)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2_000_000


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"rate": 0.0}, "rate is 0.0"),
        ({"rate": 1.5}, "rate is 1.5"),
        ({"rate": float("nan")}, "rate is nan"),
        ({"positives": torch.tensor([-1])}, "label -1 is not a class"),
        ({"positives": torch.tensor([2, 50])}, "label 50 is not a class: labels run from 0 to 49"),
        ({"positives": torch.tensor([1.0])}, "class labels are integers"),
        ({"seed": -1}, "seed -1"),
        ({"class_range": (3, 51)}, "class_range"),
        ({"hard": torch.tensor([50])}, "label 50 is not a class"),
        ({"hard": torch.tensor([0.5])}, "hard classes have dtype"),
        ({"hard": torch.tensor([4]), "hard_draws": 0}, "hard_draws is 0"),
    ],
)
def test_invalid_argument_is_rejected_with_its_value(change: dict[str, object], reason: str) -> None:
    settings: dict[str, object] = {"positives": torch.tensor([2]), "rate": 0.5, "seed": 0, "step": 0, **change}
    with pytest.raises(ValueError, match=reason):
        sample_classes(50, **settings)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="num_classes is 0"):
        sample_classes(0, positives=torch.tensor([0]), rate=0.5, seed=0, step=0)
