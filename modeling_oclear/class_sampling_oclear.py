"""Which classes take part in a training step: all positives, and a keyed uniform draw of negatives.

Why: with millions of classes a step can only look at some. The draw depends on (seed, step) alone, never on how classes
are spread over machines: the classes are cut into virtual blocks whose number depends on the class count only, the
draws are dealt to the blocks down a binary tree, and whoever holds a range of classes looks at the blocks that meet it.

In: class count, the positives of the step's whole batch, rate, seed, step. Out: sorted class ids and their logQ
corrections. Next: partial_softmax_oclear.py.

Letters: P positives, S sampled classes.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch

# The most classes that numpy's hypergeometric draw accepts.
MAX_CLASSES = 10**9
CLASSES_PER_BLOCK, MAX_BLOCKS = 8192, 64
# What a stream of random numbers is for; part of its key.
DEAL, DRAW = 0, 1


@dataclass(frozen=True)
class SampledClasses:
    """Classes of one step.

    Attributes:
        class_ids: (S,) int64, sorted, no repeats.
        log_correction: (S,) float64, added to a class's logit where it is a negative; 0 on positives.
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
) -> SampledClasses:
    """All positives, and min(C - |P|, ceil(rate * C)) of the other classes, uniformly without replacement.

    The correction of a drawn class is log((C - |P|) / draws), the negative log of its chance (sampled softmax: Jean et
    al., On Using Very Large Target Vocabulary, 2015; Bengio and Senecal, 2008), so that the expected denominator is
    that of all classes. Costs O(|P| + draws) time and memory.

    Args:
        num_classes: C.
        positives: labels of the whole batch of the optimiser step, over all ranks, in any order and with repeats; hard
            classes that should always take part may be added.
        rate: share of the classes to draw, above 0 and at most 1 (every class).
        seed, step: the key of the draw.
        log_q: False = no correction.
        class_range: (first, last + 1): only the part of the same sample that lies in this range is returned.

    Raises:
        ValueError: for a rate outside (0, 1], labels outside the classes, or a negative seed or step.
    """
    positive_P = _check(num_classes, positives, rate, seed, step)
    first, end = class_range if class_range is not None else (0, num_classes)
    if not 0 <= first <= end <= num_classes:
        raise ValueError(f"class_range is {class_range}; it must lie within 0 and {num_classes} classes.")
    rest = num_classes - len(positive_P)
    draws = min(rest, math.ceil(rate * num_classes))
    if draws == rest:
        class_ids = np.arange(first, end)
        return SampledClasses(torch.from_numpy(class_ids), torch.zeros(len(class_ids), dtype=torch.float64))
    drawn = _Draw(num_classes, positive_P, seed=seed, step=step).within(draws, first, end)
    mine_P = positive_P[np.searchsorted(positive_P, first) : np.searchsorted(positive_P, end)]
    class_ids = np.concatenate([mine_P, drawn])
    correction = np.zeros(len(class_ids))
    if log_q:
        correction[len(mine_P) :] = math.log(rest / draws)
    order = np.argsort(class_ids, kind="stable")
    return SampledClasses(torch.from_numpy(class_ids[order]), torch.from_numpy(correction[order]))


def _check(num_classes: int, positives: torch.Tensor, rate: float, seed: int, step: int) -> np.ndarray:
    """The distinct positives, sorted, after refusing what cannot be meant."""
    if not 1 <= num_classes < MAX_CLASSES:
        raise ValueError(f"num_classes is {num_classes}; it must be at least 1 and below {MAX_CLASSES}.")
    if not 0 < rate <= 1:
        raise ValueError(f"rate is {rate}; it must be above 0 and at most 1 (1 = every class).")
    if not (0 <= seed < 2**64 and 0 <= step < 2**64):
        raise ValueError(f"seed {seed} and step {step} must be at least 0 and below 2**64.")
    if positives.is_floating_point() or positives.is_complex() or positives.dtype == torch.bool:
        raise ValueError(f"positives have dtype {positives.dtype}; class labels are integers.")
    positive_P = np.unique(positives.detach().cpu().numpy().astype(np.int64))
    if len(positive_P) and not (positive_P[0] >= 0 and positive_P[-1] < num_classes):
        wrong = positive_P[0] if positive_P[0] < 0 else positive_P[-1]
        raise ValueError(f"label {wrong} is not a class: labels run from 0 to {num_classes - 1}.")
    return positive_P


class _Draw:
    """One keyed draw without replacement from the classes that are not positive."""

    def __init__(self, num_classes: int, positive_P: np.ndarray, *, seed: int, step: int) -> None:
        self.positive_P = positive_P
        self.bits = np.random.Philox(key=np.array([seed, step], np.uint64))
        self.start = self.bits.state
        self.generator = np.random.Generator(self.bits)
        blocks = max(1, min(MAX_BLOCKS, num_classes // CLASSES_PER_BLOCK))
        self.num_leaves = 1 << (blocks.bit_length() - 1)
        self.edges = np.arange(self.num_leaves + 1) * num_classes // self.num_leaves
        self.free_edges = self.edges - np.searchsorted(positive_P, self.edges)

    def _stream(self, purpose: int, node: int) -> np.random.Generator:
        """The random numbers of one tree node, until the next call; the low counter word is left to run."""
        self.start["state"]["counter"][:] = (0, node, purpose, 0)
        self.bits.state = self.start
        return self.generator

    def within(self, draws: int, first: int, end: int) -> np.ndarray:
        """The drawn classes in [first, end), in no order."""
        parts = [np.empty(0, np.int64)]
        waiting = [(1, 0, self.num_leaves, draws)]
        while waiting:
            node, low, high, count = waiting.pop()
            if count == 0 or self.edges[high] <= first or self.edges[low] >= end:
                continue
            if high - low == 1:
                block = self._leaf(node, low, count)
                parts.append(block[(block >= first) & (block < end)])
                continue
            middle = (low + high) // 2
            left, right = (int(self.free_edges[b] - self.free_edges[a]) for a, b in ((low, middle), (middle, high)))
            on_left = int(self._stream(DEAL, node).hypergeometric(left, right, count))
            waiting += [(2 * node, low, middle, on_left), (2 * node + 1, middle, high, count - on_left)]
        return np.concatenate(parts)

    def _leaf(self, node: int, leaf: int, count: int) -> np.ndarray:
        """`count` of the classes of one block that are not positive."""
        free = int(self.free_edges[leaf + 1] - self.free_edges[leaf])
        place = distinct_places(self._stream(DRAW, node), free, count)
        inside = slice(*np.searchsorted(self.positive_P, self.edges[leaf : leaf + 2]))
        taken = self.positive_P[inside] - self.edges[leaf]
        # The k-th free class stands behind every positive that has at most k free classes before it.
        return self.edges[leaf] + place + np.searchsorted(taken - np.arange(len(taken)), place, side="right")


def distinct_places(stream: np.random.Generator, population: int, count: int) -> np.ndarray:
    """A uniform subset of `count` of 0 .. population - 1, by drawing until enough differ; O(count log count)."""
    if 2 * count > population:
        is_out = np.ones(population, bool)
        is_out[distinct_places(stream, population, population - count)] = False
        return np.flatnonzero(is_out)
    seen = np.empty(0, np.int64)
    while len(seen) < count:
        more = stream.integers(population, size=3 * (count - len(seen)) // 2 + 8)
        together = np.concatenate([seen, more])
        _, where = np.unique(together, return_index=True)
        seen = together[np.sort(where)]
    return seen[:count]
