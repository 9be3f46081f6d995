"""Features of the frozen part of the encoders, computed once and kept on disk in half precision.

Why: while the first stages of the image encoder are frozen, their output for a given view never changes. Every sample
is decoded, augmented and pushed through them once; a training step then costs the trained tail alone. The folder is
keyed by everything that its content depends on: weights, samples, view recipe, source of the augmentation. A stale
answer cannot be read.

A backbone that is trained whole and cannot be cut has no frozen part: its pixel values are kept, and no cells, for
those would be the cells of weights that are about to change (text_stage.py computes them after training).

In: governed samples and an `OclearModel`. Out: a `FeatureCache` of memory-mapped fp16 arrays. Next: image_side.py
learns from it, then text_side.py.

Letters: N rows of a side, V views, B batch, C channels, P cells, T tokens, H width, G made pages.
"""

import hashlib
import inspect
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from train import augment, pages, views
from train.pages import PageLayout, page_layouts
from train.recipe import Recipe
from train.views import Pages, Side, Views, decode_workers, pixel_batches

TEXTS_PER_BATCH = 64
WHOLE = "whole"  # a cache folder without this file was not finished


@dataclass(frozen=True)
class FeatureCache:
    """What the trained part of the model reads; rows follow the order of the governed samples of each side.

    View 0 is the clean one. A missing image is a row of zeros.

    Attributes:
        home: the folder of the arrays.
        query_inputs, document_inputs: (N, V, ...) fp16: hidden maps before the trained tail, pooled features of a
            frozen backbone, or pixel values of one that is trained whole.
        document_cells: (N, P, H) fp16 cells of the clean view; `grid` is their (rows, columns). P is 0 when the cells
            are trained.
        document_tokens, document_mask: (N, T, H) fp16 and (N, T) bool; T is 1 when the model has no text encoder.
        page_cells: (G, P, H) fp16 cells of made pages of two documents; `page_layouts` says what stands where. Empty
            without a text encoder, and when the cells are trained.
    """

    home: Path
    query_ids: list[str]
    document_ids: list[str]
    query_inputs: np.ndarray
    document_inputs: np.ndarray
    document_has_image: np.ndarray
    document_cells: np.ndarray
    grid: tuple[int, int]
    document_tokens: np.ndarray
    document_mask: np.ndarray
    page_cells: np.ndarray
    page_layouts: PageLayout


def cells_are_trained(model: Any, recipe: Recipe) -> bool:
    """Whether training the image side changes the cells: a backbone that cannot be cut into stages, trained whole."""
    return recipe.frozen_stages is not None and not hasattr(model.vision_model, "forward_trunk")


def _check_stages(model: Any, recipe: Recipe) -> None:
    """The frozen part must exist, and the cells must lie in it."""
    frozen, stage = recipe.frozen_stages, model.config.vision_feature_stage
    if frozen is None:
        return
    if cells_are_trained(model, recipe):
        if frozen:
            raise ValueError(
                f"frozen_stages is {frozen}, but {type(model.vision_model).__name__} cannot be cut into stages; use "
                "None (whole backbone frozen) or 0 (whole backbone trained)"
            )
        return
    if stage is None or stage > frozen:
        raise ValueError(
            f"vision_feature_stage is {stage}, but only the output of stages 0 to {frozen} is cached: set it to "
            f"{frozen} or less, or freeze more stages"
        )


def _weights_digest(model: torch.nn.Module, encoder: str) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if name.startswith(f"{encoder}."):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def cache_keys(model: Any, processor: Any, samples: Any, *, recipe: Recipe, seed: int) -> tuple[str, str]:
    """What the features depend on, for images and for pages and texts: a recipe without text shares the images.

    Images: encoder, processor, recipe, seed, image bytes, source of the augmentation. Pages and texts: all that, the
    text encoder, texts, labels, and the source of the pages.
    """
    sides = [Side.of(samples, side) for side in ("query", "document")]
    digest = hashlib.sha256(_weights_digest(model, "vision_model").encode())
    facts = [recipe.frozen_stages, recipe.query_views, recipe.document_views, recipe.feature_dtype, seed]
    facts += [model.config.vision_feature_stage, processor.image_processor.to_json_string()]
    digest.update(json.dumps([*facts, [rows.ids for rows in sides]]).encode())
    for source in (augment, views):
        digest.update(inspect.getsource(source).encode())
    for rows in sides:
        for image in rows.images:
            digest.update(b"-" if image is None else hashlib.sha256(image).digest())
    images = digest.hexdigest()[:16]
    digest.update(_weights_digest(model, "text_model").encode())
    digest.update(inspect.getsource(pages).encode())
    known = [recipe.text, recipe.max_text_tokens, *([rows.texts, rows.labels.tolist()] for rows in sides)]
    digest.update(json.dumps(known).encode())
    return f"images-{images}", f"texts-{digest.hexdigest()[:16]}"


