"""Decode, augment and process images of governed samples in worker processes.

Letters: N rows of a side, B batch, V views, C channels, H height, W width.
"""

import multiprocessing
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate
from tqdm import tqdm

from modeling_oclear.image_decoding_oclear import ImageRefused
from modeling_oclear.visible_text_oclear import is_visible
from runtime.threads import available_cores
from train.inputs import augment
from train.inputs.composites import CompositeLayout, composite_image, white_pixel
from train.inputs.sample_table import SampleTable

ROWS_PER_BATCH = 16
MOST_WORKERS = 4


class Side:
    """Governed rows of one side; ids, texts and images are read on demand.

    Args:
        table: all samples. side: "query" or "document".
    """

    def __init__(self, table: SampleTable, side: str) -> None:
        self.table, self.rows = table, table.rows_of(side)
        self.side = side

    def __len__(self) -> int:
        return len(self.rows)

    def image(self, row: int) -> tuple[str, bytes | None]:
        """Sample id and encoded image, None where it is missing, of one row of this side."""
        return self.table.image(int(self.rows[row]))

    def texts(self) -> list[str]:
        """(N,) texts, "" where one is missing."""
        return [text or "" for text in self.table.of_side("text", self.side).to_pylist()]

    @property
    def labels(self) -> np.ndarray:
        """(N,) int64 category ids."""
        found: np.ndarray = self.table.of_side("category_id", self.side).to_numpy()
        return found

    @property
    def has_image(self) -> np.ndarray:
        """(N,) bool."""
        return self.table.has_image()[self.rows]

    @property
    def has_text(self) -> np.ndarray:
        """(N,) bool; whitespace and invisible characters are no text."""
        return np.array([is_visible(text) for text in self.texts()], dtype=bool)


def decode(data: bytes, *, sample_id: str, processor: Any) -> Image.Image:
    """Image of a governed sample as the image processor decodes it: RGB or RGBA, upright.

    Raises:
        ValueError: it cannot be decoded, or has too many pixels.
    """
    try:
        picture: Image.Image = processor.decode(data)
    except ImageRefused as error:
        remedy = "replace this image or leave the sample out, and write the governed folder again"
        raise ValueError(f"the image of sample {sample_id!r} cannot be read ({error}); {remedy}") from error
    return picture


@dataclass(frozen=True)
class UnreadableImage:
    """Error message of an image; the main process raises it, because a worker would add its own traceback."""

    reason: str


class Views(Dataset[Tensor | UnreadableImage]):
    """Row i -> pixel values (V, 3, H, W): the clean view, then the augmented ones. A missing image is all zero.

    Args:
        augmented: (N,) bool; augmented views of the other rows are zeros. None: all rows.
        skipped: (N,) bool; these rows are not decoded, all their views are zeros. None: no row.
    """

    def __init__(
        self,
        side: Side,
        processor: Any,
        *,
        views: int,
        seed: int,
        augmented: np.ndarray | None = None,
        skipped: np.ndarray | None = None,
    ) -> None:
        self.side, self.views, self.seed = side, views, seed
        self.augmented, self.skipped = augmented, skipped
        self.processor = processor.image_processor

    def __len__(self) -> int:
        return len(self.side)

    def __getitem__(self, row: int) -> Tensor | UnreadableImage:
        if self.skipped is not None and self.skipped[row]:
            return torch.zeros(1 + self.views, 3, self.processor.size, self.processor.size)
        if self.augmented is None or self.augmented[row]:
            return self.of(row, range(1 + self.views))
        clean = self.of(row, [0])
        if isinstance(clean, UnreadableImage):
            return clean
        return torch.cat([clean, clean.new_zeros(self.views, *clean.shape[1:])])

    def of(self, row: int, wanted: Sequence[int]) -> Tensor | UnreadableImage:
        """Pixel values (len(wanted), 3, H, W) of some views; each is independent of the others."""
        sample_id, data = self.side.image(row)
        if data is None:
            return torch.zeros(len(wanted), 3, self.processor.size, self.processor.size)
        try:
            clean = decode(data, sample_id=sample_id, processor=self.processor)
        except ValueError as error:
            return UnreadableImage(str(error))
        pictures = [
            augment.style_view(clean, augment.keyed_generator(self.seed, sample_id, view)) if view else clean
            for view in wanted
        ]
        pixels: Tensor = self.processor(pictures)["pixel_values"]
        return pixels


class CompositeImages(Dataset[Tensor | UnreadableImage]):
    """Index g -> pixel values (1, 3, H, W) of two documents side by side or one above the other."""

    def __init__(self, documents: Side, layouts: CompositeLayout, processor: Any) -> None:
        self.clean = Views(documents, processor, views=0, seed=0)
        self.layouts = layouts
        self.white_C = white_pixel(processor.image_processor.image_mean, processor.image_processor.image_std)

    def __len__(self) -> int:
        return len(self.layouts.named)

    def __getitem__(self, index: int) -> Tensor | UnreadableImage:
        named, other = self.clean[int(self.layouts.named[index])], self.clean[int(self.layouts.other[index])]
        if isinstance(named, UnreadableImage):
            return named
        if isinstance(other, UnreadableImage):
            return other
        return composite_image(named[0], other[0], int(self.layouts.place[index]), white_C=self.white_C)[None]


def decode_workers() -> int:
    """Number of decoding processes: this rank's part of the cores, at most 4; 0 on one core or without fork."""
    cores = available_cores()
    cores //= int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    can_fork = "fork" in multiprocessing.get_all_start_methods()
    return min(MOST_WORKERS, cores) if cores > 1 and can_fork else 0


def _collate(rows: list[Tensor | UnreadableImage]) -> Tensor | UnreadableImage:
    unreadable = [row for row in rows if isinstance(row, UnreadableImage)]
    return unreadable[0] if unreadable else default_collate(rows)


def pixel_batches(data: Any, *, workers: int, title: str) -> Iterator[Tensor]:
    """Pixel values (B, V, 3, H, W) of `data`, in order, with a progress bar.

    Raises:
        ValueError: an image cannot be decoded; names the sample.
    """
    # With fewer than two batches for each, a worker costs more than it saves.
    count = min(workers, len(data) // (2 * ROWS_PER_BATCH))
    loader = DataLoader(
        data,
        batch_size=ROWS_PER_BATCH,
        collate_fn=_collate,
        num_workers=count,
        multiprocessing_context="fork" if count else None,
    )
    with tqdm(total=len(data), desc=title, unit="image") as bar:
        for batch in loader:
            if isinstance(batch, UnreadableImage):
                raise ValueError(batch.reason)
            yield batch
            bar.update(len(batch))
