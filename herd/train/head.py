"""The output layer with its loss: scores live for a piece of the rows, and leave their gradients behind at once.

    a piece of hidden [n, e] -> scores [n, vocab] -> loss, dscores in their place -> dhidden [n, e], += dW [vocab, e]

The loss is a plain sum, so its gradients are known before the backward pass asks for them, up to a factor.
"""

import math
from typing import Any

import torch
from torch import Tensor

from herd.model.linear import packs, times
from herd.train.crossentropy import replace_by_gradient

# scores of one piece (128 MiB in bfloat16)
_MOST_SCORES = 1 << 26


class HeadLoss(torch.autograd.Function):
    """`cross_entropy` of hidden [n, e] through weight [vocab, e]."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        weights: Tensor,
        top_ids: Tensor | None,
        top_logprobs: Tensor | None,
        share: float,
    ) -> tuple[Tensor, Tensor]:
        sums = torch.zeros(2, device=hidden.device)
        to_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        to_weight: Tensor | None = None
        keep = any(ctx.needs_input_grad)
        for rows in _pieces(hidden.shape[0], weight.shape[0]):
            h = hidden[rows]
            top = (None, None) if top_ids is None or top_logprobs is None else (top_ids[rows], top_logprobs[rows])
            scores = product(h, weight)
            sums += torch.stack(replace_by_gradient(scores, targets[rows], weights[rows], *top, share, keep=keep))
            if to_hidden is not None:
                to_hidden[rows] = product(scores, weight.t())
            if ctx.needs_input_grad[1]:
                part = scores.t() @ h
                # many pieces are summed in float32
                to_weight = part if to_weight is None else to_weight.float().add_(part)
        ctx.save_for_backward(to_hidden, None if to_weight is None else to_weight.to(weight.dtype))
        loss, divergence = sums.unbind()
        ctx.mark_non_differentiable(divergence)
        return loss, divergence

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        below = (None if g is None else g * grads[0] for g in ctx.saved_tensors)
        return *below, None, None, None, None, None


def product(x: Tensor, weight: Tensor) -> Tensor:
    """Return x [n, in] times weight [out, in]."""
    return times(x, weight) if packs(x) else x @ weight.t()


def _pieces(count: int, width: int) -> list[slice]:
    """Cut rows into as few pieces of like size as their scores fit into."""
    number = max(1, math.ceil(count * width / _MOST_SCORES))
    size = math.ceil(count / number)
    # a rank may have no rows: it still has a gradient, of zeros
    return [slice(start, start + size) for start in range(0, count, size or 1)] or [slice(0, 0)]
