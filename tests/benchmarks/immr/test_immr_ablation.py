"""The ablation on a made world: every part is really taken out, cells are done once, the table says what moved."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from benchmarks.immr.ablation import suite, variants
from benchmarks.immr.ablation.variants import FULL, SWITCHED, TRAINED
from benchmarks.immr.protocol.splits import open_world
from benchmarks.immr.runner.cell import Cell, Desk
from benchmarks.immr.runner.context import Stand, kept_scores
from benchmarks.immr.runner.systems import published_system
from retrieval.encoder import load_encoder
from tests.support import synthetic_split
from train.inputs.cache import FeatureCache
from train.recipes.emoji import tiny

STEPS = 3


@pytest.fixture(scope="module", autouse=True)
def few_attention_steps() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("train.text_stage.attention.ATTENTION_STEPS", 3)
        yield


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthetic_split.write_split(tmp_path_factory.mktemp("ablation"))


@pytest.fixture(scope="module")
def stand(out: Path) -> Stand:
    return Stand(open_world("hard-0", out), tiny())


@pytest.fixture(scope="module")
def desk(out: Path, stand: Stand) -> Desk:
    """Where every cell of one seed is done."""
    desk = Desk(out / "ablation", "tiny", STEPS)
    suite.run_ablation(desk, Desk(out, "tiny", STEPS), stand, seeds=(0,))
    return desk


@pytest.fixture(scope="module")
def hub(stand: Stand, desk: Desk, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The published folder of the full product, its text loud, so that what reads it can be seen to change."""
    home = tmp_path_factory.mktemp("full")
    systems = dict(variants.trained_systems(FULL, stand, desk, home, seed=0))
    assert set(systems) == {FULL, *SWITCHED}
    return home / "run" / "hub"


def test_every_part_has_a_cell_and_a_row_that_is_compared_with_the_full_product(desk: Desk) -> None:
    found = suite.summarised(desk, "hard-0")
    assert set(found) == {FULL, *TRAINED, *SWITCHED}
    for part, tracks in found.items():
        assert set(tracks) == set(suite.TRACKS)
        full, mine = (kept_scores(desk.cells / Cell("heads", "hard-0", name).name, "unseen") for name in (FULL, part))
        if part != FULL:
            gap = float(mine.mrr_at_10.mean() - full.mrr_at_10.mean())
            assert tracks["unseen"]["change"]["mrr_at_10"]["difference"] == pytest.approx(gap, abs=1e-6)
            assert tracks["unseen"]["moved"] == int((mine.rank != full.rank).sum())
    assert not list(desk.cells.glob("*.run"))
    json.dumps(found)


