"""Training that survives: `fit` with checkpoints, spikes, signals to stop, and an account of its time.

restore the newest whole checkpoint, or begin -> fit -> ended
     ^                                           | spike: go back, leave the batches out
     |___________________________________________| signal: save, then Stopped
"""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

from herd.model.transformer import Transformer
from herd.parallel.worker import Worker
from herd.runtime.process import leads
from herd.runtime.signals import Stopped
from herd.train.attempt import Attempt
from herd.train.batch import Batch
from herd.train.checkpoint import Checkpoints
from herd.train.clock import Clock
from herd.train.config import FaultsConfig
from herd.train.feed import Feed
from herd.train.heart import no_watch
from herd.train.hooks import Metrics
from herd.train.loop import Accumulate, Hook, State, fit
from herd.train.objective import Objective
from herd.train.optim import Diverged, Optimizer
from herd.train.spikes import Skip, Skips, Spike, SpikeWatch
from herd.train.votes import Votes
from herd.train.watchdog import Watchdog

_PATIENCE = 20.0  # seconds that a checkpoint is waited for after an error


class Durable:
    """Runs `fit` over one training step of a run, from where the run stands."""

    def __init__(
        self,
        checkpoints: Checkpoints,
        optimizer: Optimizer,
        feed: Feed,
        metrics: Metrics,
        *,
        faults: FaultsConfig,
        attempt: Attempt,
    ) -> None:
        self._checkpoints, self._optimizer, self._feed, self._metrics = checkpoints, optimizer, feed, metrics
        self._faults, self._attempt = faults, attempt
        self._votes = Votes()
        self._spikes, self._skips = SpikeWatch(faults, agree=self._votes.any), Skips(checkpoints.folder)
        self._last_save, self._last_step, self._skipped = time.perf_counter(), 0, 0
        self._asked = False

    @property
    def skips(self) -> Sequence[Skip]:
        """The batches that were left out, by where and why."""
        return self._skips.made

    @property
    def clock(self) -> Clock:
        """What the attempt's time is spent on."""
        return self._attempt.clock

    def resume(self, *, begin: Callable[[], object] = lambda: None) -> State:
        """Take up the newest whole checkpoint and return where it stands; where there is none, call `begin` first."""
        for path in self._checkpoints.torn():
            self._attempt.tell("torn checkpoint", {"path": path.name, "did": "passed over: files are missing or cut"})
        newest = self._checkpoints.latest()
        if newest is None:
            begin()
            state = State()
        else:
            state, places = self._checkpoints.restore(newest, self._optimizer)
            self._feed.restore(self._skips.place_after(state.step) or places["feed"])
            self._take_up(state, places)
        self._metrics.cut(state.step)
        self._attempt.clock.training(state.step)
        return state

    def fit(
        self,
        model: Transformer | Worker,
        objective: Objective,
        state: State,
        *,
        steps: int,
        accumulate: Accumulate = 1,
        looks: Sequence[Hook] = (),
        hooks: Sequence[Hook] = (),
    ) -> State:
        """Train on from `state` as `fit` does. looks: hooks whose time is evaluation, done before a checkpoint says so.

        Raises Stopped after a signal, when the state is saved; Diverged on a spike that the recipe doesn't skip.
        """
        self._attempt.stop.defer()
        watchdog = Watchdog(self._attempt.heart, self._faults, ranks=self._attempt.ranks)
        self._attempt.heart.watch = watchdog
        if self._faults.on_spike == "skip" and state.step == 0:
            self.save(state)  # there must be something to go back to
        looks = [_timed(look, self._attempt.clock) for look in looks]
        after = (
            self._done,
            self._spikes,
            self._metrics,
            *looks,
            lambda now: self._keep(now, steps),
            lambda now: self._name_slow(watchdog, now),
            *hooks,
        )
        feed = _Timed(self._feed, self._attempt.clock)
        while True:
            try:
                final = fit(
                    model,
                    objective,
                    feed,
                    self._optimizer,
                    steps=steps,
                    hooks=after,
                    state=state,
                    accumulate=accumulate,
                )
            except Diverged as error:
                state = self._go_back(error)
            else:
                self._metrics.flush()
                self._attempt.heart.watch = no_watch  # what follows, such as a model folder, may take its time
                return final

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wait for what is being written; after an error not for long, since other ranks may be gone."""
        with self._attempt.clock.spending("checkpoint"):
            if kind is None:
                self._votes.close()
                self._checkpoints.close()
            else:
                with suppress(Exception):
                    self._checkpoints.wait(seconds=_PATIENCE)

    def _done(self, state: State) -> None:
        self._attempt.clock.stepped(state.step)
        if self._skipped:
            state.figures["skipped_steps"], self._skipped = float(self._skipped), 0

    def _name_slow(self, watchdog: Watchdog, state: State) -> None:
        while not watchdog.slow.empty():
            rank, factor = watchdog.slow.get()
            why = f"rank {rank} of {self._attempt.ranks} takes {factor:.1f} times as long as the others"
            self._attempt.tell("slow rank", {"at": state.step, "why": why})

    def _keep(self, state: State, steps: int) -> None:
        """Save where it is time, and stop where a signal said so. Never at the last step: the model folder follows."""
        if state.step == steps:
            return
        # steps are the same on all ranks, clocks are not: the first one's counts, and it asks once
        late = leads() and not self._asked and self._late()
        self._asked = self._asked or late
        save, stop = self._votes.cast(save=late, stop=bool(self._attempt.stop.asked))
        every = self._checkpoints.config.steps
        save = save or (every is not None and state.step - self._last_step >= every)
        if save or stop:
            self.save(state)
        if stop:
            with self._attempt.clock.spending("checkpoint"):
                self._checkpoints.wait()
            asked = self._attempt.stop.asked or "a signal to another rank"
            raise Stopped(
                f"{asked}: saved at step {state.step} of {steps} and stopped; the same command goes on from there"
            )

    def _late(self) -> bool:
        seconds = self._checkpoints.config.seconds
        return seconds is not None and time.perf_counter() - self._last_save >= seconds

    def save(self, state: State) -> None:
        """Begin to write a checkpoint of now."""
        clock = self._attempt.clock
        clock.mark(state.step)
        with clock.spending("checkpoint"):
            self._metrics.flush()
            places = {"feed": self._feed.state(), "spikes": self._spikes.state()}
            self._checkpoints.save(state, self._optimizer, places)
        self._last_save, self._last_step, self._asked = time.perf_counter(), state.step, False

    def _go_back(self, error: Diverged) -> State:
        """Return to the newest checkpoint, with the feed where it is. Raises Diverged where that is not to be done."""
        clock, faults = self._attempt.clock, self._faults
        # the loop itself finds what isn't finite, before the step is done
        step = clock.step if isinstance(error, Spike) else clock.step + 1
        facts: dict[str, Any] = {"at": step, "why": str(error)}
        if faults.on_spike == "stop":
            self._attempt.tell("spike", facts | {"did": "stopped"})
            raise Diverged(f"{error}; faults.on_spike=skip goes back and leaves out the batches") from None
        if len(self._skips.made) >= faults.most_skips:
            self._attempt.tell("spike", facts | {"did": f"stopped after {faults.most_skips} skips"})
            raise Diverged(
                f"{error}; batches were skipped {len(self._skips.made)} times already (faults.most_skips)"
            ) from None
        with clock.spending("checkpoint"):
            self._checkpoints.wait()
            newest = self._checkpoints.latest()
            assert newest is not None, "a checkpoint is written before the first step"
            state, places = self._checkpoints.restore(newest, self._optimizer)
        self._skips.add(Skip(step, state.step, self._feed.state(), str(error)), write=leads())
        self._take_up(state, places)
        clock.went_back(state.step)
        self._metrics.cut(state.step)
        did = f"went back to step {state.step} and left out the batches of {step - state.step} steps"
        self._attempt.tell("spike", facts | {"did": did})
        return state

    def _take_up(self, state: State, places: Mapping[str, Any]) -> None:
        self._spikes.restore(places["spikes"])
        self._last_save, self._last_step = time.perf_counter(), state.step
        self._skipped = next((s.step - s.back for s in reversed(self._skips.made) if s.back == state.step), 0)


class _Timed:
    """A feed of which the time that the loop waits for it is known."""

    def __init__(self, feed: Feed, clock: Clock) -> None:
        self._feed, self._clock = feed, clock

    def state(self) -> dict[str, Any]:
        return self._feed.state()

    def restore(self, state: Mapping[str, Any]) -> None:
        self._feed.restore(state)

    def facts(self) -> dict[str, Any]:
        return self._feed.facts()

    def __next__(self) -> Batch:
        with self._clock.spending("data"):
            return next(self._feed)


def _timed(look: Hook, clock: Clock) -> Hook:
    def timed(state: State) -> None:
        with clock.spending("eval"):
            look(state)

    return timed
