"""Every rule and stage on small cases worked by hand."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from data_governance import stage
from data_governance.grouping import feature_space
from data_governance.inputs import images, rules, shards
from data_governance.inputs.engine import Engine
from data_governance.inputs.mapping import reasons
from data_governance.policy import Policy
from data_governance.stages import balance, click_rates, dedupe, merge_split
from tests.support.images import encode
from tests.support.synthetic_shop import on_disk, png

POLICY = Policy()
NAN = float("nan")


@pytest.mark.parametrize(
    ("rule", "batch", "expected"),
    [
        (
            rules.behaviour_ids,
            {"query_id": ["a", "", "a"], "doc_id": ["d", "d", None]},
            [None, "missing_id", "missing_id"],
        ),
        (
            rules.behaviour_clicks,
            {"clicks": [0.0, 3.0, None, NAN, -1.0, 0.5, float("inf")]},
            [None, None, "clicks_missing", "clicks_missing", "clicks_negative", "clicks_not_whole", "clicks_not_whole"],
        ),
        (
            rules.behaviour_impressions,
            {"clicks": [2.0, 2.0, 2.0, 2.0], "impressions": [None, 1.0, 2.0, -1.0]},
            [None, "fewer_impressions_than_clicks", None, "impressions_negative"],
        ),
        (rules.behaviour_position, {"position": [None, NAN, 1.0, 0.0]}, [None, None, None, "position_below_one"]),
        (rules.query_id, {"query_id": ["a", None]}, [None, "missing_id"]),
        (rules.document_id, {"doc_id": ["", "d"]}, ["missing_id", None]),
        (rules.document_text, {"text": [None, "x" * 100_000, "x" * 100_001]}, [None, None, "text_too_long"]),
        (
            rules.document_shows_something,
            {"has_image": [True, False, False], "text": ["", " ", "t"]},
            [None, "neither_image_nor_text", None],
        ),
        (rules.query_has_image, {"has_image": [True, False]}, [None, "image_missing"]),
        (rules.image_fault, {"image_fault": ["", "image_undecodable"]}, ["", "image_undecodable"]),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_rule_returns_one_reason_per_row(rule: Any, batch: dict[str, list[Any]], expected: list[str | None]) -> None:
    assert rule(batch, policy=POLICY) == expected


def test_the_reason_is_that_of_the_first_rule_that_rejects_a_row() -> None:
    table = pa.table({"query_id": ["a", None], "doc_id": ["d", "d"], "clicks": [-1.0, -1.0]})
    found = reasons(table, [rules.behaviour_ids, rules.behaviour_clicks], policy=POLICY)
    assert found == ["clicks_negative", "missing_id"]


def test_a_stage_that_loses_a_row_fails() -> None:
    lost = stage.StageResult(counts={"queries": (3, 1)})
    lost.decide("queries", ["q1"], "dropped", "some_reason")
    with pytest.raises(AssertionError, match="3 in, 1 kept, 1 dropped"):
        stage.check_conservation("clean", lost)
    uncounted = stage.StageResult()
    uncounted.decide("queries", ["q1"], "dropped", "some_reason")
    with pytest.raises(AssertionError, match="without counting"):
        stage.check_conservation("clean", uncounted)


def test_equal_bytes_with_equal_text_are_merged_and_missing_images_are_not() -> None:
    assert dedupe.exact_entities(["a", "b", "a", None, None, "a"], [""] * 6).tolist() == [0, 1, 0, 3, 4, 0]
    assert dedupe.exact_entities(["a", "a", "a"], ["man", "person", "man"]).tolist() == [0, 1, 0]
    table = pa.table({"leaf": [None, "x"], "text": [" Red  Car", "red car"]})
    assert dedupe.text_keys(table) == ["\x00red car", "x\x00red car"]


def test_the_hash_is_stable_under_rescaling_and_differs_between_drawings() -> None:
    drawing, other = (images.decode_square(png(c, style="filled"), size=112, max_pixels=10_000)[0] for c in (1, 2))
    assert drawing is not None
    assert other is not None
    smaller = np.asarray(Image.fromarray(drawing).resize((96, 96)))
    a, b, c = (np.uint64(images.hash64(square) % 2**64) for square in (drawing, smaller, other))
    assert np.bitwise_count(a ^ b) <= 3
    assert np.bitwise_count(a ^ c) > 10


def test_cropping_keeps_the_content_and_pads_with_the_border_colour() -> None:
    page = Image.new("RGB", (100, 60), (250, 240, 230))
    page.paste((10, 20, 30), (40, 20, 60, 30))
    square, _ = images.decode_square(encode(page), size=20, max_pixels=6000)
    assert square is not None
    assert square[10, 10].tolist() == [10, 20, 30]
    assert square[0, 0].tolist() == [250, 240, 230]
    assert square[10, 0].tolist() == [10, 20, 30]


def test_rates_are_smoothed_and_corrected_for_position(tmp_path: Path) -> None:
    workspace = on_disk(
        tmp_path,
        pa.table(
            {
                "query_id": ["q", "q", "q"],
                "doc_id": ["a", "b", "b2"],
                "clicks": pa.array([1, 1, 0], pa.int64()),
                "impressions": [2.0, 4.0, None],
                "position": [1.0, 4.0, None],
                "row": pa.array([0, 1, 2], pa.int64()),
                "row_id": ["q>a#0", "q>b#1", "q>b2#2"],
            }
        ),
        queries=pa.table({"query_id": ["q"], "entity": ["q"]}),
        documents=pa.table({"doc_id": ["a", "b", "b2"], "entity": ["a", "b", "b"]}),
    )
    policy = Policy(position_power=0.5, click_prior=1.0)
    result = click_rates.click_rates(workspace, policy=policy, engine=Engine(policy))
    edges = {row["doc"]: row for row in result.tables["edges"].to_pylist()}
    # a: shown 2 / sqrt(1) = 2. b: 4 / sqrt(4) + 1 (the row without impressions counts once) = 3. base = 2 / 5 = .4
    assert edges["a"]["rate"] == pytest.approx((1 + 0.4) / (2 + 1))
    assert edges["b"]["rate"] == pytest.approx((1 + 0.4) / (3 + 1))
    assert edges["b"]["clicks"] == 1
    assert result.counts["behaviour"] == (3, 3)


def test_an_edge_far_below_the_strongest_is_dropped_with_its_rows(tmp_path: Path) -> None:
    workspace = on_disk(
        tmp_path,
        pa.table(
            {
                "query_id": ["q", "q"],
                "doc_id": ["a", "b"],
                "clicks": pa.array([90, 1], pa.int64()),
                "impressions": [100.0, 100.0],
                "position": pa.array([None, None], pa.float64()),
                "row": pa.array([0, 1], pa.int64()),
                "row_id": ["q>a#0", "q>b#1"],
            }
        ),
        queries=pa.table({"query_id": ["q"], "entity": ["q"]}),
        documents=pa.table({"doc_id": ["a", "b"], "entity": ["a", "b"]}),
    )
    result = click_rates.click_rates(workspace, policy=POLICY, engine=Engine(POLICY))
    assert result.tables["edges"].column("doc").to_pylist() == ["a"]
    gone = pa.concat_tables(shards.batches(result.shards("behaviour_dropped")))
    assert [(row["row_id"], row["reason"], row["clicks"]) for row in gone.to_pylist()] == [("q>b#1", "weak_edge", 1.0)]
    assert result.counts["behaviour"] == (2, 1)


def test_the_position_power_is_the_slope_of_clicks_over_positions() -> None:
    position = np.repeat([1.0, 2.0, 4.0], [400, 200, 100])
    table = pa.table({"position": position, "clicks": pa.array(np.ones(700, dtype=np.int64))})
    assert click_rates.estimated_power([table]) == pytest.approx(1.0, abs=1e-6)
    assert click_rates.estimated_power([table.slice(0, 10)]) == 0.0


def test_categories_merge_only_when_content_and_clicks_in_both_directions_agree() -> None:
    near = feature_space.unit_rows(np.array([[1, 0.1], [1, 0.0], [0, 1]], dtype=np.float32))
    labels = merge_split.Labels(np.repeat([0, 1, 2], 4), np.array([0, 1, 2]))
    crossing = [(0, 0), (1, 0), (2, 1), (3, 1), (4, 1), (5, 1), (6, 0), (7, 0), (8, 2), (9, 2), (10, 2), (11, 2)]
    filled = np.arange(3)
    joined = merge_split.merges(near, filled, np.array(crossing), labels, policy=POLICY)
    assert joined.tolist() == [0, 0, 2]
    one_way = [(q, 0 if q < 4 else d) for q, d in crossing]
    joined = merge_split.merges(near, filled, np.array(one_way), labels, policy=POLICY)
    assert joined.tolist() == [0, 1, 2]


def test_a_category_with_two_modes_and_separate_documents_is_split() -> None:
    rows = feature_space.unit_rows(
        np.array([[1, 0.01 * i] for i in range(5)] + [[0.01 * i, 1] for i in range(5)], np.float32)
    )
    edges = np.array([(q, 0 if q < 5 else 1) for q in range(10)])
    labels = merge_split.Labels(np.zeros(10, dtype=np.int64), np.zeros(2, dtype=np.int64))
    found, num_split = merge_split.splits(rows, labels, edges, policy=POLICY)
    assert num_split == 1
    assert found.query.tolist() == [0] * 5 + [1] * 5
    assert found.document.tolist() == [0, 1]
    mixed = np.array([(q, q % 2) for q in range(10)])
    assert merge_split.splits(rows, labels, mixed, policy=POLICY)[1] == 0


def test_a_cap_keeps_the_largest_leads_and_weights_balance_sizes() -> None:
    rows = [("a", 0, 0.2), ("b", 0, 0.9), ("c", 0, 0.9), ("d", 1, 0.1)]
    kept, over = balance.capped(rows, most=2)
    assert [row[0] for row in kept] == ["b", "c", "d"]
    assert [row[0] for row in over] == ["a"]
    weight = balance.weights([0, 0, 0, 1], policy=Policy(repeat_power=1.0, weight_low=0.1, weight_high=10))
    # sizes 3 and 1, median 2: factors 2/3 and 2, mean 1
    np.testing.assert_allclose(weight, [2 / 3, 2 / 3, 2 / 3, 2])
    assert balance.weights([0, 0, 0, 1], policy=POLICY).tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize(("queries", "name"), [(0, "tail"), (7, "tail"), (8, "body"), (49, "body"), (50, "head")])
def test_bands_follow_the_number_of_queries(queries: int, name: str) -> None:
    assert balance.band(queries, policy=POLICY) == name


def test_a_full_disk_keeps_the_previous_stage_and_the_error_names_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = stage.Workspace(tmp_path)
    workspace.commit("admit", stage.StageResult(), digest="d", seconds=0)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("data_governance.stage.pq.write_table", full)
    with pytest.raises(ValueError, match=r"stage dedupe: cannot write .*No space left.*run again"):
        workspace.commit("dedupe", stage.StageResult(), digest="d", seconds=0)
    assert workspace.is_complete("admit", "d")
    assert not workspace.is_complete("dedupe", "d")
