"""What a rival learns from: rows of both sides with their labels, raw or governed, and the batches drawn from them.

Raw labels are the clicks as they are: a query belongs to every document that it clicked; where a loss wants one class
for each query, that is the document it clicked most. Governed labels are the categories of the governed folder, on the
very rows that the product is trained on.


Letters: B rows of a batch, E (query, class) pairs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import torch

from benchmarks.immr.baselines.losses import Batch
from train.class_weights.initialization import SideRowsOfClass
from train.image_stage.loop import trained_rows
from train.inputs.sampler import SideSampler, StepSampler
from train.inputs.samples import GovernedSamples

LABELS = ("raw", "governed")
_CLASSES, _PICKS = 5, 6  # streams of random numbers, apart from those of train/inputs/sampler.py


@dataclass(frozen=True)
class Labelled:
    """Rows into the arrays of each side, with class index 0..num_classes - 1 and weight.

    Attributes:
        pairs: query rows, one for each class that a query belongs to. document: document rows.
        query: query rows, one for each query.
        known: sorted query row * documents + document row of everything that belongs together beside equal labels;
            None = equal labels say it all. documents: factor in `known`.
        calibration: query rows that may calibrate scores.
    """

    pairs: SideRowsOfClass
    document: SideRowsOfClass
    query: SideRowsOfClass
    num_classes: int
    calibration: np.ndarray
    known: np.ndarray | None = None
    documents: int = 0


@dataclass(frozen=True)
class Drawn:
    """Rows and views of a batch: (B,) each, and its labels."""

    query_rows: np.ndarray
    query_views: np.ndarray
    document_rows: np.ndarray
    document_views: np.ndarray
    batch: Batch


def governed_rows(samples: GovernedSamples) -> Labelled:
    """The rows and categories that the product's image side is trained on."""
    rows = trained_rows(samples)
    query = rows["query"]
    return Labelled(
        query, rows["document"], query, len(samples.classes), np.flatnonzero(~samples.labels.query_validation)
    )


def raw_rows(behaviour: pa.Table, query_ids: Sequence[str], document_ids: Sequence[str]) -> Labelled:
    """Clicks as they are; classes are the documents that were clicked at all, in the order of their rows.

    Args:
        behaviour: query_id, doc_id, clicks (a pair may come in several rows).
        query_ids, document_ids: ids in the order of the arrays; other rows of the log are left out.
    """
    query_row, document_row = _places(query_ids), _places(document_ids)
    clicks: dict[tuple[int, int], float] = {}
    columns = (behaviour.column(name).to_pylist() for name in ("query_id", "doc_id", "clicks"))
    for query, document, count in zip(*columns, strict=True):
        if count > 0 and query in query_row and document in document_row:
            pair = query_row[query], document_row[document]
            clicks[pair] = clicks.get(pair, 0.0) + count
    pair_E2 = np.asarray(sorted(clicks), dtype=np.int64).reshape(-1, 2)
    count_E = np.asarray([clicks[int(q), int(d)] for q, d in pair_E2])
    clicked, label_E = np.unique(pair_E2[:, 1], return_inverse=True)
    # By query, then falling clicks, then row of the document: the first of each query is its most clicked document.
    order = np.lexsort((pair_E2[:, 1], -count_E, pair_E2[:, 0]))
    queries, first = np.unique(pair_E2[order, 0], return_index=True)
    best = order[first]
    return Labelled(
        pairs=SideRowsOfClass(pair_E2[:, 0], label_E, count_E),
        document=SideRowsOfClass(clicked, np.arange(len(clicked)), np.ones(len(clicked))),
        query=SideRowsOfClass(queries, label_E[best], np.ones(len(queries))),
        num_classes=len(clicked),
        calibration=queries,
        known=np.sort(pair_E2[:, 0] * len(document_ids) + pair_E2[:, 1]),
        documents=len(document_ids),
    )


def _places(ids: Sequence[str]) -> Mapping[str, int]:
    return {name: row for row, name in enumerate(ids)}


def restricted(rows: Labelled, usable: np.ndarray) -> Labelled:
    """Only documents that are `usable` (bool by document row), and the classes that still have both sides.

    Raises:
        ValueError: nothing is left.
    """
    document = _where(rows.document, usable[rows.document.rows])
    kept = np.intersect1d(document.labels, rows.pairs.labels)
    if not len(kept):
        raise ValueError("no class has both a query and a usable document left; there is nothing to train on")
    return replace(
        rows,
        num_classes=len(kept),
        pairs=_renumbered(rows.pairs, kept),
        document=_renumbered(document, kept),
        query=_renumbered(rows.query, kept),
    )


