"""Collectives on three ranks: uneven rows, gradients, resharded checkpoints, fp32 rounding."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch._C._distributed_c10d import TCPStore
from torch.multiprocessing.spawn import spawn

from tests.support.commands import reset_accelerator
from tests.support.curves import FLOOR, assert_same_curve, assert_same_weights, read_curve, reordered_recipe
from tests.support.synthetic_run import small_recipe, train_small
from tests.train.class_weights.test_shard import shard
from train.class_weights.prototypes import gathered_prototypes
from train.class_weights.shard import ClassShard
from train.parallel.collectives import gather_rows, max_over_ranks, on_main, rank, sum_over_ranks

COUNTS = (2, 1, 3)


def _on_rank(part: int, parts: int, port: int, folder: str) -> None:
    """What each rank does: one group for all checks, since every process costs seconds to start."""
    torch.set_num_threads(1)
    os.environ.update(
        RANK=str(part), LOCAL_RANK=str(part), WORLD_SIZE=str(parts), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "True"  # every rank is a client of the parent's store
    Accelerator(cpu=True)
    _check_gather()
    _check_gathered_prototypes()
    train_small(small_recipe({"head.sample_rate": 0.4}), Path(folder) / "double", max_steps=7)
    train_small(small_recipe({"head.sample_rate": 0.4, "model.dtype": "float32"}), Path(folder) / "single")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def three_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of what three gloo ranks left; whatever fails on a rank fails here."""
    folder = tmp_path_factory.mktemp("ranks")
    # The parent's store picks a free port and keeps it: a port that is only looked up may be taken in between.
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    spawn(_on_rank, args=(3, store.port, str(folder)), nprocs=3)
    return folder


def _whole() -> torch.Tensor:
    return torch.randn(sum(COUNTS), 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def _loss(rows: torch.Tensor, part: torch.Tensor) -> torch.Tensor:
    return (rows @ part).square()


def _check_gather() -> None:
    """Uneven rows, the gradient that averaging needs, and what only the main rank knows."""
    start = sum(COUNTS[: rank()])
    mine = slice(start, start + COUNTS[rank()])
    local = _whole()[mine].clone().requires_grad_()
    gathered = gather_rows(local, COUNTS)
    assert torch.equal(gathered, _whole())
    # Every rank owns one column of the "classes"; the loss is the log of a sum over ranks.
    columns = torch.eye(4, 3, dtype=torch.float64)
    sum_over_ranks(_loss(gathered, columns[:, rank()])).sum().log().backward()
    whole = _whole().requires_grad_()
    torch.stack([_loss(whole, columns[:, part]) for part in range(3)]).sum().log().backward()
    assert local.grad is not None
    assert whole.grad is not None
    # Times the number of ranks, because data-parallel averaging divides by it.
    torch.testing.assert_close(local.grad, 3 * whole.grad[mine], rtol=1e-12, atol=0)
    assert max_over_ranks(torch.tensor([float(rank()), -float(rank())])).tolist() == [2.0, 0.0]
    assert on_main(lambda: f"rank {rank()}") == "rank 0"
    with pytest.raises(ValueError, match="only rank 0 knows"):
        on_main(_refuse)


def _check_gathered_prototypes() -> None:
    """Seven classes on three ranks, the last of which has one, in pieces of one row a rank and all at once."""
    rows = shard(7, 4)
    for rows_at_once in (1, 7, 1000):
        found = gathered_prototypes(rows, rows_at_once=rows_at_once)
        expected = torch.nn.functional.normalize(torch.from_numpy(_all_rows(rows)), dim=1)
        assert len(found) == (7 if rank() == 0 else 0)
        torch.testing.assert_close(found, expected[: len(found)])


def _all_rows(rows: ClassShard) -> np.ndarray:
    found: np.ndarray = rows.random_rows(torch.arange(rows.num_classes)).numpy()
    return found


def _refuse() -> None:
    assert rank() == 0
    raise ValueError("only rank 0 knows")


def test_gather_of_uneven_rows_has_the_gradient_for_averaging(three_ranks: Path) -> None:
    # `_check_gather` asserts on every rank, before anything is trained.
    assert (three_ranks / "double" / "train.jsonl").exists()


def curve(folder: Path) -> np.ndarray:
    lines = (folder / "train.jsonl").read_text().splitlines()
    return np.array([[json.loads(line)[name] for name in ("loss", "grad_norm", "head_grad_norm")] for line in lines])


@pytest.fixture(autouse=True)
def _fresh_state() -> None:
    reset_accelerator()


def test_prototypes_are_gathered_on_the_main_rank_in_pieces(three_ranks: Path) -> None:
    # `_check_gathered_prototypes` asserts on every rank, before anything is trained.
    assert (three_ranks / "double" / "train.jsonl").exists()


def test_checkpoint_of_three_ranks_resumed_by_one_equals_uninterrupted_run(three_ranks: Path, tmp_path: Path) -> None:
    recipe = small_recipe({"head.sample_rate": 0.4})
    assert len(list((three_ranks / "double" / "checkpoints" / "step-00000007").glob("*.distcp"))) == 3
    continued = train_small(recipe, three_ranks / "double", resume=True)
    whole = train_small(recipe, tmp_path / "whole")
    other = train_small(reordered_recipe(recipe), tmp_path / "reordered")
    reordered = [read_curve(tmp_path / "reordered")]
    assert_same_curve(read_curve(three_ranks / "double"), read_curve(tmp_path / "whole"), reordered=reordered)
    ours, theirs, twin = ({"rows": run.class_weights.numpy()} for run in (continued, whole, other))
    assert_same_weights(ours, theirs, reordered=[twin], floor=FLOOR)


def test_float32_on_three_ranks_stays_within_three_times_the_reordering_error(
    three_ranks: Path, tmp_path: Path
) -> None:
    for pieces in (1, 2, 4, 8):
        recipe = small_recipe(
            {"head.sample_rate": 0.4, "model.dtype": "float32", "image.gradient_accumulation": pieces}
        )
        train_small(recipe, tmp_path / str(pieces))
    one = curve(tmp_path / "1")
    reordered = max(np.abs(curve(tmp_path / str(pieces)) - one).max() for pieces in (2, 4, 8))
    assert 0 < np.abs(curve(three_ranks / "single") - one).max() <= 3 * reordered


def test_collectives_without_a_group_are_identities() -> None:
    rows = _whole()
    assert gather_rows(rows, [6]) is rows
    assert sum_over_ranks(rows) is rows
    assert torch.equal(max_over_ranks(rows), rows)
    with pytest.raises(ValueError, match="6 rows here, but the plan"):
        gather_rows(rows, [5])
