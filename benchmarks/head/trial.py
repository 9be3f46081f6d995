"""Time the steps of one head in this process, and report its peak memory.

Every head runs in a process of its own: peak memory is then that of one head, and none profits from pages that another
has touched.
"""

import argparse
import dataclasses
import json
import sys
import time
from typing import Any

import torch
from torch.nn import functional

from benchmarks.head.heads import HEADS, Head, copy_bandwidth
from benchmarks.head.step import HeadSize
from benchmarks.processes import peak_gib

WARMUP_STEPS = 2


def random_batch(size: HeadSize, step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Random unit embeddings (B, D) with gradient and labels (B,), keyed by seed and step."""
    generator = torch.Generator().manual_seed(10**6 * size.seed + step)
    embeds_BD = functional.normalize(torch.randn(size.batch_size, size.hidden_size, generator=generator), dim=1)
    labels_B = torch.randint(size.classes, (size.batch_size,), generator=generator)
    return embeds_BD.to(size.device).requires_grad_(), labels_B.to(size.device)


def timed_step(head: Head, size: HeadSize, step: int) -> dict[str, float]:
    """Seconds of the parts of one step, without drawing the batch."""
    embeds_BD, labels_B = random_batch(size, step)
    clock = [_now(size)]
    loss = head.forward(embeds_BD, labels_B, step)
    clock.append(_now(size))
    head.backward(loss)
    clock.append(_now(size))
    head.update()
    clock.append(_now(size))
    parts = [after - before for before, after in zip(clock, clock[1:], strict=False)]
    return {"step_s": sum(parts), "forward_s": parts[0], "backward_s": parts[1], "update_s": parts[2]}


def _now(size: HeadSize) -> float:
    if size.device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def trial(name: str, size: HeadSize, *, steps: int) -> dict[str, Any]:
    """Seconds of each of `steps` steps after a warm-up, by part, and peak memory.

    Raises:
        ValueError: for an unknown head, or one that does not fit into memory.
    """
    if name not in HEADS:
        raise ValueError(f"no head is called {name!r}; choose some of {', '.join(HEADS)}")
    start = time.perf_counter()
    head: Head = HEADS[name](size)
    start_s = time.perf_counter() - start
    taken = [timed_step(head, size, step) for step in range(WARMUP_STEPS + steps)][WARMUP_STEPS:]
    peak = torch.cuda.max_memory_allocated() / 2**30 if size.device == "cuda" else peak_gib()
    found: dict[str, Any] = {key: [step[key] for step in taken] for key in taken[0]}
    found |= {"peak_gib": round(peak, 2), "start_s": round(start_s, 1)}
    if head.moves_bytes:
        found |= {"moves_bytes": head.moves_bytes, "copy_bandwidth": copy_bandwidth(size.device)}
    return found


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.head.trial", description=__doc__.split("\n")[0])
    parser.add_argument("--head", required=True)
    parser.add_argument("--size", required=True, help="fields of HeadSize as JSON")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--threads", type=int, required=True)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    try:
        found = trial(args.head, HeadSize(**json.loads(args.size)), steps=args.steps)
    except ValueError as error:
        print(json.dumps({"left_out": str(error)}))
        return 0
    print(json.dumps(found))
    return 0


def as_json(size: HeadSize) -> str:
    """Value of --size for a head size."""
    return json.dumps(dataclasses.asdict(size))


if __name__ == "__main__":
    sys.exit(main())