def _where(part: SideRowsOfClass, kept: np.ndarray) -> SideRowsOfClass:
    return SideRowsOfClass(part.rows[kept], part.labels[kept], part.weights[kept])


def _renumbered(part: SideRowsOfClass, classes: np.ndarray) -> SideRowsOfClass:
    part = _where(part, np.isin(part.labels, classes))
    return SideRowsOfClass(part.rows, np.searchsorted(classes, part.labels), part.weights)


class PairSampler:
    """Batches in which row i of the queries and row i of the documents belong together.

    Classes come up in shuffled rounds, as in train/inputs/sampler.py; each drawn class gives `per_class` queries by
    weight and as many documents, different ones as far as it has them.

    Args:
        balance: 1 draws every class equally often, 0 in proportion to its weights.
    """

    def __init__(
        self, rows: Labelled, *, per_class: int, query_views: int, document_views: int, balance: float, seed: int
    ) -> None:
        self.rows, self.per_class, self.views, self.seed = rows, per_class, (query_views, document_views), seed
        pairs = rows.pairs
        self.classes = SideSampler(*pairs.as_tuple(), views=0, balance=balance, stream=_CLASSES)
        self.query, self.document = _ByClass.of(pairs, rows.num_classes), _ByClass.of(rows.document, rows.num_classes)

    def draw(self, step: int, *, count: int) -> Drawn:
        """The batch of a step: `count` rows of each side.

        Raises:
            ValueError: `count` is no multiple of `per_class`.
        """
        if count % self.per_class:
            raise ValueError(f"a batch of {count} cannot hold {self.per_class} rows of every class; use a multiple")
        drawn = self.classes.draw(count // self.per_class, seed=self.seed, step=step).labels
        label_B = np.repeat(drawn, self.per_class)
        rng = np.random.default_rng([self.seed, _PICKS, step])
        query_B = self.query.weighted(label_B, rng)
        turn_B = np.repeat(rng.integers(0, 2**31, len(drawn)), self.per_class)
        document_B = self.document.in_turn(label_B, turn_B + np.tile(np.arange(self.per_class), len(drawn)))
        positive_BB = label_B[:, None] == label_B[None]
        if self.rows.known is not None:
            positive_BB |= np.isin(query_B[:, None] * self.rows.documents + document_B[None], self.rows.known)
        label = torch.from_numpy(label_B)
        views = [rng.integers(0, 1 + most, count) for most in self.views]
        return Drawn(query_B, views[0], document_B, views[1], Batch(label, label, torch.from_numpy(positive_BB)))


@dataclass(frozen=True)
class _ByClass:
    """Rows sorted by class: those of class c stand from `bound[c]` to `bound[c + 1]`."""

    row: np.ndarray
    bound: np.ndarray
    cumulative: np.ndarray

    @classmethod
    def of(cls, part: SideRowsOfClass, num_classes: int) -> "_ByClass":
        order = np.argsort(part.labels, kind="stable")
        bound = np.searchsorted(part.labels[order], np.arange(num_classes + 1))
        return cls(part.rows[order], bound, np.append(0.0, np.cumsum(part.weights[order])))

    def weighted(self, label_B: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """A row of each class by weight."""
        start, end = self.bound[label_B], self.bound[label_B + 1]
        low, high = self.cumulative[start], self.cumulative[end]
        target = low + rng.random(len(label_B)) * (high - low)
        return self.row[np.clip(np.searchsorted(self.cumulative, target, side="right") - 1, start, end - 1)]

    def in_turn(self, label_B: np.ndarray, turn_B: np.ndarray) -> np.ndarray:
        """The row of each class whose turn it is."""
        start, end = self.bound[label_B], self.bound[label_B + 1]
        return self.row[start + turn_B % (end - start)]


class ClassSampler:
    """Batches of the product's own sampler, both sides drawn apart from each other: for losses that learn classes."""

    def __init__(self, rows: Labelled, *, query_views: int, document_views: int, balance: float, seed: int) -> None:
        self.seed = seed
        self.steps = StepSampler(
            rows.query.as_tuple(),
            rows.document.as_tuple(),
            query_views=query_views,
            document_views=document_views,
            balance=balance,
        )

    def draw(self, step: int, *, count: int) -> Drawn:
        """The batch of a step: `count` rows of each side."""
        found = self.steps.compose(step, seed=self.seed, queries=count, documents=count)
        query, document = found.query, found.document
        positive_BB = torch.from_numpy(query.labels[:, None] == document.labels[None])
        labels = torch.from_numpy(query.labels), torch.from_numpy(document.labels)
        return Drawn(query.rows, query.views, document.rows, document.views, Batch(*labels, positive_BB))
