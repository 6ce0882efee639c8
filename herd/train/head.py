"""The output layer with its loss: scores live for a piece of the rows, and leave their gradients behind at once.

    a piece of hidden [n, e] -> scores [n, vocab] -> loss, dscores in their place -> dhidden [n, e], += dW [vocab, e]

The loss is a plain sum, so its gradients are known before the backward pass asks for them, up to a factor.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from herd.model.linear import plain, product
from herd.model.transformer import Transformer
from herd.train.crossentropy import cross_entropy, replace_by_gradient

# scores of one piece (128 MiB in bfloat16)
_MOST_SCORES = 1 << 26


def head_loss(
    model: Transformer,
    hidden: Tensor,
    targets: Tensor,
    weights: Tensor,
    *,
    teacher: tuple[Tensor, Tensor] | None = None,
    share: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Return `cross_entropy` of the model's scores for hidden states [n, e], in pieces that fit into memory.

    A head that is split over ranks, or has no weight of its own, works its pieces again in the backward pass.
    """
    ids, logprobs = teacher or (None, None)
    if isinstance(model, Transformer) and plain(model.output):
        share = share if teacher else 0.0
        return _HeadLoss.apply(hidden, model.output.weight, targets, weights, ids, logprobs, share)

    def piece(h: Tensor, t: Tensor, w: Tensor, *top: Tensor) -> Tensor:
        pair = (top[0], top[1]) if top else None
        return torch.stack(cross_entropy(model.logits(h), t, w, teacher=pair, share=share))

    sums = over_rows(piece, (hidden, targets, weights, *(teacher or ())), width=model.config.vocab_size)
    return sums[0], sums[1].detach()


class _HeadLoss(torch.autograd.Function):
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
        keep, layer = any(ctx.needs_input_grad), product(weight, rows=hidden.shape[0])
        for rows in _pieces(hidden.shape[0], weight.shape[0]):
            h = hidden[rows]
            top = (None, None) if top_ids is None or top_logprobs is None else (top_ids[rows], top_logprobs[rows])
            scores = layer(h)
            sums += torch.stack(replace_by_gradient(scores, targets[rows], weights[rows], *top, share, keep=keep))
            if to_hidden is not None:
                torch.mm(scores, weight, out=to_hidden[rows])
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
        to_hidden, to_weight = ctx.saved_tensors
        # on a GPU asking would cost more than the product
        if grads[0].device.type != "cpu" or float(grads[0]) != 1.0:
            to_hidden, to_weight = (None if g is None else g * grads[0] for g in (to_hidden, to_weight))
        return to_hidden, to_weight, None, None, None, None, None


def _pieces(count: int, width: int) -> list[slice]:
    """Cut rows into as few pieces of like size as their scores fit into."""
    number = max(1, math.ceil(count * width / _MOST_SCORES))
    size = math.ceil(count / number)
    # a rank may have no rows: it still has a gradient, of zeros
    return [slice(start, start + size) for start in range(0, count, size or 1)] or [slice(0, 0)]


def over_rows(function: Callable[..., Tensor], rows: tuple[Tensor, ...], *, width: int) -> Tensor:
    """Sum `function(*rows)` over pieces of the rows, small enough that `width` scores a row fit in memory."""
    most = max(1, _MOST_SCORES // width)
    if rows[0].shape[0] <= most:
        return function(*rows)
    pieces = zip(*(tensor.split(most) for tensor in rows), strict=True)
    return torch.stack([checkpoint(function, *piece, use_reentrant=False) for piece in pieces]).sum(0)
