"""Looking at a model while it trains: what looks has a whole model, also where the trainer's lies over ranks."""

from collections.abc import Callable
from typing import Protocol

import torch

from herd.model.config import ModelConfig
from herd.model.transformer import Transformer
from herd.parallel.weights import Gathered
from herd.parallel.worker import Alone, Worker
from herd.stages.gate import Gate
from herd.stages.step import Context
from herd.train.clock import Clock
from herd.train.loop import State


class Watch(Protocol):
    """What measures a model at some of the steps."""

    def begin(self, step: int) -> None: ...

    def due(self, step: int) -> bool: ...

    def __call__(self, state: State) -> None: ...


class Look:
    """A whole model to look at. Over ranks the first has a copy, into which the weights are gathered for each look.

    The first alone measures; the others wait for it, however long it takes.
    """

    def __init__(self, context: Context, worker: Worker, config: ModelConfig) -> None:
        self._context, self._worker = context, worker
        self._copy = None if isinstance(worker, Alone) else self._empty(config)
        self.model: Transformer = worker.plain if isinstance(worker, Alone) else self._copy or Transformer(config)

    def _empty(self, config: ModelConfig) -> Transformer:
        parameter = next(iter(self._worker.named_parameters()))[1]
        leads = self._context.leads
        with torch.device("cpu" if leads else "meta"):
            return Transformer(config).to(parameter.device if leads else "meta")

    def at(self, watch: Watch, state: State) -> Callable[[State], None]:
        """Return a hook of the loop that looks where it is due, for a training that begins at `state`."""
        self.begin(watch, state)

        def hook(state: State) -> None:
            if watch.due(state.step):
                self._gather()
                if self._context.leads:
                    watch(state)
                self._context.told()

        return hook

    def begin(self, what: Watch | Gate, state: State) -> None:
        """Tell what measures where training begins."""
        if self._context.leads:
            what.begin(state.step)
        self._context.told()

    def through(self, gate: Gate, state: State, clock: Clock) -> int:
        """Measure at a gate; return how many more steps to train. Raises GateClosed on all ranks when told to stop."""
        with clock.spending("eval"):
            self._gather()
            verdict = gate(state) if self._context.leads else None
            return gate.obeyed(self._context.told(verdict))

    @torch.no_grad()
    def _gather(self) -> None:
        if self._copy is None:
            return
        assert self._worker.mesh is not None
        places = dict(self._copy.named_parameters())
        parts = dict(self._worker.named_parameters())
        for name, weight in Gathered(parts, self._copy.config, self._worker.mesh).whole():
            if self._context.leads:
                places[name].copy_(weight)
