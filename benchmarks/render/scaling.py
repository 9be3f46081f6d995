"""Tables of docs/scaling.md: the planner's answers for machines from one GPU to 256, and what the data path costs.

Why: what cannot be run here can still be counted, formula by formula. Nothing in these tables was measured on a GPU.

Reads train/planner/plan.py and results of benchmarks/training/; `python -m benchmarks.render` fills docs/scaling.md.
"""

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from train.planner.plan import GIB, GPUS, Line, Run, format_line, plan
from train.planner.plan_encoder import EncoderCost, vision_cost

SAMPLES = 10_000_000_000
RESULTS = Path(__file__).resolve().parents[1] / "results"
CACHED_NUMBERS = 192 * 4 * 4  # of one view of 112 x 112 pixels after six stages of EfficientNet-Lite0, two bytes each


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
    words = f"python -m train.planner --classes {size.classes:.0e} --hidden-size 512 --vision {size.vision}"
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
    lines = [line.rstrip() for line in (f"$ {command_of(size)}", *(format_line(line) for line in plan(run_of(size))))]
    return "\n".join(["```", *lines, "```"])


def data_result(folder: Path = RESULTS) -> dict[str, Any]:
    """The newest result of benchmarks/training/data_at_scale.py.

    Raises:
        ValueError: there is none.
    """
    found = sorted(folder.glob("data_at_scale_*.json"), key=lambda path: path.stem.split("_")[-1])
    if not found:
        raise ValueError(
            "benchmarks/results holds no data_at_scale_*.json: run python -m benchmarks.training.data_at_scale first"
        )
    result: dict[str, Any] = json.loads(found[-1].read_text())
    return {**result, "file": found[-1].name}


def data_path(folder: Path = RESULTS) -> str:
    """One row per number of samples, and the same rates at 10 billion."""
    result = data_result(folder)
    runs, machine = result["runs"], result["environment"]
    rows = [
        "| samples | shards MiB | row groups | steps of 256 samples | peak MiB | peak of a decode worker MiB "
        "| processor seconds to read the columns |",
        "|---|---|---|---|---|---|---|",
    ]
    rows += [
        f"| {run['samples']:,} | {run['shard_mib']:,.0f} | {run['row_groups']:,} | {run['steps']} | "
        f"{run['peak_mib']:,.0f} | {run['worker_peak_mib']:,.0f} | {run['cpu_seconds_to_read']:.2f} |"
        for run in runs
    ]
    first, last = runs[0], runs[-1]
    more = last["samples"] - first["samples"]
    held = (last["peak_mib"] - first["peak_mib"]) * 2**20 / more
    read = (last["cpu_seconds_to_read"] - first["cpu_seconds_to_read"]) / more
    cached = CACHED_NUMBERS * 2
    lines = [
        f"From `benchmarks/results/{result['file']}`, made by `{result['command']}` on {machine['cores']} cores "
        f"({machine['cpu']}). The peak grows by {100 * result['growth_of_peak']:.1f}% from {first['samples']:,} to "
        f"{last['samples']:,} samples: {held:.0f} bytes a sample.",
        "",
        "| at 10 billion samples, by the same rates | |",
        "|---|---|",
        f"| labels, weights and order of draws, in every rank | {held * SAMPLES / 2**30:,.0f} GiB |",
        f"| reading the columns once, in every rank | {read * SAMPLES / 3600:,.1f} processor hours |",
        f"| cached features, for every view ({cached:,} bytes each) | {cached * SAMPLES / 2**40:,.0f} TiB |",
        "| streamed features | nothing |",
    ]
    return "\n".join([*rows, "", *lines])


LAYOUTS = {
    "accumulate_2": "one process, 4 rows x 2 micro-steps",
    "accumulate_4": "one process, 2 rows x 4 micro-steps",
    "resumed": "one process, stopped after 23 steps and resumed",
    "torchrun_2": "2 ranks, DDP by torchrun",
    "accelerate_2": "2 ranks, DDP by accelerate launch",
    "fsdp2_2": "2 ranks, FSDP2",
    "hybrid_2x2": "4 ranks, hybrid sharding 2 x 2",
}


