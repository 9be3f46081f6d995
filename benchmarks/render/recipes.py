"""Tables of docs/recipes.md: memory and time of the catalogue recipes.

Nobody has run these recipes yet. Memory and lower bounds of a step are computed by train/planner/plan.py; hours follow
by formulas on the page, with two assumed rates.
"""

import functools
from dataclasses import dataclass

from benchmarks.render.tables import table
from train.planner.plan import GIB, GPUS, Line, Run, largest_batch, plan
from train.planner.plan_encoder import EncoderCost, vision_cost
from train.recipes.catalogue import CATALOGUE_RECIPES
from train.recipes.recipe import Recipe

ENCODERS = {"google/siglip2-base-patch16-224": "siglip2-base", "facebook/dinov2-base": "dinov2-base"}
GPU_KINDS = ("h200", "h100", "l4")
# Assumed: share of the upper bound of the speed that a run reaches.
REACHED = 0.35
# Assumed: operations a second of all CPU cores together, for the patches that the text stage reads.
CORE_RATE = 1e12


@dataclass(frozen=True)
class Catalogue:
    """The catalogue that hours are planned for."""

    queries: int
    documents: int
    categories: int


CATALOGUE = Catalogue(queries=800_000, documents=200_000, categories=100_000)


@functools.cache
def encoder(recipe_name: str) -> EncoderCost:
    """Cost of a recipe's image encoder at its image size."""
    recipe = CATALOGUE_RECIPES[recipe_name]()
    return vision_cost(ENCODERS[recipe.model.vision], image_size=recipe.model.image_size)


def run_of(recipe: Recipe, gpu: str, *, rows: int) -> Run:
    """Input of the planner: one GPU, `rows` rows in a micro-step."""
    return Run(
        classes=CATALOGUE.categories,
        hidden_size=recipe.model.hidden_size,
        vision=encoder(recipe.name),
        text=None,
        gpus=1,
        gpu=GPUS[gpu],
        batch_size=rows,
        sample_rate=recipe.head.sample_rate,
        optimizer=recipe.head.optimizer,
        head_dtype=recipe.head.dtype or recipe.model.dtype,
        checkpointing=recipe.runtime.activation_checkpointing,
    )


def micro_steps(recipe: Recipe, gpu: str) -> int:
    """Smallest power of two of micro-steps that fit into memory: `gradient_accumulation`."""
    step = recipe.image.queries_per_step + recipe.image.documents_per_step
    most = largest_batch(run_of(recipe, gpu, rows=step)).value
    count = 1
    while step // count > most:
        count *= 2
    return count


def value(lines: list[Line], group: str, name: str) -> float:
    """One quantity of a plan."""
    return next(line.value for line in lines if line.group == group and line.name == name)