def _trunk(model: Any, pixel_BCHW: Tensor, recipe: Recipe) -> dict[str, Tensor]:
    """`inputs`, what the trained part reads, and `cells` (B, P, H)."""
    if recipe.frozen_stages is None:
        cells_BPH, pooled_BH, _ = model.encode_image(pixel_BCHW)
        return {"inputs": pooled_BH, "cells": cells_BPH}
    if cells_are_trained(model, recipe):
        return {"inputs": pixel_BCHW, "cells": pixel_BCHW.new_zeros(len(pixel_BCHW), 0, 1)}
    hidden_BCHW, stages = model.vision_model.forward_trunk(pixel_BCHW, recipe.frozen_stages)
    return {"inputs": hidden_BCHW, "cells": stages[model.config.vision_feature_stage].flatten(2).transpose(1, 2)}


def _arithmetic(recipe: Recipe) -> Any:
    return torch.autocast("cpu", torch.bfloat16, enabled=recipe.feature_dtype == "bfloat16")


@dataclass(frozen=True)
class _ImageJob:
    """Images to embed: `data` of N rows, `present` (N,) bool, and the file of each output of `_trunk` to `keep`."""

    title: str
    data: Any
    present: np.ndarray
    keep: dict[str, Path]


def _write_images(model: Any, job: _ImageJob, *, recipe: Recipe, workers: int) -> None:
    """Embed every row; keep the `inputs` of all views and the `cells` of the clean one."""
    arrays: dict[str, np.ndarray] = {}
    row = 0
    for pixel_BVCHW in pixel_batches(job.data, workers=workers, title=job.title):
        batch, num_views = pixel_BVCHW.shape[:2]
        flat = pixel_BVCHW.flatten(0, 1).contiguous(memory_format=torch.channels_last)
        with torch.inference_mode(), _arithmetic(recipe):
            found = _trunk(model, flat, recipe)
        for name, path in job.keep.items():
            value = found[name].unflatten(0, (batch, num_views))
            part = (value if name == "inputs" else value[:, 0]).to(torch.float16).numpy()
            if name not in arrays:
                arrays[name] = _create(path, (len(job.data), *part.shape[1:]))
            arrays[name][row : row + batch] = part
            arrays[name][row : row + batch][~job.present[row : row + batch]] = 0
        row += batch


def _create(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    if 0 in shape:  # nothing can be mapped
        empty = np.zeros(shape, np.float16)
        np.save(path, empty)
        return empty
    return np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=shape)


def _write_texts(model: Any, processor: Any, texts: list[str], *, recipe: Recipe, folder: Path) -> None:
    """Token features of every document; a document without text keeps an all-False mask row."""
    if model.config.text_config is None:
        np.save(folder / "tokens.npy", np.zeros((len(texts), 1, 1), np.float16))
        np.save(folder / "mask.npy", np.zeros((len(texts), 1), bool))
        return
    rows: list[tuple[np.ndarray, np.ndarray]] = []
    for start in tqdm(range(0, len(texts), TEXTS_PER_BATCH), desc="texts", unit="batch"):
        batch = processor(text=texts[start : start + TEXTS_PER_BATCH])
        with torch.inference_mode(), _arithmetic(recipe):
            tokens_BTH, mask_BT = model.encode_text(batch["input_ids"], batch["attention_mask"])
        rows.append((tokens_BTH.to(torch.float16).numpy(), (mask_BT & batch["has_text"][:, None]).numpy()))
    longest = max(mask.shape[1] for _, mask in rows)
    width = rows[0][0].shape[2]
    tokens = np.zeros((len(texts), longest, width), np.float16)
    masks = np.zeros((len(texts), longest), bool)
    row = 0
    for part, known in rows:
        tokens[row : row + len(part), : part.shape[1]], masks[row : row + len(part), : part.shape[1]] = part, known
        row += len(part)
    np.save(folder / "tokens.npy", tokens)
    np.save(folder / "mask.npy", masks)


