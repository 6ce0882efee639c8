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
    """This rank's place among all, in two views of the same ranks, which both have axes of one rank too.

    root: the axes of config.AXES. weights: dp_shard and cp as one axis, over which FSDP shards weights.
    """

    config: ParallelConfig
    root: DeviceMesh
    weights: DeviceMesh

    @classmethod
    def of(cls, config: ParallelConfig, device: torch.device) -> "Mesh":
        """Lay the ranks of the process group out."""
        assert config.ranks == dist.get_world_size(), f"{config.describe()} in a world of {dist.get_world_size()}"
        pp, replicas, shards, cp, tp = config.sizes
        names = ("pp", "dp_replicate", "fsdp", "tp")
        return cls(
            config,
            init_device_mesh(device.type, config.sizes, mesh_dim_names=AXES),
            init_device_mesh(device.type, (pp, replicas, shards * cp, tp), mesh_dim_names=names),
        )

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
        """The mesh over which FSDP shards weights, and replicates them where there are replicas."""
        return self.weights["dp_replicate", "fsdp"] if self.config.dp_replicate > 1 else self.weights["fsdp"]

    @property
    def heads(self) -> DeviceMesh:
        """The mesh over which tensor parallelism splits weights: of the same view as `shards`."""
        return self.weights["tp"]

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
