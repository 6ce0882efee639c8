"""Weights of a model that lies over ranks: filled from a source, and gathered again, one whole tensor at a time."""

from collections.abc import Iterator, Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from herd.model.config import ModelConfig
from herd.model.rope import inverse_frequencies
from herd.model.source import Shape, Source, expected_shapes
from herd.model.transformer import Transformer
from herd.parallel.mesh import Mesh


@torch.no_grad()
def fill(models: Sequence[Transformer], source: Source, device: torch.device) -> None:
    """Give models (stages) on the meta device memory, and their parts of a source's weights.

    Every rank reads every tensor, once and in order, and holds one whole tensor at a time.
    """
    parameters: dict[str, Tensor] = {}
    for model in models:
        model.to_empty(device=device)
        model.frequencies = inverse_frequencies(model.config)
        parameters |= dict(model.named_parameters())
    for name in source.names():
        whole = source.read(name)
        if name in parameters:
            place = parameters[name]
            local = place.to_local() if isinstance(place, DTensor) else place
            local.copy_(part_of(whole, place))


def part_of(whole: Tensor, like: Tensor) -> Tensor:
    """Return what this rank holds of a tensor that is laid out as `like`."""
    if not isinstance(like, DTensor):
        return whole
    mesh, part = like.device_mesh, whole
    # tensor parallelism comes last in the mesh and cuts first; FSDP cuts what that leaves
    for axis in reversed(range(mesh.ndim)):
        dim = getattr(like.placements[axis], "dim", None)  # none: every rank has all of it
        if dim is not None:
            pieces, rank = part.chunk(mesh.size(axis), dim), mesh.get_local_rank(axis)
            part = pieces[rank] if rank < len(pieces) else part.narrow(dim, 0, 0)
    assert part.shape == like.to_local().shape, f"{tuple(part.shape)} for a place of {tuple(like.to_local().shape)}"
    return part


class Gathered:
    """A source of weights that lie over ranks. Every rank has to read every tensor, in the same order."""

    def __init__(self, weights: Mapping[str, Tensor], config: ModelConfig, mesh: Mesh) -> None:
        self.config = config
        self._weights, self._mesh = weights, mesh
        self._shapes = expected_shapes(config)
        self._owners = self._find_owners()

    def _find_owners(self) -> dict[str, int]:
        """Return the pipeline rank that holds each tensor."""
        group = self._mesh.group("pp")
        held: list[list[str]] = [[] for _ in range(self._mesh.config.pp)]
        dist.all_gather_object(held, list(self._weights), group=group)
        return {name: rank for rank, names in enumerate(held) for name in names}

    def names(self) -> list[str]:
        return list(self._shapes)

    def shape(self, name: str) -> Shape:
        return self._shapes[name]

    def dtype(self, name: str) -> torch.dtype:
        return torch.float32

    @torch.no_grad()
    def read(self, name: str) -> Tensor:
        """Return the whole tensor in float32, on the CPU."""
        weight = self._weights.get(name)
        if weight is not None:
            weight = weight.detach()
        if isinstance(weight, DTensor):
            weight = weight.full_tensor()
        if self._mesh.config.pp > 1:
            group = self._mesh.group("pp")
            device = torch.device(self._mesh.root.device_type)
            if weight is None:
                weight = torch.empty(self._shapes[name], device=device)
            dist.broadcast(weight, dist.get_global_rank(group, self._owners[name]), group=group)
        assert weight is not None
        return weight.float().cpu()

    def whole(self) -> Iterator[tuple[str, Tensor]]:
        """Yield all tensors by name."""
        return ((name, self.read(name)) for name in self.names())
