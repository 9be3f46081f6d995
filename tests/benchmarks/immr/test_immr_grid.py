"""The grid on a synthetic dataset split: searches, cells, reuse of results, and the summary."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.immr.baselines.method import METHODS, Hyperparameters, Method
from benchmarks.immr.baselines.training import TrainedBaseline, train_baseline
from benchmarks.immr.protocol.splits import open_split, parse_split_name
from benchmarks.immr.runner import grid, summary
from benchmarks.immr.runner.cell import run_cell, search_axes, search_table
from benchmarks.immr.runner.context import ALL_EVAL_SETTINGS, ExperimentContext
from benchmarks.immr.runner.result_store import GridCell, ResultStore
from benchmarks.immr.runner.summary import summarised
from benchmarks.immr.runner.systems import parts_of, published_system, train_product
from retrieval.__main__ import main as retrieval_main
from retrieval.index.folder import load_index
from tests.support import synthetic_split
from train.encoders.lora import adapter_layers
from train.recipes.emoji import tiny
from train.recipes.recipe import ProxyAnchorLoss, SoftmaxLoss, flattened
from train.recipes.registry import recipe_by_name

STEPS = 4
BASELINE, SEARCHED = "infonce.raw.concat", "infonce.raw.mean"  # both share the search of the second


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthetic_split.write_split(tmp_path_factory.mktemp("immr"))


@pytest.fixture(scope="module")
def context(out: Path) -> ExperimentContext:
    return ExperimentContext(open_split("hard-0", out), tiny())


def test_heads_have_no_adapters_and_the_layers_of_the_last_block_have_their_own_rates(
    context: ExperimentContext,
) -> None:
    assert context.recipe_of("last_block") == context.recipe_of("last_block", adapters=False) == tiny()
    assert context.recipe_of("heads") == tiny().with_changes({"model.frozen_stages": None})
    product = recipe_by_name("emoji")
    adapted = ExperimentContext(context.dataset, product)
    heads, layers = adapted.recipe_of("heads"), adapted.recipe_of("last_block", adapters=False)
    assert adapted.recipe_of("last_block") == product
    assert (heads.model.frozen_stages, heads.image.lora.rank, heads.image.max_grad_norm) == (None, 0, None)
    assert (product.head.loss, heads.head.loss) == (ProxyAnchorLoss(), SoftmaxLoss())
    assert (heads.image.projection_learning_rate, heads.head.learning_rate) == (2e-3, 6e-3)
    tuned, ours = (flattened(one.to_json()) for one in (recipe_by_name("emoji_tuned"), layers))
    differ = {name for name, value in ours.items() if value != tuned.get(name) and not name.startswith("head.loss.")}
    assert differ == {"name", "text.tune_layers", "text.learning_rate", "ensemble.num_members", "publish"}
    assert layers.head.loss == ProxyAnchorLoss()


@pytest.fixture(scope="module")
def store(out: Path, context: ExperimentContext) -> ResultStore:
    """A store with complete cells of a baseline, the product and zero-shot."""
    found = ResultStore(out, "tiny", STEPS)
    for kind, system in (("search", SEARCHED), ("heads", BASELINE), ("final-search", BASELINE), ("final", BASELINE)):
        run_cell(GridCell(kind, "hard-0", system), context, found)
    for system in ("oclear", "zero_shot"):
        run_cell(GridCell("final", "hard-0", system), context, found)
    return found


def test_a_search_chooses_on_validation_queries_and_later_cells_read_its_choice(
    context: ExperimentContext, store: ResultStore, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="no settings were chosen for infonce.raw.mean@heads"):
        run_cell(GridCell("heads", "hard-0", BASELINE), context, ResultStore(tmp_path, "tiny", STEPS))
    found = json.loads(store.file(GridCell("search", "hard-0", SEARCHED).name).read_text())
    tried = [row["settings"] for row in found["table"]]
    assert len(tried) == 6  # three rates, two more temperatures, one more balance
    best = max(row["validation"]["mrr_at_10"] for row in found["table"])
    assert found["chosen"]["validation"]["mrr_at_10"] == best
    assert "tracks" not in found
    scored = json.loads(store.file(GridCell("heads", "hard-0", BASELINE).name).read_text())
    assert scored["settings"] == found["chosen"]["settings"]
    assert set(scored["tracks"]) == {"unseen", "unseen.small", "seen", "validation"}


def test_a_stored_choice_is_not_replaced_by_another_search(store: ResultStore) -> None:
    before = store.choices[f"{SEARCHED}@heads"]
    store.choose(f"{SEARCHED}@heads", {"settings": {"rate": 99.0}})
    assert store.choices[f"{SEARCHED}@heads"] == before


def test_on_the_last_block_a_pair_loss_searches_its_rate_and_value_again(store: ResultStore) -> None:
    heads, last = store.choices[f"{SEARCHED}@heads"]["settings"], store.choices[f"{BASELINE}@last_block"]["settings"]
    assert last["balance"] == heads["balance"]
    searched = json.loads(store.file(GridCell("final-search", "hard-0", BASELINE).name).read_text())["table"]
    assert {row["settings"]["value"] for row in searched} == {0.07, 0.03, 0.15}
    assert {1.0, 0.5, 0.25, 2.0} <= {row["settings"]["rate"] for row in searched}
    found = json.loads(store.file(GridCell("final", "hard-0", BASELINE).name).read_text())
    assert (found["settings"], found["stage"]) == (last, "last_block")
    assert set(found["tracks"]) == set(ALL_EVAL_SETTINGS)


@pytest.fixture(scope="module")
def adapted(context: ExperimentContext) -> ExperimentContext:
    """The same dataset split with a product that trains adapters."""
    return ExperimentContext(context.dataset, tiny().with_changes({"image.lora.rank": 2}))


def test_baselines_search_adapters_if_the_product_has_them_and_reuse_earlier_trials_of_the_layers(
    store: ResultStore, adapted: ExperimentContext, tmp_path: Path
) -> None:
    file, before = tmp_path / "earlier.json", store.choices
    cell = GridCell("final-search", "hard-0", BASELINE)
    layers = json.loads(store.file(cell.name).read_text())["table"]
    file.write_text(json.dumps({"choices": before, "cells": {cell.name: {"table": layers}}}))
    own = ResultStore(tmp_path, "tiny", STEPS, file)
    run_cell(cell, adapted, own)
    table = json.loads(own.file(cell.name).read_text())["table"]
    others = table[len(layers) :]
    assert table[: len(layers)] == layers
    assert {row["settings"]["adapters"] for row in others} == {True}
    assert {1.0, 0.5, 0.25, 2.0} <= {row["settings"]["rate"] for row in others}
    for system in ("oclear", "zero_shot"):
        run_cell(GridCell("final", "hard-0", system), adapted, own)
        assert own.file(GridCell("final", "hard-0", system).name).is_file()


def test_baselines_may_train_as_long_as_ensemble_and_student_and_reuse_earlier_trials(
    store: ResultStore, context: ExperimentContext, adapted: ExperimentContext, tmp_path: Path
) -> None:
    cell = GridCell("final-search", "hard-0", BASELINE)
    rows = json.loads(store.file(cell.name).read_text())["table"]
    rows += [{**row, "settings": {**row["settings"], "adapters": True}} for row in rows]
    file = tmp_path / "earlier.json"
    file.write_text(json.dumps({"choices": store.choices, "cells": {cell.name: {"table": rows}}}))
    own = ResultStore(tmp_path, "tiny", STEPS, file)
    run_cell(
        cell,
        ExperimentContext(
            context.dataset, adapted.recipe.with_changes({"ensemble.num_members": 2, "ensemble.distil_steps": 25})
        ),
        own,
    )
    *before, longer = json.loads(own.file(cell.name).read_text())["table"]
    assert before == rows
    best = max(rows, key=lambda row: row["validation"]["mrr_at_10"])["settings"]
    assert longer["settings"] == {**best, "length": 2.5}  # two members of 50 steps and a student of 25


def train_on_raw_clicks(
    context: ExperimentContext, changes: dict[str, Any], *, method: str = "proxyanchor.raw.image"
) -> TrainedBaseline:
    recipe = context.recipe_of("last_block").with_changes(changes)
    return train_baseline(
        context.baseline_inputs("last_block", "raw", recipe),
        method=Method.named(method),
        hyperparameters=Hyperparameters(value=0.1, adapters=True),
        seed=0,
        max_steps=STEPS,
    )


def moved(baseline: TrainedBaseline, start: Any) -> set[str]:
    state = baseline.encoders.get_submodule("vision").state_dict()
    assert state.keys() == start.keys()  # adapters are merged
    return {name for name, value in state.items() if not torch.equal(value, start[name].to(value))}


def test_training_adapters_changes_only_the_layers_that_have_them(adapted: ExperimentContext) -> None:
    under = {f"{name}.weight" for name in adapter_layers(adapted.untrained.vision_model, adapted.recipe)}
    start = adapted.untrained.vision_model.state_dict()
    assert moved(train_on_raw_clicks(adapted, {}), start) == under
    assert moved(train_on_raw_clicks(adapted, {"ensemble.num_members": 2}), start) == under  # still trained once


def test_a_distilled_baseline_has_the_ensemble_and_the_student_of_the_product(adapted: ExperimentContext) -> None:
    under = {f"{name}.weight" for name in adapter_layers(adapted.untrained.vision_model, adapted.recipe)}
    start = adapted.untrained.vision_model.state_dict()
    method = Method.named("proxyanchor.raw.image+distilled")
    assert (method.name, method.plain.name) == ("proxyanchor.raw.image+distilled", "proxyanchor.raw.image")
    changes = {"ensemble.num_members": 2}
    assert (
        moved(train_on_raw_clicks(adapted, changes | {"ensemble.distil_steps": 0}, method=method.name), start) == under
    )
    assert any(
        name.endswith("depthwise.conv.weight")
        for name in moved(train_on_raw_clicks(adapted, changes, method=method.name), start)
    )
    with pytest.raises(ValueError, match="a student learns embeddings of images alone"):
        Method.named("proxyanchor.raw.mean+distilled")


def test_losses_over_classes_search_only_their_rate_on_the_last_block() -> None:
    pairs, classes = (Method.named(f"{loss}.governed.image") for loss in ("triplet", "proxyanchor"))
    for method, fields in ((pairs, ["rate", "value"]), (classes, ["rate"])):
        assert list(search_axes(GridCell("final-search", "hard-0", method.name), method)) == fields
        assert list(search_axes(GridCell("search", "hard-0", method.name), method)) == ["rate", "value"]


def test_a_search_halves_its_lowest_rate_while_that_improves() -> None:
    def rates(best: float, *, max_halvings: int) -> list[float]:
        def validate(hyperparameters: Hyperparameters) -> dict[str, float]:
            return {"mrr_at_10": 1 / (1 + abs(math.log2(hyperparameters.rate / best)))}

        table = search_table(Hyperparameters(1.0), {"rate": (1.0, 0.5, 2.0)}, validate, max_halvings=max_halvings)
        return [row["settings"]["rate"] for row in table]

    assert rates(1.0, max_halvings=4) == [1.0, 0.5, 2.0]
    assert rates(0.5, max_halvings=4) == [1.0, 0.5, 2.0, 0.25]
    assert rates(0.125, max_halvings=4) == [1.0, 0.5, 2.0, 0.25, 0.125, 0.0625]
    assert rates(0.125, max_halvings=1) == [1.0, 0.5, 2.0, 0.25]
    assert rates(0.125, max_halvings=0) == [1.0, 0.5, 2.0]


def test_the_product_is_scored_through_its_published_folder_in_every_setting(store: ResultStore) -> None:
    for system in ("oclear", "image_only", "zero_shot"):
        name = GridCell("final", "hard-0", system).name
        found = json.loads(store.file(name).read_text())
        assert set(found["tracks"]) == set(ALL_EVAL_SETTINGS)
        scores = store.read_scores(name, "unseen")
        assert found["tracks"]["unseen"]["recall_at_10"] == pytest.approx(scores.recall_at_10.mean(), abs=1e-6)
        assert {"document.text=empty", "query.style=noto"} <= set(scores.slice_ranks)
    missing = store.read_scores(GridCell("final", "hard-0", "image_only").name, "missing")
    assert (missing.rank > missing.documents).all()  # a document that cannot be indexed is never found
    assert not list(store.cells.glob("*/run"))


def test_a_cell_has_the_scores_that_retrieval_gives_its_published_folder(
    context: ExperimentContext, tmp_path: Path, out: Path
) -> None:
    cache = context.training("last_block").cache
    # A text weight above 0, so that text and its imputation have an effect.
    recipe = tmp_path / "recipe.json"
    recipe.write_text(json.dumps(tiny().with_changes({"text.weights": (0.4,)}).to_json()))
    options: dict[str, Any] = {
        "governed": context.dataset.governed,
        "recipe": str(recipe),
        "parts": parts_of(cache),
        "seed": 0,
        "max_steps": STEPS,
    }
    hub = train_product(tmp_path / "run", **options)
    system = published_system(hub, frozen_stages=tiny().model.frozen_stages, with_text=True)
    scores = context.scored(system, ("unseen", "seen"), stage="last_block")
    data = out / "hard-0" / "data"
    assert (
        retrieval_main(
            [
                "index",
                "--model",
                str(hub),
                "--catalogue",
                str(data / "catalogue.parquet"),
                "--out",
                str(tmp_path / "index"),
            ]
        )
        == 0
    )
    index, task = load_index(tmp_path / "index"), context.tasks["unseen"]
    place = [task.doc_ids.index(name) for name in index.doc_ids]
    vectors = system.document_vectors(context.task_features("last_block").documents(task.documents))[place]
    gap_N = np.abs(index.searcher.vectors() - vectors).max(1)
    has_text = np.array([bool(text) for text in task.documents.column("text").take(place).to_pylist()])
    assert gap_N[has_text].max() < 2e-3  # features are kept in half precision
    # Half precision may swap two neighbours that are equally near, and a missing text is a mean over ten of them.
    assert np.median(gap_N[~has_text]) < 2e-3
    assert gap_N[~has_text].max() < 0.03
    assert index.info["imputed"] > 0
    for eval_setting, name in (("unseen", "test"), ("seen", "seen")):
        arguments = ["evaluate", "--model", str(hub), "--index", str(tmp_path / "index")]
        arguments += [
            "--catalogue",
            str(data / "catalogue.parquet"),
            "--queries",
            str(data / f"{name}_queries.parquet"),
        ]
        arguments += ["--qrels", str(data / f"{name}_qrels.parquet"), "--merge", str(data / "merged.parquet")]
        assert retrieval_main([*arguments, "--out", str(tmp_path / "metrics.json")]) == 0
        theirs, ours = json.loads((tmp_path / "metrics.json").read_text()), scores[eval_setting].metrics()
        for key in ("recall_at_1", "recall_at_10", "mrr_at_10", "queries", "documents"):
            assert ours[key] == pytest.approx(theirs[key], abs=1e-6), (eval_setting, key)


def test_the_summary_compares_the_product_on_the_cells_that_both_systems_have(store: ResultStore) -> None:
    found = summarised(store)
    assert found["grid"] == "final"
    assert set(found["summary"]) == {"oclear", "image_only", "best_raw_rival", "zero_shot"}
    assert found["summary"]["best_raw_rival"]["name"] == BASELINE
    eval_setting = found["comparisons"]["image_only"]["unseen"]
    gap = eval_setting["product"]["mrr_at_10"] - eval_setting["other"]["mrr_at_10"]
    assert eval_setting["mrr_at_10"]["difference"] == pytest.approx(gap, abs=2e-6)
    assert {"document.text=wrong", "document.image=missing", "query.training=never"} <= set(
        found["slices"]["recall_at_10"]
    )
    assert found["styles"]["styles"]["zero_shot"]["cells"] == 1  # only under the seeds of the product
    assert found["styles"]["styles"]["oclear"]["cells"] == 1
    assert found["styles"]["styles"]["gain"]["cells"] == 1
    assert found["heads"][BASELINE]["settings"] == found["choices"][f"{SEARCHED}@heads"]["settings"]
    json.dumps(found)


def test_the_grid_runs_only_remaining_cells(store: ResultStore, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cells = grid.heads_cells()
    assert [cell.kind for cell in cells[:25]] == ["search"] * 24 + ["heads"]
    done = GridCell("heads", "hard-0", BASELINE)
    assert done in cells
    assert done not in grid.remaining_cells(cells, store, None)
    other = [cell for cell in cells if cell.system in (BASELINE, "zero_shot")]
    assert [cell.name for cell in grid.remaining_cells(other, store, "zero")] == ["heads--hard-0--zero_shot--s0"]
    ran = []
    monkeypatch.setattr(grid, "run_cell", lambda cell, context, store: ran.append(cell.name))
    grid.run_grid("heads", store, only=f"({BASELINE}|zero_shot)")
    assert ran == ["heads--hard-0--zero_shot--s0"]
    with pytest.raises(ValueError, match="matches none"):
        grid.remaining_cells(cells, store, "nothing like that")
    with pytest.raises(ValueError, match="no regular expression"):
        grid.remaining_cells(cells, store, "(")


def test_the_finalists_are_two_governed_baselines_and_one_raw_by_validation(tmp_path: Path) -> None:
    store = ResultStore(tmp_path, "tiny")
    store.cells.mkdir()
    for number, method in enumerate(METHODS):
        assert grid.finalists(store) == []
        metric = 0.9 if method.name == "siglip.raw.mean" else number / 100
        eval_settings = {"validation": {"mrr_at_10": metric}, "unseen": {"mrr_at_10": -metric}}
        store.file(GridCell("heads", "hard-0", method.name).name).write_text(json.dumps({"tracks": eval_settings}))
    assert grid.finalists(store) == ["cosface.governed.concat", "cosface.governed.mean", "siglip.raw.mean"]
    cells = grid.final_cells(grid.finalists(store))
    assert len({cell.name for cell in cells}) == len(cells) == 3 + 3 * (1 + 4 * 3) + 4 * 3
    assert grid.final_cells(grid.finalists(store), distils=True) == cells  # a student learns images alone
    images = grid.final_cells(["cosface.governed.image", "cosface.raw.image"], distils=True)
    assert [cell.system for cell in images].count("cosface.governed.image+distilled") == 3 * 3


def test_cells_of_another_recipe_are_rejected(tmp_path: Path) -> None:
    store = ResultStore(tmp_path, "tiny")
    store.check_recipe(tiny())
    store.check_recipe(tiny().with_changes({"runtime.checkpoint_keep": 9}))  # checkpoint settings may differ
    with pytest.raises(
        ValueError, match=r"another recipe \(text.weights: \[0.5\] here, .* there\); give another --out"
    ):
        store.check_recipe(tiny().with_changes({"text.weights": (0.5,)}))


def test_missing_searches_and_heads_are_reused_from_an_earlier_result(tmp_path: Path) -> None:
    usual: dict[str, Any] = {"rate": 0.5, "value": 0.1, "balance": 1.0}
    metrics = {name: {"recall_at_1": 0.3, "queries": 9} for name in ("validation", "unseen")}
    kinds = {"heads": "heads--hard-0--siglip.raw.mean--s0", "final": "final--hard-0--oclear--s0"}
    earlier = {
        "commit": "abc",
        "choices": {"siglip.raw.mean@last_block": {"settings": usual}},
        "heads": {m.name: {"validation": {"mrr_at_10": i / 100}} for i, m in enumerate(METHODS)},
        "cells": {name: {"kind": kind, "tracks": metrics} for kind, name in kinds.items()},
    }
    file = tmp_path / "earlier.json"
    file.write_text(json.dumps(earlier))
    store = ResultStore(tmp_path, "tiny", earlier_file=file)
    store.cells.mkdir()
    assert store.hyperparameters(Method.named("siglip.raw.mean"), "last_block") == Hyperparameters(**usual)
    assert grid.finalists(store) == ["cosface.governed.concat", "cosface.governed.mean", "cosface.raw.concat"]
    found = summarised(store)
    assert list(found["heads"]) == [method.name for method in METHODS]
    assert list(found["cells"]) == [kinds["heads"]]  # results of the last block are never reused
    assert found["taken_over"] == {"commit": "abc", "cells": 1}
    for rate in (2.0, 4.0):  # a search run here takes precedence, and its first choice is kept
        store.choose("siglip.raw.mean@last_block", {"settings": usual | {"rate": rate}})
        assert store.hyperparameters(Method.named("siglip.raw.mean"), "last_block").rate == 2.0
    with pytest.raises(ValueError, match=r"none.json is no file; give a result file"):
        grid.finalists(ResultStore(tmp_path, "tiny", earlier_file=tmp_path / "none.json"))


def test_noise_levels_are_compared_on_common_seeds(store: ResultStore, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = store.read_scores(GridCell("final", "hard-0", "oclear").name, "unseen")

    def cells(_: ResultStore, __: str, ___: str, *, datasets: tuple[str, ...], **____: str) -> summary.ScoresByCell:
        return {(datasets[0], seed): scores for seed in ((0,) if datasets == (grid.NOISY,) else (0, 1, 2))}

    monkeypatch.setattr(summary, "system_scores", cells)
    found = summarised(store)["noise"]
    assert found["noisy"]["cells"] == found["usual"]["cells"] == found["difference"]["cells"] == 1


def test_the_name_of_a_dataset_split_is_parsed_and_data_of_other_settings_are_rejected(out: Path) -> None:
    assert parse_split_name("main-2") == ("main", 2, 0.2)
    assert parse_split_name("hard-0-noise40") == ("hard", 0, 0.4)
    with pytest.raises(ValueError, match="is no dataset split"):
        parse_split_name("hard-3")
    (out / "main-1").mkdir()
    (out / "main-1" / "data").symlink_to(out / "hard-0" / "data")
    with pytest.raises(ValueError, match="data of other settings"):
        open_split("main-1", out)


def test_training_features_contain_rejected_queries_too(context: ExperimentContext) -> None:
    for stage in ("heads", "last_block"):
        found = context.training(stage)
        assert found.query_ids[-1] == synthetic_split.REJECTED
        assert len(found.query_ids) == len(found.query_inputs) == 40
        assert len(found.document_ids) == len(found.document_inputs) == 20
        assert np.isfinite(np.asarray(found.query_inputs, np.float32)).all()
        assert np.asarray(found.query_inputs[-1]).any()
    raw, governed = context.rows["raw"], context.rows["governed"]
    assert (len(raw.query.rows), len(governed.query.rows)) == (40, 31)
    assert governed.num_classes == 8
