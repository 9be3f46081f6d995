"""The ablation on a synthetic dataset split: each part is removed, and its effect is reported."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from benchmarks.immr.ablation import suite, variants
from benchmarks.immr.ablation.variants import FULL, SWITCHED, TRAINED
from benchmarks.immr.protocol.splits import open_split
from benchmarks.immr.runner.context import ExperimentContext
from benchmarks.immr.runner.result_store import GridCell, ResultStore
from benchmarks.immr.runner.systems import published_system
from retrieval.encoder import load_encoder
from tests.support import synthetic_split
from train.inputs.cache import FeatureCache
from train.recipes.emoji import tiny

STEPS = 3


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthetic_split.write_split(tmp_path_factory.mktemp("ablation"))


@pytest.fixture(scope="module")
def context(out: Path) -> ExperimentContext:
    return ExperimentContext(open_split("hard-0", out), tiny().with_changes({"text.attention_steps": 3}))


@pytest.fixture(scope="module")
def store(out: Path, context: ExperimentContext) -> ResultStore:
    """A store with all cells of one seed."""
    store = ResultStore(out / "ablation", "tiny", STEPS)
    suite.run_ablation(store, ResultStore(out, "tiny", STEPS), context, seeds=(0,))
    return store


@pytest.fixture(scope="module")
def hub(context: ExperimentContext, store: ResultStore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The published folder of the full product."""
    home = tmp_path_factory.mktemp("full")
    systems = dict(variants.trained_systems(FULL, context, store, home, seed=0))
    assert set(systems) == {FULL, *SWITCHED}
    return home / "run" / "hub"


def test_every_part_is_compared_with_the_full_product(store: ResultStore) -> None:
    found = suite.summarised(store, "hard-0")
    assert set(found) == {FULL, *TRAINED, *SWITCHED}
    for part, eval_settings in found.items():
        assert set(eval_settings) == set(suite.EVAL_SETTINGS)
        full, ablated = (store.read_scores(GridCell("heads", "hard-0", name).name, "unseen") for name in (FULL, part))
        if part != FULL:
            gap = float(ablated.mrr_at_10.mean() - full.mrr_at_10.mean())
            assert eval_settings["unseen"]["change"]["mrr_at_10"]["difference"] == pytest.approx(gap, abs=1e-6)
            assert eval_settings["unseen"]["moved"] == int((ablated.rank != full.rank).sum())
    assert not list(store.cells.glob("*.run"))
    json.dumps(found)


