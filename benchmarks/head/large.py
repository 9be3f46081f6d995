"""Train a head with a hundred million classes in one process.

It also checks that unsampled rows do not change. 5,000 synthetic categories, spread over the whole range of classes,
are learned by a linear map and their prototypes among millions of random ones. Two checks: the loss of held-out
samples, against negatives that no training step used as a set, falls to half or less; the stored bits of rows that no
step sampled stay the same.

Letters: B batch, F observed features, D width, P probed rows.
"""

import argparse
import hashlib
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import torch
from torch import Tensor

from benchmarks.head.step import DTYPES, HeadSize, LinearMap, make_shard, sample, sampled_loss, start_rows
from benchmarks.processes import peak_gib
from benchmarks.result_file import command_parser, write_result
from modeling_oclear.partial_softmax_oclear import sample_classes
from runtime.threads import num_threads
from train.class_weights.row_optimizers import ROW_OPTIMIZERS
from train.class_weights.shard import ClassShard
from train.parallel.topology import use_huge_pages

FEATURES, HELD_OUT, NOISE = 64, 1024, 0.5
ENCODER_RATE = 3e-3


@dataclass
class SpreadCategories:
    """Synthetic categories whose class ids are spread evenly over all classes; a sample is a centre plus noise.

    Attributes:
        class_ids: (K,) int64. centre_KF: features of each centre.
    """

    class_ids: Tensor
    centre_KF: Tensor

    @classmethod
    def spread(cls, categories: int, classes: int, *, seed: int) -> "SpreadCategories":
        """Draw centres; category i of K gets class (2 i + 1) C / 2 K.

        Raises:
            ValueError: more categories than classes.
        """
        if not 1 <= categories <= classes:
            raise ValueError(f"{categories} categories among {classes} classes: from 1 to as many as there are classes")
        ids = (2 * torch.arange(categories, dtype=torch.int64) + 1) * classes // (2 * categories)
        return cls(ids, torch.randn(categories, FEATURES, generator=torch.Generator().manual_seed(seed)))

    def draw(self, count: int, *, key: int) -> tuple[Tensor, Tensor]:
        """Features (B, F) and class ids (B,) of `count` samples."""
        generator = torch.Generator().manual_seed(key)
        which_B = torch.randint(len(self.class_ids), (count,), generator=generator)
        noise_BF = NOISE * torch.randn(count, FEATURES, generator=generator)
        return self.centre_KF[which_B] + noise_BF, self.class_ids[which_B]


@dataclass
class Probes:
    """Rows picked before training, and which of them a step has sampled.

    Attributes:
        class_ids: (P,) ascending. before: (P, D) rows as stored before training. is_drawn: (P,) bool.
    """

    class_ids: Tensor
    before: Tensor
    is_drawn: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.is_drawn = torch.zeros(len(self.class_ids), dtype=torch.bool)

    @classmethod
    def pick(cls, shard: ClassShard, count: int, *, seed: int) -> "Probes":
        """Pick up to `count` distinct classes: duplicates of the draw are removed."""
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(shard.num_classes, (count,), generator=generator).unique()
        return cls(ids, shard.weight.index_select(0, ids.to(shard.weight.device)))

    def record(self, drawn_ids: Tensor) -> None:
        """Mark the sampled classes of one step (ascending ids)."""
        place = torch.searchsorted(drawn_ids, self.class_ids).clamp(max=len(drawn_ids) - 1)
        self.is_drawn |= drawn_ids[place] == self.class_ids

    def verdict(self, shard: ClassShard) -> dict[str, Any]:
        """Check sums of the never sampled rows before and after, and the share of sampled rows that changed."""
        after = shard.weight.index_select(0, self.class_ids.to(shard.weight.device))
        moved_P = (bits(after) != bits(self.before)).any(dim=1).cpu()
        never_P = ~self.is_drawn
        return {
            "probed_rows": len(self.class_ids),
            "never_drawn_rows": int(never_P.sum()),
            "never_drawn_moved": int(moved_P[never_P].sum()),
            "never_drawn_sha256": [check_sum(self.before[never_P]), check_sum(after[never_P])],
            "drawn_share_moved": round(float(moved_P[self.is_drawn].double().mean()), 4)
            if self.is_drawn.any()
            else None,
        }


