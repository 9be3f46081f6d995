"""Tables of docs/scaling.md: plans for GPUs, data path, curves, adapters.

The planner's tables are computed, not measured: see train/planner/plan.py. The others come from result files of
benchmarks/training.
"""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.render.tables import RESULTS, newest, results, source, table
from train.planner.plan import GIB, GPUS, Line, Run, format_line, plan
from train.planner.plan_encoder import EncoderCost, vision_cost

SAMPLES = 10_000_000_000
# Numbers of two bytes in one cached view: 112 x 112 pixels after six stages of EfficientNet-Lite0.
CACHED_NUMBERS = 192 * 4 * 4


@dataclass(frozen=True)
class Machine:
    """One row of the planner's table: GPUs and what is trained on them."""

    title: str
    gpus: int
    gpu: str
    classes: int
    vision: str
    batch_size: int
    sample_rate: float

    @property
    def run(self) -> Run:
        """The planner's input."""
        return Run(
            classes=self.classes,
            hidden_size=512,
            vision=encoder(self.vision),
            text=None,
            gpus=self.gpus,
            gpu=GPUS[self.gpu],
            batch_size=self.batch_size,
            sample_rate=self.sample_rate,
        )

    @property
    def command(self) -> str:
        """The command that prints the whole plan."""
        words = f"python -m train.planner --classes {self.classes:.0e} --hidden-size 512 --vision {self.vision}"
        words += f" --gpus {self.gpus} --gpu {self.gpu} --batch-size {self.batch_size} --sample-rate {self.sample_rate}"
        return words.replace("e+0", "e")


MACHINES = (
    Machine("one card", 1, "h200", 100_000_000, "vit-b16", 256, 0.001),
    Machine("one node", 8, "h100", 10_000_000, "vit-b16", 256, 0.1),
    Machine("8 nodes", 64, "h200", 100_000_000, "vit-b16", 256, 0.1),
    Machine("32 nodes", 256, "h200", 100_000_000, "vit-l16", 128, 0.01),
    Machine("32 nodes, a billion classes", 256, "h200", 1_000_000_000, "vit-l16", 128, 0.001),
)


@functools.cache
def encoder(name: str) -> EncoderCost:
    """Cost of an image encoder; text is not trained in the image stage (see flow.md)."""
    return vision_cost(name)


def value(lines: list[Line], group: str, name: str) -> float:
    """One quantity of a plan."""
    return next(line.value for line in lines if line.group == group and line.name == name)


def machines() -> str:
    """One line per machine, with the commands that print the whole plans."""
    rows = []
    for machine in MACHINES:
        lines = plan(machine.run)
        step = value(lines, "floor", "step")
        days = SAMPLES / (machine.batch_size * machine.gpus) * step / 86400
        rows.append(
            [
                f"{machine.title}: {machine.gpus} x {machine.gpu.upper()}",
                f"{machine.classes / 1e6:,.0f}M",
                machine.vision,
                f"{machine.batch_size} x {machine.gpus}",
                f"{machine.sample_rate:g}",
                f"{value(lines, 'memory', 'in all') / GIB:.1f} of {GPUS[machine.gpu].memory_gib:.0f}",
                f"{value(lines, 'memory', 'class weights') / GIB:.1f}",
                f"{value(lines, 'batch', 'largest batch of a rank'):,.0f}",
                f"{value(lines, 'traffic', 'in all') / GIB:.2f}",
                f"{step * 1e3:.0f}",
                f"{days:,.1f}",
            ]
        )
    head = ["machine", "classes", "encoder", "batch", "sample rate", "GiB a GPU", "class weights GiB", "largest batch"]
    head += ["GiB sent", "lower bound of a step, ms", "lower bound for 10 billion samples, days"]
    commands = "; ".join(f"`{machine.command}`" for machine in MACHINES)
    return "\n".join([*table(head, rows), "", f"Commands: {commands}."])


def example() -> str:
    """One plan in full."""
    machine = MACHINES[2]
    lines = [line.rstrip() for line in (f"$ {machine.command}", *(format_line(line) for line in plan(machine.run)))]
    return "\n".join(["```", *lines, "```"])


