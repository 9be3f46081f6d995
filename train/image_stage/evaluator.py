"""Evaluates held-out queries against all documents by image, while the image stage trains.

The loss is over trained classes; what counts is retrieval of unseen categories. The metrics are those that the
published folder would reach with an index of its images, without calibration: definitions and order of ties as in
retrieval/evaluation/metrics.py, computed on the device of the embeddings.

Every rank embeds an equal number of rows, so that DDP and FSDP run the same number of forward calls everywhere; the
main process ranks. Best step and patience are derived from the lines of evaluation.jsonl, which a resumed run truncates
to its start.

Letters: Q queries, N documents, D width, R rows of a rank.
"""

import contextlib
import json
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from retrieval.evaluation.metrics import SCORE_DECIMALS, rank_metrics
from runtime.files import write_text
from train.checkpoints.checkpoint import load_checkpoint
from train.checkpoints.folder import incomplete_reason
from train.class_weights.initialization import while_running
from train.image_stage.step import ImageStage
from train.inputs.samples import GovernedSamples
from train.parallel.collectives import gather_rows, on_main, rank, world_size

logger = logging.getLogger(__name__)

EVALUATION_FILE = "evaluation.jsonl"
DECIDING_METRIC = "mrr_at_10"  # finer than recall on few queries, with most weight on the first place
SCORES_AT_ONCE = 2**25


@dataclass(frozen=True)
class HeldOut:
    """Rows of held-out queries and of all documents, with their categories.

    Attributes:
        query_rows, query_labels: (Q,) held-out queries that have a relevant document.
        document_rows, document_labels: (N,) all documents with an image, by ascending sample id.
        skipped: held-out queries without a relevant document.
    """

    query_rows: np.ndarray
    query_labels: np.ndarray
    document_rows: np.ndarray
    document_labels: np.ndarray
    skipped: int

    @classmethod
    def of(cls, samples: GovernedSamples) -> "HeldOut":
        """The held-out queries of the governed data and all its documents.

        Raises:
            ValueError: no held-out query has a document to find.
        """
        labels = samples.labels
        documents = np.flatnonzero(samples.document_has_image)
        names = samples.table.ids("document").take(pa.array(documents))
        documents = documents[pc.sort_indices(names).to_numpy()]
        held = np.flatnonzero(labels.query_validation)
        able = np.isin(labels.query[held], labels.document[documents])
        if not able.any():
            raise ValueError(
                "recipe.image.evaluate_every is set, but no query of split 'validation' has a document with an image; "
                "govern with a larger validation_share, or set evaluate_every to null"
            )
        rows = held[able]
        return cls(rows, labels.query[rows], documents, labels.document[documents], int((~able).sum()))