def bits(rows: Tensor) -> Tensor:
    """Stored bits as integers, so that -0 and 0 differ."""
    return rows.view(torch.int16 if rows.dtype == torch.bfloat16 else torch.int32)


def check_sum(rows: Tensor) -> str:
    """First 16 hexadecimal digits of the SHA-256 of the stored bits."""
    return hashlib.sha256(bits(rows).cpu().contiguous().numpy().tobytes()).hexdigest()[:16]


@torch.no_grad()
def held_out_loss(shard: ClassShard, encoder: LinearMap, data: SpreadCategories, size: HeadSize) -> float:
    """Loss of fresh samples against a sample of classes that no training step used."""
    feature_BF, labels_B = data.draw(HELD_OUT, key=-1 - size.seed)
    fresh = sample_classes(size.classes, positives=labels_B, rate=size.rate, seed=size.seed + 10**6, step=0)
    gathered = shard.gather(fresh.class_ids, fresh.log_correction)
    embeds_BD = encoder(feature_BF.to(size.device))
    return float(sampled_loss(embeds_BD, labels_B.to(size.device), gathered, size.form))


def train(
    shard: ClassShard, data: SpreadCategories, probes: Probes, size: HeadSize, *, steps: int
) -> tuple[list[float], dict[str, Any]]:
    """Train; return held-out losses before and after, and median step time, rows a step and process memory."""
    encoder = LinearMap(FEATURES, size.hidden_size, seed=size.seed).to(size.device)
    adam = torch.optim.AdamW(encoder.parameters(), lr=ENCODER_RATE, weight_decay=0.0)
    losses = [held_out_loss(shard, encoder, data, size)]
    seconds, own_gib = [], 0.0
    for step in range(steps):
        feature_BF, labels_B = data.draw(size.batch_size, key=10**6 * size.seed + step)
        start = time.perf_counter()
        sampled = sample(size, labels_B, step=step)
        gathered = shard.gather(sampled.class_ids, sampled.log_correction)
        loss = sampled_loss(encoder(feature_BF.to(size.device)), labels_B.to(size.device), gathered, size.form)
        adam.zero_grad()
        loss.backward()
        adam.step()
        shard.update(gathered, learning_rate=size.learning_rate, max_grad_norm=None)
        float(loss.detach())
        seconds.append(time.perf_counter() - start)
        probes.record(sampled.class_ids)
        own_gib = max(own_gib, anonymous_gib())
        if (step + 1) % 50 == 0:
            print(f"step {step + 1}: loss {float(loss.detach()):.3f}, {median(seconds):.3f} s a step", flush=True)
    losses.append(held_out_loss(shard, encoder, data, size))
    drawn = len(sampled.class_ids)
    return losses, {"step_s": round(median(seconds), 4), "rows_a_step": drawn, "anonymous_gib": round(own_gib, 2)}


def anonymous_gib() -> float:
    """Memory of this process without pages of mapped files, GiB: the system cannot write it back to a file."""
    held = psutil.Process().memory_info()
    return (held.rss - getattr(held, "shared", 0)) / 2**30


