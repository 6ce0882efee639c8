"""The mesh of ranks, and the groups of it that a training step speaks to."""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor

from herd.parallel.config import AXES, ParallelConfig


@dataclass(frozen=True)
class Mesh:
    """This rank's place among all. `root` has the axes of config.AXES, those of one rank too."""

    config: ParallelConfig
    root: DeviceMesh

    @classmethod
    def of(cls, config: ParallelConfig, device: torch.device) -> "Mesh":
        """Lay the ranks of the process group out."""
        assert config.ranks == dist.get_world_size(), f"{config.describe()} in a world of {dist.get_world_size()}"
        return cls(config, init_device_mesh(device.type, config.sizes, mesh_dim_names=AXES))

    def rank(self, axis: str) -> int:
        """Return this rank's place along an axis."""
        return self.root.get_local_rank(axis)

    def group(self, axis: str) -> Any:
        """Return the process group along an axis."""
        return self.root.get_group(axis)

    @property
    def data_rank(self) -> int:
        """Which part of a batch's rows is this rank's."""
        return self.rank("dp_replicate") * self.config.dp_shard + self.rank("dp_shard")

    @cached_property
    def shards(self) -> DeviceMesh:
        """The mesh over which FSDP shards weights (dp_shard and cp together), and replicates them."""
        self.root["dp_shard", "cp"]._flatten("fsdp")
        return self.root["dp_replicate", "fsdp"] if self.config.dp_replicate > 1 else self.root["fsdp"]

    @cached_property
    def _tokens(self) -> DeviceMesh:
        return self.root["pp", "dp_replicate", "dp_shard", "cp"]._flatten("tokens")

    def sum_of_tokens(self, values: Tensor) -> Tensor:
        """Sum over ranks that have other tokens, or other stages: tensor parallel ones all know the same."""
        dist.all_reduce(values, group=self._tokens.get_group())
        return values

    def norm(self, gradients: list[Tensor]) -> float:
        """Return the norm of all gradients, those of other ranks and stages too."""
        own = torch.nn.utils.get_total_norm(gradients)
        whole = own.full_tensor() if isinstance(own, DTensor) else own
        squares = whole.double().square()
        if self.config.pp > 1:
            dist.all_reduce(squares, group=self.group("pp"))
        return math.sqrt(float(squares))