def ranking_metrics(
    queries_QD: Tensor, documents_ND: Tensor, query_labels: np.ndarray, document_labels: np.ndarray
) -> dict[str, float]:
    """recall_at_1, recall_at_10 and mrr_at_10, means over queries; documents of the query's category are relevant.

    The rank of the first relevant document is 1 + the documents before it, ordered by score (rounded to
    6 decimals, highest first), equal scores by their place. So no ranking is sorted or kept.

    Args:
        documents_ND: in the order that decides ties. Every query has at least one document of its category.
    """
    labels_N = torch.from_numpy(document_labels).to(documents_ND.device)
    place_N = torch.arange(len(labels_N), device=documents_ND.device)
    at_once = max(1, SCORES_AT_ONCE // len(labels_N))
    ranks = []
    for low in range(0, len(queries_QD), at_once):
        part = slice(low, low + at_once)
        score_QN = torch.round(queries_QD[part].double() @ documents_ND.double().T, decimals=SCORE_DECIMALS)
        right_QN = labels_N == torch.from_numpy(query_labels[part]).to(labels_N.device)[:, None]
        best_Q1 = score_QN.masked_fill(~right_QN, -torch.inf).amax(1, keepdim=True)
        first_Q1 = place_N.masked_fill(~(right_QN & (score_QN == best_Q1)), len(place_N)).amin(1, keepdim=True)
        before_QN = (score_QN > best_Q1) | ((score_QN == best_Q1) & (place_N < first_Q1))
        ranks.append(1 + before_QN.sum(1))
    return {name: float(values_Q.mean()) for name, values_Q in rank_metrics(torch.cat(ranks).cpu().numpy()).items()}


def embed_on_all_ranks(side: ImageStage, rows: np.ndarray, *, name: str) -> Tensor:
    """(len(rows), D) unit rows of one side on every rank, each of which embeds an equal share; all ranks call it.

    Args:
        name: "query" or "document".
    """
    share = -(-len(rows) // world_size())
    places = np.minimum(rank() * share + np.arange(share), len(rows) - 1)
    inputs = {"query": side.query_inputs, "document": side.document_inputs}
    embed = while_running(side.encoders, inputs, like=side.shard.like, width=side.recipe.model.hidden_size)
    local_RD = torch.cat([embeds_BD for _, embeds_BD in embed(name, rows[places])])
    return gather_rows(local_RD.contiguous(), [share] * world_size())[: len(rows)]


@contextlib.contextmanager
def _as_published(side: ImageStage) -> Iterator[None]:
    """Context in which the encoders compute as the published folder will: averaged weights, full precision."""
    bare = getattr(side.encoders, "module", side.encoders)
    precision, bare.mixed_precision = bare.mixed_precision, "no"
    with contextlib.nullcontext() if side.average is None else side.average.in_place():
        try:
            yield
        finally:
            bare.mixed_precision = precision


@dataclass(frozen=True)
class Standing:
    """Best step, its metric, and the number of evaluations since; none while the start is the best.

    A run that is evaluated before its first step often falls below that start at first, so it is given all its steps to
    rise above it.
    """

    best_step: int | None
    best: float
    waited: int

    @classmethod
    def of(cls, lines: list[dict[str, Any]]) -> "Standing":
        """Standing after these lines; of equal metrics the earlier is the best."""
        if not lines:
            return cls(None, float("-inf"), 0)
        values = [float(line[DECIDING_METRIC]) for line in lines]
        place = int(np.argmax(values))
        step = int(lines[place]["step"])
        return cls(step, values[place], 0 if step == 0 else len(values) - 1 - place)


def read_evaluations(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's evaluation.jsonl, in order; none without such a file. An incomplete last line is ignored."""
    path = folder / EVALUATION_FILE
    found: list[dict[str, Any]] = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return found


def stopped_early(folder: Path, *, patience: int | None, done: int) -> bool:
    """Whether a run of `done` steps ended because `patience` evaluations brought no improvement."""
    lines = [line for line in read_evaluations(folder) if line["step"] <= done]
    return patience is not None and Standing.of(lines).waited >= patience


def summary(folder: Path, *, done: int) -> dict[str, Any] | None:
    """The best line of the first `done` steps and the number of lines; None without any."""
    lines = [line for line in read_evaluations(folder) if line["step"] <= done]
    best = Standing.of(lines).best_step
    return None if best is None else {"best": next(x for x in lines if x["step"] == best), "evaluations": len(lines)}


def load_best(side: ImageStage, folder: Path, *, done: int) -> None:
    """Load the checkpoint of the run's best evaluation, unless it is that of the last step; all ranks call it.

    Raises:
        ValueError: that checkpoint is incomplete.
    """

    def best() -> Path | None:
        step = Standing.of([line for line in read_evaluations(folder) if line["step"] <= done]).best_step
        path = folder / "checkpoints" / f"step-{step or 0:08d}"
        if step is None or step == done:
            return None
        reason = incomplete_reason(path)
        if reason is not None:
            raise ValueError(f"the best evaluation was after {step} steps, but of {path} {reason}; put the file back")
        return path

    found = on_main(best)
    if found is not None:
        load_checkpoint(side, found)


class Evaluator:
    """Evaluates at the recipe's intervals and tracks the best; every rank makes one and calls it alike.

    Args:
        side: the state in training; without `evaluate_every` in its recipe nothing is evaluated.
        folder: the run. start: steps done; later lines of the file are cut off.

    Raises:
        ValueError: there are no held-out queries.
    """

    def __init__(self, side: ImageStage, samples: GovernedSamples, *, folder: Path, start: int) -> None:
        self.side, self.path = side, folder / EVALUATION_FILE
        self.every, self.patience = side.recipe.image.evaluate_every, side.recipe.image.early_stopping
        self.lines: list[dict[str, Any]] = []
        if self.every is not None:
            self.held_out = on_main(lambda: HeldOut.of(samples))
            self.lines = on_main(lambda: self._cut(start))

    @property
    def standing(self) -> Standing:
        """Best step and patience used."""
        return Standing.of(self.lines)

    @property
    def should_stop(self) -> bool:
        """Whether `early_stopping` evaluations brought no improvement."""
        return self.patience is not None and self.standing.waited >= self.patience

    def is_best(self, done: int) -> bool:
        """Whether the best evaluation so far is that after `done` steps."""
        return self.standing.best_step == done

    def after(self, done: int) -> float | None:
        """Evaluate every `evaluate_every` steps and after the last step; otherwise do nothing.

        Returns:
            The deciding metric, larger is better; None without an evaluation.
        """
        if self.every is None or (done % self.every and done != self.side.recipe.image.steps):
            return None
        begun = time.perf_counter()
        held = self.held_out
        with _as_published(self.side):
            queries_QD = embed_on_all_ranks(self.side, held.query_rows, name="query")
            documents_ND = embed_on_all_ranks(self.side, held.document_rows, name="document")

        def evaluated() -> dict[str, Any]:
            found = ranking_metrics(queries_QD, documents_ND, held.query_labels, held.document_labels)
            counts = {"queries": len(held.query_rows), "documents": len(held.document_rows), "skipped": held.skipped}
            return {"step": done, **found, **counts, "seconds": round(time.perf_counter() - begun, 2)}

        self.lines.append(on_main(evaluated))
        on_main(self._write_last)
        return float(self.lines[-1][DECIDING_METRIC])

    def go_back(self, step: int) -> None:
        """Forget the evaluations after `step`."""
        self.lines = on_main(lambda: self._cut(step))

    def _cut(self, start: int) -> list[dict[str, Any]]:
        kept = [line for line in read_evaluations(self.path.parent) if line["step"] <= start]
        write_text(self.path, "".join(json.dumps(line) + "\n" for line in kept))
        return kept

    def _write_last(self) -> None:
        line, best = self.lines[-1], self.standing
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        metrics = ", ".join(f"{name} {line[name]:.3f}" for name in ("recall_at_1", "recall_at_10", "mrr_at_10"))
        logger.info("evaluation after %d steps: %s; best after %s", line["step"], metrics, best.best_step)
