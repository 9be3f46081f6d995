"""Tables in memory become files that the readers take, whatever library holds them."""

import io
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from oclear.frames import as_file
from retrieval.tables import CATALOGUE, read_table

RED = Image.new("RGB", (5, 4), "red")


def png(image: Image.Image = RED) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


COLUMNS: dict[str, list[Any]] = {
    "doc_id": ["a", "b", "c"],
    "image": [png(), None, png()],
    "text": ["red", "lamp", None],
}
ROWS = [dict(zip(COLUMNS, row, strict=True)) for row in zip(*COLUMNS.values(), strict=True)]


def as_dataset() -> datasets.Dataset:
    cells = [None if data is None else {"bytes": data, "path": None} for data in COLUMNS["image"]]
    return datasets.Dataset.from_dict(COLUMNS | {"image": cells}).cast_column("image", datasets.Image())


@pytest.mark.parametrize(
    "make",
    [
        lambda: COLUMNS,
        lambda: ROWS,
        lambda: pd.DataFrame(COLUMNS),
        lambda: pl.DataFrame(COLUMNS),
        lambda: pa.table(COLUMNS),
        as_dataset,
        lambda: as_dataset().to_iterable_dataset(),
    ],
    ids=["columns", "dicts", "pandas", "polars", "pyarrow", "dataset", "iterable dataset"],
)
def test_every_kind_of_table_is_read_back_alike(make: Any, tmp_path: Path) -> None:
    path = as_file(make(), name="catalogue", folder=tmp_path)
    found = read_table(path, CATALOGUE).read()
    assert found["doc_id"] == COLUMNS["doc_id"]
    assert [text or None for text in found["text"]] == COLUMNS["text"]
    shown = [
        None if cell is None else Image.open(io.BytesIO(cell["bytes"])).getpixel((0, 0)) for cell in found["image"]
    ]
    assert shown == [(255, 0, 0), None, (255, 0, 0)]


def test_a_picture_may_be_an_image_bytes_or_a_path(tmp_path: Path) -> None:
    (tmp_path / "red.png").write_bytes(png())
    cells = [RED, png(), tmp_path / "red.png", str(tmp_path / "red.png"), {"bytes": png(), "path": None}, float("nan")]
    frame = pd.DataFrame({"doc_id": list("abcdef"), "image": cells, "text": ["x"] * 6})
    found = pq.read_table(as_file(frame, name="catalogue", folder=tmp_path / "in")).column("image").to_pylist()
    assert all(Image.open(io.BytesIO(cell["bytes"])).size == (5, 4) for cell in found[:5])
    assert found[5] is None


def test_a_path_is_left_as_it_is_and_an_equal_file_keeps_its_time(tmp_path: Path) -> None:
    assert as_file("org/name", name="queries", folder=tmp_path) == "org/name"
    assert as_file(tmp_path / "log.csv", name="behaviour", folder=tmp_path) == str(tmp_path / "log.csv")
    path = Path(as_file(COLUMNS, name="catalogue", folder=tmp_path))
    before = path.stat().st_mtime_ns
    as_file(COLUMNS, name="catalogue", folder=tmp_path)
    assert path.stat().st_mtime_ns == before
    as_file(COLUMNS | {"text": ["red", "lamp", "new"]}, name="catalogue", folder=tmp_path)
    assert path.stat().st_mtime_ns != before


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (3, "catalogue is int; give a path"),
        ([], "catalogue: the table is empty"),
        (["a"], "catalogue is list; give a path"),
        ({"doc_id": ["a"], "image": [3]}, "catalogue: row 0: an image is int"),
        ({"doc_id": ["a", 1]}, "catalogue: a column has values of several types"),
        (
            datasets.DatasetDict({"train": as_dataset()}),
            r"holds the splits train; give one of them, such as data\['train'\]",
        ),
    ],
)
def test_what_is_no_table_is_refused_with_its_name(data: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        as_file(data, name="catalogue", folder=tmp_path)
    assert list(tmp_path.iterdir()) == []
