"""The governed folder is read once and checked; each error names table, row and remedy."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest

from data_governance.policy import Policy
from modeling_oclear import OclearImageProcessor, OclearQueryProcessor
from tests.support.synthetic_governed import (
    CATEGORIES,
    DOCUMENTS,
    QUERIES,
    VALIDATION,
    rows,
    write_categories,
    write_governed,
    write_samples,
)
from train.inputs.samples import can_train, check_classes, read_samples


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path) -> Iterator[None]:
    before = datasets.config.HF_DATASETS_CACHE
    datasets.config.HF_DATASETS_CACHE = tmp_path / "cache"
    yield
    datasets.config.HF_DATASETS_CACHE = before


def test_sides_splits_and_classes_are_read_in_the_order_of_the_samples(tmp_path: Path) -> None:
    samples = read_samples(write_governed(tmp_path / "governed"))
    assert len(samples.table) == CATEGORIES * (QUERIES + DOCUMENTS)
    assert samples.labels.query.tolist() == list(range(CATEGORIES)) * QUERIES
    assert samples.labels.document.tolist() == list(range(CATEGORIES)) * DOCUMENTS
    assert set(samples.labels.query[samples.labels.query_validation]) == set(VALIDATION)
    assert samples.classes.tolist() == [c for c in range(CATEGORIES) if c not in VALIDATION]
    assert np.flatnonzero(~samples.document_has_image).tolist() == [1]
    assert samples.query_weights[:13].tolist() == [1.0] * 12 + [1.25]
    name, image = samples.table.image(0)
    assert name == "q0x0"
    assert image is not None
    assert image.startswith(b"\x89PNG")


def test_other_keys_or_other_training_categories_give_another_fingerprint(tmp_path: Path) -> None:
    folder = write_governed(tmp_path / "governed")
    first = read_samples(folder).fingerprint
    write_categories(folder, [f"other{number}" for number in range(CATEGORIES)])
    assert read_samples(folder).fingerprint != first


def test_keys_leaves_and_category_changes_are_read(tmp_path: Path) -> None:
    folder = write_governed(tmp_path / "governed")
    first = read_samples(folder)
    assert first.keys == tuple(f"key{number}" for number in range(CATEGORIES))
    assert first.leaves == ("made",) * CATEGORIES
    assert first.events == ()
    story = {"old_key": ["a", None], "event": ["merged", "new"], "new_key": ["key0", "key1"]}
    datasets.Dataset.from_dict(story).to_parquet(folder / "category_map.parquet")
    assert read_samples(folder).events == (("a", "merged", "key0"), (None, "new", "key1"))
    datasets.Dataset.from_dict({"old_key": ["a"]}).to_parquet(folder / "category_map.parquet")
    with pytest.raises(ValueError, match=r"category_map\.parquet lacks the column\(s\) event, new_key"):
        read_samples(folder)


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        ("category_id", 12, r"row 5 .*category_id lies outside 0 to 11"),
        ("category_id", -1, r"row 5 .*category_id lies outside 0 to 11"),
        ("side", "doc", r"side is neither"),
        ("split", "test", r"split is neither"),
        ("weight", float("nan"), r"weight is not a number above 0"),
        ("weight", -1.0, r"weight is not a number above 0"),
        ("sample_id", "q0x0", r"row 5 .*is a duplicate"),
        ("image", None, r"query 'q0x5' has no image"),
    ],
)
def test_error_names_the_wrong_value_and_its_row(tmp_path: Path, column: str, value: object, said: str) -> None:
    folder = write_governed(tmp_path / "governed")
    samples = rows()
    samples[5][column] = value
    write_samples(folder, samples)
    with pytest.raises(ValueError, match=said):
        read_samples(folder)


def test_the_limits_of_images_are_those_of_the_governed_folder(tmp_path: Path) -> None:
    folder = write_governed(tmp_path / "governed")
    assert read_samples(folder).max_image_pixels == Policy().max_image_pixels == OclearImageProcessor().max_image_pixels
    assert read_samples(folder).max_image_bytes == Policy().max_image_bytes == OclearImageProcessor().max_image_bytes
    (folder / "policy.toml").write_text(Policy(max_image_pixels=60_000_000, max_image_bytes=40_000_000).to_toml())
    processor = OclearQueryProcessor(OclearImageProcessor())
    read_samples(folder).limit_images(processor)
    assert processor.image_processor.max_image_pixels == 60_000_000
    assert processor.image_processor.max_image_bytes == 40_000_000
    for text, said in (
        ("max_image_pixels = 0", "max_image_pixels is 0"),
        ("max_image_bytes = 0.5", "max_image_bytes is 0.5"),
        ("max_image_pixels", "not valid TOML"),
    ):
        (folder / "policy.toml").write_text(text)
        with pytest.raises(ValueError, match=said):
            read_samples(folder)


def test_a_query_and_a_document_may_share_an_id(tmp_path: Path) -> None:
    folder = write_governed(tmp_path / "governed")
    samples = rows()
    document = next(row for row in samples if row["side"] == "document")
    document["sample_id"] = next(row["sample_id"] for row in samples if row["side"] == "query")
    write_samples(folder, samples)
    assert len(read_samples(folder).table) == len(samples)


def test_error_names_the_missing_folder_table_or_column(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not a folder.*data_governance run"):
        read_samples(tmp_path / "nowhere")
    folder = write_governed(tmp_path / "governed")
    shutil.move(folder / "categories.parquet", folder / "aside")
    with pytest.raises(ValueError, match=r"no categories\.parquet"):
        read_samples(folder)
    shutil.move(folder / "aside", folder / "categories.parquet")
    for path in (folder / "samples").iterdir():
        datasets.Dataset.from_list([{"sample_id": "a", "side": "query"}]).to_parquet(path)
    with pytest.raises(ValueError, match=r"samples/part-00000\.parquet lacks the column\(s\) image, text"):
        read_samples(folder)
    (folder / "samples" / "part-00000.parquet").write_bytes(b"not parquet at all")
    with pytest.raises(ValueError, match=r"part-00000\.parquet cannot be read"):
        read_samples(folder)
    shutil.rmtree(folder / "samples")
    with pytest.raises(ValueError, match="holds no Parquet file"):
        read_samples(folder)


def test_empty_samples_and_a_side_without_rows_are_rejected(tmp_path: Path) -> None:
    folder = write_governed(tmp_path / "governed")
    write_samples(folder, [row for row in rows() if row["side"] == "query"])
    samples = read_samples(folder)
    assert not can_train(samples)
    with pytest.raises(ValueError, match="holds 0 category with a query and a document"):
        check_classes(samples)
    for path in (folder / "samples").iterdir():
        pq.write_table(pq.read_table(path).slice(0, 0), path)
    with pytest.raises(ValueError, match="hold no row"):
        read_samples(folder)
