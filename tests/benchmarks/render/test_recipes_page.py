"""Page of the recipes for real catalogues: every number follows from the planner."""

import pytest

from benchmarks.render import recipes
from train.planner.plan import GPUS, largest_batch, plan, read_run
from train.recipes.catalogue import CATALOGUE_RECIPES


def test_every_recipe_is_planned_on_every_gpu_and_marked_as_not_run() -> None:
    plans, commands = recipes.plans(), recipes.commands()
    for name in CATALOGUE_RECIPES:
        assert plans.count(f"| `{name}` |") == len(recipes.GPU_KINDS)
        assert f"### `{name}`: not yet run" in commands


@pytest.mark.parametrize("gpu", recipes.GPU_KINDS)
def test_a_step_is_divided_until_a_micro_step_fits_and_no_further(gpu: str) -> None:
    recipe = CATALOGUE_RECIPES["siglip2_base"]()
    step, count = recipe.image.queries_per_step + recipe.image.documents_per_step, recipes.micro_steps(recipe, gpu)
    assert largest_batch(recipes.run_of(recipe, gpu, rows=step)).value >= step // count
    assert count == 1 or largest_batch(recipes.run_of(recipe, gpu, rows=step)).value < 2 * step // count


def test_the_shown_planner_command_plans_what_the_table_shows() -> None:
    recipe = CATALOGUE_RECIPES["dinov2_base"]()
    command = recipes._commands(recipe)[-1]
    run, _ = read_run(command.removeprefix("python -m train.planner ").split())
    step = recipe.image.queries_per_step + recipe.image.documents_per_step
    assert plan(run) == plan(recipes.run_of(recipe, "h100", rows=step))


def test_initialisation_counts_at_most_the_rows_of_the_catalogue(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = CATALOGUE_RECIPES["siglip2_base"]()
    few = recipes.Catalogue(queries=10, documents=10, categories=100_000)
    monkeypatch.setattr(recipes, "CATALOGUE", few)
    flops = recipes.encoder(recipe.name).flops
    assert recipes.least_seconds(recipe, "h100")[1] == pytest.approx(20 * flops / GPUS["h100"].bf16)
