"""Training that lasts, on ranks: what the tests beside it launch. Each function returns plain data from every rank."""

import hashlib
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from step import CONFIG
from toys import attempt, optim, toy_documents, toy_model

from herd.model.source import WeightsSource
from herd.model.transformer import Transformer
from herd.parallel.config import ParallelConfig
from herd.parallel.worker import Alone, Worker, spread
from herd.runtime.process import grouped, leads
from herd.runtime.signals import Stopped
from herd.runtime.world import world
from herd.train.batch import Batch, Example, Part
from herd.train.checkpoint import Checkpoints
from herd.train.config import CheckpointConfig, FaultsConfig
from herd.train.durable import Durable
from herd.train.feed import ExampleSource, PackedFeed
from herd.train.hooks import Metrics
from herd.train.loop import State
from herd.train.objective import Loss, NextToken
from herd.train.optim import Optimizer, own_norm

STEPS, ROWS, ROW = 6, 4, 32
OWNER = {"config": {"steps": STEPS}}
EVERY = CheckpointConfig(seconds=None, steps=2, keep=3)


class Run:
    """One attempt at a training step on a mesh, put together as a stage does it; every rank has one."""

    def __init__(
        self,
        folder: Path,
        mesh: ParallelConfig,
        *,
        keep: CheckpointConfig = EVERY,
        faults: FaultsConfig = FaultsConfig(),  # noqa: B008
        feed: Callable[[PackedFeed], Any] = lambda feed: feed,
        **heart: Any,
    ) -> None:
        self.folder = folder
        self.worker = laid_out(mesh)
        self.optimizer = Optimizer(
            self.worker.named_parameters(),
            optim(average_every=2, average_share=0.5),
            steps=STEPS,
            norm=self.worker.mesh.norm if self.worker.mesh else own_norm,
        )
        part = Part(self.worker.mesh.data_rank, mesh.data) if self.worker.mesh else Part()
        self.feed = PackedFeed(source(), rows=ROWS, row_length=ROW, pad_id=0, seed=1, part=part, shorter_rows=False)
        self.told: list[dict[str, Any]] = []
        self.attempt = attempt(
            folder,
            lambda event, facts: self.told.append({"event": event, **facts}),
            rank=world().rank,
            ranks=world().size,
            **heart,
        )
        checkpoints = Checkpoints(folder / "checkpoints", owner=OWNER, config=keep, made=self.attempt.saved)
        metrics = Metrics(folder / "metrics.jsonl", write=leads())
        self.durable = Durable(
            checkpoints, self.optimizer, feed(self.feed), metrics, faults=faults, attempt=self.attempt
        )
        self.state = self.durable.resume(begin=lambda: torch.manual_seed(5))
        self.losses: list[float] = []

    def go(
        self,
        *,
        objective: NextToken | None = None,
        after: Callable[[State], None] = lambda state: None,
        accumulate: int = 2,
    ) -> "Run":
        def note(state: State) -> None:
            self.losses.append(state.figures["loss"])
            after(state)

        with self.durable:
            self.durable.fit(
                self.worker, objective or NextToken(), self.state, steps=STEPS, accumulate=accumulate, hooks=(note,)
            )
        return self

    def bits(self) -> str:
        """Hash all that this rank holds, down to the last bit."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.optimizer.state(STEPS).items()):
            local = tensor.to_local() if hasattr(tensor, "to_local") else tensor
            digest.update(name.encode() + local.detach().contiguous().numpy().tobytes())
        return digest.hexdigest()


def laid_out(mesh: ParallelConfig) -> Worker:
    model = toy_model(CONFIG, std=0.1)
    if not grouped():
        return Alone(model)
    weights = WeightsSource(dict(model.named_parameters()), CONFIG)
    return spread(weights, mesh, device=torch.device("cpu"), dtype=torch.float32)


def source() -> ExampleSource:
    """Return a hundred documents of all lengths, the same everywhere."""
    lengths = np.random.default_rng(7).integers(4, ROW, 100).tolist()
    documents = toy_documents(lengths, vocab_size=CONFIG.vocab_size)
    return ExampleSource([Example(np.array(ids)) for ids in documents], row_length=ROW)


def meshes(folder: str, saved: list[dict[str, Any]], loaded: list[list[Any]]) -> dict[str, Any]:
    """Train whole on each mesh of `saved`, keeping step 3 alone; then go on from (checkpoint, mesh) of `loaded`."""
    found: dict[str, Any] = {"whole": {}, "again": {}}
    for axes in saved:
        mesh = ParallelConfig(**axes)
        place = Path(folder, mesh.describe())
        run = Run(place, mesh, keep=CheckpointConfig(seconds=None, steps=3))
        found["whole"][mesh.describe()] = [run.go().losses, run.bits()]
    for origin, axes in loaded:
        mesh = ParallelConfig(**axes)
        run = Run(Path(folder, origin), mesh, keep=CheckpointConfig(seconds=None))
        assert run.state.step == 3
        found["again"][f"{origin} -> {mesh.describe()}"] = [run.go().losses, run.bits()]
    return found


def lives(folder: str, deaths: dict[str, str]) -> dict[str, Any]:
    """Train in this life of a job; `deaths` says who dies in which of its lives, and at which step."""
    launcher = os.getppid()
    who, _, step = deaths.get(str(world().attempt), "nobody at 0").partition(" at ")

    def die(state: State) -> None:
        if state.step != int(step) or who not in (str(world().rank), f"{world().rank} and the launcher"):
            return
        if "launcher" in who:  # the other rank then fails at what it sends to this one
            os.kill(launcher, signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)

    run = Run(Path(folder), ParallelConfig(dp_shard=world().size)).go(after=die)
    return {"bits": run.bits(), "began": run.state.step, "attempt": world().attempt}


class Poisoned(NextToken):
    """A loss that isn't a number at one of the steps, on the last rank alone."""

    def __init__(self, step: int) -> None:
        self.calls, self.step = 0, step

    def loss(self, model: Transformer, batch: Batch) -> Loss:
        self.calls += 1
        loss = super().loss(model, batch)
        bad = self.calls == self.step and world().rank == world().size - 1
        return replace(loss, total=loss.total * (float("nan") if bad else 1.0))


