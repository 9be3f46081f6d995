"""Estimate memory, traffic and a lower bound of the step time of a run on GPUs.

    python -m train.planner --classes 100e6 --hidden-size 512 --vision vit-b16 --gpus 64 --gpu h200

Every line is printed with its formula. The optimiser state of the class weights is measured on the tensors of the code
itself, created without storage; the encoders' memory and operations are counted by plan_encoder.py. Not included: the
framework's own memory (about 1 GiB a GPU), fragmentation, data loading.

Letters: G GPUs, P encoder parameters, A those of adapters, U those of the largest gathered unit, N classes, D width, b
rows of a rank in one micro-step, B = bG, r sample rate, S = ceil(rN / G) sampled rows of a rank.
"""

import argparse
import dataclasses
import json
import math
import sys
from dataclasses import dataclass

import torch

from train.class_weights.row_optimizers import ROW_OPTIMIZERS, row_optimizer
from train.planner.plan_encoder import TEXT, VISION, EncoderCost, text_cost, vision_cost

GIB = 2**30
USABLE = 0.92  # of a GPU's memory: the rest goes to the framework and to fragmentation
HEAD_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
LOGIT_BYTES = 256 * 2**20  # above this the logits are computed again in the backward pass


@dataclass(frozen=True)
class Gpu:
    """Memory GiB; dense bf16 and tf32 FLOP/s; memory, NVLink and network bytes/s (one direction), by the maker's data
    sheets. The network is one 400 Gb/s adapter a GPU, or 100 Gb/s for the L4."""

    memory_gib: float
    bf16: float
    tf32: float
    memory_bandwidth: float
    link: float
    network: float


GPUS = {
    "h200": Gpu(141e9 / GIB, 989e12, 495e12, 4.8e12, 450e9, 50e9),
    "h100": Gpu(80e9 / GIB, 989e12, 495e12, 3.35e12, 450e9, 50e9),
    "a100": Gpu(80e9 / GIB, 312e12, 156e12, 2.04e12, 300e9, 50e9),
    "l4": Gpu(24e9 / GIB, 121e12, 60e12, 0.3e12, 32e9, 12.5e9),
}


