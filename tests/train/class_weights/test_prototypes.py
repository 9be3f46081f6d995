"""Export of prototypes: sharded files, streamed reading, nearest categories, rejected folders."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.train.class_weights.test_shard import shard, step
from train.class_weights.prototypes import PrototypeFolder, export_prototypes, nearest_categories


def lines(count: int) -> list[dict[str, Any]]:
    return [{"category_key": f"key{number}"} for number in range(count)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    export_prototypes(tmp_path / "prototypes", shard(11, 6), lines(11), rows_per_file=4)
    return tmp_path / "prototypes"


def test_export_has_unit_rows_in_shards_and_a_table(folder: Path) -> None:
    names = sorted(path.name for path in folder.iterdir())
    shards = [f"prototypes-0000{number}-of-00003.safetensors" for number in (1, 2, 3)]
    assert names == ["categories.jsonl", *shards, "prototypes.json"]
    whole = torch.cat([load_file(folder / name)["prototypes"] for name in shards])
    torch.testing.assert_close(whole, torch.nn.functional.normalize(shard(11, 6).weight.float(), dim=1))
    table = [json.loads(line) for line in (folder / "categories.jsonl").read_text().splitlines()]
    assert table[10] == {"class": 10, "category_key": "key10"}
    blocks = list(PrototypeFolder.open(folder).blocks(rows_at_once=3))
    assert [first for first, _ in blocks] == [0, 3, 4, 7, 8]
    assert torch.equal(torch.cat([rows for _, rows in blocks]), whole)


def test_exported_rows_equal_those_of_a_dense_optimiser(tmp_path: Path) -> None:
    rows = shard(5, 4, optimizer="momentum", decay=0.5)
    for number in range(4):
        step(rows, torch.tensor([number]), torch.ones(1, 4, dtype=torch.float64), learning_rate=0.1)
    stored = rows.weight.clone()
    export_prototypes(tmp_path / "early", rows, lines(5))
    assert torch.equal(rows.weight, stored)
    rows.flush()
    export_prototypes(tmp_path / "late", rows, lines(5))
    early, late = (next(PrototypeFolder.open(tmp_path / name).blocks())[1] for name in ("early", "late"))
    torch.testing.assert_close(early, late)
    assert not torch.allclose(early, torch.nn.functional.normalize(stored.float(), dim=1), atol=1e-3)


@pytest.mark.parametrize("rows_at_once", [2, 100])
def test_nearest_categories_equal_those_of_the_full_matrix(folder: Path, rows_at_once: int) -> None:
    embeds = torch.nn.functional.normalize(torch.randn(7, 6, generator=torch.Generator().manual_seed(5)), dim=1)
    whole = torch.nn.functional.normalize(shard(11, 6).weight.float(), dim=1)
    score, place = (embeds @ whole.T).topk(5, dim=1)
    found = nearest_categories(embeds, folder, 5, rows_at_once=rows_at_once)
    assert [[line["class"] for line in row] for row in found] == place.tolist()
    assert found[3][2]["category_key"] == f"key{int(place[3, 2])}"
    torch.testing.assert_close(torch.tensor([[line["score"] for line in row] for row in found]), score)
    assert len(nearest_categories(embeds, folder, 50)[0]) == 11


def test_sub_centres_are_exported_as_their_mean_direction(tmp_path: Path) -> None:
    rows = shard(3, 4, sub_centres=2)
    export_prototypes(tmp_path / "p", rows, lines(3), dtype="float16")
    found = next(PrototypeFolder.open(tmp_path / "p").blocks())[1]
    parts = torch.nn.functional.normalize(rows.weight.view(3, 2, 4).float(), dim=2).mean(1)
    torch.testing.assert_close(found, torch.nn.functional.normalize(parts, dim=1), atol=1e-3, rtol=0)


def test_wrong_width_table_or_file_is_rejected(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"shape \(2, 5\), but the prototypes of .* are 6 wide"):
        nearest_categories(torch.ones(2, 5), folder, 1)
    with pytest.raises(ValueError, match="k is 0"):
        nearest_categories(torch.ones(2, 6), folder, 0)
    with pytest.raises(ValueError, match="10 categories for 11 classes"):
        export_prototypes(tmp_path / "short", shard(11, 6), lines(10))
    with pytest.raises(ValueError, match="choose one of float32"):
        export_prototypes(tmp_path / "short", shard(11, 6), lines(11), dtype="int8")
    with pytest.raises(ValueError, match=r"has no prototypes\.json"):
        PrototypeFolder.open(tmp_path)
    table = folder / "categories.jsonl"
    kept = table.read_text()
    table.write_text(kept.replace("key3", "key4"))
    with pytest.raises(ValueError, match="not the table that these prototypes were written with"):
        PrototypeFolder.open(folder)
    table.write_text(kept)
    second, third = (folder / f"prototypes-0000{number}-of-00003.safetensors" for number in (2, 3))
    third.rename(folder / "aside")
    with pytest.raises(ValueError, match="lacks prototypes-00003"):
        PrototypeFolder.open(folder)
    second.rename(third)
    with pytest.raises(ValueError, match="lacks prototypes-00002"):
        PrototypeFolder.open(folder)