def cache_features(
    model: Any,
    processor: Any,
    samples: Any,
    *,
    recipe: Recipe,
    folder: Path,
    seed: int,
    workers: int | None = None,
) -> FeatureCache:
    """Compute, or find again, the features of every governed sample.

    Args:
        model: an `OclearModel`; its frozen part is run in inference mode.
        samples: the governed samples, a `datasets.Dataset` with undecoded images.
        recipe: how many stages are frozen, how many views per side, the feature dtype.
        folder: parent of the keyed cache folders.
        workers: processes that decode and augment; None = `decode_workers()`.

    Raises:
        ValueError: the backbone cannot be cut there, the cells are taken from a stage that is trained, or an image
            cannot be decoded.
    """
    _check_stages(model, recipe)
    queries, documents = Side.of(samples, "query"), Side.of(samples, "document")
    layouts = page_layouts(documents.labels, usable=documents.has_image, has_text=documents.has_text, seed=seed)
    workers = decode_workers() if workers is None else workers
    images_key, texts_key = cache_keys(model, processor, samples, recipe=recipe, seed=seed)
    images, texts = folder / images_key, folder / texts_key
    model.eval()
    if not (images / WHOLE).exists():
        images.mkdir(parents=True, exist_ok=True)
        query_views = Views(queries, processor, views=recipe.query_views, seed=seed)
        document_views = Views(documents, processor, views=recipe.document_views, seed=seed)
        for job in (
            _image_job("query", query_views, queries.has_image, images, ("inputs",)),
            _image_job("document", document_views, documents.has_image, images, ("inputs", "cells")),
        ):
            _write_images(model, job, recipe=recipe, workers=workers)
        (images / WHOLE).touch()
    if not (texts / WHOLE).exists():
        texts.mkdir(parents=True, exist_ok=True)
        if model.config.text_config is not None and len(layouts.named) and not cells_are_trained(model, recipe):
            everywhere = np.ones(len(layouts.named), dtype=bool)
            job = _image_job("page", Pages(documents, layouts, processor), everywhere, texts, ("cells",))
            _write_images(model, job, recipe=recipe, workers=workers)
        _write_texts(model, processor, documents.texts, recipe=recipe, folder=texts)
        (texts / WHOLE).touch()
    return _read(images, texts, queries, documents, layouts)


def _image_job(name: str, data: Any, present: np.ndarray, home: Path, keep: tuple[str, ...]) -> _ImageJob:
    return _ImageJob(f"{name} features", data, present, {kind: home / f"{name}_{kind}.npy" for kind in keep})


def _read(images: Path, texts: Path, queries: Side, documents: Side, layouts: PageLayout) -> FeatureCache:
    def load(home: Path, name: str) -> np.ndarray:
        return np.load(home / f"{name}.npy", mmap_mode="r")

    cells = load(images, "document_cells")
    side = round(cells.shape[1] ** 0.5)
    assert side * side == cells.shape[1], "the processor makes squares"
    has_pages = (texts / "page_cells.npy").exists()
    return FeatureCache(
        home=images,
        query_ids=queries.ids,
        document_ids=documents.ids,
        query_inputs=load(images, "query_inputs"),
        document_inputs=load(images, "document_inputs"),
        document_has_image=documents.has_image,
        document_cells=cells,
        grid=(side, side),
        document_tokens=load(texts, "tokens"),
        document_mask=load(texts, "mask"),
        page_cells=load(texts, "page_cells") if has_pages else np.zeros((0, *cells.shape[1:]), np.float16),
        page_layouts=layouts,
    )