def curves(folder: Path = RESULTS) -> str:
    """Largest difference of each layout to one process over all steps, every kept setting.

    Raises:
        ValueError: there is no result of benchmarks/training/curves.py.
    """
    found = [json.loads(path.read_text()) for path in sorted(folder.glob("curves_*.json"))]
    if not found:
        raise ValueError("benchmarks/results holds no curves_*.json: run python -m benchmarks.training.curves first")
    rows = [
        "| setting | layout | loss | encoder gradient norm | head gradient norm | within |",
        "|---|---|---|---|---|---|",
    ]
    for result in found:
        for setting, judged in result["settings"].items():
            for layout, gaps in judged["gaps"].items():
                limits = ", ".join(f"{limit:.0e}" for limit in judged["limits"].values())
                said = "equal to the bit" if layout == "resumed" else limits
                beyond = " **beyond**" if layout in judged["beyond"] else ""
                figures = " | ".join(f"{gap:.1e}" for gap in gaps.values())
                rows.append(f"| {setting} | {LAYOUTS[layout]} | {figures} | {said}{beyond} |")
    machine = found[0]["environment"]
    made = "; ".join(f"`{result['command']}`" for result in found)
    rows += ["", f"{found[0]['steps']} steps each, on {machine['cores']} cores ({machine['cpu']}): {made}."]
    return "\n".join(rows)


SYSTEMS = {"emoji_tuned": "the layers themselves", "emoji_lora": "adapters, of rank {image} and {text}"}


def adapters(folder: Path = RESULTS) -> str:
    """What adapters train and what they lose, with the bars, from the newest result of benchmarks/training/adapters.py.

    Raises:
        ValueError: there is none.
    """
    found = sorted(folder.glob("adapters_*.json"), key=lambda path: path.stem.split("_")[-1])
    if not found:
        raise ValueError(
            "benchmarks/results holds no adapters_*.json: run python -m benchmarks.training.adapters first"
        )
    result = json.loads(found[-1].read_text())
    rows = [
        "| trained | image encoder | text encoder | of both | R@1 | R@10 | MRR@10 |",
        "|---|---|---|---|---|---|---|",
    ]
    for recipe, title in SYSTEMS.items():
        counts, means = result["parameters"][recipe], result["mean"][recipe]
        parts = (counts[part] for part in ("image_encoder", "text_encoder"))
        cells = [f"{part['trained']:,} of {part['all']:,}" for part in parts] + [f"{counts['share']:.2%}"]
        cells += [f"{means[name]:.3f}" for name in ("recall_at_1", "recall_at_10", "mrr_at_10")]
        title = title.format_map(counts["ranks"])
        rows.append(f"| {title} (`{recipe}`) | {' | '.join(cells)} |")
    runs = [result["by_seed"][recipe] for recipe in SYSTEMS]
    gaps = {seed: runs[1][seed]["recall_at_1"] - runs[0][seed]["recall_at_1"] for seed in runs[0]}
    said = ", ".join(f"{gap:+.3f} (seed {seed})" for seed, gap in gaps.items())
    share, loss = (result["bars"][name] for name in ("share_of_parameters", "loss_of_recall_at_1"))
    mean, points = result["difference"]["recall_at_1"], 100 * loss["at_most"]
    lines = [
        f"Adapters minus layers, R@1, mean {mean:+.4f}: {said}.{_few(len(gaps))}",
        f"Share below {share['below']:.0%}: {_met(share)}. At most {points:g} points lost: {_met(loss)}.",
        "",
        f"From `benchmarks/results/{found[-1].name}`, made by `{result['command']}` on "
        f"{result['environment']['cores']} core(s) ({result['environment']['cpu']}).",
    ]
    return "\n".join([*rows, "", *lines])


def _few(seeds: int) -> str:
    return "" if seeds >= 3 else f" The bars are meant for 3 seeds; with {seeds} the loss is not settled."


def _met(bar: dict[str, Any]) -> str:
    return "met" if bar["met"] else "**not met**"


def blocks() -> dict[str, str]:
    """Marker name -> Markdown."""
    return {
        "sizes": table(),
        "data": data_path(),
        "curves": curves(),
        "adapters": adapters(),
        "example": example(),
    }
