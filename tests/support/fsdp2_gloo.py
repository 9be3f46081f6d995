"""Runs train/run.py, unchanged, with FSDP2 on CPU ranks: what accelerate itself gives only to GPUs.

Why: FSDP2 works on gloo, but accelerate's start sorts CPU runs into plain data parallelism before it looks at FSDP.
Here the state says "several devices, cpu" while the Accelerator is built, so that everything after that is accelerate's
own FSDP2 path: prepare, clipping, state dicts.
"""

from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import PartialState
from accelerate.utils import DistributedType
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from train import run
from train.parallel import topology


def accelerator_on_gloo(*positional: Any, **named: Any) -> Accelerator:
    """An Accelerator whose FSDP2 plugin, read from the environment, is honoured on CPU ranks."""
    PartialState(cpu=True, timeout=named["kwargs_handlers"][0].timeout)
    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    PartialState._shared_state["device"] = torch.device("cpu")
    made = Accelerator(*positional, **{**named, "cpu": False})
    PartialState._shared_state["distributed_type"] = made.state.distributed_type
    prepare = made.prepare

    def prepare_and_tell(*things: Any, **options: Any) -> Any:
        prepared = prepare(*things, **options)
        parts = [value for value in prepared[0].parameters() if isinstance(value, DTensor)]
        held, whole = (sum(value.numel() for value in values) for values in ([p.to_local() for p in parts], parts))
        units = sum(isinstance(module, FSDPModule) for module in prepared[0].modules())
        print(f"rank {made.process_index} holds {held} of {whole} encoder parameters in {units} units", flush=True)
        return prepared

    vars(made)["prepare"] = prepare_and_tell
    return made


if __name__ == "__main__":
    vars(topology)["Accelerator"] = accelerator_on_gloo
    topology.exit_process(run.main())
