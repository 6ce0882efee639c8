"""Objectives: what a batch's loss is. A loss is a sum with a weight, never a mean: the loop divides once."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from herd.model.linear import plain
from herd.model.transformer import Transformer
from herd.train.batch import Batch
from herd.train.crossentropy import cross_entropy
from herd.train.head import HeadLoss

# more scores than this are computed in pieces and recomputed in the backward pass (256 MiB in float32)
_MOST_SCORES = 1 << 26


@dataclass(frozen=True)
class Loss:
    """A summed loss, the weight it is to be divided by, and further sums to be divided by the same weight."""

    total: Tensor
    weight: Tensor
    metrics: dict[str, Tensor] = field(default_factory=dict)


class Objective(Protocol):
    """What the loop asks of a training method; `metrics` names what its losses carry besides."""

    @property
    def metrics(self) -> tuple[str, ...]: ...

    def loss(self, model: Transformer, batch: Batch) -> Loss: ...


class NextToken:
    """Cross-entropy of the next token, weighted: pretraining (all weights 1) and SFT (1 on the assistant's tokens)."""

    metrics = ()

    def loss(self, model: Transformer, batch: Batch) -> Loss:
        """Return the weighted sum of -log p(target) in nats."""
        hidden, targets, weights = carried(model, batch)
        total, _ = head_loss(model, hidden, targets, weights)
        return Loss(total, weights.sum())


def head_loss(
    model: Transformer,
    hidden: Tensor,
    targets: Tensor,
    weights: Tensor,
    *,
    teacher: tuple[Tensor, Tensor] | None = None,
    share: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Return `cross_entropy` of the model's scores, in pieces where all of them at once would fill the memory."""
    ids, logprobs = teacher or (None, None)
    if isinstance(model, Transformer) and plain(model.output):
        share = share if teacher else 0.0
        return HeadLoss.apply(hidden, model.output.weight, targets, weights, ids, logprobs, share)

    def piece(h: Tensor, t: Tensor, w: Tensor, *top: Tensor) -> Tensor:
        pair = (top[0], top[1]) if top else None
        return torch.stack(cross_entropy(model.logits(h), t, w, teacher=pair, share=share))

    sums = over_rows(piece, (hidden, targets, weights, *(teacher or ())), width=model.config.vocab_size)
    return sums[0], sums[1].detach()


def carried(model: Transformer, batch: Batch, *more: Tensor) -> tuple[Tensor, ...]:
    """Run the model; return hidden states [n, e], targets [n], weights [n] and `more` where there is a loss."""
    hidden = model(batch.tokens, positions=batch.positions, documents=batch.documents)
    rows = tuple(tensor.flatten(0, 1) for tensor in (hidden, batch.targets, batch.weights, *more))
    chosen = rows[2] != 0
    if bool(chosen.all()):
        return rows
    places = chosen.nonzero().squeeze(1)
    return tuple(tensor[places] for tensor in rows)


def over_rows(function: Callable[..., Tensor], rows: tuple[Tensor, ...], *, width: int) -> Tensor:
    """Sum `function(*rows)` over pieces of the rows, small enough that `width` scores a row fit in memory."""
    most = max(1, _MOST_SCORES // width)
    if rows[0].shape[0] <= most:
        return function(*rows)
    pieces = zip(*(tensor.split(most) for tensor in rows), strict=True)
    return torch.stack([checkpoint(function, *piece, use_reentrant=False) for piece in pieces]).sum(0)
