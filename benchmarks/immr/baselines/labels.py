"""Raw and governed training labels of the baselines, and batch samplers.

Raw labels are the clicks: every clicked document is a positive of the query; for losses that need one class per query,
the class is the most clicked document. Governed labels are the categories of the governed folder, on the rows that the
product is trained on.

Legend: B rows of a batch, E (query, class) pairs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import torch

from benchmarks.immr.baselines.losses import BatchLabels
from train.class_weights.initialization import SideRowsOfClass
from train.image_stage.loop import trained_rows
from train.inputs.sampler import SideSampler, StepSampler
from train.inputs.samples import GovernedSamples

LABELS = ("raw", "governed")
_CLASSES, _PICKS = 5, 6  # random streams distinct from those of train/inputs/sampler.py


@dataclass(frozen=True)
class LabelledRows:
    """Rows of the feature arrays of each side, with class index 0..num_classes - 1 and weight.

    Attributes:
        pairs: query rows, one entry for each class of a query.
        document: document rows.
        query: query rows, one entry per query.
        calibration: query rows that may be used to calibrate scores.
        clicked: sorted (query row * num_documents + document row) of positive pairs in addition to equal labels; None =
            equal labels only.
        num_documents: factor in `clicked`.
    """

    pairs: SideRowsOfClass
    document: SideRowsOfClass
    query: SideRowsOfClass
    num_classes: int
    calibration: np.ndarray
    clicked: np.ndarray | None = None
    num_documents: int = 0


@dataclass(frozen=True)
class SampledBatch:
    """Rows and views of a batch, (B,) each, and its labels."""

    query_rows: np.ndarray
    query_views: np.ndarray
    document_rows: np.ndarray
    document_views: np.ndarray
    labels: BatchLabels


def governed_rows(samples: GovernedSamples) -> LabelledRows:
    """The rows and categories of the product's image stage."""
    rows = trained_rows(samples)
    query = rows["query"]
    return LabelledRows(
        query, rows["document"], query, len(samples.classes), np.flatnonzero(~samples.labels.query_validation)
    )


def raw_rows(behaviour: pa.Table, query_ids: Sequence[str], document_ids: Sequence[str]) -> LabelledRows:
    """Raw clicks; the classes are the clicked documents in row order.

    Args:
        behaviour: query_id, doc_id, clicks (a pair may come in several rows).
        query_ids, document_ids: ids in the order of the feature arrays; other rows of the log are left out.
    """
    query_row, document_row = _row_of(query_ids), _row_of(document_ids)
    clicks: dict[tuple[int, int], float] = {}
    columns = (behaviour.column(name).to_pylist() for name in ("query_id", "doc_id", "clicks"))
    for query, document, count in zip(*columns, strict=True):
        if count > 0 and query in query_row and document in document_row:
            pair = query_row[query], document_row[document]
            clicks[pair] = clicks.get(pair, 0.0) + count
    pair_E2 = np.asarray(sorted(clicks), dtype=np.int64).reshape(-1, 2)
    count_E = np.asarray([clicks[int(q), int(d)] for q, d in pair_E2])
    classes, label_E = np.unique(pair_E2[:, 1], return_inverse=True)
    # Sorted by query, falling clicks, document row: the first entry of each query is its most clicked document.
    order = np.lexsort((pair_E2[:, 1], -count_E, pair_E2[:, 0]))
    queries, first = np.unique(pair_E2[order, 0], return_index=True)
    best = order[first]
    return LabelledRows(
        pairs=SideRowsOfClass(pair_E2[:, 0], label_E, count_E),
        document=SideRowsOfClass(classes, np.arange(len(classes)), np.ones(len(classes))),
        query=SideRowsOfClass(queries, label_E[best], np.ones(len(queries))),
        num_classes=len(classes),
        calibration=queries,
        clicked=np.sort(pair_E2[:, 0] * len(document_ids) + pair_E2[:, 1]),
        num_documents=len(document_ids),
    )


def _row_of(ids: Sequence[str]) -> Mapping[str, int]:
    return {name: row for row, name in enumerate(ids)}


