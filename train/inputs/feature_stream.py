"""Compute features of the frozen encoder stages on demand, without a cache.

The cache holds every view of every sample, many times the bytes of the encoded images. If it does not fit on the disk,
or a run would end before it has used it, the images of a step are decoded and augmented by worker processes while the
step before it runs. They pass through the frozen stages in the same arithmetic, batch size and rounding to fp16 as in
the cache, so the results are equal. Nothing is stored: memory depends only on the size of a step.

Letters: B rows, C channels, H height, W width.
"""

import copy
import multiprocessing
import os
import threading
import time
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from train.inputs.cache import FeatureCache
from train.inputs.composites import CompositeLayout
from train.inputs.feature_keys import FeatureExtraction
from train.inputs.frozen_part import FrozenPart, cells_are_trained, check_stages
from train.inputs.sample_table import SIDES
from train.inputs.sampler import StepRows, StepSampler, piece
from train.inputs.views import ROWS_PER_BATCH, Side, UnreadableImage, Views, decode_workers
from train.parallel.collectives import rank, world_size
from train.recipes.recipe import Recipe

SECONDS_BETWEEN_CHECKS = 2.0

_views: dict[str, Views] = {}  # set once in each worker process, empty in the main one


class Decoder:
    """Decodes views of rows in worker processes, or in this one without any.

    Args:
        views: by side. workers: processes; 0 decodes in `take`, in this process.
    """

    def __init__(self, views: dict[str, Views], *, workers: int) -> None:
        self.views = views
        self._pending: dict[tuple[str, bytes, bytes], list[Future[Any]]] = {}
        self._pool: ProcessPoolExecutor | None = None
        if workers:
            self._pool = ProcessPoolExecutor(
                workers,
                mp_context=multiprocessing.get_context("fork"),
                initializer=_begin_worker,
                initargs=(views, os.getpid()),
            )

    def announce(self, wanted: list[tuple[str, np.ndarray, np.ndarray]]) -> None:
        """Start decoding the next rows, each (side, rows, views); cancel earlier rows that are not among them."""
        if self._pool is None:
            return
        kept = {_key(*part): self._pending.get(_key(*part)) or self._submit(*part) for part in wanted}
        for futures in (self._pending[key] for key in self._pending.keys() - kept.keys()):
            for future in futures:
                future.cancel()
        self._pending = kept

    def take(self, side: str, rows: np.ndarray, views: np.ndarray) -> Tensor:
        """(B, 3, H, W) pixel values.

        Raises:
            ValueError: an image cannot be decoded; names the sample.
        """
        if self._pool is None or not len(rows):
            parts: list[Any] = [_decode(self.views[side], rows, views)]
        else:
            futures = self._pending.pop(_key(side, rows, views), None) or self._submit(side, rows, views)
            parts = [future.result() for future in futures]
        for part in parts:
            if isinstance(part, UnreadableImage):
                raise ValueError(part.reason)
        pixels: np.ndarray = np.concatenate(parts)
        return torch.from_numpy(pixels)

    def close(self) -> None:
        """End the worker processes."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def _submit(self, side: str, rows: np.ndarray, views: np.ndarray) -> list[Future[Any]]:
        assert self._pool is not None
        starts = range(0, len(rows), ROWS_PER_BATCH)
        parts = [slice(start, start + ROWS_PER_BATCH) for start in starts]
        return [self._pool.submit(_decode_in_worker, side, rows[part], views[part]) for part in parts]


def _key(side: str, rows: np.ndarray, views: np.ndarray) -> tuple[str, bytes, bytes]:
    return side, rows.astype(np.int64).tobytes(), views.astype(np.int64).tobytes()


def _begin_worker(views: dict[str, Views], parent: int) -> None:
    torch.set_num_threads(1)
    _views.update(views)
    threading.Thread(target=_exit_with, args=(parent,), daemon=True).start()


def _exit_with(parent: int) -> None:
    """End this worker when its parent process has ended, even if that was killed."""
    while os.getppid() == parent:
        time.sleep(SECONDS_BETWEEN_CHECKS)
    os._exit(1)


def _decode_in_worker(side: str, rows: np.ndarray, views: np.ndarray) -> np.ndarray | UnreadableImage:
    return _decode(_views[side], rows, views)


def _decode(data: Views, rows: np.ndarray, views: np.ndarray) -> np.ndarray | UnreadableImage:
    """(B, 3, H, W) of one view of each row."""
    found = []
    for row, view in zip(rows.tolist(), views.tolist(), strict=True):
        pixels = data.of(row, [view])
        if isinstance(pixels, UnreadableImage):
            return pixels
        found.append(pixels.numpy())
    return np.concatenate(found) if found else np.zeros((0, 3, data.processor.size, data.processor.size), np.float32)


class StreamedInputs:
    """Substitute for a cached array (N, V, ...): `inputs[rows, views]` computes those rows.

    Args:
        decoder: shared by both sides. frozen: the frozen stages. present: (N,) bool, has an image.
    """

    def __init__(self, side: str, decoder: Decoder, *, frozen: FrozenPart, present: np.ndarray) -> None:
        self.side, self.decoder, self.frozen = side, decoder, frozen
        self.present = present

    def __len__(self) -> int:
        return len(self.present)

    def __getitem__(self, key: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        rows, views = key
        pixel_BCHW = self.decoder.take(self.side, rows, views)
        values = self._frozen_values(pixel_BCHW)
        values[~self.present[rows]] = 0
        return values

    def _frozen_values(self, pixel_BCHW: Tensor) -> np.ndarray:
        """fp16 output of the frozen stages."""
        if not len(pixel_BCHW):
            return self._frozen_values(torch.zeros(1, *pixel_BCHW.shape[1:]))[:0]
        values: np.ndarray = self.frozen(pixel_BCHW)["inputs"].to(torch.float16).numpy()
        return values


def unchanging_part(model: Any, recipe: Recipe) -> FrozenPart:
    """The frozen stages of a copy of the model, which training neither moves, shards nor changes."""
    passes_pixels = cells_are_trained(model, recipe)
    return FrozenPart(model if passes_pixels else copy.deepcopy(model).eval(), recipe)


def stream_features(extraction: FeatureExtraction, folder: Path, *, workers: int | None = None) -> FeatureCache:
    """Inputs of training, computed on demand; every rank computes its own rows.

    Args:
        folder: cache folder of the text stage. workers: processes that decode; None = `decode_workers()`.

    Raises:
        ValueError: the backbone cannot be cut there, or the patches come from a stage that is trained.
    """
    model, samples, recipe = extraction.model, extraction.samples, extraction.recipe
    check_stages(model, recipe)
    sides = {name: Side(samples, name) for name in SIDES}
    counts = {"query": recipe.image.query_views, "document": recipe.image.document_views}
    views = {
        name: Views(side, extraction.processor, views=counts[name], seed=extraction.seed)
        for name, side in sides.items()
    }
    decoder = Decoder(views, workers=decode_workers() if workers is None else workers)
    has_image = samples.has_image()
    present = {name: has_image[side.rows] for name, side in sides.items()}
    frozen = unchanging_part(model, recipe)
    inputs = {name: StreamedInputs(name, decoder, frozen=frozen, present=present[name]) for name in SIDES}
    count = len(sides["document"])
    nothing = np.zeros(0, np.int64)
    return FeatureCache(
        home=folder / "streamed",
        query_inputs=inputs["query"],
        document_inputs=inputs["document"],
        document_has_image=present["document"],
        document_cells=np.zeros((count, 0, 1), np.float16),
        grid=(0, 0),
        document_tokens=np.zeros((count, 0, 1), np.float16),
        document_mask=np.zeros((count, 0), bool),
        page_cells=np.zeros((0, 0, 1), np.float16),
        composite_layouts=CompositeLayout(nothing, nothing, nothing),
    )


class LookAhead:
    """`StepSampler` that has the rows of the next step decoded while this one runs."""

    def __init__(self, sampler: StepSampler, decoder: Decoder, recipe: Recipe) -> None:
        self.sampler, self.decoder, self.recipe = sampler, decoder, recipe
        self._composed: dict[tuple[int, int], StepRows] = {}

    def compose(self, step: int, *, seed: int, queries: int, documents: int) -> StepRows:
        """The global batch of step `step`, as the sampler composes it."""
        wanted = [number for number in (step, step + 1) if number == step or number < self.recipe.image.steps]
        self._composed = {
            (seed, number): self._composed.get((seed, number))
            or self.sampler.compose(number, seed=seed, queries=queries, documents=documents)
            for number in wanted
        }
        self.decoder.announce([part for number in wanted for part in self._mine(self._composed[seed, number])])
        return self._composed[seed, step]

    def _mine(self, rows: StepRows) -> list[tuple[str, np.ndarray, np.ndarray]]:
        """This rank's rows of every micro-step."""
        parts = self.recipe.image.gradient_accumulation * world_size()
        found = []
        for micro in range(self.recipe.image.gradient_accumulation):
            for name, drawn in (("query", rows.query), ("document", rows.document)):
                kept = piece(len(drawn.rows), micro * world_size() + rank(), parts)
                found.append((name, drawn.rows[kept], drawn.views[kept]))
        return found


def with_look_ahead(sampler: StepSampler, cache: FeatureCache, recipe: Recipe) -> Any:
    """The sampler itself, or one that announces the next step to the decoder of a streamed cache."""
    if not isinstance(cache.query_inputs, StreamedInputs):
        return sampler
    return LookAhead(sampler, cache.query_inputs.decoder, recipe)
