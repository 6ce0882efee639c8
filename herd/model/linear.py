"""Linear layers of one input while a model is trained: on a processor their weights are packed for each use.

oneDNN rearranges a weight in every product; told to do so beforehand, once for as many rows as a batch has, it runs
bfloat16 products a sixth faster (docs/log.md). Packing takes a twentieth of a product of 2,000 rows.

    y = x W^T        x [n, in] x packed W            dx = dy W       dy [n, out] x packed W^T
"""

from typing import Any

import torch
from torch import Tensor, nn

_FEWEST = 256  # rows from which packing pays


def project(x: Tensor, *layers: nn.Module) -> tuple[Tensor, ...]:
    """Return each layer's result for x [..., in]."""
    if (
        torch.is_grad_enabled()
        and packs(x)
        and layers[0].weight.dtype == x.dtype
        and all(plain(layer) for layer in layers)
    ):
        return _Packed.apply(x, *(layer.weight for layer in layers))
    return tuple(layer(x) for layer in layers)


def packs(x: Tensor) -> bool:
    """Say whether products of x [..., in] are worth packing a weight for."""
    return (
        x.device.type == "cpu"
        and x.dtype == torch.bfloat16
        and x.numel() >= _FEWEST * x.shape[-1]
        and type(x) is Tensor
        and not torch.compiler.is_compiling()
        and torch.backends.mkldnn.is_available()
    )


def plain(layer: nn.Module) -> bool:
    """Say whether a layer is nothing but a product with its weight."""
    # a sharded or quantised weight is another class; a layer that something was hooked on must be called
    return (
        type(layer) is nn.Linear
        and type(layer.weight) is nn.Parameter
        and not layer._forward_hooks
        and not layer._forward_pre_hooks
    )


class _Packed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        ctx.save_for_backward(x, *weights)
        return tuple(times(x, weight) for weight in weights)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, *weights = ctx.saved_tensors
        grads = tuple(grad.contiguous() for grad in grads)
        below: Tensor | None = None
        if ctx.needs_input_grad[0]:
            for grad, weight in zip(grads, weights, strict=True):
                part = times(grad, weight.t())
                below = part if below is None else below.add_(part)
        pairs = zip(grads, ctx.needs_input_grad[1:], strict=True)
        return below, *(_rows(grad).t() @ _rows(x) if needed else None for grad, needed in pairs)


def _rows(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1])


def times(x: Tensor, weight: Tensor) -> Tensor:
    """Return x [..., in] times weight [out, in], both bfloat16 on a processor."""
    ops = torch.ops.mkldnn
    packed = ops._reorder_linear_weight(weight, x.numel() // x.shape[-1])
    return ops._linear_pointwise(x, packed, None, "none", [], "")