def restricted(rows: LabelledRows, usable: np.ndarray) -> LabelledRows:
    """Keep the usable documents, and the classes that still have rows on both sides.

    Args:
        usable: bool by document row.

    Raises:
        ValueError: no class is left.
    """
    document = _where(rows.document, usable[rows.document.rows])
    kept = np.intersect1d(document.labels, rows.pairs.labels)
    if not len(kept):
        raise ValueError("no class has both a query and a usable document; there is nothing to train on")
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
    """Batches in which document i is a positive of query i.

    Classes come in shuffled rounds, as in train/inputs/sampler.py; each drawn class gives `per_class` queries by weight
    and as many documents, distinct ones if it has enough.

    Args:
        views: number of augmented views of (queries, documents).
        balance: 1 draws every class equally often, 0 in proportion to its weights.
    """

    def __init__(
        self, rows: LabelledRows, *, per_class: int, views: tuple[int, int], balance: float, seed: int
    ) -> None:
        self.rows, self.per_class, self.views, self.seed = rows, per_class, views, seed
        pairs = rows.pairs
        self.classes = SideSampler(*pairs.as_tuple(), views=0, balance=balance, stream=_CLASSES)
        self.query, self.document = (
            _RowsByClass.of(pairs, rows.num_classes),
            _RowsByClass.of(rows.document, rows.num_classes),
        )

    def draw(self, step: int, *, count: int) -> SampledBatch:
        """The batch of a step: `count` rows of each side.

        Raises:
            ValueError: `count` is not a multiple of `per_class`.
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
        if self.rows.clicked is not None:
            positive_BB |= np.isin(query_B[:, None] * self.rows.num_documents + document_B[None], self.rows.clicked)
        label = torch.from_numpy(label_B)
        views = [rng.integers(0, 1 + number, count) for number in self.views]
        return SampledBatch(
            query_B, views[0], document_B, views[1], BatchLabels(label, label, torch.from_numpy(positive_BB))
        )


@dataclass(frozen=True)
class _RowsByClass:
    """Rows sorted by class: those of class c are `row[bound[c] : bound[c + 1]]`."""

    row: np.ndarray
    bound: np.ndarray
    cumulative: np.ndarray

    @classmethod
    def of(cls, part: SideRowsOfClass, num_classes: int) -> "_RowsByClass":
        order = np.argsort(part.labels, kind="stable")
        bound = np.searchsorted(part.labels[order], np.arange(num_classes + 1))
        return cls(part.rows[order], bound, np.append(0.0, np.cumsum(part.weights[order])))

    def weighted(self, label_B: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Draw one row of each class by weight."""
        start, end = self.bound[label_B], self.bound[label_B + 1]
        low, high = self.cumulative[start], self.cumulative[end]
        target = low + rng.random(len(label_B)) * (high - low)
        return self.row[np.clip(np.searchsorted(self.cumulative, target, side="right") - 1, start, end - 1)]

    def in_turn(self, label_B: np.ndarray, turn_B: np.ndarray) -> np.ndarray:
        """Row number `turn` of each class, cyclically."""
        start, end = self.bound[label_B], self.bound[label_B + 1]
        return self.row[start + turn_B % (end - start)]


class ClassSampler:
    """Batches of the product's sampler, with both sides drawn independently, for losses over classes.

    Args:
        views: number of augmented views of (queries, documents).
        balance: 1 draws every class equally often, 0 in proportion to its weights.
    """

    def __init__(self, rows: LabelledRows, *, views: tuple[int, int], balance: float, seed: int) -> None:
        self.seed = seed
        self.steps = StepSampler(
            rows.query.as_tuple(),
            rows.document.as_tuple(),
            query_views=views[0],
            document_views=views[1],
            balance=balance,
        )

    def draw(self, step: int, *, count: int) -> SampledBatch:
        """The batch of a step: `count` rows of each side."""
        found = self.steps.compose(step, seed=self.seed, queries=count, documents=count)
        query, document = found.query, found.document
        positive_BB = torch.from_numpy(query.labels[:, None] == document.labels[None])
        labels = torch.from_numpy(query.labels), torch.from_numpy(document.labels)
        return SampledBatch(query.rows, query.views, document.rows, document.views, BatchLabels(*labels, positive_BB))
