"""Table of the classes: category key and number of training samples of each row.

Row numbers change whenever a category is added or removed. A checkpoint and an export carry this table, so rows are
matched by category key and never by position.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq


@dataclass(frozen=True)
class ClassTable:
    """C classes in the order of their rows.

    Attributes:
        keys: category_key of each; no two are equal. samples: (C,) int64 training samples of each.
    """

    keys: tuple[str, ...]
    samples: np.ndarray

    def __post_init__(self) -> None:
        if len(self.samples) != len(self.keys) or len(set(self.keys)) != len(self.keys):
            raise ValueError(
                f"{len(self.keys)} category keys, {len(set(self.keys))} of them different, and {len(self.samples)} "
                "sample counts were given; a class needs a key of its own and a count"
            )

    def write(self, path: Path) -> None:
        """One Parquet file."""
        table = {"category_key": pa.array(self.keys, pa.string()), "samples": pa.array(self.samples, pa.int64())}
        pq.write_table(pa.table(table), path, compression="zstd")

    @classmethod
    def read(cls, path: Path) -> "ClassTable":
        """Read a file of `write`.

        Raises:
            ValueError: no such file.
        """
        if not path.is_file():
            raise ValueError(f"{path.parent.name} has no {path.name}; it was written by an older version")
        table = pq.read_table(path)
        return cls(tuple(table.column("category_key").to_pylist()), table.column("samples").to_numpy())
