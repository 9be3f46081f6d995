"""Rendezvous of the ranks, with separate store keys for every restart."""

import functools
import os
from collections.abc import Iterator
from typing import Any

from torch._C._distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import register_rendezvous_handler, rendezvous

RESTART_SCHEME = "restart"


def rendezvous_init_method() -> str | None:
    """`init_method` for `init_process_group`: None for torch's own, or a store with separate keys for each start.

    torchrun keeps one store through all restarts, and torch 2.13 does not separate the keys of different starts. A rank
    that is ready before another then finds the address of the one that was killed, cannot connect, and costs a
    restart, until none is left. Each machine counts its own restarts: on several machines, launch with
    TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 instead, which creates a store for every start.
    """
    is_kept = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True" and os.environ.get("GROUP_WORLD_SIZE") == "1"
    if not is_kept or "TORCHELASTIC_RESTART_COUNT" not in os.environ:
        return None
    _register_scheme()
    return f"{RESTART_SCHEME}://"


@functools.cache
def _register_scheme() -> None:
    """Register the handler with torch, which refuses a second one of the same scheme."""
    register_rendezvous_handler(RESTART_SCHEME, _separate_keys)


def _separate_keys(url: str, **options: Any) -> Iterator[tuple[Store, int, int]]:
    """The store, rank and world size of env://, with keys prefixed by the number of the start."""
    store, part, parts = next(rendezvous(f"env:{url.partition(':')[2]}", **options))
    yield PrefixStore(f"start-{os.environ['TORCHELASTIC_RESTART_COUNT']}", store), part, parts
