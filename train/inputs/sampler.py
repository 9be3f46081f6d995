"""Sampling of the rows, views and dropout of a step, keyed by (seed, step).

The rows of an optimiser step are one list for the whole job. Ranks and micro-steps take contiguous pieces of it, so one
process, two ranks and any gradient accumulation use the same rows, views and dropout, and a resumed run needs only the
number of the step. Dropout of a row is keyed by its position in the step.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

_QUERY, _DOCUMENT, _DROPOUT = 1, 2, 3
_WORDS = 4  # 64-bit words of one Philox counter step


@dataclass(frozen=True)
class SideRows:
    """B rows of one side: `rows` (B,) into the side's arrays, `views` (B,) (0 is clean), `labels` (B,) class index."""

    rows: np.ndarray
    views: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True)
class StepRows:
    """Global batch of one optimiser step."""

    query: SideRows
    document: SideRows


class SideSampler:
    """Draws the rows of one side: categories in shuffled rounds, then a row of the category by weight.

    One round holds every category of the side once when `class_balance` is 1. For a balance b below 1 the share of a
    category is proportional to (sum of its weights)^(1 - b), and a round holds it that often on average (systematic
    sampling). With rounds instead of independent draws, no category is drawn twice before every one was drawn.

    Args:
        rows: (M,) rows that may be drawn. labels: (M,) their class index. weights: (M,) above 0.
        views: augmented views beside the clean one. stream: keeps the two sides' draws apart.
    """

    def __init__(
        self, rows: np.ndarray, labels: np.ndarray, weights: np.ndarray, *, views: int, balance: float, stream: int
    ) -> None:
        order = np.argsort(labels, kind="stable")
        # Memory per row: its number, in four bytes if possible, and a running sum of weights.
        self.rows, self.views, self.stream = compact(rows)[order], views, stream
        counts = np.bincount(labels)
        self.categories = np.flatnonzero(counts)
        self.bounds = np.append(0, np.cumsum(counts[self.categories]))
        self.cumulative = np.cumsum(weights[order], dtype=np.float64)
        starts, ends = self.bounds[:-1], self.bounds[1:]
        totals = self.cumulative[ends - 1] - np.where(starts > 0, self.cumulative[starts - 1], 0.0)
        share = totals ** (1.0 - balance)
        self.share = share / share.sum()
        self._round: tuple[tuple[int, int], np.ndarray] = ((-1, -1), np.empty(0, np.int64))

    def draw(self, count: int, *, seed: int, step: int) -> SideRows:
        """`count` rows of step `step`; independent of earlier draws."""
        size = len(self.categories)
        places = step * count + np.arange(count)
        chosen = np.empty(count, np.int64)
        for number in np.unique(places // size):
            inside = places // size == number
            chosen[inside] = self._shuffled(int(number), seed=seed)[places[inside] % size]
        rng = np.random.default_rng([seed, self.stream, step])
        start, end = self.bounds[chosen], self.bounds[chosen + 1]
        low = np.where(start > 0, self.cumulative[start - 1], 0.0)
        target = low + rng.random(count) * (self.cumulative[end - 1] - low)
        places = np.clip(np.searchsorted(self.cumulative, target, side="right"), start, end - 1)
        views = rng.integers(0, 1 + self.views, count)
        return SideRows(rows=self.rows[places].astype(np.int64), views=views, labels=self.categories[chosen])

    def _shuffled(self, number: int, *, seed: int) -> np.ndarray:
        """Shuffled positions in `categories` of round `number`; as many as there are categories."""
        if self._round[0] != (seed, number):
            size = len(self.categories)
            rng = np.random.default_rng([seed, self.stream, number, 0])
            edges = np.cumsum(self.share)
            edges[-1] = 1.0
            picks = np.searchsorted(edges, (np.arange(size) + rng.random()) / size, side="right")
            self._round = ((seed, number), rng.permutation(np.minimum(picks, size - 1)))
        return self._round[1]


def compact(rows: np.ndarray) -> np.ndarray:
    """Row numbers in four bytes if possible."""
    return rows.astype(np.uint32) if len(rows) and rows.max() < 2**32 else rows


class StepSampler:
    """Composes the global batch of every step.

    Args:
        query, document: (rows, labels, weights) of the rows that may be drawn.
        query_views, document_views, balance: as in the recipe.
    """

    def __init__(
        self,
        query: tuple[np.ndarray, np.ndarray, np.ndarray],
        document: tuple[np.ndarray, np.ndarray, np.ndarray],
        *,
        query_views: int,
        document_views: int,
        balance: float,
    ) -> None:
        self.query = SideSampler(*query, views=query_views, balance=balance, stream=_QUERY)
        self.document = SideSampler(*document, views=document_views, balance=balance, stream=_DOCUMENT)

    def compose(self, step: int, *, seed: int, queries: int, documents: int) -> StepRows:
        """Global batch of step `step`."""
        return StepRows(
            query=self.query.draw(queries, seed=seed, step=step),
            document=self.document.draw(documents, seed=seed, step=step),
        )


def piece(count: int, part: int, parts: int) -> slice:
    """Contiguous piece `part` of `parts` of `count` rows; sizes differ by one at most.

    Raises:
        ValueError: fewer rows than pieces.
    """
    if count < parts:
        raise ValueError(
            f"a step of {count} rows cannot be cut into {parts} pieces (ranks x gradient_accumulation); "
            "raise queries_per_step and documents_per_step, or use fewer pieces"
        )
    return slice(part * count // parts, (part + 1) * count // parts)


def dropout_scale(rate: float, *, rows: slice, width: int, seed: int, step: int, side: str) -> Tensor:
    """(B, width) float64: 0 where dropped, 1 / (1 - rate) elsewhere, for the rows `rows` of the step's batch.

    The numbers come from the counter-based generator Philox (Salmon et al., SC 2011): the counter is advanced to the
    first row, so a rank draws only its own piece, equal to that of a single process.
    """
    count = rows.stop - rows.start
    if rate == 0.0:
        return torch.ones(count, width, dtype=torch.float64)
    per_row = -(-width // _WORDS)
    key = np.random.SeedSequence([seed, _DROPOUT, step, _QUERY if side == "query" else _DOCUMENT])
    philox = np.random.Philox(key=key.generate_state(2, np.uint64))
    philox.advance(rows.start * per_row)
    words = philox.random_raw(count * per_row * _WORDS).reshape(count, per_row * _WORDS)[:, :width]
    keep = (words >> np.uint64(11)) * 2.0**-53 >= rate
    return torch.from_numpy(keep / (1.0 - rate))
