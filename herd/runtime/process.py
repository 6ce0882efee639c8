"""The process group: begun from what torchrun or Slurm tells of it, ended without the crash at exit known of gloo.

One process has none, and everything here then answers for a world of one.
"""

import json
import os
import sys
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from herd.runtime.world import World, world

_MINUTES = 30.0  # that a collective waits for the slowest rank
_POLL = 60.0  # seconds


def begin(device: torch.device, *, minutes: float = _MINUTES) -> World:
    """Join the group of all processes (nothing to do for one), with gloo on processors and NCCL on GPUs.

    The store's keys begin with the attempt: after a restart nobody may meet addresses of the dead.
    """
    found = world()
    if found.size == 1 or dist.is_initialized():
        return found
    store = dist.TCPStore(
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        found.size,
        is_master=found.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True",
        timeout=timedelta(minutes=minutes),
    )
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(
        backend,
        store=dist.PrefixStore(f"attempt/{found.attempt}", store),
        rank=found.rank,
        world_size=found.size,
        timeout=timedelta(minutes=minutes),
    )
    return found


def end(status: int = 0) -> None:
    """Leave the group and, where there was one, the process: threads of gloo may abort one that ends the usual way."""
    if not grouped():
        return
    dist.barrier()
    dist.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def first_to_fail() -> bool:
    """Say whether this rank is the first that fails: the others then fail because of it, and need not say so."""
    if not grouped():
        return world().leads  # what goes wrong so early goes wrong everywhere
    try:
        return dist.distributed_c10d._get_default_store().add("failed", 1) == 1
    except (RuntimeError, ValueError):
        return True  # whoever held the store is gone, and nobody else may have spoken


def grouped() -> bool:
    """Say whether this process is one of several."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def place() -> tuple[int, int]:
    """Return this rank and how many there are."""
    return (dist.get_rank(), dist.get_world_size()) if grouped() else (0, 1)


def meet() -> None:
    """Wait until all ranks are here."""
    if grouped():
        dist.barrier()


def leads() -> bool:
    """Say whether this process is the first, or alone."""
    return not grouped() or dist.get_rank() == 0


def sum_over_ranks(values: Tensor) -> Tensor:
    """Return the element-wise sum over all ranks; the same values outside a process group."""
    if grouped():
        dist.all_reduce(values)
    return values


class Leader:
    """What the first rank says, in order, to those that wait for it however long it works: plain data, as JSON.

    Through the store rather than a collective, which would give up after its time.
    """

    def __init__(self) -> None:
        self._said = 0

    def says(self, value: Any = None) -> Any:
        """Return the first rank's value on every rank; others give none."""
        if not grouped():
            return value
        key, self._said = f"leader/{self._said}", self._said + 1
        store = dist.distributed_c10d._get_default_store()
        if leads():
            store.set(key, json.dumps(value))
            return value
        while True:
            try:
                store.wait([key], timedelta(seconds=_POLL))
            except dist.DistStoreError:
                continue
            return json.loads(store.get(key))
