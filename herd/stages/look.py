"""Looking at a model while it trains: whoever looks has a whole model, also where the trainer's lies over ranks.

The first process measures; all others give their parts of the weights, and are told what comes of it.
"""

from typing import TYPE_CHECKING, Any

import torch

from herd.model.config import ModelConfig
from herd.model.transformer import Transformer
from herd.parallel.weights import Gathered
from herd.parallel.worker import Alone, Worker
from herd.runtime.process import leads
from herd.stages.step import Context
from herd.stages.watch import Watch
from herd.train.loop import State

if TYPE_CHECKING:
    from herd.stages.training import Plan


class WholeModel:
    """The model that a worker trains, whole: itself in one process, a copy on the first of several."""

    def __init__(self, worker: Worker, config: ModelConfig) -> None:
        self._worker = worker
        self.model: Transformer | None = None
        self._copied = not isinstance(worker, Alone)
        if isinstance(worker, Alone):
            self.model = worker.model
        elif leads():
            device = next(iter(worker.named_parameters()))[1].device
            self.model = Transformer(config).to(device)
        self._config = config

    @torch.no_grad()
    def gather(self) -> None:
        """Bring the copy up to date; every process has to call this together."""
        if not self._copied:
            return
        assert self._worker.mesh is not None
        places = dict(self.model.named_parameters()) if self.model is not None else {}
        for name, weight in Gathered(dict(self._worker.named_parameters()), self._config, self._worker.mesh).whole():
            if name in places:
                places[name].copy_(weight)


class Look:
    """A training step's watch, as a hook of the loop, and its gate, asked when a portion of steps is made."""

    def __init__(self, context: Context, key: str, whole: WholeModel, plan: "Plan") -> None:
        self._context, self._whole, self._steps = context, whole, plan.steps
        config = plan.watch if plan.watch and (plan.watch.heldout or plan.watch.tasks) else None
        self._moments = config.moments(plan.steps) if config else frozenset[int]()
        self._gated = plan.gate is not None
        self._watch = self._gate = None
        if whole.model is not None:
            self._watch = Watch(context, key, whole.model, config=config, chat=plan.chat) if config else None
            self._gate = plan.gate(whole.model) if plan.gate else None

    def begin(self, step: int) -> int:
        """Take note that training begins or goes on at a step; return up to which step it goes."""
        for part in (self._watch, self._gate):
            if part is not None:
                part.begin(step)
        return self._context.told(self._gate.goal(step) if self._gate else self._steps)

    def __call__(self, state: State) -> None:
        if state.step in self._moments:
            self._whole.gather()
            if self._watch is not None:
                self._watch(state)

    def more(self, state: State) -> int:
        """Return how many more steps to train. Raises GateClosed when that is none and the gate stays shut."""
        if not self._gated:
            return 0
        self._whole.gather()
        return self._context.told(self._gate(state) if self._gate else 0)

    def facts(self) -> dict[str, Any]:
        """Return what was measured and decided."""
        found = {"watch": self._watch, "gate": self._gate}
        return {name: part.facts() for name, part in found.items() if part is not None}
