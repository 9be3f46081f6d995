"""Composite images of two documents, used to train text-to-image attention.

A click log does not say which part of an image a text describes. In a composite of two documents the text of one of
them describes a known half.

Letters: N documents, G composite images, P patches, C channels, S side of a processed image in pixels.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

LEFT, RIGHT, TOP, BOTTOM = range(4)


@dataclass(frozen=True)
class CompositeLayout:
    """G composite images.

    Attributes:
        named: (G,) document row whose text describes its half. other: (G,) document row of the other half.
        place: (G,) position of the named document: LEFT, RIGHT, TOP or BOTTOM.
    """

    named: np.ndarray
    other: np.ndarray
    place: np.ndarray


def composite_layouts(labels_N: np.ndarray, *, usable: np.ndarray, has_text: np.ndarray, seed: int) -> CompositeLayout:
    """Layouts of one composite per document with text and image, beside a random document of another category.

    Args:
        labels_N: category of every document. usable: (N,) bool, has an image. has_text: (N,) bool.

    Returns:
        No composite if the documents with images are all of one category.
    """
    generator = np.random.default_rng([seed, 7])
    named = np.flatnonzero(usable & has_text)
    pool = np.flatnonzero(usable)
    if len(np.unique(labels_N[pool])) < 2:
        named = named[:0]
    other = generator.choice(pool, len(named)) if len(named) else named
    while (same := labels_N[other] == labels_N[named]).any():
        other[same] = generator.choice(pool, int(same.sum()))
    return CompositeLayout(named=named, other=other, place=generator.integers(0, 4, len(named)))


def composite_image(named_CSS: Tensor, other_CSS: Tensor, place: int, *, white_C: Tensor) -> Tensor:
    """(C, S, S) processed images at half their size, the named one at `place`, with white margins.

    Processed images are combined, not the originals: the processor crops to the subject, which would move the border
    between the halves.

    Args:
        white_C: a white pixel after normalisation.
    """
    first, second = (named_CSS, other_CSS) if place in (LEFT, TOP) else (other_CSS, named_CSS)
    is_wide = place in (LEFT, RIGHT)
    channels, side = named_CSS.shape[:2]
    canvas = white_C[:, None, None].expand(channels, 2 * side, 2 * side).clone()
    start = side // 2
    across, along = slice(start, start + side), (slice(0, side), slice(side, 2 * side))
    for image, part in zip((first, second), along, strict=True):
        rows, columns = (across, part) if is_wide else (part, across)
        canvas[:, rows, columns] = image
    return functional.avg_pool2d(canvas, 2)


def white_pixel(image_mean: list[float], image_std: list[float]) -> Tensor:
    """(C,) white pixel after normalisation."""
    return (1 - torch.tensor(image_mean)) / torch.tensor(image_std)


def half_weight(place_G: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """(G, P) fraction of every patch that lies in the named half; one half for a middle row or column."""
    rows, columns = grid
    first_column = np.clip(columns / 2 - np.arange(columns), 0, 1)
    first_row = np.clip(rows / 2 - np.arange(rows), 0, 1)
    left = np.broadcast_to(first_column[None, :], grid).ravel()
    top = np.broadcast_to(first_row[:, None], grid).ravel()
    return np.stack([left, 1 - left, top, 1 - top])[place_G]
