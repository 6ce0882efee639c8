"""Stopped at any step and gone on with is the same as never stopped, bit for bit."""

import json
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from toys import optim, toy_model, toy_shards

from herd.base.errors import RunError
from herd.train.checkpoint import Checkpoints
from herd.train.feed import PackedFeed, ShardSource
from herd.train.hooks import Metrics, Saver
from herd.train.loop import State, fit
from herd.train.objective import NextToken
from herd.train.optim import Optimizer

STEPS = 12


class Killed(Exception):
    """Stands for kill -9."""


class Run:
    """One attempt at a training step, put together as a stage does it."""

    def __init__(
        self, folder: Path, *, dtype: torch.dtype = torch.float32, accumulate: int = 1, owner: str = "me"
    ) -> None:
        self.folder, self.accumulate = folder, accumulate
        self.model = toy_model()
        config = optim(average_every=2, average_share=0.5)
        self.optimizer = Optimizer(self.model.named_parameters(), config, steps=STEPS, dtype=dtype)
        source = ShardSource(toy_shards(folder / "shards", documents=12), row_length=24)
        self.feed = PackedFeed(source, rows=2, row_length=24, pad_id=0, seed=1)
        self.checkpoints = Checkpoints(folder / "checkpoints", owner=owner)
        self.state: State | None = None
        if newest := self.checkpoints.latest():
            self.state, place = self.checkpoints.restore(newest, self.optimizer)
            self.feed.restore(place)
        else:
            torch.manual_seed(5)

    def go(self, *, save: Iterable[int] = (), kill: int = STEPS + 1) -> None:
        """Train; checkpoint after the steps `save`, die after step `kill`."""
        path, chosen = self.folder / "metrics.jsonl", set(save)
        metrics = Metrics(path, from_step=self.state.step if self.state else 0)
        saver = Saver(self.checkpoints, self.optimizer, self.feed, metrics, seconds=0.0, steps=STEPS)

        def draw(state: State) -> None:
            # what dropout would be: something that reads torch's own generator
            state.figures["drawn"] = float(torch.rand(()))

        def save_some(state: State) -> None:
            if state.step in chosen:
                saver(state)

        def die(state: State) -> None:
            if state.step == kill:
                raise Killed

        hooks = (draw, metrics, save_some, die)
        fit(
            self.model,
            NextToken(),
            self.feed,
            self.optimizer,
            steps=STEPS,
            hooks=hooks,
            state=self.state,
            accumulate=self.accumulate,
        )
        metrics.flush()

    def end(self) -> tuple[list[torch.Tensor], list[dict]]:
        """Return all weights, moments and averages, and the metrics lines without their clock."""
        rows = [json.loads(line) for line in (self.folder / "metrics.jsonl").read_text().splitlines()]
        for row in rows:
            row.pop("tokens_per_s")
        tensors = [*self.optimizer.state(STEPS).values(), *self.optimizer.weights().values(), *self.model.parameters()]
        return [t.detach() for t in tensors], rows


def same_end(a: Run, b: Run) -> None:
    """Assert that two runs ended in the same bits."""
    (tensors, rows), (others, lines) = a.end(), b.end()
    assert rows == lines
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    assert all(torch.equal(x, y) for x, y in zip(tensors, others, strict=True))


@pytest.mark.parametrize(("dtype", "accumulate"), [(torch.float32, 1), (torch.float32, 2), (torch.bfloat16, 1)])
@pytest.mark.parametrize(("saved", "killed"), [([1], 1), ([3, 5], 7), ([7], 11), ([8, 9, 10, 11], 11), ([], 4)])
def test_going_on_equals_never_stopped(
    tmp_path: Path, dtype: torch.dtype, accumulate: int, saved: list[int], killed: int
) -> None:
    whole = Run(tmp_path / "whole", dtype=dtype, accumulate=accumulate)
    whole.go()
    stopped = Run(tmp_path / "stopped", dtype=dtype, accumulate=accumulate)
    with pytest.raises(Killed):
        stopped.go(save=saved, kill=killed)
    again = Run(tmp_path / "stopped", dtype=dtype, accumulate=accumulate)
    assert (again.state.step if again.state else 0) == max(saved, default=0)
    again.go(save=[6])
    same_end(whole, again)


def test_stopped_again_and_again(tmp_path: Path) -> None:
    whole = Run(tmp_path / "whole")
    whole.go()
    for kill in (2, 4, 5, 9):
        with pytest.raises(Killed):
            Run(tmp_path / "stopped").go(save=[kill - 1], kill=kill)
    last = Run(tmp_path / "stopped")
    last.go()
    same_end(whole, last)
    last.checkpoints.clear()
    assert last.checkpoints.latest() is None


def test_torn_checkpoints_are_as_if_they_werent_there(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        Run(tmp_path).go(save=[3], kill=5)
    folder = tmp_path / "checkpoints"
    assert [p.name for p in folder.iterdir()] == ["step-00000003"]
    (folder / ".step-00000005.tmp").mkdir()
    (folder / ".step-00000005.tmp/progress.json").write_text("{")
    (folder / "step-00000004").mkdir()
    (folder / "step-00000004/.metadata").write_bytes(b"torn")
    again = Run(tmp_path)
    assert again.state is not None
    assert again.state.step == 3
    again.go(save=[4, 5])
    assert [p.name for p in folder.iterdir() if not p.name.startswith(".")] == ["step-00000005"]
    whole = Run(tmp_path / "whole")
    whole.go()
    same_end(whole, again)


def test_only_the_newest_is_kept_and_none_of_the_last_step(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.go(save=range(1, STEPS + 1))
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == [f"step-{STEPS - 1:08d}"]


def test_another_recipes_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        Run(tmp_path).go(save=[3], kill=3)
    with pytest.raises(RunError, match=r"step-00000003: written by another recipe .*remove .*checkpoints"):
        Run(tmp_path, owner="you")


def test_progress_is_json_that_a_person_can_read(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        Run(tmp_path).go(save=[3], kill=3)
    progress = json.loads((tmp_path / "checkpoints/step-00000003/progress.json").read_text())
    assert progress["step"] == 3
    assert progress["feed"] == {"epoch": 0, "batch": 3}
