"""Tables of docs/recipes.md: what the recipes for real catalogues need, by the planner and by stated formulas.

Why: nobody has run them yet. Memory and step floor are counted by train/planner/plan.py; hours follow by formulas that
the page shows, with two shares that are assumed until a run has measured them.

Each function returns marker name -> Markdown; `python -m benchmarks.render` writes the page.
"""

import functools
from dataclasses import dataclass

from benchmarks.render.governance import table
from train.planner.plan import GIB, GPUS, Line, Run, largest_batch, plan
from train.planner.plan_encoder import EncoderCost, vision_cost
from train.recipes.catalogue import CATALOGUE_RECIPES
from train.recipes.recipe import Recipe

ENCODERS = {"google/siglip2-base-patch16-224": "siglip2-base", "facebook/dinov2-base": "dinov2-base"}
GPU_KINDS = ("h200", "h100", "l4")
REACHED = 0.35  # assumed share of the floor's speed that a run reaches
CORE_RATE = 1e12  # assumed operations a second of all processor cores together, for the cells that the text looks at


@dataclass(frozen=True)
class Catalogue:
    """The catalogue that hours are planned for."""

    queries: int
    documents: int
    categories: int


SHOP = Catalogue(queries=800_000, documents=200_000, categories=100_000)


@functools.cache
def encoder(recipe_name: str) -> EncoderCost:
    """Cost of a recipe's image encoder at its image size."""
    recipe = CATALOGUE_RECIPES[recipe_name]()
    return vision_cost(ENCODERS[recipe.model.vision], image_size=recipe.model.image_size)


