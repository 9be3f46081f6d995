"""Sampling of classes per training step: positives, hard classes, uniform draws.

The draw depends on (seed, step) alone, not on how classes are sharded. The classes are cut into virtual blocks whose
number depends on the class count only, and the number of draws per block is drawn down a binary tree (hypergeometric
splits). A rank that holds a range of classes computes only the blocks that overlap it.

Letters: P positives, H hard classes that are not positives, S sampled classes, C all classes.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch

# Limit of numpy's hypergeometric generator.
MAX_CLASSES = 10**9
CLASSES_PER_BLOCK, MAX_BLOCKS = 8192, 64
# Purpose of a random stream, part of its key: splitting counts at a tree node, drawing in a leaf, drawing hard classes.
DEAL, DRAW, HARD = 0, 1, 2


@dataclass(frozen=True)
class SampledClasses:
    """Sampled classes of one step.

    Attributes:
        class_ids: (S,) int64, sorted, no repeats.
        log_correction: (S,) float64, added to a class's logit where it is a negative: the negative log of its
            inclusion probability; 0 on positives.
    """

    class_ids: torch.Tensor
    log_correction: torch.Tensor


def sample_classes(
    num_classes: int,
    *,
    positives: torch.Tensor,
    rate: float,
    seed: int,
    step: int,
    log_q: bool = True,
    class_range: tuple[int, int] | None = None,
    hard: torch.Tensor | None = None,
    hard_draws: int | None = None,
) -> SampledClasses:
    """Sample all positives P, hard classes H, and min(C - |P + H|, ceil(rate * C)) others, without replacement.

    The correction of a class is the negative log of its inclusion probability (sampled softmax: Jean et al., On Using
    Very Large Target Vocabulary, 2015; Bengio and Senecal, 2008): log((C - |P + H|) / draws) for one of the others,
    log(|H| / hard_draws) for a drawn hard class, 0 for a class that is always included. With it the expected
    denominator of the softmax is that of all classes, however the hard ones were chosen. Costs O(|P| + |H| + draws)
    time and memory.

    Args:
        num_classes: C.
        positives: labels of the whole batch of the optimiser step, over all ranks, in any order and with repeats.
        rate: fraction of C to draw from the others, above 0 and at most 1 (every class).
        seed, step: the key of the draw.
        log_q: False = corrections of 0.
        class_range: (first, last + 1): return only the part of the same sample that lies in this range.
        hard: candidates such as the classes nearest to the positives, in any order; equal on every rank.
        hard_draws: how many of H to draw, uniformly; None = all.

    Raises:
        ValueError: for a rate outside (0, 1], labels outside the classes, a negative seed or step.
    """
    _check(num_classes, rate, seed, step, hard_draws, class_range)
    positive_P = _distinct(positives, "positives", num_classes)
    hard_H = np.empty(0, np.int64) if hard is None else _distinct(hard, "hard classes", num_classes)
    hard_H = hard_H[~np.isin(hard_H, positive_P, assume_unique=True)]
    taken = np.sort(np.concatenate([positive_P, hard_H]))
    first, end = class_range or (0, num_classes)
    wanted, rest = math.ceil(rate * num_classes), num_classes - len(taken)
    if wanted >= num_classes - len(positive_P):
        hard_draws = None
    draw = _Draw(num_classes, taken, seed=seed, step=step)
    hard_D, hard_correction = draw.hard(hard_H, hard_draws)
    drawn = draw.within(min(rest, wanted), first, end)
    uniform = math.log(rest / wanted) if wanted < rest else 0.0
    corrections = (0.0, hard_correction, uniform) if log_q else (0.0, 0.0, 0.0)
    return _merged((positive_P, hard_D, drawn), corrections, first, end)


def _merged(
    parts: tuple[np.ndarray, np.ndarray, np.ndarray], corrections: tuple[float, float, float], first: int, end: int
) -> SampledClasses:
    """Merge disjoint positives, hard classes and a sorted draw, limited to [first, end), each with its correction."""
    positive_P, hard_D, drawn = parts
    fixed = np.concatenate([positive_P, hard_D])
    order = np.argsort(fixed, kind="stable")
    order = order[(fixed[order] >= first) & (fixed[order] < end)]
    where = np.searchsorted(drawn, fixed[order])
    of_fixed = np.where(order < len(positive_P), *corrections[:2])
    # Inserted, because the draw is by far the largest part and is sorted already.
    class_ids = np.insert(drawn, where, fixed[order])
    correction = np.insert(np.full(len(drawn), corrections[2]), where, of_fixed)
    return SampledClasses(torch.from_numpy(class_ids), torch.from_numpy(correction))


def _check(
    num_classes: int, rate: float, seed: int, step: int, hard_draws: int | None, class_range: tuple[int, int] | None
) -> None:
    if not 1 <= num_classes < MAX_CLASSES:
        raise ValueError(f"num_classes is {num_classes}; it must be at least 1 and below {MAX_CLASSES}.")
    if not 0 < rate <= 1:
        raise ValueError(f"rate is {rate}; it must be above 0 and at most 1 (1 = every class).")
    if not (0 <= seed < 2**64 and 0 <= step < 2**64):
        raise ValueError(f"seed {seed} and step {step} must be at least 0 and below 2**64.")
    if hard_draws is not None and hard_draws < 1:
        raise ValueError(f"hard_draws is {hard_draws}; draw at least 1, or give no hard classes.")
    first, end = class_range or (0, num_classes)
    if not 0 <= first <= end <= num_classes:
        raise ValueError(f"class_range is {class_range}; it must lie within 0 and {num_classes} classes.")


def _distinct(classes: torch.Tensor, name: str, num_classes: int) -> np.ndarray:
    """Check class labels and return the distinct ones, sorted."""
    if classes.is_floating_point() or classes.is_complex() or classes.dtype == torch.bool:
        raise ValueError(f"{name} have dtype {classes.dtype}; class labels are integers.")
    found = np.unique(classes.detach().cpu().numpy().astype(np.int64))
    if len(found) and not (found[0] >= 0 and found[-1] < num_classes):
        wrong = found[0] if found[0] < 0 else found[-1]
        raise ValueError(f"label {wrong} is not a class: labels run from 0 to {num_classes - 1}.")
    return found


class _Draw:
    """One keyed draw without replacement from the classes that are not in `taken` (sorted, distinct)."""

    def __init__(self, num_classes: int, taken: np.ndarray, *, seed: int, step: int) -> None:
        self.taken = taken
        self.bits = np.random.Philox(key=np.array([seed, step], np.uint64))
        self.start = self.bits.state
        self.generator = np.random.Generator(self.bits)
        blocks = max(1, min(MAX_BLOCKS, num_classes // CLASSES_PER_BLOCK))
        self.num_leaves = 1 << (blocks.bit_length() - 1)
        self.edges = np.arange(self.num_leaves + 1) * num_classes // self.num_leaves
        self.free_edges = self.edges - np.searchsorted(taken, self.edges)

    def _stream(self, purpose: int, node: int) -> np.random.Generator:
        """Random stream of one tree node, valid until the next call.

        Philox is a counter-based generator: the key is (seed, step), the upper counter words name node and purpose, and
        the lowest counter word advances with the numbers drawn.
        """
        self.start["state"]["counter"][:] = (0, node, purpose, 0)
        self.bits.state = self.start
        return self.generator

    def hard(self, hard_H: np.ndarray, count: int | None) -> tuple[np.ndarray, float]:
        """`count` of the hard classes (None = all), sorted, and the correction of each."""
        if count is None or count >= len(hard_H):
            return hard_H, 0.0
        index = random_subset(self._stream(HARD, 0), len(hard_H), count)
        return hard_H[index], math.log(len(hard_H) / count)

    def within(self, draws: int, first: int, end: int) -> np.ndarray:
        """The drawn classes in [first, end), sorted."""
        parts = [np.empty(0, np.int64)]
        waiting = [(1, 0, self.num_leaves, draws)]
        while waiting:
            node, low, high, count = waiting.pop()
            if count == 0 or self.edges[high] <= first or self.edges[low] >= end:
                continue
            if high - low == 1:
                block = self._leaf(node, low, count)
                parts.append(block[slice(*np.searchsorted(block, [first, end]))])
                continue
            middle = (low + high) // 2
            left, right = (int(self.free_edges[b] - self.free_edges[a]) for a, b in ((low, middle), (middle, high)))
            on_left = int(self._stream(DEAL, node).hypergeometric(left, right, count))
            # The left half is popped first, so that the blocks are in order.
            waiting += [(2 * node + 1, middle, high, count - on_left), (2 * node, low, middle, on_left)]
        return np.concatenate(parts)

    def _leaf(self, node: int, leaf: int, count: int) -> np.ndarray:
        """`count` of the classes of one block that are not taken, sorted."""
        free = int(self.free_edges[leaf + 1] - self.free_edges[leaf])
        rank = random_subset(self._stream(DRAW, node), free, count)
        inside = slice(*np.searchsorted(self.taken, self.edges[leaf : leaf + 2]))
        taken = self.taken[inside] - self.edges[leaf]
        # From ranks among the free classes to class ids: a rank moves up by one for every taken class before it, and a
        # taken class t with i taken ones before it has t - i free classes before it.
        before = np.searchsorted(rank, taken - np.arange(len(taken)))
        shift = np.bincount(before, minlength=len(rank) + 1)[: len(rank)].cumsum()
        return self.edges[leaf] + rank + shift


def random_subset(stream: np.random.Generator, population: int, count: int) -> np.ndarray:
    """Draw a uniform subset of `count` of 0 .. population - 1, sorted; O(count) time and memory, plus sorting.

    Repeats are drawn again until `count` distinct numbers are there, so that every subset is equally likely.
    """
    # More than half: draw the complement. More than 1/16: mark in a table of booleans. Else: sort what was drawn.
    if 2 * count > population:
        is_in = np.ones(population, bool)
        if count < population:
            is_in[random_subset(stream, population, population - count)] = False
        return np.flatnonzero(is_in)
    if 16 * count > population:
        is_in = np.zeros(population, bool)
        missing = count
        while missing:
            is_in[stream.integers(population, size=missing)] = True
            missing = count - int(np.count_nonzero(is_in))
        return np.flatnonzero(is_in)
    found = np.empty(0, np.int64)
    while len(found) < count:
        found = np.concatenate([found, stream.integers(population, size=count - len(found))])
        found.sort()
        found = found[np.concatenate([[True], found[1:] != found[:-1]])]
    return found
