"""The recipe `auto` follows from the counts of the governed folder, by stated rules."""

from pathlib import Path

import pytest

from tests.support.synthetic_governed import write_governed
from train.command import read_options
from train.inputs.samples import data_counts, read_samples
from train.recipes.auto import LEAST_STEPS, MOST_STEPS, SAMPLED_FROM, VISITS, DataCounts, auto_recipe
from train.recipes.recipe import ProxyAnchorLoss, SoftmaxLoss
from train.run import recipe_for


@pytest.mark.parametrize("classes", [2, 300, 3_000, 30_000, 300_000])
def test_every_class_is_visited_within_the_limits_of_steps(classes: int) -> None:
    recipe = auto_recipe(DataCounts(classes=classes, queries=4 * classes, documents=2 * classes))
    visits = recipe.image.steps * recipe.image.queries_per_step / classes
    assert LEAST_STEPS <= recipe.image.steps <= MOST_STEPS
    assert visits >= VISITS or recipe.image.steps == MOST_STEPS
    assert recipe.image.warmup_steps < recipe.image.steps
    assert recipe.image.evaluate_every is not None
    assert recipe.image.steps // recipe.image.evaluate_every >= 9
    assert recipe.image.export_best
    assert recipe.image.recover > 0
    assert recipe.publish == "best"


def test_many_classes_are_sampled_by_the_margin_softmax() -> None:
    few, many = (
        auto_recipe(DataCounts(classes=classes, queries=classes, documents=classes))
        for classes in (SAMPLED_FROM - 1, 300_000)
    )
    assert few.head.sample_rate == 1
    assert isinstance(few.head.loss, ProxyAnchorLoss)
    assert isinstance(many.head.loss, SoftmaxLoss)
    assert many.head.sample_rate * 300_000 == pytest.approx(SAMPLED_FROM)
    assert many.head.optimizer == "rowwise_adam"


def test_views_make_up_for_few_rows_of_a_class() -> None:
    recipe = auto_recipe(DataCounts(classes=300, queries=300, documents=300 * 20))
    assert (recipe.image.query_views, recipe.image.document_views) == (3, 1)


def test_without_held_out_queries_nothing_is_evaluated_and_without_text_none_is_read() -> None:
    recipe = auto_recipe(DataCounts(classes=300, queries=900, documents=600, has_text=False, has_validation=False))
    assert recipe.image.evaluate_every is None
    assert recipe.image.recover == 0
    assert recipe.text.encoder is None


def test_the_command_reads_the_counts_from_the_folder_and_keeps_them_on_resume(tmp_path: Path) -> None:
    data = write_governed(tmp_path / "data")
    counts = data_counts(read_samples(data))
    assert counts == DataCounts(classes=10, queries=40, documents=29)
    options = read_options(["--data", str(data), "--out", str(tmp_path / "run")])
    assert options is not None
    assert options.recipe == "auto"
    recipe = recipe_for(options)
    assert recipe == auto_recipe(counts)
