"""Run train/run.py with FSDP2 on CPU ranks (gloo).

FSDP2 works on gloo, but accelerate selects plain data parallelism for CPU runs before it looks at the FSDP settings.
Here its state says "several GPUs" with device "cpu" while the Accelerator is built; everything after that is the FSDP2
path of accelerate: prepare, clipping, state dicts.
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
    """An Accelerator that uses its FSDP2 plugin, set by environment variables, on CPU ranks."""
    PartialState(cpu=True, timeout=named["kwargs_handlers"][0].timeout)
    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    PartialState._shared_state["device"] = torch.device("cpu")
    accelerator = Accelerator(*positional, **{**named, "cpu": False})
    PartialState._shared_state["distributed_type"] = accelerator.state.distributed_type
    prepare = accelerator.prepare

    def prepare_and_report(*things: Any, **options: Any) -> Any:
        prepared = prepare(*things, **options)
        parts = [value for value in prepared[0].parameters() if isinstance(value, DTensor)]
        local, total = (sum(value.numel() for value in values) for values in ([p.to_local() for p in parts], parts))
        units = sum(isinstance(module, FSDPModule) for module in prepared[0].modules())
        print(
            f"rank {accelerator.process_index} holds {local} of {total} encoder parameters in {units} units", flush=True
        )
        return prepared

    vars(accelerator)["prepare"] = prepare_and_report
    return accelerator


if __name__ == "__main__":
    vars(topology)["Accelerator"] = accelerator_on_gloo
    topology.exit_process(run.main())
