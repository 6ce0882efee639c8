"""Which process of how many this is, as torchrun or Slurm says it in the environment. No torch."""

import os
from collections.abc import Mapping
from dataclasses import dataclass

from herd.base.errors import ConfigError

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


def environment(rank: int, size: int, *, address: str, port: int) -> Mapping[str, str]:
    """Return what `world` and `begin` read, for a process of one machine that is started by hand."""
    values = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank, "MASTER_ADDR": address, "MASTER_PORT": port}
    return {name: str(value) for name, value in values.items()}
