"""The one training loop. An algorithm is an objective and a feed; nothing else trains.

for each step: micro-batches from the feed -> summed loss, backward -> gradients / summed weight -> optimizer
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from herd.model.transformer import Transformer
from herd.parallel.worker import Alone, Worker
from herd.train.batch import Batch
from herd.train.feed import Feed
from herd.train.objective import Loss, Objective
from herd.train.optim import Diverged, Optimizer


@dataclass(frozen=True)
class State:
    """Where a run stands after `step` updates: tokens that carried loss, seconds, and the last step's figures."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    figures: dict[str, float] = field(default_factory=dict)


Hook = Callable[[State], None]
Accumulate = int | Callable[[int], int]  # micro-batches of an update, or of the one after so many updates


def fit(
    model: Transformer | Worker,
    objective: Objective,
    feed: Feed,
    optimizer: Optimizer,
    *,
    steps: int,
    hooks: Sequence[Hook] = (),
    state: State | None = None,
    accumulate: Accumulate = 1,
) -> State:
    """Train until `steps` updates are made, calling every hook in order after each; return the final state.

    model: a whole one, or this rank's part of one that is spread over several (herd.parallel.worker).
    The summed loss is divided by the summed weight over all micro-batches and ranks, so that 8 micro-batches of
    one row and one of 8 rows give the same gradient under ragged masks. Raises Diverged on a loss that isn't finite.
    """
    state = state or State()
    worker = Alone(model) if isinstance(model, Transformer) else model
    device = next(parameter.device for _, parameter in worker.named_parameters())
    names = ("loss", "weight", "tokens", *objective.metrics)

    def counted(part: Transformer, batch: Batch) -> Loss:
        # where the loss is known, so that neither stages nor parts of rows count a token twice
        loss = objective.loss(part, batch)
        return replace(loss, metrics={**loss.metrics, "tokens": (batch.weights != 0).sum()})

    worker.train()
    while state.step < steps:
        began = time.perf_counter()
        batches = [next(feed).to(device) for _ in range(micro_batches(accumulate, state.step))]
        losses = worker.backward(counted, batches)
        totals = dict(zip(names, worker.sum(_summed(losses, names, device)).tolist(), strict=True))
        weight, tokens = totals.pop("weight"), round(totals.pop("tokens"))
        if not math.isfinite(totals["loss"]):
            raise Diverged(f"step {state.step + 1}: the loss is {totals['loss']}; lower optim.learning_rate")
        figures = {name: total / weight if weight else 0.0 for name, total in totals.items()}
        figures |= optimizer.step(state.step, weight) if weight else {}
        seconds = time.perf_counter() - began
        figures["tokens_per_s"] = tokens / seconds
        state = State(state.step + 1, state.tokens + tokens, state.seconds + seconds, figures)
        for hook in hooks:
            hook(state)
    return state


def micro_batches(accumulate: Accumulate, step: int) -> int:
    """Return how many make the update after `step` updates."""
    return accumulate if isinstance(accumulate, int) else accumulate(step)


def _summed(losses: Sequence[Loss], names: Sequence[str], device: torch.device) -> Tensor:
    """Return the sums over micro-batches, by name; zeros on a pipeline's stages that know no loss."""
    found = torch.zeros(len(losses), len(names), dtype=torch.float64, device=device)
    for row, loss in zip(found, losses, strict=True):
        values = {"loss": loss.total, "weight": loss.weight, **loss.metrics}
        assert values.keys() == set(names), f"the objective says it measures {names}, but it measured {list(values)}"
        for place, name in enumerate(names):
            row[place] = values[name].detach()
    return found.sum(0)
