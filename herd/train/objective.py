"""Objectives: what a batch's loss is. A loss is a sum with a weight, never a mean: the loop divides once."""

from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from herd.model.transformer import Transformer
from herd.train.batch import Batch
from herd.train.head import head_loss


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


def carried(model: Transformer, batch: Batch, *more: Tensor) -> tuple[Tensor, ...]:
    """Run the model; return hidden states [n, e], targets [n], weights [n] and `more` where there is a loss."""
    hidden = model(batch.tokens, positions=batch.positions, documents=batch.documents)
    rows = tuple(tensor.flatten(0, 1) for tensor in (hidden, batch.targets, batch.weights, *more))
    chosen = rows[2] != 0
    if bool(chosen.all()):
        return rows
    places = chosen.nonzero().squeeze(1)
    return tuple(tensor[places] for tensor in rows)
