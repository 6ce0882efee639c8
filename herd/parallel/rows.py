"""What a rank runs of a batch: its own positions of the rows, and who sees whom in them."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from herd.parallel.context import GatheredKeys, places
from herd.parallel.mesh import Mesh


@dataclass(frozen=True)
class Rows:
    """A batch as the loss reads it (its `documents` may bring attention of its own), and what the stages need of it."""

    batch: Any
    positions: Tensor
    documents: Any


def rows_of(batch: Any, mesh: Mesh, dtype: torch.dtype) -> Rows:
    """Return this rank's positions of a batch: a dataclass of tensors [rows, positions, ...] or [rows]."""
    size, rank = mesh.config.cp, mesh.rank("cp")
    if size > 1:
        length = batch.tokens.shape[1]
        here = places(length, rank=rank, size=size).to(batch.tokens.device)
        documents = GatheredKeys.of(batch.documents, rank=rank, size=size, group=mesh.group("cp"), dtype=dtype)
        batch = replace(_mapped(batch, lambda part: part[:, here]), documents=documents)
    return Rows(batch, batch.positions, batch.documents)


def alike(batches: Sequence[Any], mesh: Mesh) -> list[Any]:
    """Return batches with empty positions added, so that all are as long as the longest and can be divided."""
    piece = mesh.config.tp * (2 * mesh.config.cp if mesh.config.cp > 1 else 1)
    longest = max(batch.tokens.shape[1] for batch in batches)
    return [_lengthened(batch, longest + -longest % piece) for batch in batches]


def _lengthened(batch: Any, length: int) -> Any:
    missing = length - batch.tokens.shape[1]
    if not missing:
        return batch

    def pad(part: Tensor) -> Tensor:
        return F.pad(part, (*(0, 0) * (part.dim() - 2), 0, missing))

    documents = F.pad(batch.documents, (0, missing), value=-1)
    return replace(_mapped(batch, pad), documents=documents)


def _mapped(batch: Any, change: Any) -> Any:
    """Apply a change to every tensor of a batch that has positions, in tuples too."""

    def of(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(of(part) for part in value)
        return change(value) if isinstance(value, Tensor) and value.dim() >= 2 else value

    return replace(batch, **{field.name: of(getattr(batch, field.name)) for field in fields(batch)})
