"""Disk cache of features of the frozen encoder stages, in half precision.

While the first stages of the image encoder are frozen, their output for a given view never changes. Every sample is
decoded, augmented and passed through them once; a training step then computes only the trained tail. The folder name is
a digest of everything that the content depends on (feature_keys.py).

A backbone without frozen stages has no such features: its pixel values are cached, and no patches, because those would
be the patches of weights that are about to change (the text stage computes them after training).

Letters: N rows of a side, V views, B batch, C channels, P patches, T tokens, H width, G composite images.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Subset
from tqdm import tqdm

from runtime.map_store import MapStore
from train.inputs.composites import CompositeLayout, composite_layouts
from train.inputs.feature_files import Progress, RowFile, WorkerGroup, fill_rows, locked
from train.inputs.feature_keys import FeatureExtraction, cache_keys
from train.inputs.frozen_part import FrozenPart, arithmetic, cells_are_trained, check_stages
from train.inputs.stored_views import StoredViews, open_store, stored_views
from train.inputs.views import CompositeImages, Side, Views, decode_workers, pixel_batches
from train.parallel.collectives import max_over_ranks

TEXTS_PER_BATCH = 64
COMPLETE = "whole"  # file in a complete cache folder


@dataclass(frozen=True)
class FeatureCache:
    """Inputs of the trained part of the model; rows follow the order of the governed samples of each side.

    View 0 is the clean one, without augmentation. A missing image is a row of zeros.

    Attributes:
        home: the folder of the arrays.
        query_inputs, document_inputs: (N, V, ...) fp16: hidden maps before the trained tail, pooled features of a
            frozen backbone, or pixel values of one without frozen stages. Arrays, or `StreamedInputs` (then there are
            no patches, tokens and composites: the text stage caches those of the clean views when it needs them).
        document_cells: (N, P, H) fp16 patches of the clean view; `grid` is their (rows, columns). P is 0 if the patches
            are trained.
        document_tokens, document_mask: (N, T, H) fp16 and (N, T) bool; T is 1 if the model has no text encoder.
        page_cells: (G, P, H) fp16 patches of composite images of two documents; `composite_layouts` are their layouts.
            Empty without a text encoder, and if the patches are trained.
    """

    home: Path
    query_inputs: Any
    document_inputs: Any
    document_has_image: np.ndarray
    document_cells: np.ndarray
    grid: tuple[int, int]
    document_tokens: np.ndarray
    document_mask: np.ndarray
    page_cells: np.ndarray
    composite_layouts: CompositeLayout


@dataclass(frozen=True)
class _ImageJob:
    """Images to embed, and the outputs of `trunk` to write to `home`.

    Attributes:
        data: of N rows. present: (N,) bool, has an image. augmented: (N,) bool, is trained on: of the other rows the
            clean view alone is embedded. stored: clean views that governance has embedded. title: of the progress bar.
    """

    name: str
    title: str
    data: Any
    present: np.ndarray
    augmented: np.ndarray
    home: Path
    keep: tuple[str, ...]
    stored: StoredViews | None = None


def _fill_images(frozen: FrozenPart, job: _ImageJob, *, workers: int, group: WorkerGroup) -> None:
    """Embed every row; write the `inputs` of all views and the `cells` of the clean one."""
    shapes = _shapes(frozen, job.data)
    files = {
        name: RowFile(job.home / f"{job.name}_{name}.npy", (len(job.data), *shapes[name]), np.float16)
        for name in job.keep
    }

    def batches(rows: np.ndarray) -> Iterator[dict[str, np.ndarray]]:
        part, place = Subset(job.data, rows.tolist()), 0
        for pixel_BVCHW in pixel_batches(part, workers=workers, title=job.title):
            here = rows[place : place + len(pixel_BVCHW)]
            place += len(pixel_BVCHW)
            wanted_BV = np.repeat(job.augmented[here][:, None], pixel_BVCHW.shape[1], axis=1)
            wanted_BV[:, 0] = True if job.stored is None else ~job.stored.has_row[here]
            values = _embedded(frozen, pixel_BVCHW, wanted_BV & job.present[here][:, None], shapes)
            if job.stored is not None:
                job.stored.fill(values, here)
            yield values

    fill_rows(files, Progress(job.home / f"{job.name}.progress", len(job.data)), group=group, batches=batches)


def _embedded(
    frozen: FrozenPart, pixel_BVCHW: Tensor, wanted_BV: np.ndarray, shapes: dict[str, tuple[int, ...]]
) -> dict[str, np.ndarray]:
    """`inputs` (B, V, ...) and `cells`, the patches of the clean view (B, P, H), fp16; zeros where not wanted."""
    rows = len(wanted_BV)
    values = {name: torch.zeros(rows, *shape, dtype=torch.float16) for name, shape in shapes.items()}
    if wanted_BV.any():
        wanted = torch.from_numpy(wanted_BV)
        found = frozen(pixel_BVCHW[wanted])
        values["inputs"][wanted] = found["inputs"].to(torch.float16)
        is_clean = torch.from_numpy(np.nonzero(wanted_BV)[1] == 0)
        values["cells"][wanted[:, 0]] = found["cells"][is_clean].to(torch.float16)
    return {name: value.numpy() for name, value in values.items()}


def _shapes(frozen: FrozenPart, data: Any) -> dict[str, tuple[int, ...]]:
    """Shape of a row of each output, from an image of zeros."""
    views, size = (data.views + 1, data.processor.size) if isinstance(data, Views) else (1, data.clean.processor.size)
    found = frozen(torch.zeros(1, 3, size, size))
    return {"inputs": (views, *found["inputs"].shape[1:]), "cells": tuple(found["cells"].shape[1:])}


def _fill_texts(extraction: FeatureExtraction, texts: list[str], *, folder: Path, group: WorkerGroup) -> None:
    """Token features of every document; a document without text keeps an all-False mask row."""
    model, processor = extraction.model, extraction.processor
    if model.config.text_config is None:
        group.on_main(lambda: np.save(folder / "tokens.npy", np.zeros((len(texts), 1, 1), np.float16)))
        group.on_main(lambda: np.save(folder / "mask.npy", np.zeros((len(texts), 1), bool)))
        return
    longest = _longest_text(processor, texts, group=group)
    width = model.config.text_config.hidden_size
    files = {
        "tokens": RowFile(folder / "tokens.npy", (len(texts), longest, width), np.float16),
        "mask": RowFile(folder / "mask.npy", (len(texts), longest), bool),
    }

    def batches(rows: np.ndarray) -> Iterator[dict[str, np.ndarray]]:
        for start in tqdm(range(0, len(rows), TEXTS_PER_BATCH), desc="texts", unit="batch"):
            part = [texts[row] for row in rows[start : start + TEXTS_PER_BATCH]]
            tokens = np.zeros((len(part), longest, width), np.float16)
            mask = np.zeros((len(part), longest), bool)
            batch = processor(text=part)
            with torch.inference_mode(), arithmetic(extraction.recipe):
                tokens_BTH, mask_BT = model.encode_text(batch["input_ids"], batch["attention_mask"])
            tokens[:, : tokens_BTH.shape[1]] = tokens_BTH.to(torch.float16).numpy()
            mask[:, : mask_BT.shape[1]] = (mask_BT & batch["has_text"][:, None]).numpy()
            yield {"tokens": tokens, "mask": mask}

    fill_rows(files, Progress(folder / "texts.progress", len(texts)), group=group, batches=batches)


def _longest_text(processor: Any, texts: list[str], *, group: WorkerGroup) -> int:
    """Tokens of the longest text, with special tokens; each process reads its part."""
    starts = group.part_of(np.arange(0, len(texts), TEXTS_PER_BATCH)).tolist()
    lengths = [processor(text=texts[start : start + TEXTS_PER_BATCH])["input_ids"].shape[1] for start in starts]
    longest = torch.tensor(max(lengths, default=1))
    return int(max_over_ranks(longest) if group.together else longest)


def cache_features(
    extraction: FeatureExtraction,
    folder: Path,
    *,
    workers: int | None = None,
    together: bool = False,
    trained: dict[str, np.ndarray] | None = None,
    governed: Path | None = None,
) -> FeatureCache:
    """Compute the features of every governed sample, or open those that were computed before.

    Args:
        folder: parent of the cache folders; with several ranks on a disk that all of them share.
        workers: processes that decode and augment; None = `decode_workers()`.
        together: all ranks call it, and each embeds its part of the rows.
        trained: (N,) bool by side, rows that are trained on; the others are embedded without augmentation, and their
            other views are zeros. None: all rows.
        governed: the governed folder, whose `features/` may hold clean views that need not be embedded again.

    Raises:
        ValueError: the backbone cannot be cut there, the patches come from a stage that is trained, an image cannot be
            decoded, or the disk cannot be written.
    """
    model, recipe = extraction.model, extraction.recipe
    check_stages(model, recipe)
    group = WorkerGroup(together=together)
    queries, documents = Side(extraction.samples, "query"), Side(extraction.samples, "document")
    layouts = composite_layouts(
        documents.labels, usable=documents.has_image, has_text=documents.has_text, seed=extraction.seed
    )
    workers = decode_workers() if workers is None else workers
    trained = trained or {side.side: np.ones(len(side), dtype=bool) for side in (queries, documents)}
    images_key, texts_key = group.on_main(lambda: cache_keys(extraction, trained=trained))
    model.eval()
    frozen = FrozenPart(model, recipe)
    stored = None if governed is None else open_store(governed, model, extraction.processor, recipe)
    with _unfinished(folder / images_key, group=group) as images:
        if images.is_needed:
            for job in _sample_jobs(extraction, (queries, documents), trained, home=images.home, stored=stored):
                _fill_images(frozen, job, workers=workers, group=group)
    with _unfinished(folder / texts_key, group=group) as texts:
        if texts.is_needed:
            if model.config.text_config is not None and len(layouts.named) and not cells_are_trained(model, recipe):
                job = _composite_job(documents, layouts, extraction.processor, home=texts.home)
                _fill_images(frozen, job, workers=workers, group=group)
            _fill_texts(extraction, documents.texts(), folder=texts.home, group=group)
    return _read(images.home, texts.home, documents, layouts)


def cache_texts(extraction: FeatureExtraction, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """`document_tokens` and `document_mask` of the current text encoder, without images; one process."""
    group = WorkerGroup(together=False)
    with _unfinished(folder / f"adapted-{cache_keys(extraction)[1]}", group=group) as home:
        if home.is_needed:
            _fill_texts(extraction, Side(extraction.samples, "document").texts(), folder=home.home, group=group)
    return np.load(home.home / "tokens.npy", mmap_mode="r"), np.load(home.home / "mask.npy", mmap_mode="r")


def _sample_jobs(
    extraction: FeatureExtraction,
    sides: tuple[Side, Side],
    trained: dict[str, np.ndarray],
    *,
    home: Path,
    stored: MapStore | None,
) -> Iterator[_ImageJob]:
    """Jobs of both sides: all views of trained images, the clean one of the others, and the patches of documents."""
    processor, seed, image = extraction.processor, extraction.seed, extraction.recipe.image
    for rows, views, keep in zip(
        sides,
        (image.query_views, image.document_views),
        (("inputs",), ("inputs", "cells")),
        strict=True,
    ):
        known = None if stored is None else stored_views(rows, stored)
        skipped = None if known is None else known.has_row & ~(trained[rows.side] & (views > 0))
        data = Views(rows, processor, views=views, seed=seed, augmented=trained[rows.side], skipped=skipped)
        title = f"{rows.side} features"
        yield _ImageJob(rows.side, title, data, rows.has_image, trained[rows.side], home, keep, known)


def _composite_job(documents: Side, layouts: CompositeLayout, processor: Any, *, home: Path) -> _ImageJob:
    """The job of all composite images, of which the patches are kept."""
    every = np.ones(len(layouts.named), dtype=bool)
    data = CompositeImages(documents, layouts, processor)
    return _ImageJob("page", "composite features", data, every, every, home, ("cells",))


@dataclass(frozen=True)
class _Folder:
    """Cache folder, and whether anything in it must still be computed."""

    home: Path
    is_needed: bool


@contextlib.contextmanager
def _unfinished(home: Path, *, group: WorkerGroup) -> Iterator[_Folder]:
    """Lock the folder unless it is complete; mark it complete if the block ends without an error."""
    if group.on_main(lambda: (home / COMPLETE).exists()):
        yield _Folder(home, is_needed=False)
        return
    with locked(home, group=group):
        needed = group.on_main(lambda: not (home / COMPLETE).exists())  # another run may have completed it
        if needed:
            group.on_main(lambda: home.mkdir(parents=True, exist_ok=True))
        yield _Folder(home, is_needed=needed)
        if needed:
            group.on_main(lambda: _finish(home))


def _finish(home: Path) -> None:
    (home / COMPLETE).touch()
    for path in home.glob("*.progress"):
        path.unlink()


def _read(images: Path, texts: Path, documents: Side, layouts: CompositeLayout) -> FeatureCache:
    def load(home: Path, name: str) -> np.ndarray:
        return np.load(home / f"{name}.npy", mmap_mode="r")

    cells = load(images, "document_cells")
    side = round(cells.shape[1] ** 0.5)
    assert side * side == cells.shape[1], "processed images are square"
    has_composites = (texts / "page_cells.npy").exists()
    return FeatureCache(
        home=images,
        query_inputs=load(images, "query_inputs"),
        document_inputs=load(images, "document_inputs"),
        document_has_image=documents.has_image,
        document_cells=cells,
        grid=(side, side),
        document_tokens=load(texts, "tokens"),
        document_mask=load(texts, "mask"),
        page_cells=load(texts, "page_cells") if has_composites else np.zeros((0, *cells.shape[1:]), np.float16),
        composite_layouts=layouts,
    )
