"""How many classes fit one accelerator, head by head: arithmetic from the code's own tensors, nothing measured.

Why: where there is no accelerator at hand, bytes can still be counted. A sampled step touches few rows, so what limits
the number of classes is what is stored for every one of them.
"""

from train.planner.plan import GIB, GPUS, USABLE, optimizer_bytes

WIDTH, CLASSES, CARD = 512, 100_000_000, "h200"
COMMAND = (
    "python -m benchmarks.head.large --classes 100_000_000 --hidden-size 512 --storage device --dtype bf16 "
    "--device cuda --json benchmarks/results/head_large_cuda_bf16_HARDWARE_YYYYMM.json"
)


def kinds() -> list[tuple[str, float, str]]:
    """(head, bytes of one class, how they come about)."""
    rowwise, momentum = (optimizer_bytes(name, WIDTH) for name in ("rowwise_adagrad", "momentum"))
    table = 4 * WIDTH
    return [
        ("ours, bf16, row-wise Adagrad", 2 * WIDTH + rowwise, f"2 D + {rowwise:g}"),
        ("ours, fp32, momentum", table + momentum, f"4 D + {momentum:g}"),
        ("sampled, dense update: weight and momentum", 2 * table, "8 D"),
        ("sampled, parameter and SGD of torch: weight, gradient and momentum", 3 * table, "12 D"),
    ]


def card() -> str:
    """Table of the heads, with the command that runs the first line."""
    usable = USABLE * GPUS[CARD].memory_gib * GIB
    lines = [
        f"| head, width {WIDTH} | bytes a class | GiB for {CLASSES // 10**6} million classes | most classes in "
        f"{usable / GIB:.0f} GiB |",
        "|---|---|---|---|",
    ]
    for name, size, formula in kinds():
        lines.append(
            f"| {name} | {size:,.0f} = {formula} | {CLASSES * size / GIB:.0f} | {usable / size / 1e6:.0f} million |"
        )
    return "\n".join(
        [*lines, "", f"{USABLE:.0%} of an H200's memory, by `train/planner/plan.py`. To be measured by `{COMMAND}`."]
    )