def test_cells_that_are_done_stay_done_and_choices_of_the_grid_are_taken_over(
    desk: Desk, out: Path, stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    again: list[str] = []
    monkeypatch.setattr(suite, "run_part", lambda cell, *rest: again.append(cell.name))
    suite.run_ablation(desk, Desk(out, "tiny", STEPS), stand, seeds=(0,))
    assert again == []
    suite.run_ablation(desk, Desk(out, "tiny", STEPS), stand, seeds=(0, 1), only="gov|oclear")
    assert again == ["heads--hard-0--oclear--s1", "heads--hard-0--governance--s1"]
    fresh = Desk(out / "fresh", "tiny", STEPS)
    suite.run_ablation(fresh, desk, stand, seeds=())
    assert fresh.choices == {key: desk.choices[key] for key in fresh.choices}
    assert len(fresh.choices) == len(variants.SEARCHES)
    with pytest.raises(ValueError, match="no regular expression"):
        suite.run_ablation(fresh, desk, stand, seeds=(), only="(")


def test_raw_clicks_make_every_document_a_category_of_the_query_that_clicked_it_most(
    stand: Stand, tmp_path: Path
) -> None:
    cache = variants.write_raw(tmp_path / "raw", stand)
    rows = pq.read_table(tmp_path / "raw" / "samples" / "part-0.parquet").to_pylist()
    documents = [row["sample_id"] for row in rows if row["side"] == "document"]
    assert [row["category_id"] for row in rows if row["side"] == "document"] == list(range(len(documents)))
    asked = {row["sample_id"]: documents[row["category_id"]] for row in rows if row["side"] == "query"}
    assert synthetic_split.REJECTED in asked  # governance had rejected it
    clicks = pq.read_table(stand.world.data / "behaviour.parquet").to_pylist()
    assert asked == {row["query_id"]: row["doc_id"] for row in clicks}
    learned = stand.training("heads")
    order = [row["sample_id"] for row in rows if row["side"] == "query"]
    place = learned.query_ids.index(synthetic_split.REJECTED)
    np.testing.assert_array_equal(
        cache.query_inputs[order.index(synthetic_split.REJECTED)], learned.query_inputs[place]
    )
    held_out = {row["sample_id"].split("x")[1] for row in rows if row["split"] == "validation"}
    assert held_out >= {str(category) for category in synthetic_split.HELD_OUT}


def test_one_residual_for_both_sides_is_what_the_published_model_holds_twice(
    stand: Stand, desk: Desk, tmp_path: Path, hub: Path
) -> None:
    dict(variants.trained_systems("transforms", stand, desk, tmp_path, seed=0))
    shared = load_encoder(str(tmp_path / "run" / "hub")).model.image_head
    apart = load_encoder(str(hub)).model.image_head
    assert torch.equal(shared.query_transform.outer.weight, shared.document_transform.outer.weight)
    assert shared.query_transform.outer.weight.abs().max() > 0
    assert not torch.equal(apart.query_transform.outer.weight, apart.document_transform.outer.weight)


def test_what_is_switched_off_no_longer_counts(hub: Path, stand: Stand) -> None:
    features = stand.task_features("heads")
    cache = features.documents(stand.tasks["unseen"].documents)
    without_images = features.documents(stand.tasks["missing"].documents)

    def loud(model: object) -> None:
        """Text, memory, evidence and gates that matter."""
        torch.manual_seed(0)
        fusion = model.fusion  # type: ignore[attr-defined]
        model.config.text_strength = fusion.config.text_strength = 0.5  # type: ignore[attr-defined]
        with torch.no_grad():
            for value in (fusion.memory, fusion.memory_value, fusion.evidence_projection.weight, fusion.gate.weight):
                value.normal_()

    def vectors(*edits: object, imputes: bool = True, of: FeatureCache = cache) -> torch.Tensor:
        def edit(model: object) -> None:
            for one in (loud, *edits):
                one(model)  # type: ignore[operator]

        return published_system(hub, frozen_stages=None, with_text=True, edit=edit, imputes=imputes).documents(of)

    usual, no_text = vectors(), torch.from_numpy(~np.asarray(cache.document_mask).any(1))
    for edit in (variants.without_attention, variants.without_gate):
        assert not torch.allclose(vectors(edit), usual)
    assert torch.equal(vectors(variants.without_memory), usual), "the memory speaks where there is no image"
    known, forgotten = vectors(of=without_images), vectors(variants.without_memory, of=without_images)
    assert not torch.allclose(known, forgotten, equal_nan=True)

    def other_memory(model: object) -> None:
        model.fusion.memory.data.add_(1)  # type: ignore[attr-defined]

    torch.testing.assert_close(
        vectors(variants.without_memory, other_memory, of=without_images), forgotten, equal_nan=True
    )

    def moved_cells(model: object) -> None:
        model.fusion.cell_projection.weight.data.normal_()  # type: ignore[attr-defined]

    torch.testing.assert_close(
        vectors(variants.without_attention, moved_cells),
        vectors(variants.without_attention),
        msg="evidence still counts",
    )
    plain = vectors(imputes=False)
    assert not torch.allclose(plain[no_text], usual[no_text])
    torch.testing.assert_close(plain[~no_text], usual[~no_text])


@pytest.mark.parametrize("agreement", [0.0, 3.0])
def test_open_gates_keep_the_length_of_a_text_at_their_usual_opening(hub: Path, agreement: float) -> None:
    one, other = (load_encoder(str(hub)).model for _ in range(2))
    for model in (one, other):
        model.fusion.agreement.data.copy_(torch.tensor([0.0, agreement]))
    variants.without_gate(other)
    assert not other.fusion.agreement.any()
    concept = torch.randn(3, 4, one.config.hidden_size)
    opening = 1.0 if agreement else torch.sigmoid(one.fusion.gate.bias[1])
    found = torch.sigmoid(other.fusion.gate(torch.randn(3, 3 * one.config.hidden_size)))
    assert torch.equal(found, torch.ones_like(found))
    torch.testing.assert_close(
        other.fusion.concept_projection(concept), opening * one.fusion.concept_projection(concept)
    )


def test_without_calibration_the_score_is_the_plain_product(hub: Path, stand: Stand) -> None:
    features = stand.task_features("heads")
    task = stand.tasks["unseen"]
    inputs = np.asarray(features.cache.document_inputs[features.images(task.queries)])
    systems = dict(variants.switched_systems(hub))
    whole = published_system(hub, frozen_stages=None, with_text=True)
    cache = features.documents(task.documents)
    plain = whole.queries(inputs).numpy() @ whole.documents(cache).numpy().T
    found = systems["calibration"].query_vectors(inputs) @ systems["calibration"].document_vectors(cache).T
    np.testing.assert_allclose(found, plain, atol=1e-5)
    assert not np.allclose(whole.query_vectors(inputs) @ whole.document_vectors(cache).T, plain, atol=1e-3)
