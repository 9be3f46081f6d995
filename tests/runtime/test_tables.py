"""One reader for all input tables: every format, every column type, messages that name table, column and remedy."""

import datetime
import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from datasets import Features, Image, Value

from runtime import tables
from runtime.tables import FORMATS, IMAGE, Schema, conform, locate, open_table

SCHEMA = Schema(
    "catalogue",
    Features({"doc_id": Value("string"), "image": IMAGE, "text": Value("string"), "price": Value("float64")}),
    ids=frozenset({"doc_id"}),
    optional=frozenset({"price"}),
)
ROWS = [{"doc_id": "007", "image": "a.png", "text": "one"}, {"doc_id": "b", "image": "b.png", "text": "two"}]
CELLS = [{"bytes": None, "path": "a.png"}, {"bytes": None, "path": "b.png"}]


def written(folder: Path, suffix: str, rows: list[dict[str, Any]]) -> Path:
    path = folder / f"t{suffix}"
    if FORMATS[suffix] == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif FORMATS[suffix] == "csv":
        pyarrow.csv.write_csv(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def check(found: tables.Table) -> None:
    rows = found.read()
    assert rows.schema.names == ["doc_id", "image", "text", "price"]
    assert [rows.column(name).to_pylist() for name in ("doc_id", "image", "text")] == [
        ["007", "b"],
        CELLS,
        ["one", "two"],
    ]
    assert rows.column("price").to_pylist() == [None, None]
    assert pa.concat_tables(found.batches(1)).equals(rows.combine_chunks())
    assert found.num_rows == 2
    loaded, lost = found.loaded()
    assert loaded.equals(rows)
    assert lost == ()


@pytest.mark.parametrize("suffix", FORMATS)
def test_every_format_gives_the_same_rows(tmp_path: Path, suffix: str) -> None:
    found = open_table(written(tmp_path, suffix, ROWS), SCHEMA)
    check(found)
    assert (found.folder, found.files) == (tmp_path, 1)


def test_a_folder_may_mix_formats_and_column_types(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(ROWS[:1]), tmp_path / "0.parquet")
    (tmp_path / "1.ndjson").write_text(json.dumps(ROWS[1]) + "\n")
    (tmp_path / "readme.md").write_text("not a table")
    found = open_table(tmp_path, SCHEMA)
    check(found)
    assert (found.folder, found.files) == (tmp_path, 2)


def test_a_datasets_folder_is_read_and_several_splits_are_rejected(tmp_path: Path) -> None:
    data = datasets.Dataset.from_list(ROWS[::-1]).select([1, 0])
    data.save_to_disk(str(tmp_path / "one"))
    found = open_table(tmp_path / "one", SCHEMA)
    check(found)
    assert (found.folder, found.files) == (tmp_path / "one", 1)
    datasets.DatasetDict({"train": data}).save_to_disk(str(tmp_path / "several"))
    with pytest.raises(ValueError, match="catalogue: .*several holds several splits"):
        open_table(tmp_path / "several", SCHEMA)


@pytest.mark.parametrize(("given", "split"), [("org/name", "train"), ("org/name:test", "test")])
def test_a_hub_id_may_name_a_split(given: str, split: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load(repo: str, *, split: str) -> datasets.Dataset:
        asked.append((repo, split))
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", load)
    found = open_table(given, SCHEMA)
    assert asked == [("org/name", split)]
    assert (found.folder, found.files) == (None, 0)


@pytest.mark.parametrize("given", ["none.parquet", "none", "a/b/c", "org/name.csv", "/none/here"])
def test_what_does_not_exist_and_is_no_hub_id_is_rejected(given: str) -> None:
    with pytest.raises(ValueError, match=f"catalogue: {given} does not exist: there is no such file or folder"):
        locate(given, name="catalogue")


def test_a_hub_data_set_that_cannot_be_loaded_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(repo: str, *, split: str) -> datasets.Dataset:
        raise OSError("no\nnetwork")

    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(ValueError, match=r"neither a path nor a readable Hub data set: org/name \(no network\)"):
        locate("org/name", name="catalogue")


def test_images_may_be_bytes_paths_structs_or_lists() -> None:
    both = pa.struct([("bytes", pa.large_binary()), ("path", pa.large_string())])
    columns = {
        "bytes": (pa.array([b"x", None]), [{"bytes": b"x", "path": None}, None]),
        "large bytes": (pa.array([b"x", None], pa.large_binary()), [{"bytes": b"x", "path": None}, None]),
        "paths": (pa.array(["p", None]), [{"bytes": None, "path": "p"}, None]),
        "categories": (pa.array(["p", None]).dictionary_encode(), [{"bytes": None, "path": "p"}, None]),
        "structs": (pa.array([{"bytes": b"x", "path": "p"}, None], both), [{"bytes": b"x", "path": "p"}, None]),
        "path only": (pa.array([{"path": "p"}, None]), [{"bytes": None, "path": "p"}, None]),
        "lists": (pa.array([["p", "q"], []]), [{"bytes": None, "path": "p"}, None]),
        "missing": (pa.nulls(2), [None, None]),
    }
    for kind, (column, wanted) in columns.items():
        for declared in (IMAGE, Image(decode=False)):
            schema = Schema("queries", Features({"image": declared}))
            assert conform(pa.table({"image": column}), schema).column("image").to_pylist() == wanted, kind


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("doc_id", pa.array([1.5]), "'doc_id' has type double, text is needed"),
        ("text", pa.array([True]), "'text' has type bool, text is needed"),
        ("price", pa.array([[3]]), r"'price' has type list<item: int64>, a number is needed"),
        ("count", pa.array([0.5]), "'count' has type double, a whole number is needed"),
        ("image", pa.array([7]), "'image' has type int64; bytes, a path or a struct of both is needed"),
    ],
)
def test_a_column_of_a_wrong_type_is_named_with_its_type(column: str, values: pa.Array, message: str) -> None:
    schema = Schema(
        "catalogue",
        Features({**SCHEMA.columns, "count": Value("int64")}),
        ids=SCHEMA.ids,
        optional=frozenset({"doc_id", "image", "text", "price", "count"}),
    )
    for table in (pa.table({column: values}), pa.table({column: values}).schema.empty_table()):
        with pytest.raises(ValueError, match=f"catalogue: column {message}"):
            conform(table, schema)


