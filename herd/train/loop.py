"""The one training loop. An algorithm is an objective and a feed; nothing else trains.

for each step: micro-batches from the feed -> summed loss, backward -> gradients / summed weight -> optimizer
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from herd.model.transformer import Transformer
from herd.runtime.process import sum_over_ranks
from herd.train.feed import Feed
from herd.train.objective import Objective
from herd.train.optim import Diverged, Optimizer


@dataclass(frozen=True)
class State:
    """Where a run stands after `step` updates: tokens that carried loss, seconds, and the last step's figures."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    figures: dict[str, float] = field(default_factory=dict)


Hook = Callable[[State], None]


def fit(
    model: Transformer,
    objective: Objective,
    feed: Feed,
    optimizer: Optimizer,
    *,
    steps: int,
    hooks: Sequence[Hook] = (),
    state: State | None = None,
    accumulate: int = 1,
) -> State:
    """Train until `steps` updates are made, calling every hook in order after each; return the final state.

    The summed loss is divided by the summed weight over all micro-batches and ranks, so that 8 micro-batches of
    one row and one of 8 rows give the same gradient under ragged masks. Raises Diverged on a loss that isn't finite.
    """
    state = state or State()
    device = next(model.parameters()).device
    model.train()
    while state.step < steps:
        began = time.perf_counter()
        sums: dict[str, torch.Tensor] = {}
        tokens = 0
        for _ in range(accumulate):
            batch = next(feed).to(device)
            loss = objective.loss(model, batch)
            loss.total.backward()
            tokens += int((batch.weights != 0).sum())
            for name, value in {"loss": loss.total, "weight": loss.weight, **loss.metrics}.items():
                value = value.detach().float()
                sums[name] = sums[name] + value if name in sums else value
        totals = dict(zip(sums, sum_over_ranks(torch.stack(list(sums.values()))).tolist(), strict=True))
        weight = totals.pop("weight")
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
