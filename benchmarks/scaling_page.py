"""Tables of docs/scaling.md: the planner's answers for machines from one GPU to 256.

Why: what cannot be run here can still be counted, formula by formula. Nothing in these tables was measured on a GPU.

In: train/plan.py. Out: marker name -> Markdown. Next: `python -m benchmarks.render` fills docs/scaling.md.
"""

import functools
from dataclasses import dataclass

from train.plan import GIB, GPUS, Line, Run, plan, shown
from train.plan_encoder import EncoderCost, vision_cost

SAMPLES = 10_000_000_000


@dataclass(frozen=True)
class Size:
    """One column of the table."""

    title: str
    gpus: int
    gpu: str
    classes: int
    vision: str
    batch_size: int
    sample_rate: float
    checkpointing: bool = False


SIZES = (
    Size("one card", 1, "h200", 100_000_000, "vit-b16", 256, 0.001),
    Size("one node", 8, "h100", 10_000_000, "vit-b16", 256, 0.1),
    Size("8 nodes", 64, "h200", 100_000_000, "vit-b16", 256, 0.1),
    Size("32 nodes", 256, "h200", 100_000_000, "vit-l16", 128, 0.01),
    Size("32 nodes, a billion classes", 256, "h200", 1_000_000_000, "vit-l16", 128, 0.001),
)


@functools.cache
def encoder(name: str) -> EncoderCost:
    """Cost of an image encoder; the text encoder is not trained beside the images (see flow.md)."""
    return vision_cost(name)


def run_of(size: Size) -> Run:
    """What the planner is asked."""
    return Run(
        classes=size.classes,
        hidden_size=512,
        vision=encoder(size.vision),
        text=None,
        gpus=size.gpus,
        gpu=GPUS[size.gpu],
        batch_size=size.batch_size,
        sample_rate=size.sample_rate,
        checkpointing=size.checkpointing,
    )


def command_of(size: Size) -> str:
    """The command that prints the whole plan of a column."""
    words = f"python -m train.plan --classes {size.classes:.0e} --hidden-size 512 --vision {size.vision}"
    words += f" --gpus {size.gpus} --gpu {size.gpu} --batch-size {size.batch_size} --sample-rate {size.sample_rate}"
    return words.replace("e+0", "e")


def value(lines: list[Line], group: str, name: str) -> float:
    """One quantity of a plan."""
    return next(line.value for line in lines if line.group == group and line.name == name)


def table() -> str:
    """One row per size."""
    rows = [
        "| machine | classes | encoder | batch | rate | GiB a GPU | class weights GiB | largest batch | GiB sent "
        "| step floor ms | days for 10 billion samples, at best |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for size in SIZES:
        lines = plan(run_of(size))
        step = value(lines, "floor", "step")
        days = SAMPLES / (size.batch_size * size.gpus) * step / 86400
        rows.append(
            f"| {size.title}: {size.gpus} x {size.gpu.upper()} | {size.classes / 1e6:,.0f}M | {size.vision} | "
            f"{size.batch_size} x {size.gpus} | {size.sample_rate:g} | {value(lines, 'memory', 'in all') / GIB:.1f} of "
            f"{GPUS[size.gpu].memory_gib:.0f} | {value(lines, 'memory', 'class weights') / GIB:.1f} | "
            f"{value(lines, 'batch', 'largest batch of a rank'):,.0f} | "
            f"{value(lines, 'traffic', 'in all') / GIB:.2f} | {step * 1e3:.0f} | {days:,.1f} |"
        )
    return "\n".join([*rows, "", "Commands: " + "; ".join(f"`{command_of(size)}`" for size in SIZES) + "."])


def example() -> str:
    """One plan in full."""
    size = SIZES[2]
    lines = [line.rstrip() for line in (f"$ {command_of(size)}", *(shown(line) for line in plan(run_of(size))))]
    return "\n".join(["```", *lines, "```"])


def blocks() -> dict[str, str]:
    """Marker name -> Markdown."""
    return {"sizes": table(), "example": example()}