def data_path(folder: Path = RESULTS) -> str:
    """Cost of streamed inputs per number of samples, and the same rates at 10 billion samples.

    Raises:
        ValueError: when there is no result of benchmarks/training/data_at_scale.py.
    """
    result = newest("data_at_scale", command="python -m benchmarks.training.data_at_scale", folder=folder)
    runs = result["runs"]
    rows = [
        [
            f"{run['samples']:,}",
            f"{run['shard_mib']:,.0f}",
            f"{run['row_groups']:,}",
            str(run["steps"]),
            f"{run['peak_mib']:,.0f}",
            f"{run['worker_peak_mib']:,.0f}",
            f"{run['cpu_seconds_to_read']:.2f}",
        ]
        for run in runs
    ]
    head = ["samples", "shards MiB", "row groups", "steps of 256 samples", "peak MiB", "peak of a decode worker MiB"]
    first, last = runs[0], runs[-1]
    more = last["samples"] - first["samples"]
    held = (last["peak_mib"] - first["peak_mib"]) * 2**20 / more
    read = (last["cpu_seconds_to_read"] - first["cpu_seconds_to_read"]) / more
    cached = CACHED_NUMBERS * 2
    extrapolated = [
        ["labels, weights and order of draws, in every rank", f"{held * SAMPLES / 2**30:,.0f} GiB"],
        ["reading the columns once, in every rank", f"{read * SAMPLES / 3600:,.1f} processor hours"],
        [f"cached features, for every view ({cached:,} bytes each)", f"{cached * SAMPLES / 2**40:,.0f} TiB"],
        ["streamed features", "0"],
    ]
    lines = [
        f"{source(result)} The peak grows by {100 * result['growth_of_peak']:.1f}% from {first['samples']:,} to "
        f"{last['samples']:,} samples: {held:.0f} bytes a sample.",
        "",
        *table(["10 billion samples, extrapolated at these rates", "cost"], extrapolated),
    ]
    return "\n".join([*table([*head, "CPU seconds to read the columns"], rows), "", *lines])


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
    """Largest difference of each layout to one process over all steps, for every setting.

    Raises:
        ValueError: when there is no result of benchmarks/training/curves.py.
    """
    newest("curves", command="python -m benchmarks.training.curves", folder=folder)
    found = sorted(results("curves", folder), key=lambda result: result["file"])
    rows = []
    for result in found:
        for setting, judged in result["settings"].items():
            for layout, gaps in judged["gaps"].items():
                limits = ", ".join(f"{limit:.0e}" for limit in judged["limits"].values())
                allowed = "bit-equal" if layout == "resumed" else limits
                beyond = " **exceeded**" if layout in judged["beyond"] else ""
                rows.append([setting, LAYOUTS[layout], *(f"{gap:.1e}" for gap in gaps.values()), allowed + beyond])
    head = ["setting", "layout", "loss", "encoder gradient norm", "head gradient norm", "allowed"]
    lines = [*table(head, rows), "", f"{found[0]['steps']} steps each.", ""]
    return "\n".join([*lines, *(f"- {source(result)}" for result in found)])


SYSTEMS = {"emoji_tuned": "the layers themselves", "emoji_lora": "adapters, of rank {image} and {text}"}


def adapters(folder: Path = RESULTS) -> str:
    """Parameters that adapters train, what they lose, and the two targets, of the newest file.

    Raises:
        ValueError: when there is no result of benchmarks/training/adapters.py.
    """
    result = newest("adapters", command="python -m benchmarks.training.adapters", folder=folder)
    rows = []
    for recipe, title in SYSTEMS.items():
        counts, means = result["parameters"][recipe], result["mean"][recipe]
        trained = (counts[name] for name in ("image_encoder", "text_encoder"))
        cells = [f"{count['trained']:,} of {count['all']:,}" for count in trained] + [f"{counts['share']:.2%}"]
        cells += [f"{means[name]:.3f}" for name in ("recall_at_1", "recall_at_10", "mrr_at_10")]
        rows.append([f"{title.format_map(counts['ranks'])} (`{recipe}`)", *cells])
    tuned, lora = (result["by_seed"][recipe] for recipe in SYSTEMS)
    by_seed = {seed: lora[seed]["recall_at_1"] - tuned[seed]["recall_at_1"] for seed in tuned}
    differences = ", ".join(f"{gap:+.3f} (seed {seed})" for seed, gap in by_seed.items())
    few = "" if len(by_seed) >= 3 else f" The targets are meant for 3 seeds: {len(by_seed)} cannot decide the loss."
    share, loss = (result["bars"][name] for name in ("share_of_parameters", "loss_of_recall_at_1"))
    head = ["trained", "image encoder", "text encoder", "of both", "R@1", "R@10", "MRR@10"]
    return "\n".join(
        [
            *table(head, rows),
            "",
            f"R@1 of adapters minus R@1 of layers: mean {result['difference']['recall_at_1']:+.4f}, {differences}."
            f"{few}",
            f"Targets: less than {share['below']:.0%} of the parameters, {_met(share)}; at most "
            f"{100 * loss['at_most']:g} points of R@1 lost, {_met(loss)}.",
            "",
            source(result),
        ]
    )


def _met(target: dict[str, Any]) -> str:
    return "met" if target["met"] else "**not met**"


def blocks() -> dict[str, str]:
    """Marker name -> Markdown of docs/scaling.md."""
    return {
        "sizes": machines(),
        "data": data_path(),
        "curves": curves(),
        "adapters": adapters(),
        "example": example(),
    }
