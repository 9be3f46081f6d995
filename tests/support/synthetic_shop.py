"""A small synthetic shop: two drawing styles, and clicks of which some are wrong."""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageDraw

from data_governance.inputs import shards
from data_governance.stage import Workspace

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def png(category: int, *, style: str, seed: int = 0, size: int = 64) -> bytes:
    """Shapes that depend on the category, filled or outlined, shifted a little by the seed."""
    shape = np.random.default_rng(category)
    jitter = np.random.default_rng(1000 * category + seed)
    image = Image.new("RGB", (size, size), (255, 255, 255))
    draw = ImageDraw.Draw(image)
    for _ in range(4):
        x, y = shape.integers(4, 36, 2) + (jitter.integers(-1, 2, 2) if seed else 0)
        w, h = shape.integers(10, 24, 2)
        colour = tuple(int(v) for v in shape.integers(0, 200, 3))
        box = (int(x), int(y), int(x + w), int(y + h))
        kind = draw.ellipse if shape.random() < 0.5 else draw.rectangle
        if style == "outline":
            kind(box, outline=(0, 0, 0), fill=colour, width=3)
        else:
            kind(box, fill=colour)
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


@dataclass
class SyntheticShop:
    """Input tables on disk, and the true category of every row."""

    folder: Path
    query_truth: dict[str, int] = field(default_factory=dict)
    document_truth: dict[str, int] = field(default_factory=dict)
    more: list[str] = field(default_factory=list)

    @property
    def arguments(self) -> list[str]:
        """Arguments of the command line for these tables, and `more`."""
        names = ("behaviour", "queries", "catalogue")
        tables = [word for name in names for word in (f"--{name}", str(self.folder / f"{name}.parquet"))]
        return [*tables, *self.more]


def write_images(path: Path, key: str, ids: list[str], images: list[bytes | None], **columns: list[Any]) -> None:
    cells = pa.array([None if data is None else {"bytes": data, "path": None} for data in images], IMAGE)
    pq.write_table(pa.table({key: ids, "image": cells, **columns}), path)


def with_column(table: pa.Table, name: str, values: Sequence[Any], kind: pa.DataType | None = None) -> pa.Table:
    """The table with other values in one of its columns."""
    return table.set_column(table.column_names.index(name), name, pa.array(values, kind))


def edit_table(folder: Path, name: str, change: Callable[[pa.Table], pa.Table]) -> None:
    """Write a changed table of a shop over the one that is there."""
    path = folder / f"{name}.parquet"
    pq.write_table(change(pq.read_table(path)), path)


def write_shop(
    folder: Path, *, categories: int = 24, queries: int = 8, leaves: int = 3, noise: float = 0.2
) -> SyntheticShop:
    """Write the tables of a shop: two documents per category, one click per query, a share `noise` of them wrong."""
    shop = SyntheticShop(folder)
    rng = np.random.default_rng(7)
    doc_ids, texts, leaf_of = list[str](), list[str](), list[str]()
    doc_images, query_images = list[bytes | None](), list[bytes | None]()
    for category in range(categories):
        for style in ("filled", "outline"):
            doc_id = f"d{rng.integers(10**9):09d}"
            shop.document_truth[doc_id] = category
            doc_ids.append(doc_id)
            doc_images.append(png(category, style=style))
            texts.append(f"thing {category}" if rng.random() < 0.5 else "")
            leaf_of.append(f"leaf{category % leaves}")
    write_images(folder / "catalogue.parquet", "doc_id", doc_ids, doc_images, text=texts, leaf=leaf_of)
    rows, query_ids = [], []
    for number in range(categories * queries):
        category = number % categories
        query_id = f"q{rng.integers(10**9):09d}"
        shop.query_truth[query_id] = category
        query_ids.append(query_id)
        query_images.append(png(category, style="filled", seed=number + 1))
        wrong = rng.random() < noise
        same_leaf = [d for d, c in shop.document_truth.items() if c % leaves == category % leaves]
        pool = [d for d in same_leaf if (shop.document_truth[d] != category) == wrong]
        rows.append((query_id, pool[int(rng.integers(len(pool)))], 1))
    write_images(folder / "queries.parquet", "query_id", query_ids, query_images)
    query, doc, clicks = zip(*rows, strict=True)
    pq.write_table(pa.table({"query_id": query, "doc_id": doc, "clicks": clicks}), folder / "behaviour.parquet")
    return shop


def on_disk(out: Path, log: pa.Table, **tables: pa.Table) -> Workspace:
    """A workspace with an admitted log as one shard, and the tables of dedupe."""
    workspace = Workspace(out)
    for name in ("admit", "dedupe"):
        workspace.folder(name).mkdir(parents=True)
    shards.write(log, workspace.folder("admit") / "behaviour", first=0)
    for name, table in tables.items():
        pq.write_table(table, workspace.folder("dedupe") / f"{name}.parquet")
    return workspace