@dataclass(frozen=True)
class Run:
    """Planned run; `batch_size` is b, `gpus_per_node` decides whether NVLink or the network limits traffic."""

    classes: int
    hidden_size: int
    vision: EncoderCost
    text: EncoderCost | None
    gpus: int
    gpu: Gpu
    batch_size: int
    sample_rate: float = 0.1
    optimizer: str = "rowwise_adagrad"
    head_dtype: str = "bfloat16"
    checkpointing: bool = False
    gpus_per_node: int = 8
    lora_rank: int = 0
    average: bool = False

    @property
    def parameters(self) -> int:
        """P, of the encoders and their adapters."""
        return sum(e.parameters + self.lora_rank * e.adapted_width for e in self.encoders)

    @property
    def trained(self) -> int:
        """Encoder parameters with a gradient: all, or those of the adapters."""
        return sum(self.lora_rank * e.adapted_width if self.lora_rank else e.parameters for e in self.encoders)

    @property
    def rows(self) -> int:
        """Class rows of a rank, ceil(N / G)."""
        return -(-self.classes // self.gpus)

    @property
    def sampled(self) -> int:
        """Class rows of a rank that a step scores, ceil(rN / G)."""
        return min(self.rows, math.ceil(self.sample_rate * self.classes / self.gpus))

    @property
    def logits(self) -> int:
        """Bytes of a rank's logits, 4 S B."""
        return 4 * self.sampled * self.batch_size * self.gpus

    @property
    def encoders(self) -> list[EncoderCost]:
        """Image encoder and, if there is one, text encoder."""
        return [self.vision] + ([self.text] if self.text else [])


@dataclass(frozen=True)
class Line:
    """One quantity; `value` in bytes, seconds or rows, by `unit`."""

    group: str
    name: str
    value: float
    unit: str
    formula: str


def optimizer_bytes(name: str, width: int, *, weight_decay: float = 0.02) -> float:
    """Bytes of optimiser state for one class row, from the optimiser's own tensors without storage."""

    def allocate(tensor: str, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    rows = 1000
    state = row_optimizer(name)(allocate, rows, width, dtype=torch.float32, weight_decay=weight_decay)
    return sum(tensor.numel() * tensor.element_size() for tensor in state.tensors.values()) / rows


def memory(run: Run) -> list[Line]:
    """Memory of a rank at the peak of a step."""
    trained = run.trained / run.gpus
    letter = "A" if run.lora_rank else "P"
    unit = max(encoder.largest_unit for encoder in run.encoders)
    kept = sum(e.block_inputs if run.checkpointing else e.activations for e in run.encoders)
    itemsize, state = HEAD_DTYPES[run.head_dtype].itemsize, optimizer_bytes(run.optimizer, run.hidden_size)
    whole = run.batch_size * run.gpus
    lines = [
        ("encoder weights, fp32", 4 * run.parameters / run.gpus, "4 P / G"),
        ("encoder gradients, fp32", 4 * trained, f"4 {letter} / G"),
        ("encoder AdamW moments", 8 * trained, f"8 {letter} / G"),
        ("encoder weight average", 4 * trained * run.average, f"4 {letter} / G, with ema_decay"),
        ("gathered units, bf16", 2 * 2 * unit, "2 units of 2 U: one in use, one on its way"),
        ("activations", run.batch_size * kept, f"b x {kept} bytes, counted"),
        ("class weights", run.rows * run.hidden_size * itemsize, f"ceil(N / G) x D x {itemsize}"),
        ("class optimiser state", run.rows * state, f"ceil(N / G) x {state:g} ({run.optimizer})"),
        ("sampled rows and their gradient", 8 * run.sampled * run.hidden_size, "2 x 4 S D"),
        ("logits", min(run.logits, LOGIT_BYTES), "min(4 S B, 256 MiB)"),
        ("embeddings of all ranks and their gradient", 8 * whole * run.hidden_size, "2 x 4 B D"),
    ]
    return [Line("memory", name, float(value), "bytes", formula) for name, value, formula in lines]


def traffic(run: Run) -> list[Line]:
    """Bytes that a rank sends in one step; (G - 1) / G of a ring collective's bytes."""
    share, letter = (run.gpus - 1) / run.gpus, "A" if run.lora_rank else "P"
    whole = run.batch_size * run.gpus
    lines = [
        ("weights gathered, forward and backward, bf16", 2 * 2 * run.parameters * share, "2 x 2 P (G - 1) / G"),
        ("gradients scattered, fp32", 4 * run.trained * share, f"4 {letter} (G - 1) / G"),
        ("embeddings gathered, gradient scattered", 8 * whole * run.hidden_size * share, "2 x 4 B D (G - 1) / G"),
        ("three scalars of every row, reduced", 2 * 12 * whole * share, "2 x 12 B (G - 1) / G"),
    ]
    return [Line("traffic", name, float(value), "bytes", formula) for name, value, formula in lines]


def floor(run: Run) -> list[Line]:
    """Lower bound of the step time: encoder work or its traffic, whichever is longer, then the head."""
    flops = sum(encoder.flops for encoder in run.encoders) * (4 if run.checkpointing else 3)
    sent = traffic(run)
    wire = run.gpu.link if run.gpus <= run.gpus_per_node else run.gpu.network
    compute = run.batch_size * flops / run.gpu.bf16
    hidden = (sent[0].value + sent[1].value) / wire
    products = 3 if run.logits <= LOGIT_BYTES else 4
    matmuls = products * 2 * run.batch_size * run.gpus * run.sampled * run.hidden_size / run.gpu.tf32
    itemsize, state = HEAD_DTYPES[run.head_dtype].itemsize, optimizer_bytes(run.optimizer, run.hidden_size)
    touched = 2 * run.sampled * (run.hidden_size * itemsize + state) / run.gpu.memory_bandwidth
    exchange = (sent[2].value + sent[3].value) / wire
    times = 4 if run.checkpointing else 3
    lines = [
        ("encoders", compute, f"b x {times} x forward operations / bf16 rate"),
        ("weights and gradients on the wire", hidden, "their bytes / bandwidth; runs beside the encoders"),
        ("head, matrix products", matmuls, f"{products} x 2 B S D / tf32 rate; 4 where logits are computed twice"),
        ("head, rows read and written", touched, "2 S (D x item + state) / memory bandwidth"),
        ("embeddings on the wire", exchange, "their bytes / bandwidth"),
        ("step", max(compute, hidden) + matmuls + touched + exchange, "max(first two) + the rest"),
    ]
    return [Line("floor", name, value, "seconds", formula) for name, value, formula in lines]


def largest_batch(run: Run) -> Line:
    """Largest number of rows of a rank in one micro-step that fits; 0 if not even one does."""
    limit = USABLE * run.gpu.memory_gib * GIB

    def needed(rows: int) -> float:
        return sum(line.value for line in memory(dataclasses.replace(run, batch_size=rows)))

    low, high = 0, 1 << 20
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if needed(middle) <= limit else (low, middle - 1)
    formula = f"largest b with memory <= {USABLE:.0%} of {run.gpu.memory_gib:.0f} GiB"
    return Line("batch", "largest batch of a rank", low, "rows", formula)


def plan(run: Run) -> list[Line]:
    """All lines and their sums."""
    held = memory(run)
    total = Line("memory", "in all", sum(line.value for line in held), "bytes", "sum of the above")
    sent = traffic(run)
    sum_sent = Line("traffic", "in all", sum(line.value for line in sent), "bytes", "sum of the above")
    return [*held, total, *sent, sum_sent, *floor(run), largest_batch(run)]


def format_line(line: Line) -> str:
    """One row of the printed table."""
    if line.unit == "bytes":
        value = f"{line.value / GIB:10.3f} GiB"
    else:
        value = f"{line.value * 1e3:10.2f} ms " if line.unit == "seconds" else f"{line.value:10,.0f} row"
    return f"{line.group:8s} {line.name:46s} {value}   {line.formula}"


def _count(text: str) -> int:
    number = float(text)
    if number < 1 or number != int(number):
        raise argparse.ArgumentTypeError(f"{text} is not a whole number above 0, such as 100e6")
    return int(number)


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m train.planner",
        description=__doc__.split("\n")[0],
        epilog="example: python -m train.planner --classes 100e6 --hidden-size 512 --vision vit-b16 --gpus 64",
    )
    parser.add_argument("--classes", type=_count, required=True, help="categories, such as 100e6")
    parser.add_argument("--hidden-size", type=_count, default=512, help="width of the embedding (default: 512)")
    parser.add_argument("--vision", default="vit-b16", help=f"{', '.join(VISION)}, or a folder (default: vit-b16)")
    parser.add_argument("--text", help=f"{', '.join(TEXT)}, or a folder; left out: the text encoder is not trained")
    parser.add_argument("--image-size", type=_count, default=224, help="pixels (default: 224)")
    parser.add_argument("--tokens", type=_count, default=32, help="of a text (default: 32)")
    parser.add_argument("--gpus", type=_count, default=8)
    parser.add_argument("--gpus-per-node", type=_count, default=8)
    parser.add_argument("--gpu", choices=GPUS, default="h200")
    parser.add_argument("--batch-size", type=_count, default=256, help="rows of a rank in a micro-step (default: 256)")
    parser.add_argument("--sample-rate", type=float, default=0.1, help="share of the classes in a step (default: 0.1)")
    parser.add_argument("--optimizer", choices=ROW_OPTIMIZERS, default="rowwise_adagrad", help="of the class weights")
    parser.add_argument("--head-dtype", choices=HEAD_DTYPES, default="bfloat16", help="of the class weights")
    parser.add_argument("--checkpointing", action="store_true", help="activation checkpointing of every block")
    parser.add_argument("--lora-rank", type=int, default=0, help="adapters on query and value projections; 0: none")
    parser.add_argument("--average", action="store_true", help="weights averaged over the steps (ema_decay)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def read_run(words: list[str]) -> tuple[Run, bool]:
    """The planned run, and whether to print JSON.

    Raises:
        ValueError: a rate outside (0, 1], or an unknown encoder.
    """
    options = _arguments().parse_args(words)
    if not 0 < options.sample_rate <= 1:
        raise ValueError(f"--sample-rate is {options.sample_rate}; it must be above 0 and at most 1 (every class)")
    run = Run(
        classes=options.classes,
        hidden_size=options.hidden_size,
        vision=vision_cost(options.vision, image_size=options.image_size),
        text=text_cost(options.text, tokens=options.tokens) if options.text else None,
        gpus=options.gpus,
        gpu=GPUS[options.gpu],
        batch_size=options.batch_size,
        sample_rate=options.sample_rate,
        optimizer=options.optimizer,
        head_dtype=options.head_dtype,
        checkpointing=options.checkpointing,
        gpus_per_node=options.gpus_per_node,
        lora_rank=options.lora_rank,
        average=options.average,
    )
    if run.lora_rank < 0 or (run.lora_rank and not all(encoder.adapted_width for encoder in run.encoders)):
        raise ValueError(
            f"--lora-rank is {run.lora_rank}; give 0 or more, and 0 for an encoder without query and value projections"
        )
    return run, options.json


def main(words: list[str] | None = None) -> int:
    """Run the command line; return 2 and print one line for a mistake of the caller."""
    try:
        run, as_json = read_run(sys.argv[1:] if words is None else words)
    except ValueError as error:
        print("error:", error, file=sys.stderr)
        return 2
    lines = plan(run)
    if as_json:
        print(json.dumps([dataclasses.asdict(line) for line in lines], indent=1))
        return 0
    for line in lines:
        print(format_line(line))
    fits = next(line.value for line in lines if line.group == "batch") >= run.batch_size
    print(f"batch size {run.batch_size} {'fits' if fits else 'DOES NOT FIT'} in {run.gpu.memory_gib:.0f} GiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