def run_of(recipe: Recipe, gpu: str, *, rows: int) -> Run:
    """What the planner is asked: one GPU, `rows` of a micro-step."""
    return Run(
        classes=SHOP.categories,
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


def pieces(recipe: Recipe, gpu: str) -> int:
    """The smallest power of two that cuts a step into micro-steps that fit: `gradient_accumulation`."""
    step = recipe.image.queries_per_step + recipe.image.documents_per_step
    most = largest_batch(run_of(recipe, gpu, rows=step)).value
    count = 1
    while step // count > most:
        count *= 2
    return count


def value(lines: list[Line], group: str, name: str) -> float:
    """One quantity of a plan."""
    return next(line.value for line in lines if line.group == group and line.name == name)


def floor_seconds(recipe: Recipe, gpu: str) -> tuple[float, float]:
    """(step, start): seconds that a step and the start of the class weights cannot go below."""
    step = recipe.image.queries_per_step + recipe.image.documents_per_step
    count = pieces(recipe, gpu)
    lines = plan(run_of(recipe, gpu, rows=step // count))
    started = SHOP.queries + SHOP.documents
    if recipe.head.start_rows is not None:
        started = min(started, 2 * recipe.head.start_rows * SHOP.categories)
    return count * value(lines, "floor", "step"), started * encoder(recipe.name).flops / GPUS[gpu].bf16


def plans() -> str:
    """One row per recipe and GPU."""
    rows = []
    for name, function in CATALOGUE_RECIPES.items():
        recipe: Recipe = function()
        step = recipe.image.queries_per_step + recipe.image.documents_per_step
        for gpu in GPU_KINDS:
            count = pieces(recipe, gpu)
            held = value(plan(run_of(recipe, gpu, rows=step // count)), "memory", "in all") / GIB
            step_floor, start_floor = floor_seconds(recipe, gpu)
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
    head = ["recipe", "one", "gradient_accumulation", "GiB", "step floor ms", "hours, floor"]
    head += [f"hours, {REACHED:.0%} of the floor's speed", "images decoded a second, to keep up"]
    return "\n".join([*table(head, rows), "", *formulas()])


def formulas() -> list[str]:
    """The formulas behind the table, with the numbers of the first recipe."""
    recipe: Recipe = next(iter(CATALOGUE_RECIPES.values()))()
    cells = SHOP.queries + 2 * SHOP.documents
    core_hours = cells * encoder(recipe.name).flops / CORE_RATE / 3600
    return [
        f"Planned for {SHOP.queries:,} query images, {SHOP.documents:,} documents and {SHOP.categories:,} categories.",
        "",
        f"- hours at the floor = (steps x step floor + rows of the start x F / bf16 rate) / 3600, with "
        f"{recipe.image.steps:,} steps, F = {encoder(recipe.name).flops / 1e9:.1f} billion operations for one image by "
        f"`{recipe.name}`, and at most {recipe.head.start_rows} rows of each side of a category at the start;",
        f"- a run reaches a share of that speed; {REACHED:.0%} is assumed until one has been measured;",
        "- images decoded a second = rows of a step / step floor x that share: what the processor cores must deliver; "
        "where they deliver less, hours = steps x rows of a step / their rate / 3600;",
        f"- after training, the text side reads the cells of every query, every document and one made page a document "
        f"on the processor cores: (queries + 2 x documents) x F / rate = {core_hours:.0f} hours at an assumed "
        f"{CORE_RATE / 1e12:.0f} trillion operations a second;",
        "- `siglip2_base` trains adapters alone, but is counted as if the encoder were trained whole: its memory and "
        "hours are upper bounds;",
        "- text is embedded once per document, on the cores, and is left out.",
    ]


def commands() -> str:
    """The commands of every recipe."""
    lines = []
    for name, function in CATALOGUE_RECIPES.items():
        recipe: Recipe = function()
        summary = (function.__doc__ or "").split("\n")[0]
        lines += [f"### `{name}`: not yet run", "", summary, "", "```", *_commands(recipe), "```", ""]
        lines += [*table(["field", "value"], _fields(recipe)), ""]
    return "\n".join(lines).strip()


def _commands(recipe: Recipe) -> list[str]:
    step = recipe.image.queries_per_step + recipe.image.documents_per_step
    words = f"python -m train.planner --classes {SHOP.categories} --hidden-size {recipe.model.hidden_size} --vision "
    words += f"{ENCODERS[recipe.model.vision]} --image-size {recipe.model.image_size} --gpus 1 --gpu h100 "
    words += f"--batch-size {step} "
    words += f"--sample-rate {recipe.head.sample_rate:g} --optimizer {recipe.head.optimizer} "
    words += f"--head-dtype {recipe.head.dtype or recipe.model.dtype}"
    words += " --checkpointing" if recipe.runtime.activation_checkpointing else ""
    return [
        f"accelerate launch train/run.py --data governed --out runs/{recipe.name} --recipe {recipe.name}",
        f"accelerate launch --config_file train/launch/ddp.yaml train/run.py --data governed --out "
        f"runs/{recipe.name} --recipe {recipe.name}",
        words,
    ]


def _fields(recipe: Recipe) -> list[list[str]]:
    """What a reader asks first."""
    trained = "whole" if recipe.image.lora.rank == 0 else f"adapters of rank {recipe.image.lora.rank}"
    decay = (
        ""
        if recipe.image.layer_decay is None
        else f", each lower layer at {recipe.image.layer_decay:g} of the rate above it"
    )
    rows = [
        ("image encoder", f"`{recipe.model.vision}`, {recipe.model.image_size} pixels, trained {trained}{decay}"),
        ("text encoder", f"`{recipe.text.encoder}`, fixed; at most {recipe.text.max_tokens} tokens"),
        (
            "a step",
            f"{recipe.image.queries_per_step} queries, {recipe.image.documents_per_step} documents; "
            f"{recipe.image.steps:,} steps",
        ),
        ("classes in a step", f"{recipe.head.sample_rate:.0%}; {recipe.head.optimizer}"),
        ("arithmetic", f"{recipe.model.mixed_precision} forward, {recipe.model.dtype} weights"),
        ("features", recipe.runtime.feature_storage),
    ]
    return [list(row) for row in rows]


def blocks() -> dict[str, str]:
    """Marker name -> Markdown."""
    return {"plans": plans(), "commands": commands()}