def test_complete_cells_are_skipped_and_choices_of_the_grid_are_reused(
    store: ResultStore, out: Path, context: ExperimentContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    again: list[str] = []
    monkeypatch.setattr(suite, "run_part", lambda cell, *rest: again.append(cell.name))
    suite.run_ablation(store, ResultStore(out, "tiny", STEPS), context, seeds=(0,))
    assert again == []
    suite.run_ablation(store, ResultStore(out, "tiny", STEPS), context, seeds=(0, 1), only="gov|oclear")
    assert again == ["heads--hard-0--oclear--s1", "heads--hard-0--governance--s1"]
    fresh = ResultStore(out / "fresh", "tiny", STEPS)
    suite.run_ablation(fresh, store, context, seeds=())
    assert fresh.choices == {key: store.choices[key] for key in fresh.choices}
    assert len(fresh.choices) == len(variants.SEARCHES)
    with pytest.raises(ValueError, match="no regular expression"):
        suite.run_ablation(fresh, store, context, seeds=(), only="(")


def test_raw_clicks_give_each_query_the_category_of_its_most_clicked_document(
    context: ExperimentContext, tmp_path: Path
) -> None:
    cache = variants.write_raw(tmp_path / "raw", context)
    rows = pq.read_table(tmp_path / "raw" / "samples" / "part-0.parquet").to_pylist()
    documents = [row["sample_id"] for row in rows if row["side"] == "document"]
    assert [row["category_id"] for row in rows if row["side"] == "document"] == list(range(len(documents)))
    category_of = {row["sample_id"]: documents[row["category_id"]] for row in rows if row["side"] == "query"}
    assert synthetic_split.REJECTED in category_of  # rejected by governance
    clicks = pq.read_table(context.dataset.data / "behaviour.parquet").to_pylist()
    assert category_of == {row["query_id"]: row["doc_id"] for row in clicks}
    training = context.training("heads")
    order = [row["sample_id"] for row in rows if row["side"] == "query"]
    row = training.query_ids.index(synthetic_split.REJECTED)
    np.testing.assert_array_equal(cache.query_inputs[order.index(synthetic_split.REJECTED)], training.query_inputs[row])
    held_out = {row["sample_id"].split("x")[1] for row in rows if row["split"] == "validation"}
    assert held_out >= {str(category) for category in synthetic_split.HELD_OUT}


def test_a_shared_residual_is_published_twice(
    context: ExperimentContext, store: ResultStore, tmp_path: Path, hub: Path
) -> None:
    dict(variants.trained_systems("transforms", context, store, tmp_path, seed=0))
    shared = load_encoder(str(tmp_path / "run" / "hub")).model.image_head
    separate = load_encoder(str(hub)).model.image_head
    assert torch.equal(shared.query_transform.outer.weight, shared.document_transform.outer.weight)
    assert shared.query_transform.outer.weight.abs().max() > 0
    assert not torch.equal(separate.query_transform.outer.weight, separate.document_transform.outer.weight)


def test_a_removed_part_has_no_effect(hub: Path, context: ExperimentContext) -> None:
    features = context.task_features("heads")
    cache = features.documents(context.tasks["unseen"].documents)
    without_images = features.documents(context.tasks["missing"].documents)

    def strengthen(model: object) -> None:
        """Give text, memory, evidence and gates a visible effect."""
        torch.manual_seed(0)
        fusion = model.fusion  # type: ignore[attr-defined]
        model.config.text_strength = fusion.config.text_strength = 0.5  # type: ignore[attr-defined]
        with torch.no_grad():
            for value in (fusion.memory, fusion.memory_value, fusion.evidence_projection.weight, fusion.gate.weight):
                value.normal_()

    def vectors(*edits: object, imputes: bool = True, of: FeatureCache = cache) -> torch.Tensor:
        def edit(model: object) -> None:
            for one in (strengthen, *edits):
                one(model)  # type: ignore[operator]

        return published_system(hub, frozen_stages=None, with_text=True, edit=edit, imputes=imputes).documents(of)

    usual, no_text = vectors(), torch.from_numpy(~np.asarray(cache.document_mask).any(1))
    for edit in (variants.without_attention, variants.without_gate):
        assert not torch.allclose(vectors(edit), usual)
    assert torch.equal(vectors(variants.without_memory), usual), "the memory is used only without image"
    with_memory, without_memory = vectors(of=without_images), vectors(variants.without_memory, of=without_images)
    assert not torch.allclose(with_memory, without_memory, equal_nan=True)

    def other_memory(model: object) -> None:
        model.fusion.memory.data.add_(1)  # type: ignore[attr-defined]

    torch.testing.assert_close(
        vectors(variants.without_memory, other_memory, of=without_images), without_memory, equal_nan=True
    )

    def moved_cells(model: object) -> None:
        model.fusion.cell_projection.weight.data.normal_()  # type: ignore[attr-defined]

    torch.testing.assert_close(
        vectors(variants.without_attention, moved_cells),
        vectors(variants.without_attention),
        msg="image evidence still has an effect",
    )
    plain = vectors(imputes=False)
    assert not torch.allclose(plain[no_text], usual[no_text])
    torch.testing.assert_close(plain[~no_text], usual[~no_text])


@pytest.mark.parametrize("agreement", [0.0, 3.0])
def test_open_gates_keep_the_text_length_of_the_initial_gates(hub: Path, agreement: float) -> None:
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


def test_without_calibration_the_score_is_the_inner_product(hub: Path, context: ExperimentContext) -> None:
    features = context.task_features("heads")
    task = context.tasks["unseen"]
    inputs = np.asarray(features.cache.document_inputs[features.images(task.queries)])
    systems = dict(variants.switched_systems(hub))
    full = published_system(hub, frozen_stages=None, with_text=True)
    cache = features.documents(task.documents)
    plain = full.queries(inputs).numpy() @ full.documents(cache).numpy().T
    found = systems["calibration"].query_vectors(inputs) @ systems["calibration"].document_vectors(cache).T
    np.testing.assert_allclose(found, plain, atol=1e-5)
    assert not np.allclose(full.query_vectors(inputs) @ full.document_vectors(cache).T, plain, atol=1e-3)
