"""Category changes in a running job: who takes over which row, what starts anew, what is refused."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.distributed.checkpoint.state_dict_saver import save

from tests.support.synthetic_run import CATEGORIES, TRAINED, small_recipe, small_samples, train_small
from tests.train.class_weights.test_shard import shard, step
from train.checkpoints.row_blocks import BlockSavePlanner, RowBlocks, read_rows, without_group_warning
from train.class_weights.class_table import ClassTable
from train.class_weights.shard import ClassShard
from train.image_stage.remap import ClassChanges, plan_changes, take_rows
from train.inputs.samples import GovernedSamples

OLD = ClassTable(("a", "b", "c", "d", "e"), np.array([4, 1, 3, 2, 9]))
STORY: list[tuple[str | None, str, str | None]] = [
    ("a", "kept", "a"),
    ("b", "merged", "a"),
    ("c", "renamed", "z"),
    ("d", "retired", None),
    ("e", "kept", "e"),
    ("e", "split", "f"),
    (None, "new", "g"),
]
NEW = ClassTable(("g", "z", "a", "f", "e"), np.ones(5, np.int64))


def test_rows_are_matched_by_key_and_event() -> None:
    changes = plan_changes(OLD, NEW, STORY)
    assert changes.sources == ((), (2,), (0, 1), (), (4,))
    assert changes.started.tolist() == [True, False, False, True, False]
    assert changes.counts() == {"kept": 2, "merged": 1, "started": 2, "retired": 1}


def test_a_merged_class_follows_the_largest_even_where_the_key_is_of_a_smaller_one() -> None:
    story = [("b", "kept", "b"), ("a", "merged", "b"), *((key, "retired", None) for key in "cde")]
    assert plan_changes(OLD, ClassTable(("b",), np.ones(1)), story).sources == ((0, 1),)


def test_what_the_map_does_not_explain_is_refused_with_the_difference() -> None:
    with pytest.raises(ValueError, match=r"only here: f, g, z; only there: b, c, d;.*no event for b, c, d and"):
        plan_changes(OLD, NEW, [])
    with pytest.raises(ValueError, match="no event for none and no origin of g"):
        plan_changes(OLD, NEW, STORY[:-1])
    with pytest.raises(ValueError, match="events vanished"):
        plan_changes(OLD, NEW, [("a", "vanished", None)])
    with pytest.raises(ValueError, match="3 category keys, 2 of them different"):
        ClassTable(("a", "b", "a"), np.ones(3))


def saved(rows: ClassShard, path: Path) -> Path:
    blocks = {f"classes.{name}": RowBlocks(value, first=0, total=len(value)) for name, value in rows.state().items()}
    with without_group_warning():
        save({}, checkpoint_id=path, planner=BlockSavePlanner(blocks))
    return path


def trained(**options: Any) -> ClassShard:
    rows = shard(5, 4, **options)
    generator = torch.Generator().manual_seed(3)
    for number in range(6):
        ids = torch.tensor([[0, 1], [1, 4], [2, 3]][number % 3])
        step(rows, ids, torch.randn(2, 4, generator=generator, dtype=torch.float64), learning_rate=0.1)
    return rows


@pytest.mark.parametrize("optimizer", ["momentum", "adamw", "rowwise_adagrad"])
def test_rows_and_state_move_bit_for_bit_and_merged_ones_are_weighted_means(tmp_path: Path, optimizer: str) -> None:
    old = trained(optimizer=optimizer)
    path = saved(old, tmp_path / "saved")
    new = shard(5, 4, optimizer=optimizer)
    new.load_history(old.history())
    start = new.weight.clone()
    take_rows(new, path, plan_changes(OLD, NEW, STORY), samples=OLD.samples)
    for name, value in new.state().items():
        assert torch.equal(value[[1, 4]], old.state()[name][[2, 4]]), name
    now = old.rows_of(torch.arange(5))
    unit = torch.nn.functional.normalize(now, dim=1)
    direction = torch.nn.functional.normalize((4 * unit[0] + unit[1]) / 5, dim=0)
    torch.testing.assert_close(new.rows_of(torch.tensor([2]))[0], direction * now[0].norm(), rtol=1e-12, atol=1e-12)
    assert torch.equal(new.weight[[0, 3]], start[[0, 3]])
    old.flush()
    for name, value in new.optimizer.tensors.items():
        if name != "last_step":
            assert not value[[0, 3]].any()
            torch.testing.assert_close(value[2], old.optimizer.tensors[name][0], rtol=1e-12, atol=0)
        else:
            assert value[[0, 2, 3]].tolist() == [6, 6, 6]


def test_any_range_of_a_saved_table_is_read_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("train.checkpoints.row_blocks.BYTES_PER_BLOCK", 64)
    old = trained()
    path = saved(old, tmp_path / "saved")
    for first, end in ((0, 5), (1, 4), (3, 3), (4, 5)):
        assert torch.equal(read_rows(path, "classes.weight", first=first, end=end), old.weight[first:end])
    changes = ClassChanges(((4,), (), (1,), (0,), ()), 2)
    monkeypatch.setattr("train.image_stage.remap.ROWS_AT_ONCE", 2)
    new = shard(5, 4)
    take_rows(new, path, changes, samples=OLD.samples)
    assert torch.equal(new.weight[[0, 2, 3]], old.weight[[4, 1, 0]])


def changed_samples(story: Sequence[tuple[str | None, str, str | None]]) -> GovernedSamples:
    """Category 1 has another key, category 3 is no longer held out, category 4 is held out now."""
    samples = small_samples()
    classes = (0, 1, 2, 3, 6)
    labels = replace(
        samples.labels,
        query_validation=~np.isin(samples.labels.query, classes),
        document_validation=~np.isin(samples.labels.document, classes),
    )
    keys = tuple("renamed" if number == 1 else f"key{number}" for number in range(CATEGORIES))
    return replace(
        samples, labels=labels, classes=np.array(classes), keys=keys, fingerprint="changed", events=tuple(story)
    )


def test_a_run_goes_on_with_other_categories_where_a_map_says_how(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO, logger="train")
    recipe = small_recipe({"head.optimizer": "momentum", "head.learning_rate": 0.05})
    before = train_small(recipe, tmp_path, max_steps=6)
    kept = {number: (f"key{number}", "kept", f"key{number}") for number in range(CATEGORIES)}
    story = [*(kept[number] for number in range(CATEGORIES) if number != 1), ("key1", "renamed", "renamed")]
    monkeypatch.setattr("tests.support.synthetic_run.small_samples", lambda: changed_samples([]))
    with pytest.raises(ValueError, match="categories differs .fingerprint: 'changed' here, 'made' there"):
        train_small(recipe, tmp_path, resume=True)
    monkeypatch.setattr("tests.support.synthetic_run.small_samples", lambda: changed_samples(story[:-1]))
    with pytest.raises(ValueError, match="no event for key1 and no origin of renamed"):
        train_small(recipe, tmp_path, resume=True)
    monkeypatch.setattr("tests.support.synthetic_run.small_samples", lambda: changed_samples(story))
    at_once = train_small(recipe, tmp_path, resume=True, max_steps=6)
    assert "categories changed: 4 kept, 0 merged, 1 started, 1 retired" in caplog.text
    old_place = [TRAINED.index(number) for number in (0, 1, 2, 6)]
    torch.testing.assert_close(at_once.class_weights[[0, 1, 2, 4]], before.class_weights[old_place])
    done = train_small(recipe, tmp_path, resume=True)
    assert done.steps == 12
    assert len((tmp_path / "train.jsonl").read_text().splitlines()) == 12
    again = ClassTable.read(tmp_path / "checkpoints" / "step-00000012" / "classes.parquet")
    assert again.keys == ("key0", "renamed", "key2", "key3", "key6")


def test_two_ranks_take_over_what_one_would(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = trained(optimizer="momentum")
    path = saved(old, tmp_path / "saved")
    changes = plan_changes(OLD, NEW, STORY)

    def taken() -> ClassShard:
        rows = shard(5, 4, optimizer="momentum")
        rows.load_history(old.history())
        take_rows(rows, path, changes, samples=OLD.samples)
        return rows

    whole = taken()
    monkeypatch.setattr("train.class_weights.shard.world_size", lambda: 2)
    parts = []
    for part in range(2):
        monkeypatch.setattr("train.class_weights.shard.rank", lambda part=part: part)
        parts.append(taken())
    assert [len(rows.weight) for rows in parts] == [3, 2]
    for name, value in whole.state().items():
        torch.testing.assert_close(torch.cat([rows.state()[name] for rows in parts]), value, rtol=0, atol=1e-14)