def test_a_missing_column_is_named_with_those_that_are_there() -> None:
    with pytest.raises(ValueError, match=r"catalogue: column 'text' is missing \(it has doc_id, image\)"):
        conform(pa.table({"doc_id": ["a"], "image": ["a.png"]}), SCHEMA)


def test_other_columns_are_kept_only_where_the_schema_says_so() -> None:
    rows = pa.table({"season": [1, 2], "doc_id": [7, 8]})
    kept = Schema("gallery", Features({"doc_id": Value("string")}), ids=frozenset({"doc_id"}), keep_others=True)
    assert conform(rows, kept).to_pydict() == {"doc_id": ["7", "8"], "season": [1, 2]}
    dropped = Schema("gallery", Features({"doc_id": Value("string")}), ids=frozenset({"doc_id"}))
    assert conform(rows, dropped).to_pydict() == {"doc_id": ["7", "8"]}


def test_bad_files_of_a_folder_stop_the_reading_or_are_left_out(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "0.parquet")
    (tmp_path / "1.parquet").write_bytes(b"PAR1 cut off")
    (tmp_path / "2.csv").write_text("doc_id,image\na,a.png\n")
    with pytest.raises(ValueError, match="catalogue: 1.parquet cannot be read as parquet"):
        open_table(tmp_path, SCHEMA)
    found = open_table(tmp_path, SCHEMA, skip_bad_files=True)
    assert [name for name, _ in found.lost] == ["1.parquet", "2.csv"]
    assert found.num_rows == 2
    (tmp_path / "0.parquet").unlink()
    with pytest.raises(ValueError, match="cannot be read as parquet .* None of the 2 files of .* can be used"):
        open_table(tmp_path, SCHEMA, skip_bad_files=True)


def test_damage_inside_a_parquet_file_is_found_when_it_is_read(tmp_path: Path) -> None:
    pq.write_table(pa.table({**pa.Table.from_pylist(ROWS * 500).to_pydict()}), tmp_path / "0.parquet")
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "1.parquet")
    path = tmp_path / "0.parquet"
    at = pq.read_metadata(path).row_group(0).column(0).data_page_offset
    data = bytearray(path.read_bytes())
    data[at : at + 40] = b"\xff" * 40
    path.write_bytes(bytes(data))
    found = open_table(tmp_path, SCHEMA, skip_bad_files=True)
    rows, lost = found.loaded()
    assert (rows.num_rows, [name for name, _ in lost]) == (2, ["0.parquet"])
    for read in (found.read, lambda: list(found.batches(10))):
        with pytest.raises(ValueError, match="catalogue: 0.parquet cannot be read as parquet"):
            read()


def test_undeclared_columns_of_text_files_become_numbers_and_dates_only_where_nothing_is_lost(tmp_path: Path) -> None:
    kept = Schema("gallery", Features({"doc_id": Value("string")}), ids=frozenset({"doc_id"}), keep_others=True)
    (tmp_path / "c.csv").write_text(
        "doc_id,price,stock,code,ean,day,size\n"
        "a,3.5,7,007,12345678901234567890,2026-01-31,38\n"
        "b,-1e3,,010,12345678901234567891,2026-02-01,M\n"
    )
    assert open_table(tmp_path / "c.csv", kept).read().to_pylist()[1] == {
        "doc_id": "b",
        "price": -1000.0,
        "stock": None,
        "code": "010",
        "ean": "12345678901234567891",
        "day": datetime.date(2026, 2, 1),
        "size": "M",
    }
