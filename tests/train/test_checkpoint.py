"""Stopped at any step and gone on with is the same as never stopped, bit for bit."""

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import torch
from toys import attempt, optim, toy_model, toy_shards

from herd.base.errors import RunError
from herd.model.transformer import Transformer
from herd.train.batch import Batch
from herd.train.checkpoint import Checkpoints
from herd.train.config import CheckpointConfig, FaultsConfig
from herd.train.durable import Durable
from herd.train.feed import PackedFeed, ShardSource
from herd.train.hooks import Metrics
from herd.train.loop import Accumulate, State
from herd.train.objective import Loss, NextToken, Objective
from herd.train.optim import Optimizer

STEPS = 12
ME = {"config": {"tokens": 5, "optim": {"learning_rate": 0.1}}, "inputs": {"tokenizer": {"tokenizer": "ab"}}}

NEVER, FAULTS = CheckpointConfig(seconds=None), FaultsConfig()


class Killed(Exception):
    """Stands for kill -9."""


class Drawing(NextToken):
    """Reads torch's own generator, as dropout would."""

    metrics = ("drawn",)

    def loss(self, model: Transformer, batch: Batch) -> Loss:
        loss = super().loss(model, batch)
        return replace(loss, metrics={"drawn": torch.rand(()) * loss.weight})


class Run:
    """One attempt at a training step, put together as a stage does it."""

    def __init__(
        self,
        folder: Path,
        *,
        dtype: torch.dtype = torch.float32,
        accumulate: Accumulate = 1,
        owner: Mapping[str, Any] = ME,
        keep: CheckpointConfig = NEVER,
        faults: FaultsConfig = FAULTS,
    ) -> None:
        self.folder, self.accumulate = folder, accumulate
        self.model = toy_model()
        config = optim(average_every=2, average_share=0.5)
        self.optimizer = Optimizer(self.model.named_parameters(), config, steps=STEPS, dtype=dtype)
        source = ShardSource(toy_shards(folder / "shards", documents=12), row_length=24)
        self.feed = PackedFeed(source, rows=2, row_length=24, pad_id=0, seed=1)
        self.told: list[tuple[str, Any]] = []
        self.attempt = attempt(folder, lambda event, facts: self.told.append((event, next(iter(facts.values())))))
        self.checkpoints = Checkpoints(folder / "checkpoints", owner=owner, config=keep, made=self.attempt.saved)
        self.metrics = Metrics(folder / "metrics.jsonl")
        self.run = Durable(
            self.checkpoints, self.optimizer, self.feed, self.metrics, faults=faults, attempt=self.attempt
        )
        self.state = self.run.resume(begin=lambda: torch.manual_seed(5))

    def go(
        self,
        *,
        save: Iterable[int] = (),
        kill: int = STEPS + 1,
        objective: Objective | None = None,
        when_killed: Callable[[], None] = lambda: None,
    ) -> None:
        """Train; checkpoint after the steps `save`, die after step `kill`."""
        chosen = set(save)

        def save_some(state: State) -> None:
            if state.step in chosen:
                self.run.save(state)

        def die(state: State) -> None:
            if state.step == kill:
                when_killed()
                raise Killed

        with self.run:
            self.run.fit(
                self.model,
                objective or Drawing(),
                self.state,
                steps=STEPS,
                accumulate=self.accumulate,
                hooks=(save_some, die),
            )

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


def names(folder: Path) -> list[str]:
    """Return what lies in the checkpoints' folder."""
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


