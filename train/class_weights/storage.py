"""Storage of class weights and optimiser state: device, memory or mapped files.

At 100 million classes the rows outgrow an accelerator first and main memory next, while a step reads few of them. The
results do not depend on the storage. Files are sparse: rows that were never written take no space.

Letters: R rows of a rank, S rows of a step.
"""

import math
import mmap
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

STORAGES = ("device", "memory", "disk")
# Windows maps files, but has no madvise.
CAN_ADVISE = hasattr(mmap.mmap, "madvise")


@dataclass(frozen=True)
class ClassStorage:
    """Storage of the rows of one rank.

    Attributes:
        kind: "device" (that of the arithmetic), "memory" (main memory), "disk" (mapped files).
        device: of the arithmetic.
        folder: of the files; needed for "disk". Files of an earlier run there are replaced.
        part: tells the files of one rank from those of another.
        mapped: the files of "disk" and the bytes of a row in each, filled by `zeros`.
    """

    kind: str = "device"
    device: torch.device = torch.device("cpu")
    folder: Path | None = None
    part: int = 0
    mapped: dict[str, tuple[mmap.mmap, int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.kind not in STORAGES:
            raise ValueError(f"storage of class weights is {self.kind!r}; choose one of {', '.join(STORAGES)}")
        if self.kind == "disk" and self.folder is None:
            raise ValueError("class weights on disk need a folder; give one with room for the rows and their state")

    def zeros(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Zeros of a shape; a file `part-00000.NAME.rows` on disk."""
        if self.kind == "device":
            return torch.zeros(shape, dtype=dtype, device=self.device)
        if self.kind == "memory" or 0 in shape:
            return torch.zeros(shape, dtype=dtype)
        assert self.folder is not None
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"part-{self.part:05d}.{name}.rows"
        path.unlink(missing_ok=True)
        size = math.prod(shape) * dtype.itemsize
        with path.open("w+b") as file:
            file.truncate(size)
            pages = mmap.mmap(file.fileno(), size)
        if CAN_ADVISE:  # rows of a step lie far apart: by default the system reads 32 pages for one
            pages.madvise(mmap.MADV_RANDOM)
        self.mapped[name] = (pages, size // shape[0])
        return torch.frombuffer(pages, dtype=dtype).view(shape)

    def will_read(self, places_S: Tensor) -> None:
        """Request the pages of these rows in every file without waiting, so that the disk reads many at once."""
        if not CAN_ADVISE or not self.mapped or not len(places_S):
            return
        places = np.sort(places_S.numpy())
        for pages, row_bytes in self.mapped.values():
            for first, last in page_runs(places, row_bytes=row_bytes, page=mmap.PAGESIZE).tolist():
                length = min((last + 1) * mmap.PAGESIZE, len(pages)) - first * mmap.PAGESIZE
                pages.madvise(mmap.MADV_WILLNEED, first * mmap.PAGESIZE, length)


def page_runs(places_S: np.ndarray, *, row_bytes: int, page: int) -> np.ndarray:
    """(N, 2) first and last page of every run of neighbouring pages that ascending rows lie on.

    >>> page_runs(np.array([0, 1, 9]), row_bytes=8, page=16).tolist()
    [[0, 0], [4, 4]]
    """
    first_S = places_S * row_bytes // page
    last_S = ((places_S + 1) * row_bytes - 1) // page
    starts = np.flatnonzero(np.concatenate([[True], first_S[1:] > last_S[:-1] + 1]))
    ends = np.concatenate([starts[1:] - 1, [len(places_S) - 1]])
    return np.stack([first_S[starts], last_S[ends]], axis=1)
