"""A spike stops the run, or its batches are left out: the same run as on a feed that never had them."""

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from toys import attempt, optim, toy_model, toy_shards

from herd.model.transformer import Transformer
from herd.train.batch import Batch
from herd.train.checkpoint import Checkpoints
from herd.train.config import CheckpointConfig, FaultsConfig
from herd.train.durable import Durable
from herd.train.feed import PackedFeed, ShardSource
from herd.train.hooks import Metrics
from herd.train.loop import State
from herd.train.objective import Loss, NextToken
from herd.train.optim import Diverged, Optimizer
from herd.train.spikes import Spike, SpikeWatch

STEPS = 12


class Poisoned(NextToken):
    """Multiplies the loss of chosen batches, known by what they hold."""

    def __init__(self, poison: Mapping[int, float]) -> None:
        self.poison = poison

    def loss(self, model: Transformer, batch: Batch) -> Loss:
        loss = super().loss(model, batch)
        return replace(loss, total=loss.total * self.poison.get(number_of(batch), 1.0))


def number_of(batch: Batch) -> int:
    """Return a number that tells batches apart."""
    return hash(tuple(batch.tokens.flatten().tolist()))


class Without:
    """A feed that leaves out some of another's batches."""

    def __init__(self, feed: PackedFeed, left_out: set[int]) -> None:
        self.feed, self.left_out, self.place = feed, left_out, 0

    def __next__(self) -> Batch:
        batch, self.place = next(self.feed), self.place + 1
        return next(self) if self.place in self.left_out else batch

    def state(self) -> dict[str, Any]:
        return {"place": self.place}

    def restore(self, state: Mapping[str, Any]) -> None:
        raise AssertionError("never resumed")


def feed_of(folder: Path) -> PackedFeed:
    source = ShardSource(toy_shards(folder / "shards", documents=60), row_length=24)
    return PackedFeed(source, rows=2, row_length=24, pad_id=0, seed=1)


def batches(folder: Path, count: int) -> list[int]:
    """Return the numbers of the first batches, from batch 1."""
    feed = feed_of(folder)
    return [0, *(number_of(next(feed)) for _ in range(count))]


class Run:
    """One attempt at a training step that saves every 4 steps."""

    def __init__(self, folder: Path, faults: FaultsConfig, feed: Any = None, *, steps: int | None = 4) -> None:
        self.folder = folder
        self.model = toy_model()
        self.optimizer = Optimizer(self.model.named_parameters(), optim(), steps=STEPS)
        self.events: list[dict[str, Any]] = []
        self.attempt = attempt(folder, lambda event, facts: self.events.append({"event": event, **facts}))
        checkpoints = Checkpoints(
            folder / "checkpoints",
            owner={},
            config=CheckpointConfig(seconds=None, steps=steps),
            made=self.attempt.saved,
        )
        self.run = Durable(
            checkpoints,
            self.optimizer,
            feed or feed_of(folder),
            Metrics(folder / "metrics.jsonl"),
            faults=faults,
            attempt=self.attempt,
        )
        self.state = self.run.resume()

    def go(self, poison: Mapping[int, float]) -> "Run":
        with self.run:
            self.run.fit(self.model, Poisoned(poison), self.state, steps=STEPS)
        return self

    def rows(self) -> list[dict[str, Any]]:
        """Return the metrics without their clock."""
        lines = (self.folder / "metrics.jsonl").read_text().splitlines()
        return [{k: v for k, v in json.loads(line).items() if k != "tokens_per_s"} for line in lines]


SKIP = FaultsConfig(on_spike="skip", spike_deviations=8.0, spike_window=8)