def least_seconds(recipe: Recipe, gpu: str) -> tuple[float, float]:
    """Lower bounds in seconds of (a step, the initialisation of the class weights)."""
    step = recipe.image.queries_per_step + recipe.image.documents_per_step
    count = micro_steps(recipe, gpu)
    lines = plan(run_of(recipe, gpu, rows=step // count))
    started = CATALOGUE.queries + CATALOGUE.documents
    if recipe.head.start_rows is not None:
        started = min(started, 2 * recipe.head.start_rows * CATALOGUE.categories)
    return count * value(lines, "floor", "step"), started * encoder(recipe.name).flops / GPUS[gpu].bf16


def plans() -> str:
    """One line per recipe and GPU, and the formulas."""
    rows = []
    for name, function in CATALOGUE_RECIPES.items():
        recipe: Recipe = function()
        step = recipe.image.queries_per_step + recipe.image.documents_per_step
        for gpu in GPU_KINDS:
            count = micro_steps(recipe, gpu)
            held = value(plan(run_of(recipe, gpu, rows=step // count)), "memory", "in all") / GIB
            step_floor, start_floor = least_seconds(recipe, gpu)
            hours = (recipe.image.steps * step_floor + start_floor) / 3600
            rows.append(
                [
                    f"`{name}`",
                    gpu.upper(),
                    f"{count}",
                    f"{held:.0f} of {GPUS[gpu].memory_gib:.0f}",
                    f"{step_floor * 1e3:.0f}",
                    f"{hours:.1f}",
                    f"{hours / REACHED:.1f}",
                    f"{step / step_floor * REACHED:,.0f}",
                ]
            )
    head = ["recipe", "one GPU", "gradient_accumulation", "GiB", "step, lower bound, ms", "hours, lower bound"]
    head += [f"hours at {REACHED:.0%} of that speed", "images decoded a second"]
    return "\n".join([*table(head, rows), "", *formulas()])


def formulas() -> list[str]:
    """Formulas of the table, with the numbers of the first recipe."""
    recipe: Recipe = next(iter(CATALOGUE_RECIPES.values()))()
    flops, start_rows = encoder(recipe.name).flops, recipe.head.start_rows
    images = CATALOGUE.queries + 2 * CATALOGUE.documents
    core_hours = images * flops / CORE_RATE / 3600
    return [
        f"Computed for {CATALOGUE.queries:,} query images, {CATALOGUE.documents:,} documents and "
        f"{CATALOGUE.categories:,} categories.",
        "",
        "- Hours, lower bound = (steps x lower bound of a step + rows of the initialisation x F / bf16 rate) / 3600. "
        f"For `{recipe.name}`: {recipe.image.steps:,} steps; F = {flops / 1e9:.1f} billion operations an image; at "
        f"most {start_rows} queries and {start_rows} documents of a category in the initialisation.",
        f"- A run reaches a share of that speed; {REACHED:.0%} is assumed until one has been measured.",
        "- Images decoded a second = rows of a step / lower bound of a step x that share. The CPU cores must deliver "
        "so many. If they deliver fewer: hours = steps x rows of a step / their rate / 3600.",
        "- The text stage reads the patches of every query, every document and one composite image a document on the "
        f"CPU cores: (queries + 2 x documents) x F / rate = {core_hours:.0f} hours at an assumed "
        f"{CORE_RATE / 1e12:.0f} trillion operations a second.",
        "- `siglip2_base` trains adapters only, but is counted as if the whole encoder were trained: its memory and "
        "hours are upper bounds.",
        "- Embedding each document's text once, on the CPU cores, is not counted.",
    ]


def commands() -> str:
    """Commands and main fields of every recipe."""
    lines = []
    for name, function in CATALOGUE_RECIPES.items():
        recipe: Recipe = function()
        summary = (function.__doc__ or "").split("\n")[0]
        lines += [f"### `{name}`: not yet run", "", summary, "", "```", *_commands(recipe), "```", ""]
        lines += [*table(["field", "value"], _fields(recipe)), ""]
    return "\n".join(lines).strip()


def _commands(recipe: Recipe) -> list[str]:
    model, head = recipe.model, recipe.head
    step = recipe.image.queries_per_step + recipe.image.documents_per_step
    words = f"python -m train.planner --classes {CATALOGUE.categories} --hidden-size {model.hidden_size} --vision "
    words += f"{ENCODERS[model.vision]} --image-size {model.image_size} --gpus 1 --gpu h100 --batch-size {step} "
    words += f"--sample-rate {head.sample_rate:g} --optimizer {head.optimizer} --head-dtype {head.dtype or model.dtype}"
    words += " --checkpointing" if recipe.runtime.activation_checkpointing else ""
    return [
        f"accelerate launch train/run.py --data governed --out runs/{recipe.name} --recipe {recipe.name}",
        f"accelerate launch --config_file train/launch/ddp.yaml train/run.py --data governed --out "
        f"runs/{recipe.name} --recipe {recipe.name}",
        words,
    ]


def _fields(recipe: Recipe) -> list[list[str]]:
    """Main fields, in words."""
    model, image, head = recipe.model, recipe.image, recipe.head
    trained = "completely" if image.lora.rank == 0 else f"as adapters of rank {image.lora.rank}"
    decay = "" if image.layer_decay is None else f", each lower layer at {image.layer_decay:g} of the rate above it"
    rows = [
        ("image encoder", f"`{model.vision}`, {model.image_size} pixels, trained {trained}{decay}"),
        ("text encoder", f"`{recipe.text.encoder}`, fixed; at most {recipe.text.max_tokens} tokens"),
        ("step", f"{image.queries_per_step} queries, {image.documents_per_step} documents; {image.steps:,} steps"),
        ("classes sampled in a step", f"{head.sample_rate:.0%}; {head.optimizer}"),
        ("arithmetic", f"{model.mixed_precision} forward, {model.dtype} weights"),
        ("features", recipe.runtime.feature_storage),
    ]
    return [list(row) for row in rows]


def blocks() -> dict[str, str]:
    """Marker name -> Markdown."""
    return {"plans": plans(), "commands": commands()}