class Skipping:
    """A feed that leaves out some of another's batches, counted from 1."""

    def __init__(self, feed: PackedFeed, left_out: set[int]) -> None:
        self.feed, self.left_out, self.place = feed, left_out, 0
        self.state, self.restore, self.facts = feed.state, feed.restore, feed.facts

    def __next__(self) -> Batch:
        batch, self.place = next(self.feed), self.place + 1
        return next(self) if self.place in self.left_out else batch


class Slow(NextToken):
    """The last rank takes its time."""

    def loss(self, model: Transformer, batch: Batch) -> Loss:
        if world().rank == world().size - 1:
            until = time.perf_counter() + 0.15
            while time.perf_counter() < until:
                pass
        return super().loss(model, batch)


def faults(folder: str) -> dict[str, Any]:
    """Meet a spike, a signal to one rank, and a slow rank, one after another."""
    mesh, found = ParallelConfig(dp_shard=world().size), {}
    skip = FaultsConfig(on_spike="skip")
    run = Run(Path(folder, "spike"), mesh, faults=skip).go(objective=Poisoned(6), accumulate=1)
    clean = Run(Path(folder, "clean"), mesh, feed=lambda feed: Skipping(feed, {5, 6})).go(accumulate=1)
    found["spike"] = {"told": run.told, "same": run.bits() == clean.bits()}

    run = Run(Path(folder, "signal"), mesh, keep=CheckpointConfig(seconds=None))
    with run.attempt.stop:
        try:
            run.go(after=lambda state: _signal(state.step == 3 and world().rank == world().size - 1))
        except Stopped as stopped:
            found["stopped"] = str(stopped)
    found["saved"] = Run(Path(folder, "signal"), mesh).state.step

    run = Run(Path(folder, "slow"), mesh, window=3, seconds=0.15)
    with run.attempt.heart:
        run.go(objective=Slow())
    found["slow"] = run.told
    return found


def _signal(now: bool) -> None:
    if now:
        os.kill(os.getpid(), signal.SIGTERM)


class Stuck(NextToken):
    """The last rank never comes back from step 3."""

    def __init__(self) -> None:
        self.calls = 0

    def loss(self, model: Transformer, batch: Batch) -> Loss:
        self.calls += 1
        if self.calls == 3 and world().rank == world().size - 1:
            threading.Event().wait()
        return super().loss(model, batch)


def hang(folder: str) -> None:
    """Hang, and be ended by the watchdogs."""
    run = Run(Path(folder), ParallelConfig(dp_shard=world().size), faults=FaultsConfig(hang_seconds=2.0), seconds=0.2)
    with run.attempt.heart:
        try:
            run.go(objective=Stuck(), accumulate=1)
        except Exception:
            run.attempt.heart.wait_for_the_end()
            raise
