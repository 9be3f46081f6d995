"""Where class weights and their optimiser state live: beside the arithmetic, in main memory, or in mapped files.

Why: at 100 million classes the rows outgrow an accelerator first and main memory next, while a step touches few of
them. The numbers are the same wherever they live. A file is sparse: rows that were never written take no space.

In: names and shapes. Out: zeroed tensors. Next: shard.py and row_optimizers.py fill them.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

STORAGES = ("device", "memory", "disk")


@dataclass(frozen=True)
class ClassStorage:
    """A place for the rows of one rank.

    Attributes:
        kind: "device" (where the arithmetic happens), "memory" (main memory), "disk" (mapped files).
        device: where the arithmetic happens.
        folder: of the files; needed for "disk". Files of an earlier run there are replaced.
        part: tells the files of one rank from those of another.
    """

    kind: str = "device"
    device: torch.device = torch.device("cpu")
    folder: Path | None = None
    part: int = 0

    def __post_init__(self) -> None:
        if self.kind not in STORAGES:
            raise ValueError(f"storage of class weights is {self.kind!r}; choose one of {', '.join(STORAGES)}")
        if self.kind == "disk" and self.folder is None:
            raise ValueError("class weights on disk need a folder; give one with room for the rows and their state")

    def zeros(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Zeros of a shape; a file `part-00000.NAME.rows` on disk."""
        if self.kind == "device":
            return torch.zeros(shape, dtype=dtype, device=self.device)
        count = 1
        for length in shape:
            count *= length
        if self.kind == "memory" or count == 0:
            return torch.zeros(shape, dtype=dtype)
        assert self.folder is not None
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"part-{self.part:05d}.{name}.rows"
        path.unlink(missing_ok=True)
        with path.open("wb") as file:
            file.truncate(count * dtype.itemsize)
        return torch.from_file(str(path), shared=True, size=count, dtype=dtype).view(shape)
