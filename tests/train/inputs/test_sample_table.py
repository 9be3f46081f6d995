"""Samples over several shards and row groups: columns, sides and images by row, in little memory."""

import io
import multiprocessing
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from benchmarks.training.data_at_scale import measured, write_governed
from train.class_weights.initialization import SideRowsOfClass, first_rows
from train.inputs import sample_table
from train.inputs.sample_table import SampleTable
from train.inputs.samples import read_samples

ROWS = 23
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def data_of(row: int) -> bytes | None:
    return None if row in (4, 9, 10, 11, 12) else f"image {row}".encode() * 50


def side_of(row: int) -> str:
    return "query" if row % 3 else "document"


def write(folder: Path, *, statistics: bool = True, plain: bool = False, coded: bool = False) -> SampleTable:
    """Shards of 13 and 10 rows, in row groups of 4."""
    folder.mkdir(exist_ok=True)
    for shard, part in enumerate((range(13), range(13, ROWS))):
        cells = [data_of(row) for row in part]
        image = [None if data is None and row == 9 else {"bytes": data} for row, data in zip(part, cells, strict=True)]
        sides = pa.array([side_of(row) for row in part])
        table = pa.table(
            {
                "sample_id": [f"s{row}" for row in part],
                "side": sides.dictionary_encode() if coded else sides,
                "image": pa.array(cells, pa.binary()) if plain else pa.array(image, IMAGE),
                "category_id": list(part),
            }
        )
        pq.write_table(table, folder / f"{shard}.parquet", row_group_size=4, write_statistics=statistics)
    return SampleTable(sorted(folder.iterdir()))


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("statistics", [False, True])
def test_images_and_missing_images_are_found_by_row(tmp_path: Path, plain: bool, statistics: bool) -> None:
    table = write(tmp_path, plain=plain, statistics=statistics)
    assert len(table) == ROWS
    assert [group.first for group in table.groups] == [0, 4, 8, 12, 13, 17, 21]
    for row in np.random.default_rng(0).permutation(ROWS).tolist():
        assert table.image(row) == (f"s{row}", data_of(row))
    assert table.has_image().tolist() == [data_of(row) is not None for row in range(ROWS)]


def test_row_group_decided_by_statistics_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = write(tmp_path)
    read: list[int] = []
    group = SampleTable._group

    def noted(self: SampleTable, number: int) -> pa.Table:
        read.append(number)
        return group(self, number)

    monkeypatch.setattr(SampleTable, "_group", noted)
    table.has_image()
    assert read == [1, 2]  # rows 4 to 7 and 8 to 11 hold both; row 12 is alone in its group


@pytest.mark.parametrize("coded", [False, True])
def test_columns_of_a_side_follow_the_rows(tmp_path: Path, coded: bool) -> None:
    table = write(tmp_path, coded=coded)
    documents = [row for row in range(ROWS) if side_of(row) == "document"]
    assert table.rows_of("document").tolist() == documents
    assert table.ids("document").to_pylist() == [f"s{row}" for row in documents]
    assert table.of_side("category_id", "document").to_pylist() == documents
    assert len(table.rows_of("query")) == ROWS - len(documents)
    passed = [name for part in table.in_order(("sample_id", "image")) for name in part.column("sample_id").to_pylist()]
    assert passed == [f"s{row}" for row in range(ROWS)]


def test_only_the_last_row_groups_stay_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample_table, "BYTES_KEPT", 3000)
    monkeypatch.setattr(sample_table, "FILES_KEPT", 1)
    table = write(tmp_path)
    for row in (*range(ROWS), *range(ROWS)):
        table.image(row)
        assert sum(kept.nbytes for kept in table._kept.values()) <= 3000 or len(table._kept) == 1
        assert len(table._open) == 1
    assert len(table._kept) < len(table.groups)


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork")
def test_forked_process_reopens_the_files(tmp_path: Path) -> None:
    table = write(tmp_path)
    table.image(0)
    opened = dict(table._open)
    here, there = multiprocessing.Pipe()

    def child() -> None:
        there.send((table.image(22), table._open.get(1) is opened.get(1) and opened.get(1) is not None))

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    assert here.recv() == (("s22", data_of(22)), False)
    process.join(20)


def test_first_rows_of_every_class_are_selected() -> None:
    rows, labels = np.array([2, 3, 5, 7, 8, 9]), np.array([1, 0, 1, 1, 0, 2])
    part = SideRowsOfClass(rows, labels, rows / 2)
    assert first_rows(part, most=None) is part
    found = first_rows(part, most=2)
    assert found.rows.tolist() == [2, 3, 5, 8, 9]
    assert found.labels.tolist() == [1, 0, 1, 0, 2]
    assert found.weights.tolist() == [1.0, 1.5, 2.5, 4.0, 4.5]


def test_the_benchmark_of_scale_reads_what_it_writes_and_trains_on_it(tmp_path: Path) -> None:
    size = write_governed(tmp_path, 2_000, seed=0)
    assert size == sum(path.stat().st_size for path in (tmp_path / "samples").iterdir())
    samples = read_samples(tmp_path)
    assert len(samples.labels.query) == len(samples.labels.document) == 1_000
    assert len(samples.classes) == 900
    data = samples.table.image(1_999)[1]
    assert data is not None
    assert Image.open(io.BytesIO(data)).size == (8, 8)
    (tmp_path / "run").mkdir()
    figures = measured(tmp_path, steps=1, seed=0)
    assert figures["steps"] == 1
    assert figures["samples"] == 2_000
    assert figures["peak_mib"] > 50
