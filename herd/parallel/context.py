"""Context parallelism: a rank holds two pieces of each row, and gathers the keys and values of all (section 3.3.2).

    row        | 0 | 1 | 2 | 3 | 4 | 5 | 6 | 7 |     2 x cp pieces; here cp = 4
    rank 0       0                           7       a first and a last one: under a causal mask
    rank 1           1                   6           every rank has the same number of scores
    rank 2               2           5
    rank 3                   3   4

As in the paper, keys and values are gathered rather than passed around a ring: grouped-query attention makes them
small, and a mask of documents is then no different from any other.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from herd.model.attention import Bias, attend, bias_of


def places(length: int, *, rank: int, size: int) -> Tensor:
    """Return which positions of a row of `length` a rank holds, in its order."""
    pieces = torch.arange(length).chunk(2 * size)
    return torch.cat((pieces[rank], pieces[2 * size - 1 - rank]))


@dataclass(frozen=True)
class GatheredKeys:
    """Attention of a rank's positions over all of the row (herd.model.attention.Reach)."""

    group: Any
    bias: Bias

    @classmethod
    def of(cls, documents_bs: Tensor, *, rank: int, size: int, group: Any, dtype: torch.dtype) -> "GatheredKeys":
        """Work the mask out from the documents of whole rows [b, s]."""
        length = documents_bs.shape[1]
        order = torch.cat([places(length, rank=other, size=size) for other in range(size)]).to(documents_bs.device)
        mine = order.chunk(size)[rank]
        same = documents_bs[:, mine].unsqueeze(2) == documents_bs[:, order].unsqueeze(1)
        causal = mine.unsqueeze(1) >= order.unsqueeze(0)
        return cls(group, bias_of((same & causal).unsqueeze(1), dtype))

    def attend(self, q_bhtd: Tensor, k_bhsd: Tensor, v_bhsd: Tensor) -> Tensor:
        """Return attention [b, h, t, d]; the gradients of keys and values go back to the ranks that hold them."""
        both_2bhsd = _AllGather.apply(torch.stack((k_bhsd, v_bhsd)), self.group)
        return attend(q_bhtd, both_2bhsd[0], both_2bhsd[1], self.bias)


class _AllGather(torch.autograd.Function):
    """All ranks' positions one after the other; in the backward pass each gets the sum of what all say of its own."""

    @staticmethod
    def forward(ctx: Any, part_2bhtd: Tensor, group: Any) -> Tensor:
        ctx.group = group
        size = dist.get_world_size(group)
        parts = part_2bhtd.new_empty(size * 2, *part_2bhtd.shape[1:])
        dist.all_gather_into_tensor(parts, part_2bhtd.contiguous(), group=group)
        return parts.unflatten(0, (size, 2)).movedim(0, 3).flatten(3, 4)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        size = dist.get_world_size(ctx.group)
        parts = grads[0].unflatten(3, (size, -1)).movedim(3, 0).flatten(0, 1).contiguous()
        own = torch.empty_like(parts[:2])
        dist.reduce_scatter_tensor(own, parts, group=ctx.group)
        return own, None
