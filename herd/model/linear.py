"""Linear layers of one input while a model is trained: on a processor their weights are packed for the product.

oneDNN rearranges a weight in every product; told to do so beforehand, once for as many rows as a batch has, it runs
bfloat16 products up to a sixth faster, depending on the processor (docs/log.md). Packing takes a twentieth of a
product of 4,000 rows. The backward pass reads weights as they lie and needs none of it.

    y = x W^T        x [n, in] x packed W            dx = sum of dy W over layers       dW = dy^T x
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

_FEWEST = 512  # rows from which packing pays


def project(x: Tensor, *layers: nn.Module) -> tuple[Tensor, ...]:
    """Return each layer's result for x [..., in]."""
    if torch.is_grad_enabled() and type(x) is Tensor and _packs(x, _rows(x).shape[0]) and all(map(plain, layers)):
        return _Packed.apply(x, *(layer.weight for layer in layers))
    return tuple(layer(x) for layer in layers)


def plain(layer: nn.Module) -> bool:
    """Say whether a layer is nothing but a product with its weight."""
    # a sharded or quantised weight is another class; a layer that something was hooked on must be called
    return (
        type(layer) is nn.Linear
        and type(layer.weight) is nn.Parameter
        and layer.bias is None
        and not layer._forward_hooks
        and not layer._forward_pre_hooks
    )


def product(weight: Tensor, *, rows: int) -> Callable[[Tensor], Tensor]:
    """Return what multiplies inputs [..., in] of so many rows in all by a weight [out, in]."""
    if not _packs(weight, rows):
        return lambda x: x @ weight.t()
    ops = torch.ops.mkldnn
    packed = ops._reorder_linear_weight(weight, rows)
    return lambda x: ops._linear_pointwise(x, packed, None, "none", [], "")


def _packs(tensor: Tensor, rows: int) -> bool:
    return (
        not torch.compiler.is_compiling()
        and rows >= _FEWEST
        and tensor.dtype == torch.bfloat16
        and tensor.device.type == "cpu"
        and torch.backends.mkldnn.is_available()
    )


class _Packed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        ctx.save_for_backward(x, *weights)
        rows = _rows(x).shape[0]
        return tuple(product(weight, rows=rows)(x) for weight in weights)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, *weights = ctx.saved_tensors
        shape, x, grads = x.shape, _rows(x), tuple(map(_rows, grads))  # saved tensors may be asked for only once
        below: Tensor | None = None
        if ctx.needs_input_grad[0]:
            for grad, weight in zip(grads, weights, strict=True):
                # as it lies a weight is what this product reads; summed inside of it
                below = grad @ weight if below is None else below.addmm_(grad, weight)
        pairs = zip(grads, ctx.needs_input_grad[1:], strict=True)
        below = None if below is None else below.view(shape)
        return below, *(grad.t() @ x if needed else None for grad, needed in pairs)


def _rows(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1])
