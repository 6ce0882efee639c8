"""Projections that read the same input, computed as one product: fewer and larger reads of weights.

    wq | wk | wv  ->  one weight [q + k + v, e]         w1 | w3  ->  one weight [2 f, e]

The parameters keep their names and become views of the one weight, so weights are held once and changes in place
are seen. What else changes a parameter (`model.to`, a layer replaced) undoes that: `join` again.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from herd.model.transformer import Block, Transformer

Gate = Callable[[Tensor, Tensor], Tensor]  # silu(first) x second


@torch.no_grad()
def join(model: Transformer, *, gate: Gate | None = None) -> None:
    """Join the projections of every layer that are plain linear ones; used only while no gradients are.

    gate: SwiGLU's elementwise part in one kernel; PyTorch's two unless given.
    """
    for block in model.layers:
        assert isinstance(block, Block)
        attention, ffn = block.attention, block.feed_forward
        if parts := _plain(attention.wq, attention.wk, attention.wv, joined=attention.joined):
            attention.joined = Joined(*parts)
        if parts := _plain(ffn.w1, ffn.w3, joined=ffn.joined):
            ffn.joined = JoinedGate(*parts, gate)


def _plain(*parts: nn.Module, joined: object) -> list[nn.Linear]:
    """Return layers that can be joined and aren't yet: what was captured reads the one weight where it lies."""
    plain = [part for part in parts if type(part) is nn.Linear]
    if len(plain) < len(parts) or (joined is not None and len({_storage(part) for part in plain}) == 1):
        return []
    return plain


def _storage(part: nn.Linear) -> int:
    return part.weight.untyped_storage().data_ptr()


class Joined:
    """Several linear layers without bias as one; the results are views of one tensor."""

    def __init__(self, *parts: nn.Linear) -> None:
        self._sizes = [part.weight.shape[0] for part in parts]
        self._weight = torch.cat([part.weight for part in parts])
        for part, rows in zip(parts, self._weight.split(self._sizes), strict=True):
            part.weight.data = rows

    def __call__(self, x_bte: Tensor) -> tuple[Tensor, ...]:
        """Return each layer's result."""
        return F.linear(x_bte, self._weight).split(self._sizes, -1)


class JoinedGate:
    """The two halves of SwiGLU as one product."""

    def __init__(self, w1: nn.Linear, w3: nn.Linear, gate: Gate | None) -> None:
        self._both = Joined(w1, w3)
        self._gate = gate

    def __call__(self, x_bte: Tensor) -> Tensor:
        """Return silu(w1 x) * w3 x."""
        first, second = self._both(x_bte)
        if self._gate is None:
            return F.silu(first) * second
        return self._gate(first, second)
