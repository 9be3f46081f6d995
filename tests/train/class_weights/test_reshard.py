"""Class rows saved by two ranks continue on one and three, with optimiser state and rate history."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._C._distributed_c10d import TCPStore
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.multiprocessing.spawn import spawn

from tests.train.class_weights.test_shard import shard, step
from train.checkpoints.checkpoint import check_rows, class_blocks
from train.checkpoints.row_blocks import BlockLoadPlanner, BlockSavePlanner, without_group_warning
from train.class_weights.row_optimizers import ROW_OPTIMIZERS
from train.class_weights.shard import ClassShard

CLASSES, WIDTH, STEPS = 11, 4, 10
CASES = [*((name, torch.float64) for name in ROW_OPTIMIZERS), ("momentum", torch.bfloat16)]


def run(rows: ClassShard, first: int, end: int) -> None:
    """Steps whose classes and gradients are keyed by step and class, as they are in training."""
    for number in range(first, end):
        touched = torch.tensor([number % CLASSES, (3 * number + 1) % CLASSES, 6]).unique()
        ids = touched[(touched >= rows.start) & (touched < rows.end)]
        noise = torch.randn(CLASSES, WIDTH, generator=torch.Generator().manual_seed(number), dtype=rows.dtype)
        step(rows, ids, noise[ids], learning_rate=0.1 / (1 + number % 3))


def made(name: str, dtype: torch.dtype) -> ClassShard:
    return shard(CLASSES, WIDTH, 0.2, optimizer=name, dtype=dtype)


def _on_rank(part: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ.update(RANK=str(part), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "True"
    torch.distributed.init_process_group("gloo")
    for number, (name, dtype) in enumerate(CASES):
        rows = made(name, dtype)
        assert len(rows.weight) == (6, 5)[part]
        run(rows, 0, STEPS)
        planner = BlockSavePlanner(class_blocks(rows))
        save({"history": rows.history()}, checkpoint_id=Path(folder) / str(number), planner=planner)
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    spawn(_on_rank, args=(store.port, str(folder)), nprocs=2)
    return folder


def loaded(rows: ClassShard, path: Path) -> ClassShard:
    state: dict[str, Any] = {"history": check_rows(path, rows)}
    with without_group_warning():
        load(state, checkpoint_id=path, planner=BlockLoadPlanner(class_blocks(rows)), no_dist=True)
    rows.load_history(state["history"])
    return rows


@pytest.mark.parametrize("case", range(len(CASES)), ids=[f"{name}-{dtype}" for name, dtype in CASES])
@pytest.mark.parametrize("parts", [1, 3])
def test_steps_after_resharding_equal_the_uninterrupted_run(
    two_ranks: Path, monkeypatch: pytest.MonkeyPatch, case: int, parts: int
) -> None:
    whole = made(*CASES[case])
    run(whole, 0, 2 * STEPS)
    found = []
    monkeypatch.setattr("train.class_weights.shard.world_size", lambda: parts)
    for part in range(parts):
        monkeypatch.setattr("train.class_weights.shard.rank", lambda part=part: part)
        rows = made(*CASES[case])
        rows.weight.zero_()
        rows = loaded(rows, two_ranks / str(case))
        assert rows.steps == STEPS
        run(rows, STEPS, 2 * STEPS)
        found.append(rows.state())
    for name, value in whole.state().items():
        torch.testing.assert_close(torch.cat([state[name] for state in found]), value, rtol=0, atol=1e-13)


def test_rows_of_another_width_type_or_optimiser_are_rejected_without_change(two_ranks: Path) -> None:
    path = two_ranks / str([name for name, _ in CASES].index("adamw"))
    for rows, said in (
        (shard(CLASSES, 5), r"weight are \(11, 4\) in torch.float64, this run needs \(11, 5\)"),
        (shard(12, WIDTH), r"this run needs \(12, 4\)"),
        (made("adamw", torch.bfloat16), "needs .* in torch.bfloat16; use the hidden_size, head_optimizer"),
        (made("momentum", torch.float64), "last_step are missing"),
    ):
        before = rows.weight.clone()
        with pytest.raises(ValueError, match=said):
            loaded(rows, path)
        assert torch.equal(rows.weight, before)
    check_rows(path, shard(12, WIDTH), with_classes=False)