def measure(size: HeadSize, *, categories: int, steps: int, probed: int) -> dict[str, Any]:
    """Initialise, train, evaluate.

    Raises:
        ValueError: for sizes that are not possible.
    """
    data = SpreadCategories.spread(categories, size.classes, seed=size.seed)
    start = time.perf_counter()
    shard = make_shard(size)
    start_rows(shard)
    start_s = time.perf_counter() - start
    print(f"{size.classes:,} rows of width {size.hidden_size} started in {start_s:.0f} s", flush=True)
    probes = Probes.pick(shard, probed, seed=size.seed)
    losses, metrics = train(shard, data, probes, size, steps=steps)
    stored = sum(tensor.numel() * tensor.element_size() for tensor in shard.state().values())
    found = {
        "classes": size.classes,
        "hidden_size": size.hidden_size,
        "storage": size.storage,
        "dtype": size.dtype,
        "optimizer": size.optimizer,
        "rate": size.rate,
        "batch_size": size.batch_size,
        "device": size.device,
        "categories": categories,
        "steps": steps,
        "loss_start": round(losses[0], 4),
        "loss_end": round(losses[1], 4),
        "start_s": round(start_s, 1),
        "all_s": round(time.perf_counter() - start, 1),
        "table_gib": round(stored / 2**30, 2),
        "peak_gib": peak_gib(),
        **metrics,
        **probes.verdict(shard),
    }
    if size.device == "cuda":
        found |= {
            "gpu": torch.cuda.get_device_name(),
            "gpu_peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2),
        }
    return found


def failures(found: dict[str, Any]) -> list[str]:
    """Checks that failed, one sentence each."""
    wrong = []
    if not found["loss_end"] <= found["loss_start"] / 2:
        wrong.append(f"the held-out loss went from {found['loss_start']} to {found['loss_end']}, not to half")
    if found["never_drawn_moved"] or len(set(found["never_drawn_sha256"])) != 1:
        wrong.append(f"{found['never_drawn_moved']} rows that no step sampled have changed")
    if not found["never_drawn_rows"] or not found["drawn_share_moved"]:
        wrong.append("every probed row was sampled, or none was: the check proves nothing; change --rate")
    return wrong


def main(words: list[str] | None = None) -> int:
    use_huge_pages()
    example = "python -m benchmarks.head.large --classes 100_000_000 --hidden-size 64 --dtype bf16"
    parser = command_parser("head.large", str(__doc__), example=example)
    parser.add_argument("--classes", type=int, default=100_000_000)
    parser.add_argument("--hidden-size", type=int, default=64)
    parser.add_argument("--storage", choices=("device", "memory", "disk"), default="memory")
    parser.add_argument("--folder", type=Path, help="where --storage disk keeps its files (default: a temporary one)")
    parser.add_argument("--dtype", choices=list(DTYPES), default="bf16")
    parser.add_argument("--optimizer", choices=list(ROW_OPTIMIZERS), default="rowwise_adagrad")
    parser.add_argument("--learning-rate", type=float, default=0.05, help="learning rate of the rows")
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--categories", type=int, default=5_000)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--probed", type=int, default=100_000, help="rows whose bits are compared before and after")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=num_threads())
    args = parser.parse_args(words)
    torch.set_num_threads(args.threads)
    try:
        with tempfile.TemporaryDirectory(prefix="head_large_") as temporary:
            found = measure(
                size_of(args, Path(temporary)), categories=args.categories, steps=args.steps, probed=args.probed
            )
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    write_result("head.large", found | {"threads": args.threads, "failures": failures(found)}, args.json, words)
    for line in failures(found):
        print(f"failed: {line}", file=sys.stderr)
    return 1 if failures(found) else 0


def size_of(args: argparse.Namespace, temporary: Path) -> HeadSize:
    """Read the size from the command line; without margin (losses are plain) and decay (unsampled rows stay)."""
    if min(args.steps, args.batch_size, args.probed) < 1:
        raise ValueError("steps, batch size and probed rows must be at least 1")
    return HeadSize(
        classes=args.classes,
        hidden_size=args.hidden_size,
        rate=args.rate,
        batch_size=args.batch_size,
        dtype=args.dtype,
        optimizer=args.optimizer,
        device=args.device,
        seed=args.seed,
        learning_rate=args.learning_rate,
        weight_decay=0.0,
        margin=0.0,
        storage=args.storage,
        folder=str(args.folder or temporary) if args.storage == "disk" else "",
    )


if __name__ == "__main__":
    sys.exit(main())
