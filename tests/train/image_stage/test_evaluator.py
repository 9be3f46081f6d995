"""Evaluation in training: figures by hand and by the definitions of retrieval, standing, stopping, best weights."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from retrieval.evaluation.metrics import METRICS, ranked_relevance
from tests.support.synthetic_run import small_recipe, small_samples, train_small
from train.image_stage.evaluator import HeldOut, Standing, ranking_metrics, read_evaluations, stopped_early, summary
from train.recipes.recipe import Recipe

NAMES = ("recall_at_1", "recall_at_10", "mrr_at_10")


def test_figures_of_a_case_worked_by_hand() -> None:
    documents = torch.eye(4)
    queries = torch.tensor([[0.9, 0.1, 0.0, 0.0], [0.3, 0.2, 0.4, 0.1], [0.1, 0.2, 0.3, 0.4]])
    found = ranking_metrics(queries, documents, np.array([5, 6, 5]), np.array([5, 5, 6, 7]))
    # First right answers at ranks 1, 1 and 3.
    assert found == pytest.approx({"recall_at_1": 2 / 3, "recall_at_10": 1.0, "mrr_at_10": (1 + 1 + 1 / 3) / 3})


def test_of_equal_scores_the_earlier_document_comes_first() -> None:
    documents, query = torch.ones(2, 1), torch.ones(1, 1)
    assert ranking_metrics(query, documents, np.array([1]), np.array([1, 0]))["recall_at_1"] == 1.0
    assert ranking_metrics(query, documents, np.array([0]), np.array([1, 0]))["recall_at_1"] == 0.0
    # Equal to six decimals is equal.
    close = torch.tensor([[1.0], [1.0 + 1e-7]], dtype=torch.float64)
    assert ranking_metrics(query.double(), close, np.array([1]), np.array([1, 0]))["recall_at_1"] == 1.0


def test_figures_are_those_of_retrieval(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("train.image_stage.evaluator.SCORES_AT_ONCE", 100)  # three queries at a time
    rng = np.random.default_rng(3)
    documents = rng.integers(-2, 3, (31, 3)).astype(np.float64)  # whole numbers: many ties
    queries = rng.integers(-2, 3, (17, 3)).astype(np.float64)
    names = [f"d{row:02d}" for row in range(31)]
    document_labels, query_labels = np.arange(31) % 9, np.arange(17) % 9
    expected: dict[str, list[float]] = {name: [] for name in NAMES}
    for query, label in zip(queries, query_labels, strict=True):
        relevance = {name: 1 for name, other in zip(names, document_labels, strict=True) if other == label}
        ranked = ranked_relevance(names, documents @ query, relevance)
        for name in NAMES:
            expected[name].append(METRICS[name](*ranked))
    found = ranking_metrics(torch.from_numpy(queries), torch.from_numpy(documents), query_labels, document_labels)
    assert found == pytest.approx({name: float(np.mean(values)) for name, values in expected.items()})
    assert 0 < found["recall_at_1"] < found["mrr_at_10"] < 1


def test_what_is_judged_are_held_out_queries_against_all_documents_with_images_by_id() -> None:
    samples = small_samples()
    held = HeldOut.of(samples)
    assert set(held.query_labels.tolist()) == {3, 5}
    assert (samples.labels.query[held.query_rows] == held.query_labels).all()
    assert sorted(held.document_rows.tolist()) == [row for row in range(21) if row != 2]
    names = samples.table.ids("document").take(held.document_rows).to_pylist()
    assert names == sorted(names)
    assert held.document_rows.tolist() != sorted(held.document_rows.tolist())  # as text: d10 before d3
    assert held.skipped == 0


def test_a_query_without_a_document_to_find_is_skipped_and_counted_and_none_at_all_is_refused() -> None:
    samples = small_samples()
    has_image = ~np.isin(samples.labels.document, [3])
    held = HeldOut.of(dataclasses.replace(samples, document_has_image=has_image))
    assert set(held.query_labels.tolist()) == {5}
    assert held.skipped == 4
    with pytest.raises(ValueError, match="govern with a larger validation_share, or set evaluate_every to null"):
        HeldOut.of(dataclasses.replace(samples, document_has_image=~np.isin(samples.labels.document, [3, 5])))


def line(step: int, figure: float) -> dict[str, Any]:
    return {"step": step, "mrr_at_10": figure}


def test_the_best_is_the_earliest_of_the_largest_and_those_after_it_are_waited_for() -> None:
    assert Standing.of([]) == Standing(None, float("-inf"), 0)
    lines = [line(5, 0.2), line(10, 0.6), line(15, 0.6), line(20, 0.1)]
    assert Standing.of(lines) == Standing(10, 0.6, 2)
    assert Standing.of(lines[:2]).waited == 0


def test_a_torn_last_line_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "evaluation.jsonl").write_text(json.dumps(line(5, 0.2)) + '\n{"step": 10, "mrr')
    assert read_evaluations(tmp_path) == [line(5, 0.2)]
    assert summary(tmp_path, done=5) == {"best": line(5, 0.2), "evaluations": 1}
    assert summary(tmp_path, done=4) is None


def judged(changes: dict[str, Any] | None = None) -> Recipe:
    return small_recipe({"image.evaluate_every": 3, **(changes or {})})


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return [{key: value for key, value in one.items() if key != "seconds"} for one in read_evaluations(folder)]


def test_a_run_evaluates_every_so_many_steps_and_a_resumed_one_goes_on_with_the_same_lines(tmp_path: Path) -> None:
    whole = train_small(judged(), tmp_path / "whole")
    lines = lines_of(tmp_path / "whole")
    assert [one["step"] for one in lines] == [3, 6, 9, 12]
    assert all(one["queries"] == 8 and one["documents"] == 20 and one["skipped"] == 0 for one in lines)
    assert whole.evaluation is not None
    assert whole.evaluation["evaluations"] == 4

    train_small(judged(), tmp_path / "cut", max_steps=7)
    assert [one["step"] for one in lines_of(tmp_path / "cut")] == [3, 6]
    with (tmp_path / "cut" / "evaluation.jsonl").open("a") as file:
        file.write(json.dumps({**lines[-1], "step": 9, "mrr_at_10": 1.0}) + "\n")  # of steps that were lost
    train_small(judged(), tmp_path / "cut", resume=True)
    assert lines_of(tmp_path / "cut") == lines


def test_evaluating_changes_nothing_of_the_training(tmp_path: Path) -> None:
    plain, watched = train_small(small_recipe(), tmp_path / "plain"), train_small(judged(), tmp_path / "watched")
    assert torch.equal(plain.class_weights, watched.class_weights)
    assert plain.evaluation is None
    assert not (tmp_path / "plain" / "evaluation.jsonl").exists()


def rigged(monkeypatch: pytest.MonkeyPatch, figures: list[float]) -> None:
    """Let the evaluations say these, one after the other."""
    said = iter(figures)

    def one(*ignored: Any) -> dict[str, float]:
        return dict.fromkeys(NAMES, next(said))

    monkeypatch.setattr("train.image_stage.evaluator.ranking_metrics", one)


def test_training_ends_when_nothing_better_came_and_does_not_start_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rigged(monkeypatch, [0.5, 0.4, 0.5, 0.9])
    recipe = judged({"image.early_stopping": 2})
    assert train_small(recipe, tmp_path / "run").steps == 9
    assert (tmp_path / "run" / "checkpoints" / "step-00000009").is_dir()
    assert stopped_early(tmp_path / "run", patience=2, done=9)
    assert not stopped_early(tmp_path / "run", patience=3, done=9)
    again = train_small(recipe, tmp_path / "run", resume=True)
    assert again.steps == 9
    assert len(read_evaluations(tmp_path / "run")) == 3
    taken = train_small(recipe, tmp_path / "other", reused_run=tmp_path / "run")
    assert taken.steps == 9
    assert torch.equal(taken.class_weights, again.class_weights)


def test_patience_is_kept_over_a_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rigged(monkeypatch, [0.5, 0.4])
    recipe = judged({"image.early_stopping": 2, "image.checkpoint_every": 3})
    train_small(recipe, tmp_path / "run", max_steps=6)
    rigged(monkeypatch, [0.3, 0.9])
    assert train_small(recipe, tmp_path / "run", resume=True).steps == 9


def test_the_best_weights_are_published_on_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rigged(monkeypatch, [0.2, 0.7, 0.3, 0.4])
    best = train_small(judged({"image.export_best": True, "runtime.checkpoint_keep": 1}), tmp_path / "best")
    monkeypatch.undo()
    after_six = train_small(judged(), tmp_path / "six", max_steps=6)
    assert best.steps == 12
    assert best.evaluation is not None
    assert best.evaluation["best"]["step"] == 6
    assert torch.equal(best.class_weights, after_six.class_weights)
    assert all(torch.equal(best.weights[name], value) for name, value in after_six.weights.items())
    taken = train_small(
        judged({"image.export_best": True, "runtime.checkpoint_keep": 1}),
        tmp_path / "other",
        reused_run=tmp_path / "best",
    )
    assert torch.equal(taken.class_weights, after_six.class_weights)


def test_averaged_weights_are_what_is_judged(tmp_path: Path) -> None:
    plain, average = (
        judged({"image.steps": 6}),
        judged({"image.steps": 6, "image.ema_decay": 0.999, "image.projection_learning_rate": 0.5}),
    )
    plain = plain.with_changes({"image.projection_learning_rate": 0.5})
    train_small(plain, tmp_path / "plain")
    train_small(average, tmp_path / "average")
    assert lines_of(tmp_path / "plain") != lines_of(tmp_path / "average")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"image.evaluate_every": 0}, r"evaluate_every is 0; it must be at least 1"),
        ({"head.start_rows": 0}, r"start_rows is 0; it must be at least 1, or null"),
        ({"image.early_stopping": 2}, r"early_stopping is 2 with evaluate_every null"),
        ({"image.export_best": True}, r"export_best is True with evaluate_every null"),
        ({"runtime.feature_storage": "tape"}, r"choose one of cache, stream"),
    ],
)
def test_what_cannot_be_evaluated_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        small_recipe(changes)
