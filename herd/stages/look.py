"""Looking at a model while it trains: what looks has a whole model, also where the trainer's lies over ranks."""

from collections.abc import Callable
from typing import Any, Protocol

import torch

from herd.model.config import ModelConfig
from herd.model.transformer import Transformer
from herd.parallel.weights import Gathered
from herd.parallel.worker import Alone, Worker
from herd.runtime.process import leads
from herd.train.loop import State
from herd.train.optim import Optimizer


class Watch(Protocol):
    """What measures a model at some of the steps."""

    def due(self, step: int) -> bool: ...

    def __call__(self, state: State) -> None: ...

    def facts(self) -> dict[str, Any]: ...


class Look:
    """A hook of the loop. Over ranks the first has a copy of the whole model, into which the weights are gathered."""

    def __init__(
        self, worker: Worker, optimizer: Optimizer, config: ModelConfig, watch: Callable[[Transformer], Watch]
    ) -> None:
        self._worker, self._optimizer = worker, optimizer
        self._copy = None if isinstance(worker, Alone) else self._empty(worker, config)
        self._watch = watch(worker.model if isinstance(worker, Alone) else self._copy or Transformer(config))

    def _empty(self, worker: Worker, config: ModelConfig) -> Transformer:
        parameter = next(iter(worker.named_parameters()))[1]
        with torch.device("cpu" if leads() else "meta"):
            return Transformer(config).to(parameter.device if leads() else "meta")

    def __call__(self, state: State) -> None:
        if not self._watch.due(state.step):
            return
        if self._copy is not None:
            self._gather(self._copy)
        if leads():
            self._watch(state)

    @torch.no_grad()
    def _gather(self, copy: Transformer) -> None:
        assert self._worker.mesh is not None
        places = dict(copy.named_parameters())
        for name, weight in Gathered(dict(self._worker.named_parameters()), copy.config, self._worker.mesh).whole():
            if leads():
                places[name].copy_(weight)

    def facts(self) -> dict[str, Any]:
        """Return what was measured."""
        return self._watch.facts()
