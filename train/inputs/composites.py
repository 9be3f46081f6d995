"""Made pages: two documents side by side in one picture, so that "where does the text look?" has a known answer.

Why: nothing in a click log says which part of a picture a text speaks of. A page of two drawings does: the text of one
of them should be answered by its half. Text-to-image attention is trained on such pages of training documents. A page
is put together from what the processor makes of each drawing, not handed to it: cutting a page to its subject would
move the line between the halves.


Letters: N documents, G pages, P cells, C channels, S side of a processed image in pixels.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

LEFT, RIGHT, TOP, BOTTOM = range(4)


@dataclass(frozen=True)
class PageLayout:
    """G pages: `named` (G,) document row whose text goes with the page, `other` (G,), `place` (G,) of the named one."""

    named: np.ndarray
    other: np.ndarray
    place: np.ndarray


def page_layouts(labels_N: np.ndarray, *, usable: np.ndarray, has_text: np.ndarray, seed: int) -> PageLayout:
    """One page for every document that has text and an image, beside a random document of another category.

    Args:
        labels_N: category of every document. usable: (N,) bool, has an image. has_text: (N,) bool.

    Returns:
        No page at all when the documents with images are all of one category.
    """
    generator = np.random.default_rng([seed, 7])
    named = np.flatnonzero(usable & has_text)
    pool = np.flatnonzero(usable)
    if len(np.unique(labels_N[pool])) < 2:
        named = named[:0]
    other = generator.choice(pool, len(named)) if len(named) else named
    while (same := labels_N[other] == labels_N[named]).any():
        other[same] = generator.choice(pool, int(same.sum()))
    return PageLayout(named=named, other=other, place=generator.integers(0, 4, len(named)))


def made_page(named_CSS: Tensor, other_CSS: Tensor, place: int, *, white_C: Tensor) -> Tensor:
    """(C, S, S): both images at half their size, the named one at `place`, white on both sides of the two.

    Args:
        white_C: what a white pixel is after normalisation.
    """
    first, second = (named_CSS, other_CSS) if place in (LEFT, TOP) else (other_CSS, named_CSS)
    is_wide = place in (LEFT, RIGHT)
    channels, side = named_CSS.shape[:2]
    page = white_C[:, None, None].expand(channels, 2 * side, 2 * side).clone()
    start = side // 2
    across, along = slice(start, start + side), (slice(0, side), slice(side, 2 * side))
    for image, part in zip((first, second), along, strict=True):
        rows, columns = (across, part) if is_wide else (part, across)
        page[:, rows, columns] = image
    return functional.avg_pool2d(page, 2)


def white_pixel(image_mean: list[float], image_std: list[float]) -> Tensor:
    """(C,) the value of white after normalisation."""
    return (1 - torch.tensor(image_mean)) / torch.tensor(image_std)


def half_weight(place_G: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """(G, P) share of every cell that lies in the named half; a middle row or column counts one half."""
    rows, columns = grid
    first_column = np.clip(columns / 2 - np.arange(columns), 0, 1)
    first_row = np.clip(rows / 2 - np.arange(rows), 0, 1)
    left = np.broadcast_to(first_column[None, :], grid).ravel()
    top = np.broadcast_to(first_row[:, None], grid).ravel()
    return np.stack([left, 1 - left, top, 1 - top])[place_G]
