"""The account of a step's device-hours: its parts are its whole, and what was done twice is lost once."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from herd.base.goodput import KINDS, Attempt, account, attempt_of, attempts
from herd.base.ledger import Record
from herd.train.clock import Clock


class Time:
    """A clock that goes on when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Job:
    """A training step of a run on an imagined clock: steps of whole seconds, killed when it is told to."""

    def __init__(self, steps: int, rng: random.Random) -> None:
        self.steps, self.rng = steps, rng
        self.time = Time()
        self.checkpoint = 0
        self.records: list[Record] = []
        self.cost = {step: rng.randint(1, 9) for step in range(1, steps + 1)}

    def attempt(self, until: int, every: int, *, devices: int = 1) -> None:
        """Run an attempt up to step `until` (killed there unless it is the last); checkpoints at each `every`th."""
        clock = Clock(now=self.time)
        self.time.now += 3
        clock.training(self.checkpoint)
        step = self.checkpoint
        while step < until:
            step += 1
            with clock.spending("data"):
                self.time.now += 1
            self.time.now += self.cost[step]
            clock.stepped(step)
            with clock.spending("eval"):
                self.time.now += 2 * (step % 5 == 0)
            if step % every == 0 and step < self.steps:
                clock.mark(step)
                with clock.spending("checkpoint"):
                    self.time.now += 1
                clock.saved(step)
                self.checkpoint = step
        kind = "stage" if step == self.steps else "end"
        spent = clock.spent()
        cost = {
            "device_hours": sum(spent.values()) * devices / 3600,
            "devices": devices,
            "attempt": clock.attempt(),
        }
        self.records.append(Record(f"r{len(self.records)}", kind, "pretrain", cost=cost))


@given(st.integers(0, 10**6), st.integers(1, 4), st.lists(st.tuples(st.floats(0, 1), st.integers(1, 9)), max_size=6))
def test_parts_sum_to_the_whole_and_every_step_is_useful_once(
    seed: int, devices: int, kills: list[tuple[float, int]]
) -> None:
    job = Job(20, random.Random(seed))
    for share, every in kills:
        job.attempt(job.checkpoint + int(share * (19 - job.checkpoint)), every, devices=devices)
    job.attempt(20, 7, devices=devices)
    ((records, tries),) = attempts(job.records)
    assert records == job.records
    split = account(tries)
    total = sum(record.cost["device_hours"] for record in records) * 3600
    assert sum(split.values()) == pytest.approx(total, abs=1e-3)
    assert min(split.values()) >= -1e-6
    assert split["startup"] >= 3 * devices * len(tries)
    # every step once; the first of an attempt counts as no longer than the second (the rest is warming up)
    assert split["useful"] <= devices * sum(job.cost.values()) + 1e-3
    assert split["useful"] >= devices * (sum(job.cost.values()) - 8 * len(tries)) - 1e-3
    assert split["data"] == pytest.approx(20 * devices, abs=1e-3)
    assert split["eval"] == pytest.approx(2 * 4 * devices, abs=1e-3)


def test_work_after_the_last_checkpoint_of_a_killed_attempt_is_lost() -> None:
    saved = {5: {"useful": 50.0, "eval": 2.0, "data": 1.0}, 8: {"useful": 80.0, "eval": 2.0, "data": 1.5}}
    spent = {"useful": 95.0, "eval": 4.0, "data": 2.0, "checkpoint": 3.0, "startup": 7.0}
    killed = Attempt(spent, first=0, saved=saved, whole=False)
    assert account([killed])["lost"] == 15.0 + 2.0 + 0.5  # nobody went on: from its last checkpoint one would
    last = Attempt({"useful": 20.0, "startup": 6.0}, first=8)
    assert account([killed, last]) == dict.fromkeys(KINDS, 0.0) | {
        "useful": 100.0,
        "lost": 17.5,
        "checkpoint": 3.0,
        "eval": 2.0,
        "data": 1.5,
        "startup": 13.0,
    }
    # the newest checkpoint was torn, or removed: what it kept is lost as well
    earlier = Attempt({"useful": 50.0}, first=5)
    assert account([killed, earlier])["useful"] == 100.0
    # the next attempt began anew, and so did a third after the second had gone on
    assert account([killed, Attempt({"useful": 99.0}, first=0)])["useful"] == 99.0
    assert account([killed, last, Attempt({"useful": 99.0}, first=0)])["lost"] == 101.0 + 20.0


def test_a_step_made_anew_is_an_account_of_its_own_and_records_without_one_are_all_work() -> None:
    def record(n: int, kind: str, step: str, hours: float) -> Record:
        return Record(f"r{n}", kind, step, cost={"device_hours": hours, "devices": 1})

    records = [
        record(1, "end", "curate", 1.0),
        record(2, "stage", "curate", 2.0),
        record(3, "start", "curate", 9.0),
        record(4, "stage", "tokenizer", 4.0),
        record(5, "stage", "curate", 3.0),
    ]
    groups = attempts(records)
    assert [[r.id for r in found] for found, _ in groups] == [["r1", "r2"], ["r4"], ["r5"]]
    assert account(groups[0][1])["lost"] == 3600.0
    assert account(groups[0][1])["useful"] == 7200.0
    assert attempt_of(Record("r6", "end", "curate")).total == 0.0  # killed before it could measure anything


def test_going_back_within_an_attempt_loses_the_work_since() -> None:
    time = Time()
    clock = Clock(now=time)
    clock.training(0)
    for step in range(1, 5):
        time.now += 10
        clock.stepped(step)
        if step == 2:
            clock.mark(2)
            clock.saved(2)
    clock.went_back(2)
    assert clock.spent() == {"startup": 0.0, "useful": 20.0, "lost": 20.0, "eval": 0.0, "data": 0.0}
    time.now += 10
    clock.stepped(3)
    assert clock.spent()["useful"] == 30.0
    assert list(clock.durations) == [10.0, 10.0, 10.0, 10.0, 10.0]
    clock.went_back(0)
    assert clock.spent()["lost"] == 50.0


def test_warming_up_is_start_up_also_for_a_checkpoint_taken_meanwhile() -> None:
    time = Time()
    clock = Clock(now=time)
    time.now += 5
    clock.training(0)
    clock.mark(0)
    clock.saved(0)
    time.now += 60
    clock.stepped(1)
    clock.mark(1)
    time.now += 10
    clock.stepped(2)
    clock.saved(1)
    assert clock.spent() == {"startup": 55.0, "useful": 20.0}
    none = {"useful": 0.0, "eval": 0.0, "data": 0.0}
    assert clock.attempt()["saved"] == {"0": none, "1": none | {"useful": 10.0}}


def test_a_hang_is_idle() -> None:
    time = Time()
    clock = Clock(now=time)
    clock.training(4)
    time.now += 10
    clock.stepped(5)
    with clock.spending("data"):
        time.now += 3
        assert clock.current() == 3.0
    time.now += 600
    assert clock.current() == 603.0
    clock.hung()
    time.now += 5
    assert clock.spent() == {"startup": 0.0, "useful": 10.0, "data": 0.0, "idle": 608.0}
