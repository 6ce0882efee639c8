"""SwiGLU's elementwise part, silu(a) b, whose gradient on a processor is worked in pieces that stay in its cache.

With s = silu(a):    y = s b,    db = s dy,    da = silu'(a) b dy; s is computed again rather than kept.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

_PIECE = 1 << 17  # numbers


def gate(first: Tensor, second: Tensor) -> Tensor:
    """Return silu(first) x second."""
    if type(first) is Tensor and first.device.type == "cpu" and torch.is_grad_enabled():
        return _Gate.apply(first, second)
    return F.silu(first) * second


class _Gate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, first: Tensor, second: Tensor) -> Tensor:
        ctx.save_for_backward(first, second)
        out = torch.empty_like(first)
        for a, b, y in _pieces(first, second, out):
            torch.mul(F.silu(a), b, out=y)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        first, second = ctx.saved_tensors
        above = grads[0].contiguous()
        to_first, to_second = torch.empty_like(first), torch.empty_like(second)
        for a, b, dy, da, db in _pieces(first, second, above, to_first, to_second):
            torch.mul(F.silu(a), dy, out=db)
            torch.ops.aten.silu_backward.grad_input(torch.mul(dy, b), a, grad_input=da)
        return to_first, to_second


def _pieces(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    return zip(*(tensor.view(-1).split(_PIECE) for tensor in tensors), strict=True)