@pytest.mark.parametrize(
    ("dtype", "accumulate"),
    [(torch.float32, 1), (torch.float32, 2), (torch.bfloat16, 1), (torch.float32, lambda step: 1 + step // 4)],
)
@pytest.mark.parametrize(("saved", "killed"), [([1], 1), ([3, 5], 7), ([7], 11), ([8, 9, 10, 11], 11), ([], 4)])
def test_going_on_equals_never_stopped(
    tmp_path: Path, dtype: torch.dtype, accumulate: Accumulate, saved: list[int], killed: int
) -> None:
    whole = Run(tmp_path / "whole", dtype=dtype, accumulate=accumulate)
    whole.go()
    stopped = Run(tmp_path / "stopped", dtype=dtype, accumulate=accumulate)
    with pytest.raises(Killed):
        stopped.go(save=saved, kill=killed)
    again = Run(tmp_path / "stopped", dtype=dtype, accumulate=accumulate)
    assert again.state.step == max(saved, default=0)
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
    assert not (tmp_path / "stopped/checkpoints").exists()


def test_the_copy_is_of_the_moment_of_saving_whatever_the_loop_does_meanwhile(tmp_path: Path) -> None:
    run = Run(tmp_path)
    written = Event()
    write = run.checkpoints._write
    run.checkpoints._write = lambda *parts: (written.wait(60), write(*parts))[1]
    with pytest.raises(Killed):
        # the writing of step 3 begins only when step 5 is done: this run's process is not waited for
        run.go(save=[3], kill=5, when_killed=written.set)
    whole = Run(tmp_path / "whole")
    whole.go()
    again = Run(tmp_path)
    assert again.state.step == 3
    again.go()
    same_end(whole, again)


def test_a_checkpoint_that_lacks_a_file_or_a_byte_is_passed_over(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        Run(tmp_path).go(save=[3, 5], kill=6)
    newest = tmp_path / "checkpoints/step-00000005"
    kept = tmp_path / "kept"
    shutil.copytree(newest, kept)
    files = sorted(path.name for path in newest.iterdir())
    assert {".metadata", "progress.json", "rank-00000.json"} < set(files)

    def cut(path: Path, size: int) -> None:
        path.write_bytes(path.read_bytes()[:size])

    for name in files:
        damages: list[Callable[[Path], None]] = [Path.unlink, lambda p: cut(p, 0), lambda p: cut(p, -1)]
        for damage in damages:
            shutil.rmtree(newest)
            shutil.copytree(kept, newest)
            damage(newest / name)
            again = Run(tmp_path)
            assert again.state.step == 3, f"{name} was damaged and its checkpoint taken"
            assert again.told == [("torn checkpoint", "step-00000005")]
            again.checkpoints.close()


def test_a_save_killed_between_any_two_operations_leaves_whole_checkpoints_only(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        Run(tmp_path / "first").go(save=[3], kill=4)
    states = set()
    for operation in range(1, 1000):
        folder = tmp_path / f"{operation}"
        shutil.copytree(tmp_path / "first", folder)
        finished = dies_at(operation, lambda folder=folder: Run(folder).go(save=[5], kill=5))
        again = Run(folder)
        assert not again.told, "a folder had a checkpoint's name and was not whole"
        states.add(again.state.step)
        assert again.state.step in (3, 5)
        if operation % 10 == 0 or finished:
            again.go(save=[7])
            assert names(folder) == ["step-00000007", *(f"step-{again.state.step:08d}",)][::-1]
        again.checkpoints.close()
        if finished:
            break
    assert finished
    assert states == {3, 5}


def dies_at(operation: int, work: Callable[[], None]) -> bool:
    """Do work in a forked process that ends at the n-th change it makes to files; tell whether it got to its end."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    count = 0

    def watch(event: str, values: tuple[Any, ...]) -> None:
        nonlocal count
        writes = event == "open" and isinstance(values[1], str) and set(values[1]) & set("wax+")
        if writes or event in ("os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate"):
            count += 1
            if count == operation:
                os._exit(9)

    try:
        sys.addaudithook(watch)
        work()
    except Killed:
        os._exit(0)
    finally:
        os._exit(1)


def test_the_newest_are_kept_each_so_manieth_for_good_and_none_of_the_last_step(tmp_path: Path) -> None:
    keep = CheckpointConfig(seconds=None, steps=2, keep=2, keep_every=2)
    run = Run(tmp_path, keep=keep)
    run.go()
    assert names(tmp_path) == [f"step-{step:08d}" for step in (4, 8, 10)]
    run.checkpoints.clear()
    assert names(tmp_path) == [f"step-{step:08d}" for step in (4, 8)]


def test_seconds_without_steps(tmp_path: Path) -> None:
    run = Run(tmp_path, keep=CheckpointConfig(seconds=0.0, keep=1))
    run.go()
    assert names(tmp_path) == [f"step-{STEPS - 1:08d}"]


def test_another_recipes_checkpoint_is_refused_with_the_difference(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        Run(tmp_path).go(save=[3], kill=3)
    other = {"config": {"tokens": 6, "optim": {"learning_rate": 0.1}}, "inputs": {"tokenizer": {"tokenizer": "cd"}}}
    with pytest.raises(RunError) as refused:
        Run(tmp_path, owner=other)
    assert "step-00000003: written by another recipe or from other inputs" in str(refused.value)
    assert "config.tokens was 5, now 6; inputs.tokenizer.tokenizer was 'ab', now 'cd'" in str(refused.value)
    assert f"remove {tmp_path / 'checkpoints'} to start anew" in str(refused.value)


def test_a_disk_that_is_full_is_told_at_the_next_save_and_at_the_end(tmp_path: Path) -> None:
    for saves in ([2], [2, 4]):
        run = Run(tmp_path)

        def full(*parts: Any) -> None:
            raise OSError(28, "No space left on device")

        run.checkpoints._write = full
        with pytest.raises(
            RunError, match=r"checkpoints: a checkpoint could not be written .*No space left.*make room"
        ):
            run.go(save=saves)


def test_progress_is_json_that_a_person_can_read(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        Run(tmp_path).go(save=[3], kill=3)
    progress = json.loads((tmp_path / "checkpoints/step-00000003/progress.json").read_text())
    assert progress["state"]["step"] == 3
    assert progress["places"]["feed"] == {"epoch": 0, "batch": 3}
    assert progress["owner"] == ME
