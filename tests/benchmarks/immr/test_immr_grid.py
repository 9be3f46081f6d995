"""The grid on a made world: one path from data to result file, cells that are done once, settings that stay frozen."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.immr.baselines.baselines import METHODS, Method, Rival, Settings, train_rival
from benchmarks.immr.protocol.splits import open_world, parse_name
from benchmarks.immr.runner import grid, summary
from benchmarks.immr.runner.cell import Cell, Desk, axes_of, run_cell, searched_table
from benchmarks.immr.runner.context import LONG_TRACKS, Stand, kept_scores
from benchmarks.immr.runner.summary import summarised
from benchmarks.immr.runner.systems import published_system, train_product
from retrieval.__main__ import main as retrieval_main
from retrieval.index.store import load_index
from tests.support import synthetic_split
from train.encoders.lora import adapter_layers
from train.recipes.emoji import tiny
from train.recipes.recipe import ProxyAnchorLoss, SoftmaxLoss, flattened
from train.recipes.registry import recipe_by_name

STEPS = 4
RIVAL, SEARCHED = "infonce.raw.concat", "infonce.raw.mean"  # the second one's search is the first one's too


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return synthetic_split.write_split(tmp_path_factory.mktemp("immr"))


@pytest.fixture(scope="module")
def stand(out: Path) -> Stand:
    return Stand(open_world("hard-0", out), tiny())


def test_heads_alone_have_no_adapters_and_the_layers_themselves_have_rates_of_their_own(stand: Stand) -> None:
    assert stand.recipe_of("last_block") == stand.recipe_of("last_block", adapters=False) == tiny()
    assert stand.recipe_of("heads") == tiny().with_changes({"model.frozen_stages": None})
    product = recipe_by_name("emoji")
    adapted = Stand(stand.world, product)
    heads, layers = adapted.recipe_of("heads"), adapted.recipe_of("last_block", adapters=False)
    assert adapted.recipe_of("last_block") == product
    assert (heads.model.frozen_stages, heads.image.lora.rank, heads.image.max_grad_norm) == (None, 0, None)
    assert (product.head.loss, heads.head.loss) == (ProxyAnchorLoss(), SoftmaxLoss())
    assert (heads.image.projection_learning_rate, heads.head.learning_rate) == (2e-3, 6e-3)
    tuned, ours = (flattened(one.to_json()) for one in (recipe_by_name("emoji_tuned"), layers))
    differ = {name for name, value in ours.items() if value != tuned.get(name) and not name.startswith("head.loss.")}
    assert differ == {"name", "text.tune_layers", "text.learning_rate", "ensemble.num_members"}
    assert layers.head.loss == ProxyAnchorLoss()


@pytest.fixture(scope="module")
def desk(out: Path, stand: Stand) -> Desk:
    """With the cells of a rival, the product and zero-shot done."""
    found = Desk(out, "tiny", STEPS)
    for kind, system in (("search", SEARCHED), ("heads", RIVAL), ("final-search", RIVAL), ("final", RIVAL)):
        run_cell(Cell(kind, "hard-0", system), stand, found)
    for system in ("oclear", "zero_shot"):
        run_cell(Cell("final", "hard-0", system), stand, found)
    return found


def test_a_search_chooses_on_validation_queries_and_the_cell_after_it_reads_the_choice(
    stand: Stand, desk: Desk, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="no settings were chosen for infonce.raw.mean@heads"):
        run_cell(Cell("heads", "hard-0", RIVAL), stand, Desk(tmp_path, "tiny", STEPS))
    found = json.loads(desk.file(Cell("search", "hard-0", SEARCHED).name).read_text())
    tried = [row["settings"] for row in found["table"]]
    assert len(tried) == 6  # three rates, two more temperatures, one more balance
    best = max(row["validation"]["mrr_at_10"] for row in found["table"])
    assert found["chosen"]["validation"]["mrr_at_10"] == best
    assert "tracks" not in found
    scored = json.loads(desk.file(Cell("heads", "hard-0", RIVAL).name).read_text())
    assert scored["settings"] == found["chosen"]["settings"]
    assert set(scored["tracks"]) == {"unseen", "unseen.small", "seen", "validation"}


def test_a_choice_that_stands_is_not_changed_by_another_search(desk: Desk) -> None:
    before = desk.choices[f"{SEARCHED}@heads"]
    desk.choose(f"{SEARCHED}@heads", {"settings": {"rate": 99.0}})
    assert desk.choices[f"{SEARCHED}@heads"] == before


def test_on_the_last_block_a_rival_searches_its_learning_rate_again_and_pairs_their_value(desk: Desk) -> None:
    heads, last = desk.choices[f"{SEARCHED}@heads"]["settings"], desk.choices[f"{RIVAL}@last_block"]["settings"]
    assert last["balance"] == heads["balance"]
    searched = json.loads(desk.file(Cell("final-search", "hard-0", RIVAL).name).read_text())["table"]
    assert {row["settings"]["value"] for row in searched} == {0.07, 0.03, 0.15}
    assert {1.0, 0.5, 0.25, 2.0} <= {row["settings"]["rate"] for row in searched}
    found = json.loads(desk.file(Cell("final", "hard-0", RIVAL).name).read_text())
    assert (found["settings"], found["stage"]) == (last, "last_block")
    assert set(found["tracks"]) == set(LONG_TRACKS)


@pytest.fixture(scope="module")
def adapted(stand: Stand) -> Stand:
    """The same world, and a product that trains adapters."""
    return Stand(stand.world, tiny().with_changes({"image.lora.rank": 2}))


def test_where_the_product_trains_adapters_rivals_search_them_and_an_earlier_choice_of_layers_stands(
    desk: Desk, adapted: Stand, tmp_path: Path
) -> None:
    file, before = tmp_path / "earlier.json", desk.choices
    cell = Cell("final-search", "hard-0", RIVAL)
    layers = json.loads(desk.file(cell.name).read_text())["table"]
    file.write_text(json.dumps({"choices": before, "cells": {cell.name: {"table": layers}}}))
    own = Desk(tmp_path, "tiny", STEPS, file)
    run_cell(cell, adapted, own)
    table = json.loads(own.file(cell.name).read_text())["table"]
    others = table[len(layers) :]
    assert table[: len(layers)] == layers
    assert {row["settings"]["adapters"] for row in others} == {True}
    assert {1.0, 0.5, 0.25, 2.0} <= {row["settings"]["rate"] for row in others}
    for system in ("oclear", "zero_shot"):
        run_cell(Cell("final", "hard-0", system), adapted, own)
        assert own.file(Cell("final", "hard-0", system).name).is_file()


def test_rivals_may_train_as_long_as_members_and_student_together_and_an_earlier_search_of_both_forms_stands(
    desk: Desk, stand: Stand, adapted: Stand, tmp_path: Path
) -> None:
    cell = Cell("final-search", "hard-0", RIVAL)
    rows = json.loads(desk.file(cell.name).read_text())["table"]
    rows += [{**row, "settings": {**row["settings"], "adapters": True}} for row in rows]
    file = tmp_path / "earlier.json"
    file.write_text(json.dumps({"choices": desk.choices, "cells": {cell.name: {"table": rows}}}))
    own = Desk(tmp_path, "tiny", STEPS, file)
    run_cell(
        cell,
        Stand(stand.world, adapted.recipe.with_changes({"ensemble.num_members": 2, "ensemble.distil_steps": 25})),
        own,
    )
    *before, longer = json.loads(own.file(cell.name).read_text())["table"]
    assert before == rows
    best = max(rows, key=lambda row: row["validation"]["mrr_at_10"])["settings"]
    assert longer["settings"] == {**best, "length": 2.5}  # two members of 50 steps and a student of 25


def rival_of(stand: Stand, *, method: str = "proxyanchor.raw.image", **changes: Any) -> Rival:
    return train_rival(
        stand.untrained,
        stand.training("last_block"),
        stand.rows["raw"],
        method=Method.named(method),
        settings=Settings(value=0.1, adapters=True),
        recipe=stand.recipe_of("last_block").with_changes(changes),
        stage="last_block",
        seed=0,
        max_steps=STEPS,
    )


def moved(rival: Rival, start: Any) -> set[str]:
    state = rival.encoders.get_submodule("vision").state_dict()
    assert state.keys() == start.keys()  # adapters are folded in
    return {name for name, value in state.items() if not torch.equal(value, start[name].to(value))}


def test_a_rival_with_adapters_moves_the_layers_under_them_alone(adapted: Stand) -> None:
    under = {f"{name}.weight" for name in adapter_layers(adapted.untrained.vision_model, adapted.recipe)}
    start = adapted.untrained.vision_model.state_dict()
    assert moved(rival_of(adapted), start) == under
    assert moved(rival_of(adapted, num_members=2), start) == under  # trained once all the same


def test_a_distilled_rival_has_the_products_members_and_student(adapted: Stand) -> None:
    under = {f"{name}.weight" for name in adapter_layers(adapted.untrained.vision_model, adapted.recipe)}
    start = adapted.untrained.vision_model.state_dict()
    method = Method.named("proxyanchor.raw.image+distilled")
    assert (method.name, method.plain.name) == ("proxyanchor.raw.image+distilled", "proxyanchor.raw.image")
    given: dict[str, Any] = {"method": method.name, "num_members": 2}
    assert moved(rival_of(adapted, **given, distil_steps=0), start) == under
    assert any(name.endswith("depthwise.conv.weight") for name in moved(rival_of(adapted, **given), start))
    with pytest.raises(ValueError, match="a student learns embeddings of images alone"):
        Method.named("proxyanchor.raw.mean+distilled")


def test_classes_search_their_rate_alone_on_the_last_block() -> None:
    pairs, classes = (Method.named(f"{loss}.governed.image") for loss in ("triplet", "proxyanchor"))
    for method, fields in ((pairs, ["rate", "value"]), (classes, ["rate"])):
        assert list(axes_of(Cell("final-search", "hard-0", method.name), method)) == fields
        assert list(axes_of(Cell("search", "hard-0", method.name), method)) == ["rate", "value"]


def test_a_search_goes_on_below_its_lowest_rate_while_that_gains() -> None:
    def rates(best: float, *, halvings: int) -> list[float]:
        def figure(settings: Settings) -> dict[str, float]:
            return {"mrr_at_10": 1 / (1 + abs(math.log2(settings.rate / best)))}

        table = searched_table(Settings(1.0), {"rate": (1.0, 0.5, 2.0)}, figure, halvings=halvings)
        return [row["settings"]["rate"] for row in table]

    assert rates(1.0, halvings=4) == [1.0, 0.5, 2.0]
    assert rates(0.5, halvings=4) == [1.0, 0.5, 2.0, 0.25]
    assert rates(0.125, halvings=4) == [1.0, 0.5, 2.0, 0.25, 0.125, 0.0625]
    assert rates(0.125, halvings=1) == [1.0, 0.5, 2.0, 0.25]
    assert rates(0.125, halvings=0) == [1.0, 0.5, 2.0]


def test_the_product_is_scored_through_its_published_folder_on_every_track(desk: Desk) -> None:
    for system in ("oclear", "image_only", "zero_shot"):
        name = Cell("final", "hard-0", system).name
        found = json.loads(desk.file(name).read_text())
        assert set(found["tracks"]) == set(LONG_TRACKS)
        scores = kept_scores(desk.cells / name, "unseen")
        assert found["tracks"]["unseen"]["recall_at_10"] == pytest.approx(scores.recall_at_10.mean(), abs=1e-6)
        assert {"document.text=empty", "query.style=noto"} <= set(scores.slice_ranks)
    missing = kept_scores(desk.cells / Cell("final", "hard-0", "image_only").name, "missing")
    assert (missing.rank > missing.documents).all()  # a document that cannot be indexed is never found
    assert not list(desk.cells.glob("*/run"))


def test_a_cell_equals_the_evaluation_of_its_published_folder_by_retrieval(
    stand: Stand, tmp_path: Path, out: Path
) -> None:
    cache = stand.training("last_block").cache
    # A strength above 0, so that text and its imputation count.
    recipe = tmp_path / "recipe.json"
    recipe.write_text(json.dumps(tiny().with_changes({"text.weights": (0.4,)}).to_json()))
    given: dict[str, Any] = {
        "governed": stand.world.governed,
        "recipe": str(recipe),
        "cache": cache,
        "seed": 0,
        "max_steps": STEPS,
    }
    hub = train_product(tmp_path / "run", **given)
    system = published_system(hub, frozen_stages=tiny().model.frozen_stages, with_text=True)
    scores = stand.scored(system, ("unseen", "seen"), stage="last_block")
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
    index, task = load_index(tmp_path / "index"), stand.tasks["unseen"]
    place = [task.doc_ids.index(name) for name in index.doc_ids]
    vectors = system.document_vectors(stand.task_features("last_block").documents(task.documents))[place]
    assert np.allclose(index.searcher.vectors(), vectors, atol=2e-3)  # features are kept in half precision
    assert index.info["imputed"] > 0
    for track, name in (("unseen", "test"), ("seen", "seen")):
        words = ["evaluate", "--model", str(hub), "--index", str(tmp_path / "index")]
        words += ["--catalogue", str(data / "catalogue.parquet"), "--queries", str(data / f"{name}_queries.parquet")]
        words += ["--qrels", str(data / f"{name}_qrels.parquet"), "--merge", str(data / "merged.parquet")]
        assert retrieval_main([*words, "--out", str(tmp_path / "metrics.json")]) == 0
        theirs, ours = json.loads((tmp_path / "metrics.json").read_text()), scores[track].metrics()
        for key in ("recall_at_1", "recall_at_10", "mrr_at_10", "queries", "documents"):
            assert ours[key] == pytest.approx(theirs[key], abs=1e-6), (track, key)


def test_the_summary_compares_the_product_on_the_cells_that_both_systems_have(desk: Desk) -> None:
    found = summarised(desk)
    assert found["grid"] == "final"
    assert set(found["summary"]) == {"oclear", "image_only", "best_raw_rival", "zero_shot"}
    assert found["summary"]["best_raw_rival"]["name"] == RIVAL
    track = found["comparisons"]["image_only"]["unseen"]
    gap = track["product"]["mrr_at_10"] - track["other"]["mrr_at_10"]
    assert track["mrr_at_10"]["difference"] == pytest.approx(gap, abs=2e-6)
    assert {"document.text=wrong", "document.image=missing", "query.training=never"} <= set(
        found["slices"]["recall_at_10"]
    )
    assert found["styles"]["styles"]["zero_shot"]["cells"] == 1  # it stands under the seeds of the product, no other
    assert found["styles"]["styles"]["oclear"]["cells"] == 1
    assert found["styles"]["styles"]["gain"]["cells"] == 1
    assert found["heads"][RIVAL]["settings"] == found["choices"][f"{SEARCHED}@heads"]["settings"]
    json.dumps(found)


def test_the_grid_runs_what_is_left_and_nothing_twice(desk: Desk, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cells = grid.heads_cells()
    assert [cell.kind for cell in cells[:25]] == ["search"] * 24 + ["heads"]
    done = Cell("heads", "hard-0", RIVAL)
    assert done in cells
    assert done not in grid.todo(cells, desk, None)
    other = [cell for cell in cells if cell.system in (RIVAL, "zero_shot")]
    assert [cell.name for cell in grid.todo(other, desk, "zero")] == ["heads--hard-0--zero_shot--s0"]
    ran = []
    monkeypatch.setattr(grid, "run_cell", lambda cell, stand, desk: ran.append(cell.name))
    grid.run_grid("heads", desk, only=f"({RIVAL}|zero_shot)")
    assert ran == ["heads--hard-0--zero_shot--s0"]
    with pytest.raises(ValueError, match="matches none"):
        grid.todo(cells, desk, "nothing like that")
    with pytest.raises(ValueError, match="no regular expression"):
        grid.todo(cells, desk, "(")


def test_the_finalists_are_two_governed_rivals_and_one_raw_by_validation(tmp_path: Path) -> None:
    desk = Desk(tmp_path, "tiny")
    desk.cells.mkdir()
    for place, method in enumerate(METHODS):
        assert grid.finalists(desk) == []
        figure = 0.9 if method.name == "siglip.raw.mean" else place / 100
        tracks = {"validation": {"mrr_at_10": figure}, "unseen": {"mrr_at_10": -figure}}
        desk.file(Cell("heads", "hard-0", method.name).name).write_text(json.dumps({"tracks": tracks}))
    assert grid.finalists(desk) == ["cosface.governed.concat", "cosface.governed.mean", "siglip.raw.mean"]
    cells = grid.final_cells(grid.finalists(desk))
    assert len({cell.name for cell in cells}) == len(cells) == 3 + 3 * (1 + 4 * 3) + 4 * 3
    assert grid.final_cells(grid.finalists(desk), distils=True) == cells  # a student learns images alone
    images = grid.final_cells(["cosface.governed.image", "cosface.raw.image"], distils=True)
    assert [cell.system for cell in images].count("cosface.governed.image+distilled") == 3 * 3


def test_cells_of_another_recipe_are_refused_not_mixed_in(tmp_path: Path) -> None:
    desk = Desk(tmp_path, "tiny")
    desk.claim(tiny())
    desk.claim(tiny().with_changes({"runtime.checkpoint_keep": 9}))  # where a run keeps its files is nobody's affair
    with pytest.raises(
        ValueError, match=r"another recipe \(text.weights: \[0.5\] here, .* there\); give another --out"
    ):
        desk.claim(tiny().with_changes({"text.weights": (0.5,)}))


def test_searches_and_heads_of_an_earlier_result_are_taken_over_where_there_is_no_cell(tmp_path: Path) -> None:
    usual: dict[str, Any] = {"rate": 0.5, "value": 0.1, "balance": 1.0}
    figures = {name: {"recall_at_1": 0.3, "queries": 9} for name in ("validation", "unseen")}
    kinds = {"heads": "heads--hard-0--siglip.raw.mean--s0", "final": "final--hard-0--oclear--s0"}
    earlier = {
        "commit": "abc",
        "choices": {"siglip.raw.mean@last_block": {"settings": usual}},
        "heads": {m.name: {"validation": {"mrr_at_10": i / 100}} for i, m in enumerate(METHODS)},
        "cells": {name: {"kind": kind, "tracks": figures} for kind, name in kinds.items()},
    }
    file = tmp_path / "earlier.json"
    file.write_text(json.dumps(earlier))
    desk = Desk(tmp_path, "tiny", taken_over=file)
    desk.cells.mkdir()
    assert desk.settings(Method.named("siglip.raw.mean"), "last_block") == Settings(**usual)
    assert grid.finalists(desk) == ["cosface.governed.concat", "cosface.governed.mean", "cosface.raw.concat"]
    found = summarised(desk)
    assert list(found["heads"]) == [method.name for method in METHODS]
    assert list(found["cells"]) == [kinds["heads"]]  # a figure of the last block is never taken over
    assert found["taken_over"] == {"commit": "abc", "cells": 1}
    for rate in (2.0, 4.0):  # a search that is run here has the word, and what it chose first stays
        desk.choose("siglip.raw.mean@last_block", {"settings": usual | {"rate": rate}})
        assert desk.settings(Method.named("siglip.raw.mean"), "last_block").rate == 2.0
    with pytest.raises(ValueError, match=r"none.json is no file; give a result file"):
        grid.finalists(Desk(tmp_path, "tiny", taken_over=tmp_path / "none.json"))


def test_noise_is_judged_on_the_seeds_that_both_have(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = kept_scores(desk.cells / Cell("final", "hard-0", "oclear").name, "unseen")

    def cells(_: Desk, __: str, ___: str, *, worlds: tuple[str, ...], **____: str) -> summary.Cells:
        return {(worlds[0], seed): scores for seed in ((0,) if worlds == (grid.NOISY,) else (0, 1, 2))}

    monkeypatch.setattr(summary, "cells_of_system", cells)
    found = summarised(desk)["noise"]
    assert found["noisy"]["cells"] == found["usual"]["cells"] == found["difference"]["cells"] == 1


def test_a_world_is_known_by_its_name_and_refuses_data_of_other_settings(out: Path) -> None:
    assert parse_name("main-2") == ("main", 2, 0.2)
    assert parse_name("hard-0-noise40") == ("hard", 0, 0.4)
    with pytest.raises(ValueError, match="is no world"):
        parse_name("hard-3")
    (out / "main-1").mkdir()
    (out / "main-1" / "data").symlink_to(out / "hard-0" / "data")
    with pytest.raises(ValueError, match="data of other settings"):
        open_world("main-1", out)


def test_rows_of_all_queries_are_known_whether_governance_kept_them_or_not(stand: Stand) -> None:
    for stage in ("heads", "last_block"):
        found = stand.training(stage)
        assert found.query_ids[-1] == synthetic_split.REJECTED
        assert len(found.query_ids) == len(found.query_inputs) == 40
        assert len(found.document_ids) == len(found.document_inputs) == 20
        assert np.isfinite(np.asarray(found.query_inputs, np.float32)).all()
        assert np.asarray(found.query_inputs[-1]).any()
    raw, governed = stand.rows["raw"], stand.rows["governed"]
    assert (len(raw.query.rows), len(governed.query.rows)) == (40, 31)
    assert governed.num_classes == 8
