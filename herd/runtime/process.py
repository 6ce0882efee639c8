"""The process group: begun from what torchrun or Slurm tells of it, ended without the crash at exit known of gloo.

One process has none, and everything here then answers for a world of one.
"""

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from herd.base.errors import ConfigError

_MINUTES = 30.0  # that a collective waits for the slowest rank
_NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class World:
    """Which process of how many this is; `attempt` counts the restarts of all of them."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    attempt: int = 0

    @property
    def leads(self) -> bool:
        """Whether this process owns the ledger and the progress."""
        return self.rank == 0


def world() -> World:
    """Return what the launcher said in the environment; a world of one where it said nothing. Raises ConfigError."""
    if "WORLD_SIZE" not in os.environ:
        return World()
    try:
        found = {name: int(os.environ[name]) for name in _NAMES if name != "MASTER_ADDR"}
        attempt = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    except (KeyError, ValueError) as error:
        raise ConfigError(
            f"WORLD_SIZE is set, but {error} is not as torchrun sets it; start herd with torchrun or --nproc"
        ) from None
    return World(found["RANK"], found["WORLD_SIZE"], found["LOCAL_RANK"], attempt)


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


def end() -> None:
    """Leave the group and, where there was one, the process: threads of gloo may abort one that ends the usual way."""
    if not grouped():
        return
    dist.barrier()
    dist.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def grouped() -> bool:
    """Say whether this process is one of several."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def leads() -> bool:
    """Say whether this process is the first, or alone."""
    return not grouped() or dist.get_rank() == 0


def sum_over_ranks(values: Tensor) -> Tensor:
    """Return the element-wise sum over all ranks; the same values outside a process group."""
    if grouped():
        dist.all_reduce(values)
    return values


def from_leader(value: Any = None) -> Any:
    """Return the first rank's value on every rank: plain data, by pickle between processes of one's own."""
    if not grouped():
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def environment(rank: int, size: int, *, address: str, port: int) -> Mapping[str, str]:
    """Return what `world` and `begin` read, for a process of one machine that is started by hand."""
    values = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank, "MASTER_ADDR": address, "MASTER_PORT": port}
    return {name: str(value) for name, value in values.items()}