@pytest.mark.parametrize(
    ("batch", "times", "faults"),
    [
        (7, math.nan, SKIP),  # the loop itself finds it
        (7, math.inf, SKIP),
        (11, 50.0, SKIP),  # the watch finds it: the update was made already
        (3, 1e4, FaultsConfig(on_spike="skip", spike_norm=100.0)),  # before the first checkpoint but the one at 0
    ],
)
def test_batches_since_the_checkpoint_are_left_out(
    tmp_path: Path, batch: int, times: float, faults: FaultsConfig
) -> None:
    poison = {batches(tmp_path, 20)[batch]: times}
    run = Run(tmp_path / "run", faults).go(poison)
    back = (batch - 1) // 4 * 4
    clean = Run(tmp_path / "clean", FaultsConfig(), Without(feed_of(tmp_path), set(range(back + 1, batch + 1)))).go({})
    for mine, theirs in zip(run.model.parameters(), clean.model.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    assert [event["at"] for event in run.events] == [batch]
    assert run.events[0]["did"] == f"went back to step {back} and left out the batches of {batch - back} steps"
    rows = run.rows()
    assert rows[back].pop("skipped_steps") == batch - back
    assert rows == clean.rows()


def test_a_kill_after_a_skip_changes_nothing(tmp_path: Path) -> None:
    poison = {batches(tmp_path, 20)[7]: math.nan}
    whole = Run(tmp_path / "whole", SKIP).go(poison)
    for moment in (5, 6, 8, 10):  # 5 and 6: after going back to 4, before the next checkpoint
        folder = tmp_path / f"{moment}"
        first = Run(folder, SKIP)
        dead = {"seen": False}

        def die(state: State, moment: int = moment, first: Run = first, dead: dict[str, bool] = dead) -> None:
            if state.step == moment and first.run.skips:
                dead["seen"] = True
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt), first.run:
            first.run.fit(first.model, Poisoned(poison), first.state, steps=STEPS, hooks=(die,))
        assert dead["seen"]
        again = Run(folder, SKIP).go(poison)
        assert [skip.step for skip in again.run.skips] == [7]
        assert not again.events, "the batches were left out already"
        assert again.rows() == whole.rows()
        for mine, theirs in zip(again.model.parameters(), whole.model.parameters(), strict=True):
            assert torch.equal(mine, theirs)


def test_stop_says_where_what_and_how_to_go_on(tmp_path: Path) -> None:
    poison = {batches(tmp_path, 20)[6]: math.nan}
    run = Run(tmp_path / "run", FaultsConfig())
    with pytest.raises(Diverged, match=r"step 6: the loss is nan; .*faults\.on_spike=skip goes back"):
        run.go(poison)
    assert run.events == [{"event": "spike", "at": 6, "why": run.events[0]["why"], "did": "stopped"}]
    assert Run(tmp_path / "run", SKIP).go(poison).events[0]["did"].startswith("went back to step 4")


def test_skips_come_to_an_end(tmp_path: Path) -> None:
    poison = dict.fromkeys(batches(tmp_path, 20)[5:], math.nan)
    run = Run(tmp_path / "run", FaultsConfig(on_spike="skip", most_skips=2))
    with pytest.raises(Diverged, match=r"batches were skipped 2 times already \(faults\.most_skips\)"):
        run.go(poison)
    assert [event["did"].split(" ")[0] for event in run.events] == ["went", "went", "stopped"]


def test_lost_steps_are_in_the_account(tmp_path: Path) -> None:
    poison = {batches(tmp_path, 20)[7]: math.nan}
    run = Run(tmp_path / "run", SKIP).go(poison)
    spent = run.attempt.clock.spent()
    assert spent["lost"] > 0
    assert run.attempt.clock.attempt()["reached"] == STEPS


def states(losses: list[float], norm: float = 1.0) -> list[State]:
    return [State(step, figures={"loss": loss, "grad_norm": norm}) for step, loss in enumerate(losses, 1)]


def test_deviations_are_counted_from_the_median_of_the_last_losses() -> None:
    watch = SpikeWatch(FaultsConfig(spike_deviations=5.0, spike_window=8))
    for state in states([9.0, 2.0, 2.2, 1.8, 2.0, 2.1, 1.9, 2.0, 2.0]):  # 9.0 falls out of the window
        watch(state)
    # median 2.0, median absolute deviation 0.05: the limit is 2.0 + 5 x 1.4826 x 0.05
    watch(State(10, figures={"loss": 2.37}))
    # now 2.0, and 0.1
    watch(State(11, figures={"loss": 2.74}))
    with pytest.raises(Spike, match=r"step 12: the loss is 2\.8, over 2\.741, which is 5 deviations above the median"):
        watch(State(12, figures={"loss": 2.8}))
    again = SpikeWatch(FaultsConfig(spike_deviations=5.0, spike_window=8))
    again.restore(watch.state())
    with pytest.raises(Spike):
        again(State(12, figures={"loss": 2.8}))


def test_too_few_losses_or_no_limit_tell_nothing() -> None:
    for watch in (SpikeWatch(FaultsConfig(spike_deviations=1.0)), SpikeWatch(FaultsConfig())):
        for state in states([2.0] * 7 + [900.0]):
            watch(state)
    with pytest.raises(Spike, match="gradient norm inf"):
        SpikeWatch(FaultsConfig())(State(1, figures={"loss": 1.0, "grad_norm": math.inf}))
